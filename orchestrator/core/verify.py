"""Does everything agree: files, documents, ledger and the provider's list? Pure: what was seen goes in, findings come out."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from orchestrator.core.callback import attempt_of
from orchestrator.core.findings import MOST_KEPT, Finding, Findings, Kind
from orchestrator.core.lifecycle import FINAL_ITEM, AttemptState, ItemState
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.reckoning import Charges
from orchestrator.core.records import Prediction, ResultRow

MOST_WAITING = 10_000  # lines without a partner on the other side: more than these, and the two are of different moments


@dataclass(slots=True)
class Document:
    """A file with a line for each row or output: how many were compared, or why not."""

    path: str
    lines: int = 0
    why_not: str | None = None


@dataclass(slots=True)
class There:
    """What the provider's list showed. `why_not`: it could not be read, or not to its end."""

    why_not: str | None = None
    listed: int = 0
    ours: int = 0  # predictions of this batch
    others: int = 0  # of the same model, and explained: somebody else's
    undecided: int = 0  # nobody's yet, while answers are still out
    waiting: int = 0  # ended there, and not home yet, in a batch that goes on
    not_asked: int = 0  # of this batch, not in the list, and too many to be asked for one by one


@dataclass(slots=True)
class Report:
    """All that a look at one batch found."""

    manifest: Document
    results: Document
    findings: Findings = field(default_factory=Findings)
    there: There = field(default_factory=There)
    charges: Charges = field(default_factory=Charges)
    files: int = 0
    bytes: int = 0
    fetched: int = 0  # missing files that were fetched again
    elsewhere: dict[str, int] = field(default_factory=dict)  # earlier batches, and how many rows share what these have at home
    strangers: int = 0  # names in the output folder that the ledger does not know
    stranger_names: list[str] = field(default_factory=list)

    def add_strangers(self, names: Iterable[str]) -> None:
        """Note such names, a thousand of them in full."""
        for name in names:
            self.strangers += 1
            if self.strangers <= MOST_KEPT:
                self.stranger_names.append(name)


# Files at home


@dataclass(frozen=True, slots=True)
class HomeFile:
    """A file as the ledger has it."""

    path: str  # relative to the output folder
    bytes: int
    sha256: str
    media_type: str
    source_url: str
    index: int


