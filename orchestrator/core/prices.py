"""What a model costs on a day: the job's own word first, then the price book, layer by layer; else nobody knows.

An entry holds from a day on (`as_of`), and several of one model may follow each other: the newest that is not in the future
counts. How a book is read from files is in `core/pricebook.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Any

from orchestrator.core.cost import Price, Rate, Tier, spelled
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import did_you_mean, listed

UNITS = {"per_second_usd": "second", "per_output_usd": "output", "per_output_second_usd": "output second",
         "per_run_usd": "run", "per_input_token_usd": "token"}


class Seller(StrEnum):
    """By whose rules a prediction is billed (Replicate docs: billing)."""

    PUBLIC = "public"  # active time, failed runs free; fast-booting fine-tunes too
    OFFICIAL = "official"  # by what it makes
    PRIVATE = "private"  # all the time its instances are online: not known of a single prediction
    DEPLOYMENT = "deployment"  # likewise

    @property
    def failed(self) -> str:
        """What a failed run costs."""
        return {Seller.PUBLIC: "free", Seller.OFFICIAL: "unknown"}.get(self, "billed")

    @property
    def bills_instances(self) -> bool:
        """Whether what it bills is not told by predictions."""
        return self in (Seller.PRIVATE, Seller.DEPLOYMENT)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the book says of a model, or of a hardware, from a day on."""

    as_of: date | None
    unit: str
    rate: Rate | None
    tiers: tuple[Tier, ...] = ()
    hardware: str | None = None
    fast_booting: bool = False


Entries = Mapping[str, tuple[Entry, ...]]


@dataclass(frozen=True, slots=True)
class Layer:
    """One file's part of the book."""

    mark: str  # what the ids of its prices begin with
    hardware: Entries
    models: Entries


@dataclass(frozen=True, slots=True)
class Book:
    """The layers, the strongest first."""

    layers: tuple[Layer, ...] = ()

    def hardware_names(self) -> list[str]:
        """Every hardware there is a price of."""
        return sorted({name for layer in self.layers for name in layer.hardware})

    def model(self, name: str, *, on: date) -> tuple[str, Entry] | None:
        """The entry of a model that holds on a day, with its id."""
        return self._found("models", name, on)

    def rate_of_hardware(self, name: str, *, on: date) -> tuple[str, Entry] | None:
        """Likewise of a hardware."""
        return self._found("hardware", name, on)

    def _found(self, section: str, name: str, on: date) -> tuple[str, Entry] | None:
        for layer in self.layers:
            entry = newest(getattr(layer, section).get(name, ()), on=on)
            if entry is not None:
                return f"{layer.mark}{name}@{entry.as_of or 'undated'}", entry
        return None

    def begins(self, model: str) -> date | None:
        """The first day of which the book knows this model's price; None where it knows of none."""
        days = [entry.as_of or date.min for layer in self.layers for entry in layer.models.get(model, ())]
        return min(days, default=None)


def newest(entries: Iterable[Entry], *, on: date) -> Entry | None:
    """The newest that is not in the future; one without a date is the oldest."""
    past = [entry for entry in entries if (entry.as_of or date.min) <= on]
    return max(past, key=lambda entry: entry.as_of or date.min, default=None)


def resolve(book: Book, *, model: str, seller: Seller, given: Mapping[str, Any] | None, on: date,
            defaults: Mapping[str, Any] | None = None) -> Price | None:
    """The price of a model on a day: the job's own `price` (`given`) first, then the book; None where neither knows.

    `defaults` are the values that the model gives to inputs left out. Raises BadInput where `given` cannot be used."""
    if given:
        id_, entry = "job", _of_job(given)
    elif seller is Seller.DEPLOYMENT or (found := book.model(model, on=on)) is None:
        return None
    else:
        id_, entry = found
    seller = seller_of(seller, entry)
    if entry.hardware is not None:
        there = book.rate_of_hardware(entry.hardware, on=on)
        if there is None:
            raise BadInput(no_hardware(entry.hardware, book.hardware_names()))
        id_, entry = f"{id_}:{there[0]}", replace(entry, rate=there[1].rate)
    asked = {name for tier in entry.tiers for name, _ in tier.when}
    known = {name: spelled(value) for name, value in (defaults or {}).items() if name in asked and value is not None}
    usd, usd_out = (None, None) if entry.rate is None else entry.rate
    return Price(id_, entry.unit, usd, usd_out, seller.failed, seller.bills_instances, entry.tiers, tuple(sorted(known.items())))


def seller_of(seller: Seller, entry: Entry) -> Seller:
    """Fast-booting fine-tunes bill like public models although they are private."""
    return Seller.PUBLIC if seller is Seller.PRIVATE and entry.fast_booting else seller


def no_hardware(name: str, known: Sequence[str]) -> str:
    """That there is no price of a hardware, and of which there is one."""
    return f"there is no price of hardware {name!r}{did_you_mean(name, known)}; the price book has {listed(known, most=40)}"


def _of_job(given: Mapping[str, Any]) -> Entry:
    """A job's `price`, which was checked with the job."""
    out = given.get("per_output_token_usd")
    for name, unit in UNITS.items():
        if given.get(name) is not None:
            rate = Rate(Decimal(str(given[name])), None if out is None else Decimal(str(out)))
            return Entry(None, unit, rate, fast_booting=given.get("fast_booting") is True)
    return Entry(None, "second", None, hardware=given["hardware"], fast_booting=given.get("fast_booting") is True)
