"""What flow asks of the outside: one Protocol per room of `gateways/`. A port exists only where a double or a second
implementation does."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from orchestrator.core.caps import NO_BUDGET, AccountBudget, Bound, Cap
from orchestrator.core.failing import Tally
from orchestrator.core.history import PastAttempt
from orchestrator.core.homeward import Backlog
from orchestrator.core.lateness import Lateness
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.permits import Budget, Flow, Grant, Heard
from orchestrator.core.reckoning import Booked, Unpriced
from orchestrator.core.records import (
    Batch,
    Change,
    Claim,
    Counts,
    Delivery,
    Earlier,
    Fact,
    ItemResult,
    NewBatch,
    NewChunk,
    OutputName,
    Prediction,
    Receipt,
    ResultRow,
    Role,
    RowChunk,
    SourceFile,
    Standing,
    StoredOutput,
    Target,
    ToCollect,
    Wake,
)
from orchestrator.core.schedule import NewSlot, Slot, SlotsStanding, SlotState
from orchestrator.core.spending import BatchNames, Spent
from orchestrator.core.tempo import Tempo
from orchestrator.core.verify import Bought, HomeFile, HomeRow, Owner, Seen


class Proof(StrEnum):
    """What the outcome of a POST proves about money."""

    CREATED = "created"  # a prediction exists, and here it is
    NOT_SENT = "not_sent"  # the request never left: nothing was bought
    REFUSED = "refused"  # an answer that buys nothing (400 401 402 403 404 405 413 415 422 429)
    UNSURE = "unsure"  # anything else: it may have been bought


LAPSED = "not sent: its permit had lapsed before a connection was free"


@dataclass(frozen=True, slots=True)
class CreateAnswer:
    """The outcome of one POST. `status` and `body` are the provider's where it answered."""

    proof: Proof
    prediction: Prediction | None = None
    status: int | None = None
    detail: str | None = None  # what went wrong, a sentence
    retry_after_s: float | None = None  # 429: header, body field, or text
    sent_until_at: datetime | None = None  # our clock when the request ended
    provider_offset_s: float | None = None  # provider's clock minus ours, from the Date header
    rate_remaining: int | None = None
    rate_reset_s: float | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the provider's list, newest first."""

    predictions: list[Prediction]
    next_url: str | None
    provider_offset_s: float | None = None
    unreadable: tuple[str, ...] = ()  # what cannot be read of it and is left out: why, a sentence each


@dataclass(frozen=True, slots=True)
class Model:
    """What the provider says of a model or version."""

    name: str
    is_official: bool
    version: str | None
    openapi_schema: dict[str, Any]
    is_private: bool = False  # of an account's own: billed like a deployment, for all the time its instances are online


class Predictions(Protocol):
    """Replicate, or what stands in for it."""

    @property
    def offset_s(self) -> float | None:
        """The provider's clock minus this machine's, by the newest answer; None before the first."""

    @property
    def reads_left(self) -> int | None:
        """How many calls besides purchases the provider's newest answer to one said are left; None where it said nothing."""

    async def account(self) -> str:
        """The account's name. Raises TokenRefused, Unreachable."""

    async def model(self, name: str, *, version: str | None = None) -> Model:
        """Model and schema. Raises NotFound, TokenRefused, Unreachable."""

    async def deployment(self, name: str) -> Model:
        """The model a deployment runs now. Raises NotFound, TokenRefused, Unreachable."""

    async def create(self, target: Target, *, input_json: str, post_by_s: float, webhook: str | None = None,
                     cancel_after_s: float | None = None) -> CreateAnswer:
        """One POST, never repeated. `post_by_s`: CLOCK_BOOTTIME seconds after which it must not be written.

        Never raises for anything the network or the provider did."""

    async def get(self, prediction_id: str) -> Prediction:
        """One prediction. Raises NotFound, Unreadable, Throttled, Unreachable, TokenRefused."""

    async def webhook_secret(self) -> str:
        """The key that webhooks are signed with: `whsec_…`. Raises TokenRefused, Unreachable."""

    async def cancel(self, prediction_id: str) -> Prediction:
        """Ask for the end of one prediction; answers its state. Raises as `get`."""

    async def list_page(self, *, url: str | None = None, created_after: datetime | None = None,
                        created_before: datetime | None = None) -> Page:
        """A page of predictions, newest first; `url` is a page's `next_url`. What cannot be read is left out and counted.

        Raises Throttled, Unreachable, TokenRefused."""