@dataclass(frozen=True, slots=True)
class HomeRow:
    """A row with files at home, or one that succeeded and should have some."""

    row: int
    row_id: str
    state: ItemState
    prediction_id: str | None
    output_json: str | None
    completed_at: datetime | None
    files: tuple[HomeFile, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What lies at a path: its size and, where that is as it should be, its sha256; or why it cannot be read."""

    bytes: int
    sha256: str | None
    trouble: str | None = None


def judge_file(row: HomeRow, file: HomeFile, seen: Seen | None, *, remedy: str) -> Finding | None:
    """Compare one file with what the ledger has of it; `seen` None: nothing lies at its path."""
    if seen is None:
        return _of_file(Kind.MISSING, row, file, "is missing", remedy)
    if seen.trouble is not None:
        return _of_file(Kind.UNREADABLE, row, file, f"cannot be read: {seen.trouble}", "make it readable, then verify again")
    if seen.bytes != file.bytes:
        text = f"has {seen.bytes:,} bytes; {file.bytes:,} came home"
    elif seen.sha256 != file.sha256:
        text = f"has other bytes than came home (sha256 {(seen.sha256 or '')[:12]}…, was {file.sha256[:12]}…)"
    else:
        return None
    can_be_fetched = remedy.startswith("orchestrator")
    return _of_file(Kind.CHANGED, row, file, text, f"put it aside; then {remedy}" if can_be_fetched else remedy)


def _of_file(kind: Kind, row: HomeRow, file: HomeFile, text: str, remedy: str) -> Finding:
    return Finding(kind, text, row.row, row.row_id, file.path, row.prediction_id, remedy)


def judge_row(row: HomeRow, *, outputs: int) -> Finding | None:
    """A row that succeeded has a file for each of its outputs."""
    if row.state is not ItemState.SUCCEEDED or len(row.files) >= outputs:
        return None
    text = f"gave {outputs} outputs, and the ledger has {len(row.files)} files of it"
    return Finding(Kind.INCOMPLETE, text, row.row, row.row_id, prediction_id=row.prediction_id)


def judge_open(by_state: Mapping[ItemState, int], *, remedy: str) -> Iterator[Finding]:
    """Rows of a batch that has ended, by state: each of them should have an end too."""
    for state, rows in by_state.items():
        if rows and state not in FINAL_ITEM:
            text = f"{rows:,} rows are {state.value}, and the batch has ended"
            yield Finding(Kind.UNFINISHED, text if rows > 1 else text.replace("rows are", "row is"), remedy=remedy)


def kept_until(row: HomeRow, *, now: datetime, retention_s: float) -> datetime | None:
    """Until when the provider keeps this row's outputs, by its own clock, as `now` is; None: it has deleted them by now."""
    if row.completed_at is None:
        return None
    until = row.completed_at + timedelta(seconds=retention_s)
    return until if until > now else None


# Documents against the ledger

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class Pairing(Generic[K]):
    """Two streams of the same lines in about the same order, compared by key. Only what has no partner yet is kept.

    `gave_up`: so many have none that the two are not of one moment; the rest is not compared."""

    written: dict[K, Mapping[str, object]] = field(default_factory=dict)
    known: dict[K, Mapping[str, object]] = field(default_factory=dict)
    gave_up: bool = False

    def add_written(self, key: K, line: Mapping[str, object]) -> tuple[str, ...]:
        """A line of the document; the fields in which it differs from its partner, if that one came before."""
        return self._add(key, line, mine=self.written, theirs=self.known)

    def add_known(self, key: K, line: Mapping[str, object]) -> tuple[str, ...]:
        """The same for a line as the ledger has it."""
        return self._add(key, line, mine=self.known, theirs=self.written)

    def _add(self, key: K, line: Mapping[str, object], *, mine: dict[K, Mapping[str, object]],
             theirs: dict[K, Mapping[str, object]]) -> tuple[str, ...]:
        other = theirs.pop(key, None)
        if other is not None:
            return tuple(name for name in line if line[name] != other.get(name))
        mine[key] = line
        self.gave_up = self.gave_up or len(self.written) + len(self.known) > MOST_WAITING
        return ()


MANIFEST_FIELDS = ("path", "id", "index", "bytes", "sha256", "media_type", "prediction_id", "source_url")
RESULT_FIELDS = ("prediction_index", "prediction_id", "prediction_status", "prediction_files", "prediction_error_class",
                 "prediction_attempts")


def result_line(cells: Mapping[str, Any]) -> dict[str, object]:
    """The compared cells of a results row in one spelling: CSV has numbers as text and lists as JSON."""
    line: dict[str, object] = {name: cells.get(name) for name in RESULT_FIELDS}
    for name in ("prediction_index", "prediction_attempts"):
        if isinstance(text := line[name], str) and text.isdecimal():
            line[name] = int(text)
    files = line["prediction_files"] or []
    try:
        line["prediction_files"] = json.loads(files) if isinstance(files, str) else files
    except ValueError:
        line["prediction_files"] = files
    return line


def line_of(row: ResultRow) -> dict[str, object]:
    """The same cells of a row as the ledger has it."""
    return dict(zip(RESULT_FIELDS, (row.index, row.prediction_id, row.status, list(row.files), row.error_class, row.attempts),
                    strict=True))


# The provider's list


@dataclass(frozen=True, slots=True)
class Bought:
    """An attempt, as it is to be found at the provider. `offset_s`: the provider's clock minus ours at that time."""

    attempt_id: str
    row: int
    row_id: str
    n: int  # which try of its row it was
    state: str
    prediction_id: str | None
    created_at: datetime
    offset_s: float | None


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a prediction is, or whose attempt a webhook names."""

    attempt_id: str
    batch_id: str
    row: int
    row_id: str
    n: int
    state: str
    prediction_id: str | None
    input_hash: str


@dataclass(slots=True)
class Span:
    """A stretch of the provider's time."""

    first: datetime
    last: datetime


@dataclass(slots=True)
class Windows:
    """When things were bought, by the hour: nights in which a batch lay still need not be read."""

    hours: dict[datetime, Span] = field(default_factory=dict)

    def add(self, moment: datetime) -> None:
        """One purchase."""
        hour = moment.replace(minute=0, second=0, microsecond=0)
        span = self.hours.setdefault(hour, Span(moment, moment))
        span.first, span.last = min(span.first, moment), max(span.last, moment)

    def merged(self, *, before: timedelta, after: timedelta) -> list[Span]:
        """Stretches with these margins around them, newest first; those that would touch are one."""
        merged: list[Span] = []
        for _, span in sorted(self.hours.items()):
            wide = Span(span.first - before, span.last + after)
            if merged and wide.first <= merged[-1].last:
                merged[-1].last = max(merged[-1].last, wide.last)
            else:
                merged.append(wide)
        return merged[::-1]


@dataclass(slots=True)
class Tries:
    """Which tries of which rows were seen: a bit each, so that a million rows take a megabyte."""

    bits: bytearray = field(default_factory=bytearray)
    more: set[tuple[int, int]] = field(default_factory=set)  # tries beyond the eighth

    def add(self, row: int, n: int) -> None:
        """This one was."""
        if not 1 <= n <= 8:
            self.more.add((row, n))
            return
        if row >= len(self.bits):
            self.bits.extend(bytes(row + 1 - len(self.bits)))
        self.bits[row] |= 1 << (n - 1)

    def __contains__(self, try_: tuple[int, int]) -> bool:
        row, n = try_
        if not 1 <= n <= 8:
            return try_ in self.more
        return row < len(self.bits) and bool(self.bits[row] & 1 << (n - 1))


def is_of_target(prediction: Prediction, *, name: str, version: str | None, echo: tuple[str | None, str | None] | None) -> bool:
    """Whether a prediction may have been sent to this target: named as it was asked for, or as its answers name it."""
    models, versions = {name}, {version}
    if echo is not None:
        models.add(echo[0] or name)
        versions.add(echo[1])
    return prediction.model in models and (version is None or prediction.version in versions)


_STOPPED = frozenset({"canceled", "aborted"})
_ENDS: dict[str, frozenset[str]] = {
    AttemptState.SUCCEEDED: frozenset({"succeeded"}), AttemptState.FAILED: frozenset({"failed"}),
    AttemptState.CANCELED: _STOPPED, AttemptState.ABORTED: _STOPPED}
_NEVER_BOUGHT = frozenset({AttemptState.NOT_SENT, AttemptState.REFUSED, AttemptState.ABSENT, AttemptState.LOST})


def judge_owned(prediction: Prediction, owner: Owner, *, is_over: bool) -> Finding | None:
    """Compare the end that an attempt is recorded with to the provider's. `is_over`: its batch has ended."""
    there = prediction.status
    if owner.state in _ENDS:
        agree = there in _ENDS[owner.state]
    elif owner.state in _NEVER_BOUGHT:
        agree = False
    else:
        agree = not (is_over and there in TERMINAL)  # still out here: a live batch hears of it soon
    if agree:
        return None
    return Finding(Kind.ENDED_OTHERWISE, f"is recorded as {owner.state}; the provider says {there}", owner.row, owner.row_id,
                   prediction_id=prediction.id)


def unrecorded(prediction: Prediction, *, named: Owner | None, row: tuple[int, str] | None) -> Finding:
    """A prediction that no attempt owns. `named`: whom its webhook names; `row`: one of the batch with the same input."""
    made = "unknown" if prediction.created_at is None else f"{prediction.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if named is not None:
        whose = (f"its webhook names attempt {named.attempt_id} of this row, recorded as {named.state}"
                 + (f" with prediction {named.prediction_id}" if named.prediction_id else ""))
        row = named.row, named.row_id
    elif row is not None:
        whose = "it has the input of this row"
    else:
        whose = "nothing tells whose it is"
    return Finding(Kind.UNRECORDED, f"created {made}, {prediction.status}; {whose}",
                   row and row[0], row and row[1], prediction_id=prediction.id, remedy=_advice(prediction, named))


def _advice(prediction: Prediction, named: Owner | None) -> str:
    if prediction.status not in TERMINAL:
        return f"it is still alive there: look at https://replicate.com/p/{prediction.id}, and cancel it if it is not yours"
    if named is not None:
        return "it was paid for beside what this ledger counts"
    return "if nothing else buys from this model on this account, it was paid for beside what this ledger counts"


def is_somebody_else_s(prediction: Prediction, *, named: Owner | None, row: tuple[int, str] | None, verbatim: bool) -> bool:
    """Whether a prediction that no attempt owns is explained: it carries a webhook that is not of this ledger, or an input
    that no row has (`verbatim`: this provider shows inputs as they were sent)."""
    if named is not None or prediction.webhook is not None:
        return named is None
    return row is None and verbatim and bool(prediction.input) and not prediction.data_removed


def named_attempts(predictions: Iterable[Prediction]) -> list[str]:
    """The attempts that webhook URLs name."""
    return [attempt_id for p in predictions if (attempt_id := attempt_of(p.webhook)) is not None]
