"""What a batch is expected to cost, from its price, the model's schema, and what such rows came to before. Pure.

What cannot be known is None and says what would make it known: never a guess, never zero."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

from orchestrator.core.asked import Amount
from orchestrator.core.cost import Price, Rate, to_units, to_usd
from orchestrator.core.history import NOTHING, History, ranked

FEWEST_ROWS = 2  # of which a spread can be told
TENTH, NINE_TENTHS = 0.1, 0.9
EXACT = Decimal(1).scaleb(-12)  # as the ledger counts
TRY_FIRST = "run it with --limit 3 first"


class Figure(NamedTuple):
    """US dollars for one row, None: not known; and how it is known, or what would make it known."""

    usd: Decimal | None
    how: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What an estimate is made from. `rate`: of these rows, on the average; None: nobody knows. `worst_usd`: of one row."""

    price: Price | None
    rate: Rate | None
    asked: Amount
    worst_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one row costs, and how many will be bought. Where they are known, low <= expected <= high <= worst case; but where the
    worst case is only what the job says (`budget.per_row_usd`), or a bound is wrong, what is known may be above it."""

    rows: int
    low: Figure
    expected: Figure
    high: Figure
    worst_usd: Decimal | None  # of one row: what is reserved

    @property
    def above_worst_usd(self) -> Decimal | None:
        """The greatest figure of one row, where it is above the worst case; None: none is."""
        known = [figure.usd for figure in (self.low, self.expected, self.high) if figure.usd is not None]
        most = max(known, default=NOTHING)
        return most if self.worst_usd is not None and most > self.worst_usd else None

    def in_all(self, usd: Decimal | None) -> Decimal | None:
        """So much for each row, for all of them."""
        return None if usd is None else to_usd(to_units(usd * self.rows))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON: money of one row and of all, as decimal text."""
        figures = {"low": self.low, "expected": self.expected, "high": self.high}
        each = {f"{name}_usd": figure.usd for name, figure in figures.items()} | {"worst_case_usd": self.worst_usd}
        return {"rows": self.rows, **{name: _text(self.in_all(usd)) for name, usd in each.items()},
                "per_row": {name: _text(usd) for name, usd in each.items()},
                "how": {name: figure.how for name, figure in figures.items()}}

    @staticmethod
    def from_json(text: str | None) -> "Estimate | None":
        """The inverse of `to_json` as text; None stays None."""
        if text is None:
            return None
        value = json.loads(text)
        low, expected, high = (Figure(_decimal(value["per_row"][f"{name}_usd"]), value["how"][name])
                               for name in ("low", "expected", "high"))
        return Estimate(value["rows"], low, expected, high, _decimal(value["per_row"]["worst_case_usd"]))


def _text(usd: Decimal | None) -> str | None:
    return None if usd is None else format(usd.normalize(), "f")


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def estimate(terms: Terms, past: History | None, *, rows: int) -> Estimate:
    """For so many rows that will be bought."""
    low, expected, high = _by_past(terms, past) or _by_schema(terms)
    found = Estimate(rows, low, expected, high, terms.worst_usd)
    if high.usd is not None or terms.worst_usd is None or found.above_worst_usd is not None:
        return found
    return replace(found, high=Figure(terms.worst_usd, "the worst case, which is reserved"))


def _by_past(terms: Terms, past: History | None) -> tuple[Figure, Figure, Figure] | None:
    """A row that cost nothing, as it failed, counts in what is low and expected; None where too little is known of the past."""
    price, rate = terms.price, terms.rate
    if past is None or price is None or rate is None:
        return None
    fixed = None if price.unit == "output second" else terms.asked.fixed  # a film lasts about as long as was asked for
    longest_s = terms.asked.most if price.unit == "second" else None
    each = sorted(past.row_costs(price, rate, fixed=fixed, longest_s=longest_s))
    paid = [usd for usd in each if usd]
    if len(each) < FEWEST_ROWS or not paid:
        return None
    mean = sum(each, NOTHING) / len(each)
    low = min(mean, _of(paid, TENTH) * len(paid) / len(each))
    low, mean, high = (usd.quantize(EXACT) for usd in (low, mean, max(mean, _of(paid, NINE_TENTHS))))
    unknown = past.rows - len(each)
    of = f"{len(each):,} rows bought before" + (f" (of {unknown:,} more the cost is not known)" if unknown else "")
    return (Figure(low, f"the cheapest tenth of {of}"), Figure(mean, f"the mean of {of}"),
            Figure(high, f"the dearest tenth of {of}"))


def _of(each: Sequence[Decimal], share: float) -> Decimal:
    return each[int(ranked(range(len(each)), share))]  # by place: no float ever holds money


def _by_schema(terms: Terms) -> tuple[Figure, Figure, Figure]:
    """By the price alone, as far as the number of units is known before."""
    price, rate, asked = terms.price, terms.rate, terms.asked
    if price is None or rate is None:
        unpriced = "no price is known" if price is None else "no price is known for some of the rows' inputs"
        return Figure(None, unpriced), Figure(None, unpriced), Figure(None, unpriced)
    fixed = asked.fixed
    if fixed is not None:
        how = f"by the price: {_counted(fixed, price.unit)} a row" + (", as asked for" if price.unit == "output second" else "")
        return _priced(rate, fixed, how), _priced(rate, fixed, how), _priced(rate, fixed, how)
    untold = f"{price.unit}s show once some rows were bought: {TRY_FIRST}"
    return (_priced(rate, asked.least, f"the fewest {price.unit}s that the model's schema allows", untold),
            _priced(rate, asked.usual, f"the model's default, {_counted(asked.usual, price.unit)} a row", untold),
            _priced(rate, asked.most, f"the most {price.unit}s that limits and schema allow", untold))


def _priced(rate: Rate, units: Decimal | None, how: str, untold: str = "") -> Figure:
    return Figure(None, untold) if units is None else Figure(rate.usd * units, how)


def _counted(units: Decimal | None, unit: str) -> str:
    return f"{units} {unit}" if units == 1 else f"{units} {unit}s"
