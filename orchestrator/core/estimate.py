"""What a batch is expected to cost, from its price, the model's schema, and what such rows came to before. Pure.

What cannot be known is None and says what would make it known: never a guess, never zero."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from typing import Any, NamedTuple

from orchestrator.core.asked import ONE, Amount, Told
from orchestrator.core.cost import Price, Rate, to_units, to_usd
from orchestrator.core.history import NOTHING, History, ranked

FEWEST_ROWS = 2  # of which a spread can be told
TENTH, NINE_TENTHS = 0.1, 0.9
EXACT = Decimal(1).scaleb(-12)  # as the ledger counts
_WITHOUT_REST = Context(prec=24)  # the mean of three rows times three is what they cost, and no digit more
TRY_FIRST = "run it with --limit 3 first"


class Figure(NamedTuple):
    """US dollars for one row, None: not known; and how it is known, or what would make it known."""

    usd: Decimal | None
    how: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What an estimate is made from. `rate`: of these rows, on the average; None: nobody knows. `asked`: units of one row, by the
    schema. `worst_usd`: of one row. `by_rows`: what the rows say, where they do not ask for the same."""

    price: Price | None
    rate: Rate | None
    asked: Amount
    worst_usd: Decimal | None = None
    by_rows: Told | None = None


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
        return None if usd is None else to_usd(to_units((usd * self.rows).normalize(_WITHOUT_REST)))

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
    """For so many rows that will be bought: all that were read, or some of them."""
    low, expected, high = _by_past(terms, past, rows=rows) or _by_rows(terms, rows=rows) or _by_schema(terms)
    found = Estimate(rows, low, expected, high, terms.worst_usd)
    if high.usd is not None or terms.worst_usd is None or found.above_worst_usd is not None:
        return found
    return replace(found, high=Figure(terms.worst_usd, "the worst case"))


def _by_past(terms: Terms, past: History | None, *, rows: int) -> tuple[Figure, Figure, Figure] | None:
    """A row that cost nothing, as it failed, counts in what is low and expected; None where too little is known of the past.

    Of units that are asked for it tells only how many rows fail: a film lasts about as long as was asked for, whatever others
    lasted."""
    price, rate = terms.price, terms.rate
    if past is None or price is None or rate is None:
        return None
    longest_s, to_pay = terms.asked.most if price.unit == "second" else None, _to_pay(terms, rate, rows=rows)
    each = [sorted(past.row_costs(price, at, fixed=fixed, longest_s=longest_s)) for at, fixed in to_pay]
    lows, costs, highs = each if len(each) == len(Amount()) else each * len(Amount())
    paid, dear = [usd for usd in lows if usd], [usd for usd in highs if usd]
    if len(costs) < FEWEST_ROWS or not paid or not dear:
        return None
    mean = sum(costs, NOTHING) / len(costs)
    low = min(mean, _of(paid, TENTH) * len(paid) / len(lows))
    high, is_asked = max(mean, _of(dear, NINE_TENTHS)), to_pay[0][1] is not None
    if not is_asked:
        low, mean, high = (usd.quantize(EXACT) for usd in (low, mean, high))
    unknown = past.rows - len(costs)
    of = f"{len(costs):,} rows bought before" + (f" (of {unknown:,} more the cost is not known)" if unknown else "")
    if is_asked:
        least, average, most = _WORDS[low != high and len(each) > 1]
        return (Figure(low, f"{least}, and as {of} ended"), Figure(mean, f"{average}, and as {of} ended"),
                Figure(high, f"{most}, and as {of} ended"))
    return (Figure(low, f"the cheapest tenth of {of}"), Figure(mean, f"the mean of {of}"),
            Figure(high, f"the dearest tenth of {of}"))


_OF_LEAST, _OF_MOST = "if all were as the row that asks for least", "if all were as the row that asks for most"
_WORDS = {False: ("as asked for",) * 3, True: (_OF_LEAST, "as asked for on the average of all rows", _OF_MOST)}


def _to_pay(terms: Terms, rate: Rate, *, rows: int) -> list[tuple[Rate, Decimal | None]]:
    """The rate of a row that succeeds, and how many units of it are counted (None: as many as then); or three of them, of the
    cheapest row, of one on the average, and of the dearest."""
    told = terms.by_rows
    if told is None or told.mean_usd.fixed is None:
        return [(rate, terms.asked.fixed)]
    usd = _spread(told, rows=rows)
    return [(Rate(one), ONE) for one in (usd if rows != told.rows else usd[:1]) if one is not None]


def _spread(told: Told, *, rows: int) -> Amount:
    """What a row costs by what the rows ask for. Of all rows it is known in all; some of them may be the cheapest, or the
    dearest."""
    mean = told.mean_usd
    return mean if rows == told.rows else Amount(told.least_usd, mean.usual, told.most_usd)


def _by_rows(terms: Terms, *, rows: int) -> tuple[Figure, Figure, Figure] | None:
    """By the price and by what the rows say; None where all say the same, or their rates are not known."""
    price, told = terms.price, terms.by_rows
    if price is None or terms.rate is None or told is None or not price.unit.startswith(("output", "run")):
        return None
    usd, units = _spread(told, rows=rows), told.mean_units
    mean = "" if told.least_usd == told.most_usd else " on the average"
    counted = f"{_counted(units, price.unit)} a row{mean}"
    if told.mean_usd.fixed is not None and rows == told.rows:
        how = f"by the price: {counted}, as asked for"
        return Figure(usd.least, how), Figure(usd.usual, how), Figure(usd.most, how)
    if told.mean_usd.fixed is not None:
        return (Figure(usd.least, _OF_LEAST),
                Figure(usd.usual, f"by the price: {counted} of all {told.rows:,} rows"),
                Figure(usd.most, _OF_MOST))
    return (_known(usd.least, price.unit, f"the fewest {price.unit}s that rows and schema allow"),
            _known(usd.usual, price.unit, f"the model's default where a row does not say: {counted}"),
            _known(usd.most, price.unit, f"the most {price.unit}s that rows and schema allow"))


def _known(usd: Decimal | None, unit: str, how: str) -> Figure:
    return Figure(usd, how if usd is not None else _untold(unit))


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
    untold = _untold(price.unit)
    return (_priced(rate, asked.least, f"the fewest {price.unit}s that the model's schema allows", untold),
            _priced(rate, asked.usual, f"the model's default, {_counted(asked.usual, price.unit)} a row", untold),
            _priced(rate, asked.most, f"the most {price.unit}s that limits and schema allow", untold))


def _priced(rate: Rate, units: Decimal | None, how: str, untold: str = "") -> Figure:
    return Figure(None, untold) if units is None else Figure(rate.usd * units, how)


def _untold(unit: str) -> str:
    return f"{unit}s show once some rows were bought: {TRY_FIRST}"


def _counted(units: Decimal | None, unit: str) -> str:
    text = "" if units is None else format(round(units, 2).normalize(), "f")
    return f"{text} {unit}" if units == 1 else f"{text} {unit}s"