class Limiter(Protocol):
    """One rate for everybody who shares the account, on one clock. Every call raises Unreachable where that cannot be asked."""

    async def reserve(self, budgets: Sequence[Budget], *, count: int, flow: Flow | None = None) -> Grant:
        """Up to `count` permits from all budgets at once, none further than half a second ahead.

        `flow`: who asks, where the first budget is shared by weight."""

    async def hear(self, budget: Budget, heard: Heard) -> None:
        """What the provider's answers tell of this budget, or that it does not answer."""

    async def throttle(self, budget: Budget, *, serial: int, seconds: float, reason: str, is_low_credit: bool) -> None:
        """The provider refused a request of this budget for being too fast: nobody sends for so long, and then slower."""

    async def pause(self, key: str, *, seconds: float, reason: str) -> None:
        """Nobody gets a permit of this budget for so long (a longer pause already set stands)."""

    async def paused(self, key: str) -> tuple[float, str] | None:
        """Seconds left and reason, or None."""


class Queue(Protocol):
    """The only sender: a wake becomes a Celery message."""

    async def send(self, wakes: Sequence[Wake]) -> None:
        """Send; raises Unreachable when the broker is away (the row is the truth: the tick sends again)."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An output on its way: what the headers say, and the bytes."""

    media_type: str | None
    length: int | None
    chunks: AsyncIterator[bytes]


class Outputs(Protocol):
    """Where finished files are fetched from."""

    def fetch(self, url: str) -> AbstractAsyncContextManager[Fetched]:
        """Open one output: https URL on an allowed host, or data URI. Raises CollectError's children."""


class Storage(Protocol):
    """Where files go: a folder."""

    async def put(self, path: str, chunks: AsyncIterator[bytes], *, length: int | None) -> tuple[int, str]:
        """Stream to `path` (relative), durably and atomically; answers bytes and sha256 in hex.

        Raises OutputBroken when the length disagrees, OSError when the store is full or not writable."""

    async def measure(self, wanted: Sequence[tuple[str, int]]) -> list[Seen | None]:
        """What lies at each path, of which this size is expected; None: nothing. A file of another size is not read."""

    async def remove(self, told: Sequence[tuple[str, int, str]]) -> int:
        """Remove the files at these paths that have this size and sha256, and no others; how many. Raises OSError."""

    async def clean(self, *, older_than_s: float) -> int:
        """Remove temporary files that dead processes left, by their age; how many."""

    def names(self) -> AsyncIterator[list[str]]:
        """What there is, relative paths, streamed: the files of outputs, and what lies beside their folder."""


class ResultsTable(Protocol):
    """A results file being written; used as a context manager, it appears whole or not at all."""

    def __enter__(self) -> "ResultsTable": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None: ...

    def write(self, blob: bytes, rows: Sequence[ResultRow]) -> None:
        """One snapshot chunk and its rows' results, same order and length."""


