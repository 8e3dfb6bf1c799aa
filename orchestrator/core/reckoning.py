"""Charges reckoned again: each from what is kept beside it, and from what the provider says of its prediction now. Pure."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from orchestrator.core.cost import Charge, Price, Pricing, charge, of_line, to_units, to_usd
from orchestrator.core.findings import Finding, Findings, Kind
from orchestrator.core.lifecycle import ALIVE_ATTEMPT
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import ChargeLine, Prediction
from orchestrator.core.retry import outputs_of

ALIVE = frozenset(state.value for state in ALIVE_ATTEMPT)
FREE_OF_CHARGE = frozenset({"free", "not bought"})
WHAT_NOW = "the ledger keeps what it was told first; `orchestrator costs --invoice FILE` shows which of the two was billed"


@dataclass(frozen=True, slots=True)
class Booked:
    """What the ledger has of one attempt's charge, as it is stored: decimals are text, and nothing is believed of them."""

    batch_pk: int
    row: int
    row_id: str
    n: int  # which try of its row it was
    state: str
    prediction_id: str | None
    at: datetime  # when it ended, was answered, or was made
    units: int | None  # in 10^-12 USD; None: unknown, or not known yet
    basis: str | None
    unit: str | None
    quantity: str | None
    price: str | None
    price_id: str | None
    quantity_out: str | None = None
    price_out: str | None = None
    input_json: str | None = None  # of its row, where the charge is without a price

    @property
    def is_over(self) -> bool:
        """Whether its charge is final."""
        return self.state not in ALIVE

    @property
    def line(self) -> ChargeLine | None:
        """What it was reckoned from; None where nothing is kept. Raises InvalidOperation for what is no decimal."""
        if self.unit is None or self.quantity is None or self.price is None:
            return None
        return ChargeLine(self.unit, Decimal(self.quantity), Decimal(self.price), self.price_id or "",
                          _decimal(self.quantity_out), _decimal(self.price_out))


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


@dataclass(frozen=True, slots=True)
class Unpriced:
    """An attempt that ended at a cost nobody knows, and what the ledger keeps of its prediction; the input as that of its row."""

    item_pk: int
    n: int
    prediction_id: str
    status: str
    output_json: str | None
    metrics_json: str | None
    input_json: str | None


@dataclass(slots=True)
class PricedNow:
    """What attempts of unknown cost come to at the price that there is now. `price_id`: of that price; None: there is none."""

    price_id: str | None
    rows: int = 0
    units: int = 0
    unknown: int = 0  # rows that this price does not make known
    _row: int | None = None  # of the last attempt, and whether it was counted

    def add(self, one: Unpriced, now: Charge) -> None:
        """One attempt, in the order of rows: those that several of are unknown count once."""
        is_new, self._row = one.item_pk != self._row, one.item_pk
        if now.usd is None:
            self.unknown += is_new
            return
        self.rows += is_new
        self.units += to_units(now.usd)


def price_now(one: Unpriced, pricing: Pricing, *, count_files: Callable[[object], int]) -> Charge:
    """The charge of an attempt by what is kept of its prediction. What came is not kept for ever: a price by file needs it."""
    output = None if one.output_json is None else json.loads(one.output_json)
    metrics = {} if one.metrics_json is None else json.loads(one.metrics_json)
    prediction = Prediction(one.prediction_id, one.status, output=output, metrics=metrics, data_removed=output is None)
    given = None if one.input_json is None else json.loads(one.input_json)
    outputs = outputs_of(prediction, count_files)
    return charge(prediction, price=pricing.price, outputs=outputs, given=given, failed=pricing.failed)


@dataclass(slots=True)
class Charges:
    """How far charges were reckoned again. Differences are the provider's figure minus the ledger's."""

    reckoned: int = 0  # from what is kept beside them
    bare: int = 0  # above zero, and nothing is kept beside them: of versions that did not yet
    units: int = 0  # of all of them together
    compared: int = 0  # with what the provider says now
    agree: int = 0
    difference_units: int = 0
    untold: int = 0  # the provider no longer tells what was counted
    unknown: int = 0  # here, and by what it says now
    priceable: Findings = field(default_factory=Findings)  # unknown here, and it tells now: nothing wrong
    priceable_units: int = 0
    priced_now: PricedNow | None = None  # unknown here, by what the ledger keeps and the price that there is now


# By itself


def judge_line(booked: Booked) -> Finding | None:
    """A charge is its own quantity at its own price, and nothing where nothing was bought."""
    if booked.units is None:
        return None
    try:
        line = booked.line
        units = booked.units if line is None else to_units(of_line(line))
    except (InvalidOperation, ValueError, OverflowError):
        return _finding(Kind.CHARGE, booked, "is charged by a quantity or price that is no number")
    if booked.basis in FREE_OF_CHARGE:
        units = 0
    if units == booked.units:
        return None
    reckoned = "nothing" if line is None or booked.basis in FREE_OF_CHARGE else line_text(line)
    return _finding(Kind.CHARGE, booked, f"is charged {_usd(booked.units)}; what is kept beside it comes to {reckoned}")


