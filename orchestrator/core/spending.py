"""What was spent, and on what: sums over attempts, told by batch, job, model, day or a column of the source. Pure.

Money is in units of 10^-12 USD, as in SQL, so that sums are exact."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from typing import Any

from orchestrator.core.cost import to_units, to_usd
from orchestrator.core.errors import BadInput
from orchestrator.core.estimate import Estimate
from orchestrator.core.nearest import did_you_mean

BATCH, JOB, MODEL, DAY, COLUMN = "batch", "job", "model", "day", "column"
KINDS = (BATCH, JOB, MODEL, DAY)
MOST_VALUES = 10_000  # of one column: more are names, not groups, and would not fit into memory


@dataclass(frozen=True, slots=True)
class Spent:
    """Sums over some attempts. `rows`: for which something was bought, or may have been; `unknown_rows`: of which something ended
    at a price nobody knows. What was spent is the four sums together, each attempt in one of them: surplus first, then by how it
    ended. `estimated_units`: of them all, what is only an estimate."""

    rows: int = 0
    predictions: int = 0
    succeeded_units: int = 0
    failed_units: int = 0  # failed, given up, or succeeded and lost: its outputs never came home
    canceled_units: int = 0  # by an operator, or at its deadline
    surplus_units: int = 0
    unknown_rows: int = 0
    estimated_units: int = 0

    @property
    def units(self) -> int:
        """All that is known to have been spent."""
        return self.succeeded_units + self.failed_units + self.canceled_units + self.surplus_units


@dataclass(frozen=True, slots=True)
class Line:
    """One group. `key`: the batch, job, model, day (UTC, YYYY-MM-DD) or cell it is of; None: an empty cell. Of a batch also what
    it was `expected` to cost (None: nobody said), and whether it `has_ended`, so that the two can be compared."""

    key: str | None
    spent: Spent
    expected: Estimate | None = None
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class BatchNames:
    """What a batch can be told by."""

    pk: int
    id: str
    job: str
    model: str
    expected: Estimate | None = field(default=None, compare=False)
    has_ended: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class By:
    """What to group by; `column` only of the kind `column`."""

    kind: str
    column: str | None = None


def by_of(text: str) -> By:
    """`batch`, `job`, `model`, `day` or `column:NAME`. Raises BadInput."""
    kind, sign, column = text.partition(":")
    if kind == COLUMN and column:
        return By(COLUMN, column)
    if kind in KINDS and not sign:
        return By(kind)
    raise BadInput(f"--by {text}: one of {', '.join(KINDS)}, column:NAME{did_you_mean(kind, [*KINDS, 'column:NAME'])}")


_NAMES = [one.name for one in fields(Spent)]


def added(one: Spent, other: Spent) -> Spent:
    """Both together, of different rows."""
    return Spent(*(getattr(one, name) + getattr(other, name) for name in _NAMES))


def total(parts: Iterable[Spent]) -> Spent:
    """All of them together, of different rows."""
    sum_ = Spent()
    for part in parts:
        sum_ = added(sum_, part)
    return sum_


def grouped(parts: Iterable[tuple[str | None, Spent]]) -> list[Line]:
    """One line for each key, in the order in which they come first."""
    found: dict[str | None, Spent] = {}
    for key, spent in parts:
        found[key] = added(found[key], spent) if key in found else spent
    return [Line(key, spent) for key, spent in found.items()]


def record_of(spent: Spent) -> dict[str, int | Decimal]:
    """The figures as they are told, money in USD."""
    return {"rows": spent.rows, "predictions": spent.predictions, "spent_usd": to_usd(spent.units),
            "succeeded_usd": to_usd(spent.succeeded_units), "failed_usd": to_usd(spent.failed_units),
            "canceled_usd": to_usd(spent.canceled_units), "surplus_usd": to_usd(spent.surplus_units),
            "estimated_usd": to_usd(spent.estimated_units), "unknown_rows": spent.unknown_rows}


def compared(lines: Sequence[Line]) -> dict[str, Decimal | None]:
    """What these batches were expected to cost together, in USD, and how much more was spent; None: of one of them that is not
    known, or it has not ended."""
    found: dict[str, Decimal | None] = {}
    for name in ("low", "expected", "high"):
        found[f"estimated_{name}_usd"] = _sum([
            None if line.expected is None else line.expected.in_all(getattr(line.expected, name).usd) for line in lines])
    spent = [to_usd(line.spent.units) if line.has_ended and not line.spent.unknown_rows else None for line in lines]
    in_all, expected = _sum(spent), found["estimated_expected_usd"]
    return found | {"difference_usd": None if in_all is None or expected is None else to_usd(to_units(in_all - expected))}


def _sum(each: Sequence[Decimal | None]) -> Decimal | None:
    known = [usd for usd in each if usd is not None]
    return sum(known, Decimal(0)) if len(known) == len(each) else None


def as_json(figures: dict[str, Any]) -> dict[str, Any]:
    """The same for JSON: money as decimal text."""
    return {name: format(value, "f") if isinstance(value, Decimal) else value for name, value in figures.items()}
