"""The nouns: plain values that never change and travel between rooms. No method does work.

Those made once or more for each webhook are NamedTuples: a frozen dataclass of a dozen fields takes 1.6 us to make and 3.3
to make anew with one field changed, a NamedTuple 0.45 and 0.9.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from orchestrator.core.lifecycle import IN_AIR_ITEM, AttemptState, BatchState, Event, ItemState

MILLION_MILLIONTHS = 10**12  # money in SQL: integers of 10^-12 USD


@dataclass(frozen=True, slots=True)
class Target:
    """What an attempt is sent to: endpoint, model as requested, pinned version.

    `endpoint` is `models` (official), `predictions` (a pinned version) or `deployments`.
    """

    endpoint: str
    name: str  # owner/name as requested
    version: str | None  # 64 hex digits where one is pinned

    @property
    def key(self) -> str:
        """One text that two attempts share exactly if they were sent to the same target."""
        return f"{self.endpoint}/{self.name}" + (f":{self.version}" if self.version else "")


@dataclass(frozen=True, slots=True)
class Wake:
    """Look at this, not before then. `key` is a batch id, or an account for `sweep`."""

    station: str  # submit, sweep, collect, report
    key: str
    lane: int = 0
    due_at: datetime | None = None  # None: now


REWRITE_LANE = 1  # of `report`: what an ended batch's documents say is no longer so


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a batch is when it is opened."""

    id: str
    job: str
    run_key: str
    account: str
    created_at: datetime
    target: Target
    job_json: str  # the job as validated, with --set applied
    schema_json: str  # the model's OpenAPI schema, as snapshotted
    source_json: str  # the files read: path, bytes, sha256
    price_json: str  # the price resolved at the start, or "null"
    output_to: str  # absolute folder
    in_flight: int  # predictions alive at most
    max_attempts: int  # provider failures per item at most
    cap_units: int | None = None  # budget in 10^-12 USD
    attended: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """One run of a job over one source, as the ledger has it."""

    pk: int
    id: str
    job: str
    run_key: str
    account: str
    state: BatchState
    reason: str | None  # why it waits, for people
    created_at: datetime
    finished_at: datetime | None
    target: Target
    job_json: str
    schema_json: str
    source_json: str
    price_json: str
    source_schema_json: str | None
    output_to: str
    in_flight: int
    max_attempts: int
    start_limit: int | None  # --limit: rows that may be started
    total: int | None  # rows, known once loading has ended
    cap_units: int | None
    spent_units: int
    reserved_units: int
    estimate_json: str | None = None  # what it was expected to cost when it was loaded (`core/estimate.py`); None: older
    attended: bool = False  # it goes on only while a command does that names it; else whoever is at work goes on with it


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the source, by its raw content."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row as read. `problem`: it could not be read properly; `cells` then hold what was readable."""

    index: int  # from 0, over all files of the source
    line: int | None  # where it begins in its file, from 1, where the format has lines
    cells: dict[str, Any]
    problem: str | None


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Some rows in order, and the snapshot of their cells (zstd-compressed Arrow IPC)."""

    first_index: int
    rows: list[Row]
    blob: bytes


@dataclass(frozen=True, slots=True)
class NewItem:
    """A row about to enter the ledger. A bad row comes with its error and enters as failed, class `invalid_input`."""

    index: int
    row_id: str
    input_json: str | None  # canonical JSON of the model input
    input_hash: str | None
    error: str | None = None
    shares: bool = False  # with an earlier row of its batch that has the same input, where there is one
    twin_of: int | None = None  # the row of an earlier batch that it shares


@dataclass(frozen=True, slots=True)
class Earlier:
    """A row of an earlier batch that succeeded, and its files at home: path (relative to `folder`), bytes, sha256."""

    item_pk: int
    batch_id: str
    row: int
    folder: str
    files: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True, slots=True)
class NewChunk:
    """One chunk of the source: its items, and the snapshot of its cells."""

    first_index: int
    items: list[NewItem]
    blob: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """An item claimed for submitting, its attempt already committed."""

    attempt_id: str
    item_pk: int
    index: int
    row_id: str
    input_json: str


class Prediction(NamedTuple):
    """The provider's account of one prediction, parsed alike from POST answer, GET, list item and webhook."""

    id: str
    status: str  # starting, processing, succeeded, failed, canceled, aborted
    model: str | None = None
    version: str | None = None
    input: dict[str, Any] | None = None
    output: Any = None
    error: str | None = None
    logs_tail: str | None = None
    metrics: Mapping[str, Any] = MappingProxyType({})
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    data_removed: bool = False
    webhook: str | None = None