def note_line(charges: Charges, booked: Booked) -> Finding | None:
    """Count one attempt's charge, and judge it. What was handed back and never sent is no charge: it has no prediction."""
    if booked.units is None:
        return None
    charges.units += booked.units
    if not booked.units and booked.prediction_id is None:
        return judge_line(booked)
    if booked.units and booked.unit is None:
        charges.bare += 1
    else:
        charges.reckoned += 1
    return judge_line(booked)


def judge_sum(charges: Charges, *, spent_units: int) -> Finding | None:
    """What a batch spent is the sum of its charges."""
    if charges.units == spent_units:
        return None
    return Finding(Kind.SPENT, f"the batch has {_usd(spent_units)} as spent; its charges come to {_usd(charges.units)}")


# By what the provider says now


class Verdict(StrEnum):
    """How a charge compares with the provider's word."""

    AGREES = "agrees"
    DIFFERS = "differs"
    UNTOLD = "untold"  # charged, and the provider no longer tells what was counted
    UNKNOWN = "unknown"  # on both sides
    PRICEABLE = "priceable"  # unknown here, and now it tells


def reckon(prediction: Prediction, booked: Booked, pricing: Pricing, *, count_files: Callable[[object], int]) -> Charge:
    """The charge of a prediction as the provider shows it now: at the attempt's own price, or, where it has none, at that of its
    batch."""
    outputs, given = outputs_of(prediction, count_files), None if booked.input_json is None else json.loads(booked.input_json)
    return charge(prediction, price=_price_of(booked, pricing), outputs=outputs, given=given, failed=pricing.failed)


def _price_of(booked: Booked, pricing: Pricing) -> Price | None:
    line = None if booked.units is None else booked.line
    if line is None:
        return pricing.price
    failed = pricing.failed if pricing.price is None else pricing.price.failed
    return Price(line.price_id, line.unit, line.usd, line.usd_out, failed=failed, is_estimate=booked.basis == "estimate")


def verdict(booked: Booked, now: Charge) -> Verdict:
    """Compare what the ledger has with what it would charge now."""
    if now.usd is None:
        return Verdict.UNKNOWN if booked.units is None else Verdict.UNTOLD
    if booked.units is None:
        return Verdict.PRICEABLE
    return Verdict.AGREES if to_units(now.usd) == booked.units else Verdict.DIFFERS


def note_now(charges: Charges, booked: Booked, prediction: Prediction, now: Charge) -> Finding | None:
    """Count one comparison; the difference, where there is one."""
    found = verdict(booked, now)
    if found in (Verdict.UNTOLD, Verdict.UNKNOWN) or now.usd is None:
        charges.untold += found is Verdict.UNTOLD
        charges.unknown += found is Verdict.UNKNOWN
        return None
    units = to_units(now.usd)
    if booked.units is None:
        charges.priceable_units += units
        charges.priceable.add(_finding(Kind.CHARGED_OTHERWISE, booked, f"could be priced now: {_now_text(prediction, now)}"))
        return None
    charges.compared += 1
    charges.agree += found is Verdict.AGREES
    charges.difference_units += units - booked.units
    return _difference(booked, prediction, now) if found is Verdict.DIFFERS else None


def is_comparable(prediction: Prediction, booked: Booked) -> bool:
    """Whether both sides know the end (what a live batch has not heard of has no charge yet), and the charge is sound in
    itself."""
    return prediction.status in TERMINAL and booked.is_over and judge_line(booked) is None


def _difference(booked: Booked, prediction: Prediction, now: Charge) -> Finding:
    assert now.usd is not None and booked.units is not None
    more = to_units(now.usd) - booked.units
    line = booked.line
    was = f"nothing ({booked.basis})" if line is None else line_text(line)
    text = (f"is charged {was}; the provider now says {_now_text(prediction, now)}, {_usd(abs(more))} "
            f"{'more' if more > 0 else 'less'}")
    return _finding(Kind.CHARGED_OTHERWISE, booked, text, remedy=WHAT_NOW)


def _now_text(prediction: Prediction, now: Charge) -> str:
    if now.line is None:
        return f"{prediction.status}, which costs nothing"
    return line_text(now.line)


def line_text(line: ChargeLine) -> str:
    """`2.5 × $0.000975 = $0.0024375 (second)`: the quantities, the prices, and what they come to."""
    text = f"{_plain(line.quantity)} × ${_plain(line.usd)}"
    if line.quantity_out is not None:
        text += f" + {_plain(line.quantity_out)} × ${_plain(line.usd_out or Decimal(0))}"
    return f"{text} = {_usd(to_units(of_line(line)))} ({line.unit})"


def _plain(value: Decimal) -> str:
    return format(value, "f")


def _usd(units: int) -> str:
    return f"${_plain(to_usd(units))}"


def _finding(kind: Kind, booked: Booked, text: str, *, remedy: str | None = None) -> Finding:
    return Finding(kind, text, booked.row, booked.row_id, prediction_id=booked.prediction_id, remedy=remedy)
