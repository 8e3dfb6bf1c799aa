"""What an attempt cost, and what it may cost at worst. Money is Decimal USD here and integers of 10^-12 USD in SQL.

Replicate's API has no cost field, so a charge is computed from a price (`core/prices.py` finds it) and from what the
prediction says of itself. What cannot be known is None, never zero (Replicate docs: billing).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from orchestrator.core.job import MOST_USD
from orchestrator.core.records import MILLION_MILLIONTHS, ChargeLine, Prediction


class Rate(NamedTuple):
    """US dollars for one unit; of tokens for one read, and for one written."""

    usd: Decimal
    usd_out: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """The rate of rows whose input has these values, spelled as `spelled` does: input name, and what it may be."""

    when: tuple[tuple[str, tuple[str, ...]], ...]
    rate: Rate

    def fits(self, given: Mapping[str, str]) -> bool:
        """Whether an input is of this tier."""
        return all(given.get(name) in values for name, values in self.when)

    def may_fit(self, known: Mapping[str, str]) -> bool:
        """Whether an input of which only some is known may be of this tier."""
        return all(known[name] in values for name, values in self.when if name in known)


@dataclass(frozen=True, slots=True)
class Price:
    """One price. `unit`: second (of predict_time), output (a file), output second (of video), run, or token (in and out
    priced apart). The first tier that fits an input has its rate; where none fits, the price's own; without one nobody knows."""

    id: str  # where it stands: price book entry and date, or `job`
    unit: str
    usd: Decimal | None  # None: only its tiers have a rate
    usd_out: Decimal | None = None  # token: price of an output token
    failed: str = "free"  # failed runs: free (public community models), billed (deployments, private), unknown (official)
    is_estimate: bool = False  # the bill counts what no prediction tells: set-up and idle time of one's own instances
    tiers: tuple[Tier, ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()  # of the inputs that tiers ask for, where a row leaves them out

    @property
    def rate(self) -> Rate | None:
        """The rate where no tier fits."""
        return None if self.usd is None else Rate(self.usd, self.usd_out)

    def rate_of(self, given: Mapping[str, Any] | None) -> Rate | None:
        """The rate of a row by its input; None where nobody knows."""
        if not self.tiers:
            return self.rate
        if given is None:
            return None
        said = dict(self.defaults) | {name: spelled(value) for name, value in given.items() if value is not None}
        return next((tier.rate for tier in self.tiers if tier.fits(said)), self.rate)

    def dearest(self, known: Mapping[str, Any]) -> Rate | None:
        """The dearest rate of rows of which these inputs are known: constants, and defaults of what nothing feeds."""
        rates = self._possible(known)
        return max(rates or [tier.rate for tier in self.tiers], key=lambda rate: rate.usd, default=None)

    def cheapest(self, known: Mapping[str, Any]) -> Rate | None:
        """The cheapest, likewise; what a row costs of which nobody knows the rate is left out."""
        return min(self._possible(known), key=lambda rate: rate.usd, default=None)

    def _possible(self, known: Mapping[str, Any]) -> list[Rate]:
        said = {name: spelled(value) for name, value in known.items() if value is not None}
        rates: list[Rate] = []
        for tier in self.tiers:
            if tier.may_fit(said):
                rates.append(tier.rate)
                if tier.fits(said):
                    return rates
        return rates if self.rate is None else [*rates, self.rate]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, money as text."""
        return {"id": self.id, "unit": self.unit, **_rate_json(self.rate), "failed": self.failed,
                "estimate": self.is_estimate, "defaults": dict(self.defaults),
                "tiers": [{"when": {name: list(values) for name, values in tier.when}, **_rate_json(tier.rate)}
                          for tier in self.tiers]}

    @staticmethod
    def from_json(value: Mapping[str, Any] | None) -> "Price | None":
        """The inverse of `to_json`, also of what older versions wrote; None stays None."""
        if value is None:
            return None
        tiers = tuple(Tier(tuple((name, tuple(values)) for name, values in tier["when"].items()), rate)
                      for tier in value.get("tiers", ()) if (rate := _rate(tier)) is not None)
        usd, usd_out = _rate(value) or (None, None)
        return Price(value["id"], value["unit"], usd, usd_out,
                     value.get("failed") or ("unknown" if value.get("official") else "free"),
                     value.get("estimate", False), tiers, tuple(value.get("defaults", {}).items()))


def _rate_json(rate: Rate | None) -> dict[str, str | None]:
    return {"usd": None if rate is None else str(rate.usd),
            "usd_out": None if rate is None or rate.usd_out is None else str(rate.usd_out)}


def _rate(value: Mapping[str, Any]) -> Rate | None:
    usd, out = value["usd"], value.get("usd_out")
    return None if usd is None else Rate(Decimal(usd), None if out is None else Decimal(out))


def spelled(value: Any) -> str:
    """The value of an input as a price's condition has it: `true`, `8` for 8.0 as well, text as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Pricing:
    """What a batch keeps about money from its start: its price, and what bounds the cost of a row."""

    price: Price | None
    most_outputs: int | None  # that one row can give; None: nothing bounds them
    most_seconds: Decimal | None = None  # of video that one output can last
    dearest_usd: Decimal | None = None  # of the rates that a row can have
    failed: str = "unknown"  # as of `Price`, for a model without one
    least_usd: Decimal | None = None  # that a row which succeeds is known to cost; None: not known

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({
            "price": self.price.to_json() if self.price else None, "most_outputs": self.most_outputs, "failed": self.failed,
            "most_seconds": _text(self.most_seconds), "dearest_usd": _text(self.dearest_usd), "least_usd": _text(self.least_usd)})

    @staticmethod
    def from_json(text: str) -> "Pricing":
        """The inverse of `to_json`, also of what older versions wrote."""
        value = json.loads(text)
        price = Price.from_json(value["price"])
        dearest, only = _decimal(value.get("dearest_usd")), None if price is None else price.usd
        return Pricing(price, value["most_outputs"], _decimal(value.get("most_seconds")), only if dearest is None else dearest,
                       value.get("failed", "unknown"), _decimal(value.get("least_usd")))

    def worst_case_usd(self, *, cancel_after_s: float | None, per_row_usd: Decimal | None) -> Decimal | None:
        """The most that one row can cost, or None where it is not finite: then a cap cannot be kept. Never less than what it is
        known to cost at least: a batch that was loaded without a cap may meet one of the settings."""
        if per_row_usd is not None:
            return per_row_usd if self.least_usd is None else max(per_row_usd, self.least_usd)
        if self.price is None or self.dearest_usd is None:
            return None
        most = self._most(self.price.unit, None if cancel_after_s is None else Decimal(str(cancel_after_s)))
        return None if most is None else self.dearest_usd * most

    def _most(self, unit: str, cancel_after_s: Decimal | None) -> Decimal | None:
        """The most units that one row can use."""
        outputs = None if self.most_outputs is None else Decimal(self.most_outputs)
        if unit == "output second":
            return None if self.most_seconds is None or outputs is None else self.most_seconds * outputs
        return {"second": cancel_after_s, "output": outputs, "run": Decimal(1)}.get(unit)


def _text(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


@lru_cache(maxsize=64)
def asks_input(price_json: str) -> bool:
    """Whether the charge of an attempt needs its row's input: asked with every fact, so remembered."""
    if price_json in ("", "null"):
        return False
    price = Pricing.from_json(price_json).price
    return price is not None and bool(price.tiers)


@dataclass(frozen=True, slots=True)
class Charge:
    """What an attempt cost (None: unknown), how that is known, and what was counted."""

    usd: Decimal | None
    basis: str | None  # metrics, counted outputs, run, estimate; free, not bought
    line: ChargeLine | None = None
    is_absurd: bool = False  # it was reckoned, and came to more than a job may say of money: nobody believes that


FREE = Charge(Decimal(0), "free")
NOT_BOUGHT = Charge(Decimal(0), "not bought")
UNKNOWN = Charge(None, None)
ABSURD = Charge(None, None, is_absurd=True)


def to_units(usd: Decimal) -> int:
    """USD as an integer of 10^-12 USD; anything finer is rounded up, against ourselves."""
    scaled = usd * MILLION_MILLIONTHS
    whole = int(scaled)
    return whole if scaled == whole else whole + 1


def to_usd(units: int) -> Decimal:
    """The inverse of `to_units`, without trailing zeros or an exponent."""
    usd = (Decimal(units) / MILLION_MILLIONTHS).normalize()
    return usd if usd.as_tuple().exponent <= 0 else usd.quantize(Decimal(1))  # type: ignore[operator]


def usd_text(usd: Decimal) -> str:
    """`$0.60`, `$0.0045`: at least cents, and every digit there is."""
    digits = -int(usd.as_tuple().exponent)
    return f"${usd:,.2f}" if digits < 2 else f"${usd:,f}"


def charge(prediction: Prediction, *, price: Price | None, outputs: int | None, given: Mapping[str, Any] | None = None,
           failed: str = "unknown") -> Charge:
    """The charge of an ended prediction: `outputs` is the number of files it gave, None if that is not known; `given` its
    row's input, which only a price with tiers asks for; `failed` says what a failed run costs where there is no price.

    Failed public runs and aborted ones are free, canceled ones are billed up to the cancellation, failed ones of
    deployments and private models are billed (Replicate docs: billing). Whether a failed run of an official model is
    billed is not documented: unknown.
    """
    if prediction.status == "aborted":
        return FREE
    if prediction.status == "failed":
        failed = failed if price is None else price.failed
        if failed != "billed":
            return FREE if failed == "free" else UNKNOWN
    rate = None if price is None else price.rate_of(given)
    if price is None or rate is None or (prediction.status == "failed" and price.unit != "second"):
        return UNKNOWN
    found = _METHODS[price.unit](prediction, outputs)
    return UNKNOWN if found is None else _charge(price, rate, found)


class _Used(NamedTuple):
    """So many units, and how that is known."""

    basis: str
    quantity: Decimal
    quantity_out: Decimal | None = None


def _charge(price: Price, rate: Rate, used: _Used) -> Charge:
    rate_out = None
    if used.quantity_out is not None:
        rate_out = rate.usd if rate.usd_out is None else rate.usd_out
    line = ChargeLine(price.unit, used.quantity, rate.usd, price.id, used.quantity_out, rate_out)
    usd = of_line(line)
    if usd > MOST_USD:  # a few of these are more than the ledger can hold: the facts would be lost with them
        return ABSURD
    return Charge(usd, "estimate" if price.is_estimate else used.basis, line)


def of_line(line: ChargeLine) -> Decimal:
    """What a charge's line comes to: its quantity at its price, of tokens both of them."""
    usd = line.usd * line.quantity
    return usd if line.quantity_out is None or line.usd_out is None else usd + line.usd_out * line.quantity_out


def _told(prediction: Prediction, *names: str) -> Decimal | None:
    """The first of these metrics that is a number, digit for digit as the provider writes it; None where none is told."""
    for name in names:
        value = prediction.metrics.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = Decimal(str(value))
            return number if number.is_finite() and number >= 0 else None
    return None


# What official models tell of themselves (public code of Replicate's own models records them). Language models of 2024 had
# the words in another order.
_COUNTS = ("image_output_count", "video_output_count", "audio_output_count", "generic_output_count")
_READ, _WROTE = ("token_input_count", "input_token_count"), ("token_output_count", "output_token_count")


def _by_second(prediction: Prediction, _outputs: int | None) -> _Used | None:
    seconds = _told(prediction, "predict_time")
    return None if seconds is None else _Used("metrics", seconds)


def _by_output(prediction: Prediction, outputs: int | None) -> _Used | None:
    """By the provider's own count, else by counting the files that came. What came without a file is not nothing: nobody knows
    how the provider counts it."""
    counts = [told for name in _COUNTS if (told := _told(prediction, name)) is not None]
    if len(counts) == 1:
        return _Used("metrics", counts[0])
    if prediction.status != "succeeded" or outputs is None or (outputs == 0 and prediction.output not in (None, [])):
        return None
    return _Used("counted outputs", Decimal(outputs))


def _by_output_second(prediction: Prediction, _outputs: int | None) -> _Used | None:
    """A file does not tell how long it lasts, and what was asked for is not what came: only the provider's word counts."""
    seconds = _told(prediction, "video_output_duration_seconds", "audio_output_duration_seconds")
    return None if seconds is None else _Used("metrics", seconds)


def _by_run(prediction: Prediction, _outputs: int | None) -> _Used | None:
    return _Used("run", Decimal(1)) if prediction.status == "succeeded" else None


def _by_token(prediction: Prediction, _outputs: int | None) -> _Used | None:
    read, wrote = _told(prediction, *_READ), _told(prediction, *_WROTE)
    return None if read is None or wrote is None else _Used("metrics", read, wrote)


_METHODS = {"second": _by_second, "output": _by_output, "output second": _by_output_second, "run": _by_run, "token": _by_token}
