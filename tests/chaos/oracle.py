"""The judge: was every row bought exactly as intended, and is everything at home? Values in, complaints out.

It believes the provider's own ledger and the files that the batch left behind. Of our ledger it takes two things only: which
purchase each attempt says is its own, so that what nobody knows of shows as such; and the sums of its money, which must agree.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

MAX_FAILURES = 3  # `retry.attempts` of every job here
CENT_FRACTION = Decimal("1e-9")  # of rounding, per batch
PROVIDER_FAILED = frozenset(("infrastructure", "safety"))
ENOUGH = 200  # doubts, before a share of them says anything
ENDED = frozenset(("succeeded", "failed", "canceled", "aborted"))


@dataclass(frozen=True, slots=True)
class Purchase:
    """A line of the provider's ledger."""

    id: str
    model: str
    prompt: str
    status: str
    billed_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of results.parquet."""

    index: int
    id: str
    prompt: str
    status: str
    prediction_id: str | None
    error_class: str | None
    cost_usd: Decimal | None
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of ours: at which row, how it ended, and which purchase it says is its own.

    `was_lost`: its answer was in doubt at some time. `is_surplus`: it is known to have been bought once more than needed."""

    index: int
    state: str
    prediction_id: str | None
    was_lost: bool
    is_priced: bool
    is_surplus: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What one batch left behind. `there`: sha256 of every file in its folder; `served`: of what the provider serves at a URL."""

    model: str
    prompts: Sequence[str]
    exit_code: int
    rows: Sequence[Row]
    attempts: Sequence[Attempt]
    manifest: Sequence[Mapping[str, Any]]
    there: Mapping[str, str]
    served: Mapping[str, str]
    summary: Mapping[str, Any]
    books: Mapping[str, tuple[int, int]]  # spent and reserved, in 10^-12 USD, by the batch, its days and its attempts


def judge(lefts: Sequence[Left], purchases: Sequence[Purchase], *, alive: Sequence[str]) -> list[str]:
    """Every complaint there is; none: all is as it was promised."""
    found = [f"{left.model}: {complaint}" for left in lefts for complaint in _of_batch(left, purchases)]
    strange = Counter(p.model for p in purchases if p.model not in {left.model for left in lefts})
    found += [f"{count} purchases of {model}, which nobody asked for" for model, count in strange.items()]
    return found + [f"still alive: {line}" for line in alive]


def _of_batch(left: Left, purchases: Sequence[Purchase]) -> Iterator[str]:
    mine = {p.id: p for p in purchases if p.model == left.model}
    yield from _terminal(left)
    yield from _bought(left, mine)
    yield from _files(left)
    yield from _dollars(left, mine)
    yield from _books(left)
    yield from _summed_up(left)


def _terminal(left: Left) -> Iterator[str]:
    """Every row is there, in order, and has ended."""
    if [row.prompt for row in left.rows] != list(left.prompts):
        yield f"{len(left.rows)} result rows are not the {len(left.prompts)} source rows in their order"
    open_ = [row.index for row in left.rows if row.status not in ENDED]
    if open_:
        yield f"rows without an end: {open_}"
    if left.summary.get("state") != "finished":
        yield f"the batch is {left.summary.get('state')}"


def _bought(left: Left, mine: Mapping[str, Purchase]) -> Iterator[str]:
    """By prompt: as many purchases as intended, each an attempt's own; by row: one that succeeded, and those that failed."""
    by_row: dict[int, list[Purchase]] = {row.index: [] for row in left.rows}
    surplus: set[str] = set()
    for attempt in left.attempts:
        if attempt.prediction_id is not None and attempt.prediction_id not in mine:
            yield f"row {attempt.index} claims {attempt.prediction_id}, which was never sold"
        elif attempt.prediction_id is not None and attempt.is_surplus:
            surplus.add(attempt.prediction_id)
        elif attempt.prediction_id is not None:
            by_row.setdefault(attempt.index, []).append(mine[attempt.prediction_id])
    for row in left.rows:
        yield from _row_bought(row, by_row[row.index])
    for prompt, rows in _grouped(left.rows).items():
        yield from _prompt_bought(prompt, rows, [p for p in mine.values() if p.prompt == prompt and p.id not in surplus],
                                  known={p.id for row in rows for p in by_row[row.index]})
    asked = {row.prompt for row in left.rows}
    odd = sorted(p.id for p in mine.values() if p.prompt not in asked)
    if odd:
        yield f"purchases that no row asked for: {odd}"


