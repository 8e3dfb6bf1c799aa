"""The tables, and nothing else: columns, types, indexes.

There are no foreign keys: every write passes through this room, and on
PostgreSQL the locks of the checks on the batch row would make claims wait for loads. Money is BIGINT in units of 10^-12 USD.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TextClause,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine
from sqlmodel import Field, SQLModel

HEAD = "0010"  # the newest revision in migrations/versions; a test holds the two together

# Partial indexes serve only queries that repeat their condition literally: SQLite compares the texts.
PENDING = "state = 'pending'"
COLLECTING = "state = 'collecting'"
# Spelled with OR: for `IN (…)` SQLite builds a little table each time it asks whether a row belongs to the index, which was a
# third of what an update of an attempt cost.
ALIVE = "(state = 'open' OR state = 'unsure' OR state = 'running')"
GONE = "(state = 'absent' OR state = 'lost')"
SURPLUS = "surplus_at IS NOT NULL"
COMPLETED = "completed_at IS NOT NULL"
KEPT = "payload_json IS NOT NULL"
COPIED = "copies IS NOT NULL"
SHARES = "share_key IS NOT NULL"
OPEN_SLOT = "state IN ('due', 'running')"
UNPRICED = ("charge_units IS NULL AND (state = 'succeeded' OR state = 'failed' OR state = 'canceled' OR state = 'aborted' "
            "OR state = 'lost')")

# `items.due_at` of rows that may be bought at any time. Two values, so that one index range holds the rows never
# started and another those to be bought again.
FRESH_AT = datetime(1970, 1, 1, tzinfo=UTC)
AGAIN_AT = datetime(1970, 1, 2, tzinfo=UTC)


def alive(table: str) -> TextClause:
    """`ALIVE` of a table, or of its alias."""
    return text(ALIVE.replace("state", f"{table}.state"))


def gone_of(table: str) -> TextClause:
    """`GONE`, likewise."""
    return text(GONE.replace("state", f"{table}.state"))


NAIVE = "a time without a zone cannot be stored; use datetime.now(UTC)"


def sqlite_time(value: datetime) -> str:
    """UTC as text of fixed width. Raises ValueError for a naive time: whose midnight it means is not known."""
    if value.tzinfo is None:
        raise ValueError(NAIVE)
    there = value if value.tzinfo is UTC else value.astimezone(UTC)
    return there.isoformat(" ", "microseconds")[:26]


class UtcTime(TypeDecorator[datetime]):
    """An aware datetime in UTC: timestamptz on PostgreSQL; on SQLite text of fixed width, which sorts as time does."""

    impl = String(26)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column type of this engine."""
        return dialect.type_descriptor(DateTime(timezone=True) if dialect.name == "postgresql" else String(26))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        """Refuses naive datetimes: whose midnight they mean is not known."""
        if value is None:
            return None
        if dialect.name != "postgresql":
            return sqlite_time(value)
        if value.tzinfo is None:
            raise ValueError(NAIVE)
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Always UTC, whatever the session's zone."""
        if value is None:
            return None
        return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value.astimezone(UTC)


BIG_KEY = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows itself only in INTEGER columns