class Fact(NamedTuple):
    """Something learned about one attempt, from whichever side. Routed by prediction id first, by attempt id second."""

    event: Event
    at: datetime
    attempt_id: str | None = None
    prediction: Prediction | None = None
    error: str | None = None
    error_class: str | None = None
    via: str | None = None  # from where it was learned: post, webhook, list, get; or that its lease ran out
    bound_by: str | None = None  # why the prediction is the attempt's: post, url (its webhook's has our id), input (an equal one)


class Delivery(NamedTuple):
    """A genuine webhook: its message id, the attempt its URL names, and what its body says of a prediction."""

    message_id: str
    attempt_id: str
    prediction: Prediction
    received_at: datetime


class Receipt(StrEnum):
    """What became of a delivery."""

    RECORDED = "recorded"  # went through the one door, whether or not it moved anything
    DOUBLED = "doubled"  # this message was taken in just now
    KEPT = "kept"  # its attempt's own answer is not known yet: it waits for that
    UNKNOWN = "unknown"  # no such attempt
    MISADDRESSED = "misaddressed"  # the attempt has another prediction


@dataclass(frozen=True, slots=True)
class Role:
    """A process at work for this ledger. `place`: the address where a web part listens."""

    id: str  # role@host:pid
    role: str
    place: str | None
    version: str
    started_at: datetime
    seen_at: datetime


class Rules(NamedTuple):
    """What an attempt's batch wants done with facts, read with where the attempt stands."""

    batch_id: str
    is_live: bool  # it has not ended
    canceling: bool
    max_attempts: int
    price_json: str
    schema_json: str
    job_json: str


class Standing(NamedTuple):
    """Where an attempt and its item stand, read under lock just before a move is decided."""

    attempt_id: str
    attempt_state: AttemptState
    prediction_id: str | None
    item_pk: int
    item_state: ItemState
    is_current: bool  # this attempt is the item's latest
    failures: int  # provider failures of the item so far
    batch_pk: int
    reserved_units: int
    rules: Rules
    bound_by: str | None = None  # as of `Fact`, once there is a prediction
    is_surplus: bool = False  # bought once more than needed: nothing that becomes of it concerns the item
    deaths: int = 0  # of workers that held the item, in a row (`core/poison.py`)
    absences: int = 0  # purchases of the item in a row that were found never to have been made
    input_json: str | None = None  # of the item; read only where the batch's price asks for it
    row: int = 0  # the item's number
    day: str = ""  # that its money counts for (`core.caps.day_of`)


class ChargeLine(NamedTuple):
    """What a charge was reckoned from: so many units at so many dollars each, and the id of the price. Tokens read and tokens
    written have each their own."""

    unit: str
    quantity: Decimal
    usd: Decimal
    price_id: str
    quantity_out: Decimal | None = None
    usd_out: Decimal | None = None