def _row_bought(row: Row, own: Sequence[Purchase]) -> Iterator[str]:
    won = [p.id for p in own if p.status == "succeeded"]
    lost = [p.id for p in own if p.status != "succeeded"]
    if any(p.prompt != row.prompt for p in own):
        yield f"row {row.index} has a purchase of another prompt"
    if len(lost) > MAX_FAILURES:
        yield f"row {row.index} was tried {len(lost)} times in vain"
    if row.status == "succeeded" and won != [row.prediction_id]:
        yield f"row {row.index} succeeded with {row.prediction_id}, but its purchases that succeeded are {won}"
    if row.status == "failed" and row.error_class == "unsure":
        return
    if row.status == "failed" and row.error_class not in PROVIDER_FAILED:
        yield f"row {row.index} failed as {row.error_class}, which nothing here should cause"
    elif row.status == "failed" and (won or not lost):
        yield f"row {row.index} failed ({row.error_class}), but its purchases are {own}"
    elif row.status not in ("succeeded", "failed"):
        yield f"row {row.index} is {row.status}"


def _prompt_bought(prompt: str, rows: Sequence[Row], sold: Sequence[Purchase], *, known: set[str]) -> Iterator[str]:
    """The provider's count against the rows': here our ledger has no word but for those that failed."""
    doubtful = sum(row.error_class == "unsure" for row in rows)
    succeeded, wanted = sum(p.status == "succeeded" for p in sold), sum(row.status == "succeeded" for row in rows)
    if not wanted <= succeeded <= wanted + doubtful:
        yield f"{prompt!r}: {succeeded} purchases succeeded for {wanted} rows that did ({doubtful} unsure)"
    strangers = sorted(p.id for p in sold if p.id not in known)
    if len(strangers) > doubtful:
        yield f"{prompt!r}: purchases that no attempt knows: {strangers} ({doubtful} rows unsure)"


def _grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.prompt, []).append(row)
    return found


def _files(left: Left) -> Iterator[str]:
    """Each row's files are in the manifest, on disk, whole, and what the provider gave for that very prediction."""
    by_row: dict[str, list[Mapping[str, Any]]] = {}
    for line in left.manifest:
        by_row.setdefault(str(line["id"]), []).append(line)
        found = left.there.get(line["path"], "missing")
        if found != line["sha256"]:
            yield f"{line['path']}: the manifest says {line['sha256'][:8]}, the file is {found[:8]}"
        if left.served.get(line["source_url"]) != line["sha256"]:
            yield f"{line['path']} is not what the provider serves at {line['source_url']}"
    for row in left.rows:
        lines = by_row.pop(row.id, [])
        if [line["path"] for line in lines] != list(row.files):
            yield f"row {row.index} has files {row.files}, its manifest {[line['path'] for line in lines]}"
        if any(line["prediction_id"] != row.prediction_id for line in lines):
            yield f"row {row.index}: its files are of another prediction"
        if (row.status == "succeeded") != bool(lines):
            yield f"row {row.index} is {row.status} with {len(lines)} files"
    if by_row:
        yield f"the manifest names rows that are none: {sorted(by_row)}"
    strays = left.there.keys() - {line["path"] for line in left.manifest}
    if strays:
        yield f"files that nobody knows: {sorted(strays)}"


def _dollars(left: Left, mine: Mapping[str, Purchase]) -> Iterator[str]:
    """Our sum is the provider's bill for what is ours; what has no price with us is counted, and only that."""
    billed = sum((_billed(mine[a.prediction_id]) for a in left.attempts if a.prediction_id in mine), Decimal(0))
    told = Decimal(str(left.summary.get("cost_usd", "-1")))
    if abs(billed - told) > CENT_FRACTION:
        yield f"we say {told} USD, the provider billed {billed}"
    if not any(row.error_class == "unsure" for row in left.rows):
        everything = sum(map(_billed, mine.values()), Decimal(0))
        if abs(everything - told) > CENT_FRACTION:
            yield f"we say {told} USD, the provider billed {everything} for this model"
    unpriced = {a.index for a in left.attempts if not a.is_priced}
    if left.summary.get("cost_unknown_items") != len(unpriced):
        yield f"{left.summary.get('cost_unknown_items')} rows of unknown cost are told of, {len(unpriced)} have one"
    for row in left.rows:
        if (row.cost_usd is None) != (row.index in unpriced):
            yield f"row {row.index} costs {row.cost_usd}, of which something is {'un' if row.index in unpriced else ''}known"