def _partial(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class _Model(SQLModel):
    metadata = MetaData()


class BatchRow(_Model, table=True):
    """One run of a job over one source. `started` counts items that were ever attempted."""

    __tablename__ = "batches"
    __table_args__ = {"sqlite_autoincrement": True}  # a run may still know the number of a batch that was taken out
    pk: int | None = Field(default=None, primary_key=True, sa_type=BIG_KEY)
    id: str = Field(unique=True)
    job: str
    run_key: str = Field(unique=True)
    account: str
    state: str
    reason: str | None
    created_at: datetime = Field(sa_type=UtcTime)
    finished_at: datetime | None = Field(sa_type=UtcTime)
    target_endpoint: str
    target_name: str
    target_version: str | None
    job_json: str
    openapi_json: str
    source_json: str
    price_json: str
    source_schema_json: str | None
    output_to: str
    in_flight: int
    max_attempts: int
    start_limit: int | None
    started: int
    total: int | None
    cap_units: int | None = Field(sa_type=BigInteger)
    spent_units: int = Field(sa_type=BigInteger)
    reserved_units: int = Field(sa_type=BigInteger)
    known_failed: int | None = Field(sa_type=BigInteger)  # failed when a person last said that it is to go on (core/failing.py)
    known_refused: int | None = Field(sa_type=BigInteger)  # and refused for their input
    known_shared: int | None = Field(sa_type=BigInteger)  # of both, those that share what an equal row bought
    estimate_json: str | None  # what it was expected to cost when it was opened (core/estimate.py)
    attended: bool | None  # None: of an older program


class BatchDayRow(_Model, table=True):
    """What a batch spent and reserves for attempts that were claimed on one day (UTC, YYYY-MM-DD)."""

    __tablename__ = "batch_days"
    batch_pk: int = Field(primary_key=True, sa_type=BigInteger)
    day: str = Field(primary_key=True)
    spent_units: int = Field(sa_type=BigInteger)
    reserved_units: int = Field(sa_type=BigInteger)


class ItemRow(_Model, table=True):
    """One row with a life. `due_at`: not to be touched before; of a collecting item also the end of its lease."""

    __tablename__ = "items"
    __table_args__ = (
        UniqueConstraint("batch_pk", "idx", name="uq_items_batch_pk_idx"),
        Index("ix_items_state", "batch_pk", "state"),
        # Nothing else gives this order, so no planner with stale statistics prefers the wrong index.
        _partial("ix_items_pending", "batch_pk", "due_at", "idx", where=PENDING),
        _partial("ix_items_collecting", "batch_pk", "completed_at", "due_at", where=COLLECTING),
        _partial("ix_items_copies", "batch_pk", "state", "copies", where=COPIED),
        Index("uq_items_share_key", "batch_pk", "share_key", unique=True, sqlite_where=text(SHARES),
              postgresql_where=text(SHARES)),
    )
    pk: int | None = Field(default=None, primary_key=True, sa_type=BIG_KEY)
    batch_pk: int = Field(sa_type=BigInteger)
    idx: int = Field(sa_type=BigInteger)
    row_id: str
    input_json: str | None
    input_hash: str | None
    state: str
    due_at: datetime = Field(sa_type=UtcTime)
    failures: int
    attempts: int
    attempt_id: str | None
    completed_at: datetime | None = Field(sa_type=UtcTime)
    tries: int
    error: str | None
    error_class: str | None
    deaths: int | None  # leases in a row that ended with their holder (`core/poison.py`); one that is held counts ahead
    twin_of: int | None = Field(sa_type=BigInteger)  # the row (pk) with an equal input that is bought for both
    copies: int | None = Field(sa_type=BigInteger)  # rows of its batch that share what this one buys; null: none
    share_key: str | None  # its input's hash, where later rows of an equal input may share what it buys


class AttemptRow(_Model, table=True):
    """One try at buying an item. `model` and `version` are the provider's echo; `reserved_units` is 0 once released."""

    __tablename__ = "attempts"
    __table_args__ = (
        Index("ix_attempts_item", "item_pk"),
        _partial("ix_attempts_alive", "account", "state", "created_at", where=ALIVE),
        Index("ix_attempts_answered", "batch_pk", "answered_at"),
        _partial("ix_attempts_completed", "account", "completed_at", where=COMPLETED),
        _partial("ix_attempts_unpriced", "batch_pk", "item_pk", where=UNPRICED),
        _partial("ix_attempts_gone", "account", "created_at", where=GONE),
        _partial("ix_attempts_surplus", "account", "batch_pk", where=SURPLUS),
    )
    id: str = Field(primary_key=True)
    item_pk: int = Field(sa_type=BigInteger)
    batch_pk: int = Field(sa_type=BigInteger)
    account: str
    n: int
    state: str
    owner: str
    lease_until: datetime = Field(sa_type=UtcTime)
    target_key: str
    input_hash: str
    created_at: datetime = Field(sa_type=UtcTime)
    post_by_at: datetime = Field(sa_type=UtcTime)
    sent_until_at: datetime | None = Field(sa_type=UtcTime)
    answered_at: datetime | None = Field(sa_type=UtcTime)
    next_check_at: datetime | None = Field(sa_type=UtcTime)
    prediction_id: str | None = Field(unique=True)
    status: str | None
    model: str | None
    version: str | None
    provider_created_at: datetime | None = Field(sa_type=UtcTime)
    completed_at: datetime | None = Field(sa_type=UtcTime)
    output_json: str | None
    metrics_json: str | None
    logs_tail: str | None
    seconds: float | None
    error: str | None
    error_class: str | None
    reserved_units: int = Field(sa_type=BigInteger)
    charge_units: int | None = Field(sa_type=BigInteger)
    charge_basis: str | None  # how the charge is known: metrics, counted outputs, run, estimate, free, not bought
    ended_via: str | None  # from where its end was learned first: post, webhook, list, get
    offset_s: float | None  # the provider's clock minus that of the machine which claimed it, at that time
    bound_by: str | None  # why the prediction is its own: post, url, input; null before the revision that knows
    surplus_at: datetime | None = Field(sa_type=UtcTime)  # since when it is known to have been bought beyond need
    charge_unit: str | None  # this and the next five: what the charge was reckoned from, where there was a price
    charge_quantity: str | None  # decimal; of tokens those read
    charge_quantity_out: str | None  # of tokens those written
    charge_price: str | None  # USD for one, decimal
    charge_price_out: str | None
    charge_price_id: str | None


class OutputRow(_Model, table=True):
    """A file name granted, and with `stored_at` a file at home. `name_key`: the stem, as it is without case."""

    __tablename__ = "outputs"
    __table_args__ = (UniqueConstraint("batch_pk", "name_key", name="uq_outputs_batch_pk_name_key"),)
    item_pk: int = Field(primary_key=True, sa_type=BigInteger)
    idx: int = Field(primary_key=True)
    batch_pk: int = Field(sa_type=BigInteger)
    attempt_id: str
    name_key: str
    stem: str
    path: str | None
    bytes: int | None = Field(sa_type=BigInteger)
    sha256: str | None
    media_type: str | None
    source_url: str | None
    stored_at: datetime | None = Field(sa_type=UtcTime)


class SourceChunkRow(_Model, table=True):
    """The snapshot of some rows' cells, as they were read."""

    __tablename__ = "source_chunks"
    batch_pk: int = Field(primary_key=True, sa_type=BigInteger)
    first_index: int = Field(primary_key=True, sa_type=BigInteger)
    rows: int
    blob: bytes = Field(sa_type=LargeBinary)


class WorkRow(_Model, table=True):
    """A wake: a station is to look at something, not before `due_at`. `sent_at`: held back, as its message is out."""

    __tablename__ = "work"
    __table_args__ = (Index("ix_work_due_at", "due_at"),)
    station: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    lane: int = Field(primary_key=True)
    due_at: datetime = Field(sa_type=UtcTime)
    sent_at: datetime | None = Field(sa_type=UtcTime)


class AccountRow(_Model, table=True):
    """What is known of a provider's account: its clock minus ours."""

    __tablename__ = "accounts"
    name: str = Field(primary_key=True)
    offset_s: float
    noted_at: datetime = Field(sa_type=UtcTime)


class DeliveryRow(_Model, table=True):
    """A webhook that waits until its attempt's own answer is known. `payload_json`: what it said."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_received_at", "received_at"),
                      _partial("ix_deliveries_kept", "attempt_id", where=KEPT))
    id: str = Field(primary_key=True)
    attempt_id: str
    prediction_id: str
    received_at: datetime = Field(sa_type=UtcTime)
    payload_json: str | None


class RoleRow(_Model, table=True):
    """A process at work for this ledger, and when it last said so. `place`: where a web part listens."""

    __tablename__ = "roles"
    id: str = Field(primary_key=True)
    role: str
    place: str | None
    version: str
    started_at: datetime = Field(sa_type=UtcTime)
    seen_at: datetime = Field(sa_type=UtcTime)


class ScheduleRow(_Model, table=True):
    """Since when a job's rule (cron and zone; empty: none) is in force: earlier slots of that rule are nobody's."""

    __tablename__ = "schedules"
    job: str = Field(primary_key=True)
    rule: str = Field(primary_key=True)
    known_at: datetime = Field(sa_type=UtcTime)


class SlotRow(_Model, table=True):
    """A time at which a job was to run, and what became of it. `lease_until`: of who starts it; of a due one, not before."""

    __tablename__ = "slots"
    __table_args__ = (_partial("ix_slots_open", "job", "slot_at", where=OPEN_SLOT),)
    job: str = Field(primary_key=True)
    slot_at: datetime = Field(primary_key=True, sa_type=UtcTime)
    state: str
    reason: str | None
    batch_id: str | None
    claimed_by: str | None
    lease_until: datetime | None = Field(sa_type=UtcTime)
    noted_at: datetime = Field(sa_type=UtcTime)


METADATA: MetaData = _Model.metadata


def _table(name: str) -> Table:
    return METADATA.tables[name]


batches = _table("batches")
batch_days = _table("batch_days")
items = _table("items")
attempts = _table("attempts")
outputs = _table("outputs")
source_chunks = _table("source_chunks")
work = _table("work")
accounts = _table("accounts")
deliveries = _table("deliveries")
roles = _table("roles")
schedules = _table("schedules")
slots = _table("slots")