class Change(NamedTuple):
    """A decided move, ready to be written: new states and the columns that go with them."""

    standing: Standing
    event: Event
    attempt_to: AttemptState
    item_to: ItemState
    at: datetime
    due_at: datetime | None = None  # of the item, where it waits for another attempt
    failures: int | None = None  # new value, where it changes
    error: str | None = None
    error_class: str | None = None
    prediction: Prediction | None = None
    charge_units: int | None = None  # None: unknown
    charge_basis: str | None = None  # metrics, counted outputs, run, estimate, free, not bought; None: not known (yet)
    final_charge: bool = False  # the attempt is over: its charge takes the place of its reservation, which stays if it is unknown
    via: str | None = None  # from where the fact was learned
    bound_by: str | None = None  # as of `Fact`, where a prediction is bound now
    deaths: int | None = None  # new value, where it changes
    charge_line: ChargeLine | None = None  # what the charge was reckoned from, where there was a price
    alarm: str | None = None  # why the batch is to be paused: more was charged than reserved, under a cap
    is_absurd: bool = False  # its charge is unknown, as by its price it came to what nobody believes

    @property
    def releases(self) -> bool:
        """Whether what the attempt reserves is free again. Of an unknown charge it is an upper bound, for all that is known."""
        return self.final_charge and self.charge_units is not None


@dataclass(frozen=True, slots=True)
class ToCollect:
    """A succeeded prediction whose outputs are to be brought home."""

    attempt_id: str
    item_pk: int
    batch_pk: int
    index: int
    row_id: str
    prediction_id: str
    output_json: str
    completed_at: datetime
    tries: int
    deaths: int = 0  # of workers that held it, in a row
    purchase: int = 1  # the row's first, second, … attempt


@dataclass(frozen=True, slots=True)
class OutputName:
    """A file name asked for; the ledger grants it, or a variant, so that no two rows share one."""

    item_pk: int
    batch_pk: int
    attempt_id: str
    row_index: int
    index: int
    stem: str  # relative path without extension


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """One file at home."""

    item_pk: int
    index: int
    path: str  # relative to the output folder, with forward slashes
    bytes: int
    sha256: str
    media_type: str
    source_url: str  # `data:` for inline values
    stored_at: datetime
    attempt_id: str  # whose it is: noted only while that is the item's latest


@dataclass(frozen=True, slots=True)
class ItemResult:
    """How an item stands, with what its current attempt gave: the ledger's side of a result."""

    index: int
    prediction_id: str | None
    state: ItemState
    output_json: str | None
    files: tuple[str, ...]  # relative paths, by output index; absolute ones of what an earlier batch bought
    error: str | None
    error_class: str | None
    charge_units: int | None  # over all attempts; None if any that ran is unknown, or none was made
    seconds: float | None
    attempts: int
    version: str | None


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The final row: what stands behind the input columns in the results file."""

    index: int
    prediction_id: str | None
    status: str  # succeeded, failed, canceled, pending
    output: str | None  # text as text, anything else as JSON
    files: tuple[str, ...]
    error: str | None
    error_class: str | None
    cost_usd: Decimal | None
    seconds: float | None
    attempts: int
    version: str | None


@dataclass(frozen=True, slots=True)
class Surplus:
    """Predictions that served for nothing, as they were beyond need or ended early: how many, their known cost, and how many have
    none known (yet)."""

    predictions: int
    cost_usd: Decimal
    cost_unknown: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of a batch by state, and money. Rows that share what another one buys are counted where that one stands."""

    by_state: dict[ItemState, int]
    spent_usd: Decimal
    reserved_usd: Decimal
    cost_unknown_items: int
    shared: dict[ItemState, int] = field(default_factory=dict)  # of these, the rows that share
    earlier: int = 0  # of those, the ones that share what an earlier batch bought
    started: int = field(default=0, compare=False)  # rows that were ever attempted
    tried_before: int = field(default=0, compare=False)  # of these, the ones that wait for another try

    @property
    def is_out(self) -> bool:
        """Whether rows are in the air, and so reserve money."""
        return any(self.by_state.get(state) for state in IN_AIR_ITEM)

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self.by_state.values())

    def own(self, *states: ItemState) -> int:
        """Rows in these states that are bought for themselves."""
        return sum(self.by_state.get(state, 0) - self.shared.get(state, 0) for state in states)