def _books(left: Left) -> Iterator[str]:
    """The batch, its days and its attempts tell the same; and only what nobody knows the cost of is still reserved."""
    if len(set(left.books.values())) != 1:
        yield f"spent and reserved differ: {dict(left.books)}"
    if any(reserved for _, reserved in left.books.values()) and all(a.is_priced for a in left.attempts):
        yield f"something is reserved, though every cost is known: {dict(left.books)}"


def _billed(purchase: Purchase) -> Decimal:
    return purchase.billed_usd or Decimal(0)


def _summed_up(left: Left) -> Iterator[str]:
    """The summary counts what the results show, and the exit code says whether all is well."""
    by_status = Counter(row.status for row in left.rows)
    items = left.summary.get("items", {})
    if any(items.get(name) != by_status[name] for name in ("succeeded", "failed", "canceled", "pending")):
        yield f"the summary counts {items}, the results {dict(by_status)}"
    wanted = 0 if set(by_status) <= {"succeeded"} else 1
    if left.exit_code != wanted:
        yield f"exit code {left.exit_code} instead of {wanted}"


@dataclass(slots=True)
class Tally:
    """Counts over schedules: rows, purchases, attempts whose answer was lost and what became of them."""

    schedules: int = 0
    failed: int = 0
    rows: int = 0
    purchases: int = 0
    answers_lost: int = 0  # by the provider's own count of its blows after the purchase
    doubted: int = 0  # attempts of ours that were ever unsure: those, and what kills left behind
    adopted: int = 0
    absent: int = 0
    unsure: int = 0
    surplus: int = 0  # purchases beyond need, known as such
    evident_doubted: int = 0  # the same where webhooks or echoes name the attempt
    evident_unsure: int = 0

    def add(self, other: "Tally") -> None:
        """Count another one in."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def is_honest(self) -> bool:
        """Whether hardly a doubt stays where the provider names our attempts: less than one in a hundred, of enough of them."""
        return self.evident_unsure < ENOUGH / 100 or self.evident_unsure < self.evident_doubted / 100

    def __str__(self) -> str:
        share = f"{self.evident_unsure} of {self.evident_doubted} where webhooks or echoes exist"
        return (f"{self.schedules} schedules, {self.failed} failed; {self.rows} rows, {self.purchases} purchases; "
                f"{self.answers_lost} answers lost by the provider, {self.doubted} attempts unsure at some time: "
                f"{self.adopted} adopted, {self.absent} proven absent, {self.surplus} surplus, "
                f"{self.unsure} rows ended unsure ({share})")


AFTER_PURCHASE = ("lost_answer", "lost_answer_reset", "error_after", "cut_answer", "garbage_answer")


def tally(lefts: Sequence[Left], purchases: Sequence[Purchase], *, struck: Mapping[str, int], is_evident: bool,
          failed: bool) -> Tally:
    """What one schedule adds to the totals."""
    attempts = [attempt for left in lefts for attempt in left.attempts if attempt.was_lost]
    unsure = sum(row.error_class == "unsure" for left in lefts for row in left.rows)
    return Tally(
        schedules=1, failed=int(failed), rows=sum(len(left.rows) for left in lefts), purchases=len(purchases),
        answers_lost=sum(struck.get(name, 0) for name in AFTER_PURCHASE), doubted=len(attempts),
        adopted=sum(a.prediction_id is not None for a in attempts), absent=sum(a.state == "absent" for a in attempts),
        unsure=unsure, surplus=sum(a.is_surplus for left in lefts for a in left.attempts),
        evident_doubted=len(attempts) * is_evident, evident_unsure=unsure * is_evident)
