"""What an attempt cost, and what it may cost at worst. Money is Decimal USD here and integers of 10^-12 USD in SQL.

Replicate's API has no cost field, so a charge is computed from a price and from what the prediction says of itself.
What cannot be known is None, never zero (Replicate docs: billing).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.records import MILLION_MILLIONTHS, Prediction


@dataclass(frozen=True, slots=True)
class Price:
    """One price. `unit`: second (of predict_time), output (a file), run, or token (in and out priced apart)."""

    id: str  # where it stands: price book entry and date, or `job`
    unit: str
    usd: Decimal
    usd_out: Decimal | None = None  # token: price of an output token
    failed: str = "free"  # failed runs: free (public community models), billed (deployments), unknown (official ones)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, money as text."""
        return {"id": self.id, "unit": self.unit, "usd": str(self.usd), "failed": self.failed,
                "usd_out": None if self.usd_out is None else str(self.usd_out)}

    @staticmethod
    def from_json(value: Mapping[str, Any] | None) -> "Price | None":
        """The inverse of `to_json`; None stays None."""
        if value is None:
            return None
        out = value.get("usd_out")
        return Price(value["id"], value["unit"], Decimal(value["usd"]), None if out is None else Decimal(out),
                     value.get("failed") or ("unknown" if value.get("official") else "free"))


@dataclass(frozen=True, slots=True)
class Pricing:
    """What a batch keeps about money from its start: its price, and the most outputs that one row can give."""

    price: Price | None
    most_outputs: int

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({"price": self.price.to_json() if self.price else None, "most_outputs": self.most_outputs})

    @staticmethod
    def from_json(text: str) -> "Pricing":
        """The inverse of `to_json`."""
        value = json.loads(text)
        return Pricing(Price.from_json(value["price"]), value["most_outputs"])

    def worst_case_usd(self, *, cancel_after_s: float | None, per_row_usd: Decimal | None) -> Decimal | None:
        """The most that one row can cost, or None where it is not finite: then a cap cannot be kept."""
        if per_row_usd is not None:
            return per_row_usd
        if self.price is None or self.price.unit == "token":
            return None
        if self.price.unit == "second":
            return None if cancel_after_s is None else self.price.usd * Decimal(str(cancel_after_s))
        return self.price.usd * (self.most_outputs if self.price.unit == "output" else 1)


@dataclass(frozen=True, slots=True)
class Charge:
    """What an attempt cost (None: unknown) and how that is known."""

    usd: Decimal | None
    basis: str | None


FREE = Charge(Decimal(0), "free")
NOT_BOUGHT = Charge(Decimal(0), "not bought")
UNKNOWN = Charge(None, None)


def to_units(usd: Decimal) -> int:
    """USD as an integer of 10^-12 USD; anything finer is rounded up, against ourselves."""
    scaled = usd * MILLION_MILLIONTHS
    whole = int(scaled)
    return whole if scaled == whole else whole + 1


def to_usd(units: int) -> Decimal:
    """The inverse of `to_units`, without trailing zeros or an exponent."""
    usd = (Decimal(units) / MILLION_MILLIONTHS).normalize()
    return usd if usd.as_tuple().exponent <= 0 else usd.quantize(Decimal(1))  # type: ignore[operator]


def charge(prediction: Prediction, *, price: Price | None, outputs: int | None) -> Charge:
    """The charge of an ended prediction: `outputs` is the number of files it gave, None if that is not known.

    Failed public runs and aborted ones are free, canceled ones are billed up to the cancellation, failed ones of
    deployments are billed (Replicate docs: billing). Whether a failed run of an official model is billed is not documented:
    unknown.
    """
    if prediction.status == "aborted":
        return FREE
    if prediction.status == "failed":
        return _of_failed(prediction, price)
    if price is None:
        return UNKNOWN
    return _METHODS[price.unit](prediction, price, outputs)


def _by_second(prediction: Prediction, price: Price, _outputs: int | None) -> Charge:
    seconds = prediction.metrics.get("predict_time")
    if not isinstance(seconds, int | float):
        return UNKNOWN
    return Charge(price.usd * Decimal(str(seconds)), "metrics")


def _by_output(prediction: Prediction, price: Price, outputs: int | None) -> Charge:
    if prediction.status != "succeeded" or outputs is None:
        return UNKNOWN
    return Charge(price.usd * outputs, "counted outputs")


def _by_run(prediction: Prediction, price: Price, _outputs: int | None) -> Charge:
    return Charge(price.usd, "run") if prediction.status == "succeeded" else UNKNOWN


def _by_token(prediction: Prediction, price: Price, _outputs: int | None) -> Charge:
    read, wrote = (prediction.metrics.get(name) for name in ("input_token_count", "output_token_count"))
    if not isinstance(read, int) or not isinstance(wrote, int):
        return UNKNOWN
    return Charge(price.usd * read + (price.usd_out or price.usd) * wrote, "metrics")


def _of_failed(prediction: Prediction, price: Price | None) -> Charge:
    if price is None or price.failed == "unknown":
        return UNKNOWN
    if price.failed == "free":
        return FREE
    return _by_second(prediction, price, None) if price.unit == "second" else UNKNOWN


_METHODS = {"second": _by_second, "output": _by_output, "run": _by_run, "token": _by_token}


def resolve(*, model: str, official: bool, given: Mapping[str, Any] | None, book: Mapping[str, Any],
            deployment: bool) -> Price | None:
    """The price of a model: the job's own `price` first, then the price book; None where neither knows.

    A deployment is billed for its instances' time online, not per prediction: no price per row can be derived.
    """
    failed = "billed" if deployment else "unknown" if official else "free"
    if given:
        return _entry(given, book=book, failed=failed, id_="job")
    if deployment:
        return None
    entry = book.get("models", {}).get(model)
    if entry is None:
        return None
    return _entry(entry, book=book, failed=failed, id_=f"{model}@{entry.get('as_of', '?')}")


_UNITS = {"per_second_usd": "second", "per_output_usd": "output", "per_run_usd": "run", "per_input_token_usd": "token"}


def _entry(entry: Mapping[str, Any], *, book: Mapping[str, Any], failed: str, id_: str) -> Price:
    hardware = entry.get("hardware")
    if hardware is not None:
        rate = book.get("hardware", {}).get(hardware)
        if rate is None:
            known = ", ".join(sorted(book.get("hardware", {})))
            raise BadInput(f"price: hardware {hardware!r} is not in the price book; it has {known}")
        return Price(f"{id_}:{hardware}", "second", Decimal(str(rate["per_second_usd"])), failed=failed)
    for name, unit in _UNITS.items():
        if entry.get(name) is not None:
            out = entry.get("per_output_token_usd")
            return Price(id_, unit, Decimal(str(entry[name])), None if out is None else Decimal(str(out)), failed)
    raise BadInput(f"price: say one of hardware, {', '.join(_UNITS)}")