class Tables(Protocol):
    """Files of rows: sources in, results out. All of it blocks: call it in a thread."""

    def resolve(self, pattern: str, *, base: str) -> list[str]:
        """The files meant by a path or glob, sorted. Raises BadInput when there is none."""

    def fingerprint(self, paths: Sequence[str]) -> list[SourceFile]:
        """Size and sha256 of each."""

    def columns(self, paths: Sequence[str]) -> list[str]:
        """The columns' names. Raises BadInput for what is empty, doubled, or differs between files."""

    def read(self, paths: Sequence[str], *, chunk_rows: int) -> Iterator[RowChunk]:
        """All rows, in bounded chunks."""

    def merge_schema(self, source_schema_json: str | None, blob: bytes) -> str:
        """The schema so far, widened by one more chunk."""

    def empty_schema(self, columns: Sequence[str]) -> str:
        """The schema of a source without rows."""

    def results(self, path: str, *, kind: str, source_schema_json: str) -> ResultsTable:
        """A new results file of kind parquet, csv or jsonl."""

    def lines(self, path: str) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        """A new JSON-lines file; the value written through appears whole or not at all."""

    def document(self, path: str, value: dict[str, Any]) -> None:
        """A JSON document, written atomically."""

    def entries(self, path: str) -> Iterator[list[dict[str, Any]]]:
        """The objects of a JSON-lines file, in bounded chunks. Raises BadInput, FileNotFoundError."""

    def column(self, blob: bytes, name: str) -> list[str | None]:
        """The cells of one column of a chunk's snapshot as text, None where empty; a chunk may lack the column."""

    def cells(self, path: str, *, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """These columns of a results file, in bounded chunks; CSV cells are text. Raises BadInput, FileNotFoundError."""


class Clock(Protocol):
    """Time and chance."""

    def now(self) -> datetime:
        """The wall clock, UTC."""

    def boottime(self) -> float:
        """Seconds that also pass while the machine sleeps."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def token(self) -> str:
        """A new random id of 26 lowercase letters and digits."""

    def jitter(self) -> float:
        """A number in [0, 1)."""


Decide = Callable[[Standing, Fact], Change | None]


@dataclass(frozen=True, slots=True)
class ClaimTerms:
    """The terms of one claim of items for submitting."""

    now: datetime
    lease_until: datetime
    post_by_at: datetime
    owner: str
    reserve_units: int | None  # worst case per row in 10^-12 USD; None: not known, and nothing is claimed under a cap
    offset_s: float | None = None  # provider's clock minus ours, as it is known now
    made_from: tuple[str, str] | None = None  # job and price of the batch; where it has others by now, nothing is claimed
    model_in_flight: int | None = None  # predictions of the batch's model alive at most, over all batches of its account
    asks_behind: bool = False  # `claimable` is to tell as well whether downloads are behind
    caps: tuple[Cap, ...] = ()  # on money, beyond the batch's own, which other batches share


@dataclass(frozen=True, slots=True)
class Claimable:
    """How many items may be claimed now. `reason` says what holds back the rest: `none due`, `in flight`, `start limit`,
    `in flight: this model`, `not running`, `amended` (the terms are out of date); of the caps on money (`core/caps.py`) `budget`,
    `budget: job` and so on where nothing is out that could free enough, else `budget: waiting for running rows …`; None when
    nothing does."""

    count: int
    reason: str | None
    next_due_at: datetime | None = None  # when the next waiting item is due, if none is now
    behind_since: datetime | None = None  # by the provider's clock, where asked: since when downloads are behind, if they are
    backlog: Backlog | None = None  # and by how much, where that is longer than LOOK_S (`core/homeward.py`)


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt not yet ended, as the sweep needs it."""

    attempt_id: str
    batch_pk: int
    state: str
    prediction_id: str | None
    target_key: str
    input_json: str
    input_hash: str
    created_at: datetime
    answered_at: datetime | None
    sent_until_at: datetime | None
    next_check_at: datetime | None
    offset_s: float | None = None  # provider's clock minus that of the machine which claimed it, at that time
    owner: str = ""  # who claimed it: `host:pid`
    secrets: frozenset[str] = frozenset()  # inputs that the provider does not show as they were sent


@dataclass(frozen=True, slots=True)
class KeptDelivery:
    """A webhook that waits for the answer of the attempt which its URL names."""

    message_id: str
    attempt_id: str
    prediction_id: str
    received_at: datetime


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """What is out at the provider for one account."""

    running: int
    unsure: int
    oldest_created_at: datetime | None  # provider's time, of the running attempts that are not stragglers
    median_s: float | None  # median provider time of this account's latest ended attempts


@dataclass(frozen=True, slots=True)
class Begun:
    """A batch that there is already. `never_started`: rows of it; None: not counted, as it is still being loaded."""

    id: str
    run_key: str
    state: BatchState
    reason: str | None
    started: int
    never_started: int | None


@dataclass(frozen=True, slots=True)
class Met:
    """What the ledger has already of an order that is not placed yet.

    `fresh`: the newest batch that `--fresh` began with the same rows. `bounds`: how the caps stand; None: not known."""

    batch: Begun | None
    fresh: Begun | None
    bounds: tuple[Bound, ...] | None


class Ledger(Protocol):
    """All of SQL. Each method is one transaction; none holds one across the network."""

    async def open_batch(self, new: NewBatch) -> tuple[Batch, bool]:
        """The batch of this run key, and whether it is new. Raises NameTaken where another batch has this id."""

    async def batch(self, batch_id: str) -> Batch | None:
        """One batch by id."""

    async def live_batches(self) -> list[Batch]:
        """Batches that are loading, running, paused or canceling."""

    async def note_reason(self, batch_pk: int, reason: str | None) -> None:
        """Say why the batch waits, for people; None: it does not."""

    async def known(self, run_key: str) -> bool:
        """Whether a batch of this run key exists."""

    async def left(self, run_key: str, *, limit: int | None) -> int | None:
        """Rows of the batch of this run key that were never started and would be now, with no more than `limit` started in all;
        None: there is no such batch, or it is not loaded."""

    async def met(self, run_key: str, *, account: str, job: str, caps: Sequence[Cap], reserve_units: int | None,
                  now: datetime) -> Met:
        """The batch of this run key, one that `--fresh` made of the same rows, and how these caps stand for a row of them that
        reserves so much (None: not known), on the day of `now`. One read."""

    async def loaded_rows(self, batch_pk: int) -> int:
        """Rows already in, from an interrupted load: whole chunks, in order."""

    async def add_chunk(self, batch_pk: int, chunk: NewChunk) -> None:
        """Snapshot and items of one chunk, behind those that are in; adding a chunk again, or to a batch that is loaded, changes
        nothing. Raises Discarded where the batch has gone, or the chunks before this one."""

    async def hasten(self, *, now: datetime, latest: datetime) -> None:
        """This machine's clock was set back: every wake is due now, and so are rows that would wait beyond `latest`."""

    async def release_holds(self, *, now: datetime) -> None:
        """Every wake is due now: whoever held one has gone."""

    async def oldest_out_at(self, batch_pk: int) -> datetime | None:
        """When the oldest paid prediction not yet home was created (or completed, where known)."""

    async def find(self, name: str) -> Batch:
        """A batch by its id, the beginning of it, or its job's name (then the latest). Raises BadInput."""

    async def bought_before(self, batch_pk: int, hashes: Sequence[str]) -> dict[str, Earlier]:
        """By input hash, the row that an earlier batch of the same account and target bought to be shared, and that succeeded;
        looked for in the newest hundred of them."""

    async def shared_with(self, batch_pk: int) -> dict[str, int]:
        """The earlier batches, by id, that bought what rows of this one share, and how many rows do."""

    async def seal(self, batch_pk: int, *, total: int, source_schema_json: str, now: datetime,
                   estimate_json: str | None = None) -> None:
        """Loading has ended: from now on rows may be bought; again changes nothing. `estimate_json`: what they are expected to
        cost. Raises Discarded where not all of `total` rows are in."""

    async def discard(self, batch_pk: int) -> None:
        """Forget a batch that is still loading, rows and all."""

    async def amend(self, batch_pk: int, *, in_flight: int, max_attempts: int, cap_units: int | None, price_json: str,
                    start_limit: int | None, job_json: str, output_to: str | None = None,
                    estimate_json: str | None = None, reserve_units: int | None = None) -> None:
        """What may change between two runs of one batch; `output_to` only until the first file is in it. Without an
        `estimate_json` the estimate stays as it is. `reserve_units`: a row's worst case from now on, in 10^-12 USD, where it is
        known; attempts of the batch that are alive, or ended at a cost nobody knows, and reserve less, reserve so much then."""

    async def lift_limit(self, batch_pk: int, *, start_limit: int) -> None:
        """The batch may start all of its rows, if this is still its start limit: a later run may have set another."""

    async def set_state(self, batch_pk: int, *, to: BatchState, allowed: frozenset[BatchState], reason: str | None,
                        now: datetime, wakes: Sequence[Wake] = ()) -> bool:
        """Move the batch if it stands in an allowed state, with wakes that follow from it; says whether it moved."""

    async def end_batch(self, batch_pk: int, *, to: BatchState, of: BatchState, reason: str | None, told: Counts,
                        now: datetime) -> bool:
        """Move the batch from state `of` to its end, if nothing of it can move any more and its counts are those that were
        `told` in its documents; says whether it moved."""

    async def pause_for_budget(self, batch_pk: int, *, terms: ClaimTerms) -> bool:
        """Pause the batch if not one more row can be afforded under a cap and nothing is out that could free enough of it."""

    async def tally(self, batch_pk: int, *, most: int) -> Tally:
        """How the rows fared that were sent to the provider; failures are counted up to `most` beyond the known ones."""

    async def pause_for_failures(self, batch_pk: int, *, most: int, decide: Callable[[Batch, Tally], str | None],
                                 now: datetime) -> bool:
        """Pause a running batch for the reason that `decide` gives, asked under the batch's lock with the causes told as well;
        says whether it is paused by that."""

    async def attend(self, batch_pk: int, *, attended: bool) -> None:
        """From now on the batch goes on only while a command does that names it, or with whoever is at work."""

    async def know_failures(self, batch_pk: int) -> None:
        """A person says that the batch is to go on: what has failed until now is known, and stops it no more."""

    async def claimable(self, batch_pk: int, *, count: int, terms: ClaimTerms) -> Claimable:
        """How many items `claim` would give now, and why not more. Reads only."""

    async def claim(self, batch_pk: int, *, attempt_ids: Sequence[str], terms: ClaimTerms) -> list[Claim]:
        """Up to len(attempt_ids) due pending items, in row order, each with an attempt committed.

        Fewer when the in-flight cap, the start limit or the budget allows no more."""

    async def move(self, facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
        """Read where the facts' attempts stand, under lock; ask `decide`; write the changes; all in one transaction. A change
        with an alarm pauses its batch in it."""

    async def receive(self, deliveries: Sequence[Delivery], *, decide: Decide) -> tuple[list[Receipt], list[Change]]:
        """Take in webhooks and their effect in one transaction: a receipt for each, and the changes that came of them."""

    async def kept(self, account: str, *, before: datetime) -> list[KeptDelivery]:
        """Webhooks received before `before` whose attempt's own answer is still not known, oldest first."""

    async def drop_kept(self, message_ids: Sequence[str]) -> None:
        """These are not waited for any longer."""

    async def attempts_of(self, attempt_ids: Sequence[str]) -> list[OpenAttempt]:
        """These attempts, as the sweep knows them."""

    async def expire_leases(self, *, now: datetime, offset_s: float | None, owner_not: str | None) -> list[str]:
        """Ids of open attempts whose lease is over. `offset_s`: the provider's clock minus this machine's, whose time is `now`.

        With `owner_not`, also those of any other owner: the caller knows that these are dead."""

    async def to_collect(self, batch_pk: int, *, count: int, now: datetime, lease_until: datetime) -> list[ToCollect]:
        """Collecting items that are due, oldest completion first, leased to the caller."""

    async def grant_names(self, names: Sequence[OutputName]) -> list[str | None]:
        """A stem for each, unique in its batch, and never given to another purchase, not even of the same row: as asked, or with
        `~row` behind it. Asking again answers the same. None: its row has been bought again since."""

    async def store_outputs(self, outputs: Sequence[StoredOutput]) -> list[StoredOutput]:
        """Note files that are home; those that nobody wants, as their rows have been bought again since."""

    async def superseded(self, item_pks: Sequence[int]) -> list[HomeFile]:
        """Files that came home from earlier purchases of these rows, and count no longer."""

    async def lease_collect(self, leases: Mapping[int, datetime], *, until: datetime) -> set[int]:
        """Collecting items, each with the end of the caller's lease, stay with him until then; which of them he still held."""

    async def hand_back(self, leases: Mapping[int, datetime], *, now: datetime) -> None:
        """Collecting items that the caller still holds are anybody's again. One that is not handed back, delayed or ended counts
        as a death."""

    async def delay_collect(self, leases: Mapping[int, datetime], *, due_at: datetime, error: str) -> None:
        """Try these again later, where the caller still holds them."""

    async def open_window(self, account: str) -> OpenWindow:
        """How much is out, and since when."""

    async def stragglers(self, account: str, *, older_than: datetime, now: datetime, count: int) -> list[OpenAttempt]:
        """Running attempts created before `older_than` that are due for a single GET."""

    async def checked(self, attempt_ids: Sequence[str], *, next_check_at: datetime) -> None:
        """A single GET was made; the next not before."""

    async def unsure(self, account: str) -> list[OpenAttempt]:
        """Attempts whose answer was lost, oldest first."""

    async def being_sent(self, account: str) -> list[OpenAttempt]:
        """Attempts whose POST may be in the air, or answered and not yet recorded: what equals them may be theirs."""

    async def gone(self, account: str, *, since: datetime, now: datetime) -> list[OpenAttempt]:
        """Attempts made since then that were found absent or given up, unless `checked` says to look later: what they may have
        bought can still turn up."""

    async def surplus(self, account: str) -> list[tuple[str, str]]:
        """Attempt and prediction of what was bought beyond need and is still alive at the provider."""

    async def echoes(self, account: str) -> dict[str, tuple[str | None, str | None]]:
        """Target key to the (model, version) that the latest answered attempt of that target was echoed."""

    async def owned(self, prediction_ids: Sequence[str]) -> set[str]:
        """Which of these predictions belong to an attempt of ours."""

    async def in_air(self, batch_pk: int, *, count: int) -> list[tuple[str, str]]:
        """(attempt id, prediction id) of predictions still alive, for canceling."""

    async def cancel_pending(self, batch_pk: int) -> int:
        """Pending items become canceled; how many."""

    async def reopen_canceled(self, batch_pk: int) -> int:
        """Canceled items wait again; how many."""

    async def refetch(self, batch_pk: int, *, classes: frozenset[str], after: datetime) -> int:
        """Failed items whose prediction succeeded after `after` are collecting again; how many. `classes` as in
        `reopen_failed`."""

    async def rejoin(self, batch_pk: int, *, classes: frozenset[str]) -> int:
        """Failed rows of these classes whose prediction turned up after all and is alive at the provider: running again."""

    async def reopen_failed(self, batch_pk: int, *, classes: frozenset[str]) -> int:
        """Failed items of these error classes wait again, failures at zero; how many.

        Without classes: all but `invalid_input` (cannot be bought) and `unsure` (may have been bought already)."""

    async def unsettled(self, batch_pk: int) -> bool:
        """Whether any item of the batch can still move by itself (with a start limit: any started one)."""

    def results(self, batch_pk: int) -> AsyncIterator[tuple[bytes, list[ItemResult]]]:
        """Snapshot chunk and its items' outcomes, in input order, streamed."""

    def manifest(self, batch_pk: int) -> AsyncIterator[dict[str, Any]]:
        """One dict per file at home, in input order, streamed: the lines of `manifest.jsonl`."""

    async def counts(self, batch_pk: int) -> Counts:
        """Items by state, and money."""

    def home(self, batch_pk: int) -> AsyncIterator[list[HomeRow]]:
        """The rows that have files at home or succeeded, in row order, streamed, each with its files."""

    async def known_paths(self, batch_pk: int, paths: Sequence[str]) -> set[str]:
        """Which of these are files of this batch."""

    def bought(self, batch_pk: int) -> AsyncIterator[list[Bought]]:
        """The batch's attempts in row order, streamed."""

    def booked(self, batch_pk: int) -> AsyncIterator[list[Booked]]:
        """The charges of the batch's attempts in row order, streamed, without inputs."""

    def unpriced(self, batch_pk: int) -> AsyncIterator[list[Unpriced]]:
        """Predictions that ended at a cost nobody knows, in the order of their rows."""

    async def booked_of(self, prediction_ids: Sequence[str], *, with_input: bool = False) -> dict[str, Booked]:
        """The charges of these predictions, of whichever batch, by prediction."""

    async def owners(self, *, prediction_ids: Sequence[str] = (), attempt_ids: Sequence[str] = ()) -> list[Owner]:
        """The attempts that have one of these predictions, and those of these ids, of whichever batch."""

    async def rows_of_inputs(self, batch_pk: int, hashes: Sequence[str]) -> dict[str, tuple[int, str]]:
        """For each of these input hashes a row of the batch that has it: its number and id."""

    async def unanswered_since(self, account: str) -> datetime | None:
        """When the oldest attempt whose answer is not known was made; None: there is none."""

    async def expired(self, batch_pk: int) -> int:
        """Rows that failed because what they bought was deleted before it was fetched."""

    async def reopen_expired(self, batch_pk: int) -> int:
        """Such rows that this happened to once wait again, failures as they were; how many. Those of `attempts: 1` do not."""

    async def note_offset(self, account: str, *, offset_s: float, now: datetime) -> None:
        """Remember the provider's clock."""

    async def offset(self, account: str) -> float | None:
        """The provider's clock minus ours, in seconds, where ever learned."""

    async def beat(self, role: Role) -> None:
        """A process says that it is at work."""

    async def present(self, *, now: datetime, within_s: float) -> list[Role]:
        """The processes that were seen within the last seconds. A database that serves several machines has its own clock, and
        goes by that."""

    async def depart(self, role_ids: Sequence[str], *, now: datetime, within_s: float) -> None:
        """These have ended, as has whoever was not seen within the last seconds."""

    async def schedule(self, wakes: Sequence[Wake], *, now: datetime, force: bool = False) -> None:
        """Set due times; a wake sooner than what is set wins, a later one replaces only a time that has passed.

        One whose message is out is left to the station at work, unless `force`: the station itself, or an operator."""

    async def hold(self, wake: Wake, *, until: datetime) -> bool:
        """The station is at work for longer than usual: its message does not count as lost before then. False: there is no
        such wake."""

    async def dismiss(self, wake: Wake, batch_pk: int, *, told: Counts) -> bool:
        """The wake's work is done, unless the batch's counts are no longer those that were `told`: then it stays, and is due."""

    async def take_due(self, *, now: datetime, hold_s: float) -> list[Wake]:
        """Wakes that are due; each is held back for `hold_s` so that a lost message is sent again, not lost."""

    async def slots_standing(self, job: str, *, rule: str) -> SlotsStanding:
        """A job's open slots, its last one, and since when this rule of it is in force."""

    async def know_schedule(self, job: str, *, rule: str, now: datetime) -> None:
        """From now on slots of this rule count, and of no other of the job; known already, it is known since then."""

    async def note_slots(self, job: str, new: Sequence[NewSlot], *, now: datetime) -> None:
        """Slots become rows; of one noted before, only a due one is moved, and only to skipped."""

    async def claim_slot(self, job: str, *, slot_at: datetime, owner: str, now: datetime, lease_until: datetime) -> bool:
        """Begin to start a slot: true for exactly one of all who ask, and again once its lease is over without a batch."""

    async def hold_slot(self, job: str, *, slot_at: datetime, owner: str, lease_until: datetime) -> bool:
        """Its owner is still starting it. False: somebody else has taken it over."""

    async def finish_slot(self, job: str, *, slot_at: datetime, owner: str | None, state: SlotState, reason: str | None = None,
                          batch_id: str | None = None, lease_until: datetime | None = None) -> bool:
        """What became of a running slot, if it is still its owner's. Back to due: not before `lease_until`."""

    async def slots_of(self, job: str, *, limit: int) -> list[Slot]:
        """A job's latest slots, newest first."""

    async def past(self, account: str, target: Target) -> list[PastAttempt]:
        """The newest attempts of this target that ended at the provider, a thousand at most; of a ledger that is not there
        yet, none."""

    async def batch_names(self) -> list[BatchNames]:
        """Of all batches, newest first."""

    async def spent_by_batch(self, batch_pks: Sequence[int] | None) -> dict[int, Spent]:
        """What each of these batches has spent that has tried anything; None: all there are."""

    async def spent_by_day(self, batch_pks: Sequence[int] | None) -> list[tuple[str, Spent]]:
        """What was spent on each day (UTC), by when a prediction ended; a row tried on two days counts on both."""

    async def spent_by_batch_and_day(self, *, account: str | None, first: str | None,
                                     last: str | None) -> list[tuple[int, str, Spent]]:
        """The same by batch and day, of the days between these two (YYYY-MM-DD, both included) and of one account; None: all."""

    async def accounts(self) -> list[str]:
        """Whose batches there are."""

    def spent_by_row(self, batch_pk: int) -> AsyncIterator[tuple[int, bytes, dict[int, Spent]]]:
        """Chunk by chunk: its first row's number, its snapshot, and what each row cost that was tried, by its number."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """The gateways that a station works with, introduced by wiring."""

    ledger: Ledger
    predictions: Predictions
    limiter: Limiter
    outputs: Outputs
    storage: Callable[[str], Storage]  # of an output folder
    tables: Tables
    clock: Clock
    tempo: Tempo
    owner: str  # of leases: this process
    public_url: str | None = None  # where the provider can reach our webhook
    budget: AccountBudget = NO_BUDGET  # the settings' caps on money
    stopping: Callable[[], bool] = lambda: False  # a shutdown has begun: start nothing new
    webhooks_seen: dict[str, str | None] = field(default_factory=dict)  # by prediction: it never changes, so it is asked for once
    claiming: set[str] = field(default_factory=set)  # batches with little room, of which a task here looks, reserves and claims
    lateness: Lateness = field(default_factory=Lateness)  # of this process
