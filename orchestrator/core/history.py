"""What rows of one target came to before: units used, time taken, bytes brought home. Pure.

Units are kept, not money, so that what was bought at last year's price is told at today's."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from orchestrator.core.cost import Price, Rate

NOTHING = Decimal(0)


class PastAttempt(NamedTuple):
    """An attempt that ended at the provider, of an item (its pk). `quantity`: in `unit`s, where it was charged for such."""

    item: int
    status: str  # the provider's: succeeded, failed, aborted, canceled (by a deadline)
    unit: str | None = None
    quantity: Decimal | None = None
    quantity_out: Decimal | None = None
    seconds: Decimal | None = None  # of predict_time
    took_s: float | None = None  # from its creation to its end
    files: int = 0  # at home
    bytes: int | None = 0  # of these; None: not known, as its files did not come home, or not yet


@dataclass(frozen=True, slots=True)
class History:
    """The newest ended attempts of one target, and what is counted over them. At least one."""

    attempts: tuple[PastAttempt, ...]  # newest first

    @property
    def rows(self) -> int:
        """How many rows they were made for."""
        return len({one.item for one in self.attempts})

    @property
    def attempts_per_row(self) -> float:
        """On the average."""
        return len(self.attempts) / self.rows

    @property
    def failed_share(self) -> float:
        """Of the rows, those whose last attempt did not succeed."""
        last = {one.item: one.status for one in reversed(self.attempts)}
        return sum(status != "succeeded" for status in last.values()) / len(last)

    @property
    def bytes_per_row(self) -> int | None:
        """What a row whose files came home brought on the average; None where there is none."""
        each = [one.bytes for one in self.attempts if one.status == "succeeded" and one.bytes is not None]
        return math.ceil(sum(each) / len(each)) if each else None

    def took_s(self, share: float) -> float | None:
        """Seconds within which this share of what succeeded ended at the provider; None where nobody told."""
        each = sorted(one.took_s for one in self.attempts if one.status == "succeeded" and one.took_s is not None)
        return ranked(each, share) if each else None

    def mean(self, name: str) -> Decimal | None:
        """The mean of `seconds`, or of what was counted (`quantity`, `quantity_out`), over the attempts that tell it."""
        each = [value for one in self.attempts if (value := getattr(one, name)) is not None]
        return sum(each, NOTHING) / len(each) if each else None

    def row_costs(self, price: Price, rate: Rate, *, fixed: Decimal | None, longest_s: Decimal | None = None) -> list[Decimal]:
        """What each row would cost at this rate in USD, zero where it cost nothing; rows of which nobody knows are left out.

        `fixed`: so many units are counted of each that succeeds, whatever it was then. `longest_s`: a deadline of now, at which
        an attempt would end."""
        found: dict[int, Decimal | None] = {}
        for one in self.attempts:
            if longest_s is not None and one.seconds is not None:
                one = one._replace(seconds=min(one.seconds, longest_s))
            usd, before = _usd(one, price, rate, fixed), found.get(one.item, NOTHING)
            found[one.item] = None if usd is None or before is None else before + usd
        return [usd for usd in found.values() if usd is not None]


def history_of(attempts: Iterable[PastAttempt]) -> History | None:
    """None where there are none."""
    kept = tuple(attempts)
    return History(kept) if kept else None


def ranked(each: Sequence[float], share: float) -> float:
    """The value at a share of a sorted list; of few, rather the outer one."""
    place = share * (len(each) - 1)
    return each[math.floor(place) if share < 0.5 else math.ceil(place)]


def _usd(one: PastAttempt, price: Price, rate: Rate, fixed: Decimal | None) -> Decimal | None:
    """By the rules of `core.cost.charge`."""
    if one.status == "aborted" or (one.status == "failed" and price.failed == "free"):
        return NOTHING
    if one.status == "failed":
        return rate.usd * one.seconds if price.failed == "billed" and price.unit == "second" and one.seconds is not None else None
    if fixed is not None and one.status == "succeeded":
        return rate.usd * fixed
    if price.unit == "second" and one.seconds is not None:
        return rate.usd * one.seconds
    if one.unit != price.unit or one.quantity is None:
        return rate.usd * one.files if price.unit == "output" and one.files else None
    out = one.quantity_out or NOTHING
    return rate.usd * one.quantity + (rate.usd if rate.usd_out is None else rate.usd_out) * out
