"""What batches spend and reserve, day by day, and how the caps stand that several of them share.

A batch's row is always locked before its days, so whoever writes both in that order can wait for nobody who waits for it."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.caps import Bound, Cap, Scope, day_of
from orchestrator.gateways.ledger.bulk import among
from orchestrator.gateways.ledger.session import is_postgresql
from orchestrator.gateways.ledger.tables import ALIVE, UNPRICED, alive, attempts, batch_days, batches

_CAPS_LOCKS = {False: 0x0B0B, True: 0x0B0C}  # the first half of the advisory locks' keys: of an account's caps, of a job's
_TERMS_LOCK = 0x0B0D  # likewise, of a batch's terms; the second half is the batch
_OTHERS = batches.alias("others")


def utc_day(at: ColumnElement[Any], *, dialect: str) -> ColumnElement[str]:
    """The day of a time in UTC, YYYY-MM-DD (`core.caps.day_of`)."""
    return func.to_char(func.timezone("UTC", at), "YYYY-MM-DD") if dialect == "postgresql" else func.substr(at, 1, 10)


async def note_money(connection: AsyncConnection, batch_pk: int, changes: Mapping[str, tuple[int, int]]) -> None:
    """By how much more a batch reserves and has spent, by the day on which that was claimed."""
    reserved, spent = (sum(change[of] for change in changes.values()) for of in (0, 1))
    await connection.execute(_NOTE_BATCH, {"b_pk": batch_pk, "b_reserved": reserved, "b_spent": spent})
    await note_days(connection, batch_pk, changes)


_NOTE_BATCH = update(batches).where(batches.c.pk == bindparam("b_pk")).values(
    reserved_units=batches.c.reserved_units + bindparam("b_reserved"), spent_units=batches.c.spent_units + bindparam("b_spent"))


async def note_days(connection: AsyncConnection, batch_pk: int, changes: Mapping[str, tuple[int, int]]) -> None:
    """The days alone: the batch's own row is in hand already."""
    statement = _NOTE[connection.dialect.name]
    for day, (reserved, spent) in sorted(changes.items()):
        await connection.execute(statement, {"b_pk": batch_pk, "b_day": day, "b_reserved": reserved, "b_spent": spent})


def _note(insert: Any) -> Any:
    new = insert(batch_days).values(batch_pk=bindparam("b_pk"), day=bindparam("b_day"), spent_units=bindparam("b_spent"),
                                    reserved_units=bindparam("b_reserved"))
    return new.on_conflict_do_update(index_elements=["batch_pk", "day"], set_={
        "spent_units": batch_days.c.spent_units + new.excluded.spent_units,
        "reserved_units": batch_days.c.reserved_units + new.excluded.reserved_units})


_NOTE = {"sqlite": _note(sqlite_insert), "postgresql": _note(postgresql_insert)}


async def queue(connection: AsyncConnection, batch_pk: int, caps: Sequence[Cap]) -> None:
    """Who claims under a cap of an account claims after whoever does, until the transaction ends, and so for a job. On SQLite all
    writers do. The account's lock first, then the job's, then a model's, and no row before all of them: nobody holds one that
    another needs who holds one that comes later."""
    if not is_postgresql(connection):
        return
    for of_job in sorted({cap.scope.of_job for cap in caps}):
        key = batches.c.account + "\n" + batches.c.job if of_job else batches.c.account
        lock = func.pg_advisory_xact_lock(_CAPS_LOCKS[of_job], func.hashtext(key))
        await connection.execute(select(lock).where(batches.c.pk == batch_pk))


async def hold_terms(connection: AsyncConnection, batch_pk: int, *, changes: bool = False) -> None:
    """Until the transaction ends nobody changes what a row of the batch may cost; or, where that changes, nobody claims one. On
    SQLite all writers queue. After the locks of `queue` and of a model, before any row."""
    if is_postgresql(connection):
        lock = func.pg_advisory_xact_lock if changes else func.pg_advisory_xact_lock_shared
        await connection.execute(select(lock(_TERMS_LOCK, batch_pk % 2**31)))


async def reserve_up_to(connection: AsyncConnection, batch_pk: int, *, units: int) -> dict[str, tuple[int, int]]:
    """What may still cost something, and reserves less than `units`, reserves so much from now on: attempts that are alive, and
    those that ended at a cost nobody knows. Answers by how much more, by day, for `note_money`; the caller holds the terms.

    The attempts are locked as facts lock them, in the order of their rows, and the batch only after them: a fact that has an
    attempt in hand and waits for its batch would wait for who holds the batch and waits for the attempt."""
    keys = {"short_of": batch_pk, "units": units}
    rows = (await connection.execute(_SHORT[connection.dialect.name], keys)).all()
    if rows and not is_postgresql(connection):
        await connection.execute(_RAISE, keys)
    return {row.day: (row.more, 0) for row in rows}


_UNITS = bindparam("units", type_=BigInteger)


def _short() -> ColumnElement[bool]:
    """Looked for by the two indexes, and asked again of each attempt once it is locked. The sum keeps SQLite from another index,
    by which it would walk through all attempts of the batch to find the few that are alive."""
    account = select(batches.c.account).where(batches.c.pk == bindparam("short_of")).scalar_subquery()
    is_less = attempts.c.reserved_units < _UNITS
    found = union_all(
        select(attempts.c.id).correlate(None).where(attempts.c.account == account, text(ALIVE),
                                                    attempts.c.batch_pk + 0 == bindparam("short_of"), is_less),
        select(attempts.c.id).correlate(None).where(attempts.c.batch_pk == bindparam("short_of"), text(UNPRICED), is_less),
    ).subquery("found")
    return and_(attempts.c.id.in_(select(found.c.id)), or_(text(ALIVE), text(UNPRICED)), is_less)


def _raised(dialect: str) -> Select[Any]:
    """By how much more is reserved, by day. On PostgreSQL in the statement that reserves it: what was found absent can turn up
    between two, and would be reserved for and not be in the books."""
    day = utc_day(attempts.c.created_at, dialect=dialect).label("day")
    short = (select(attempts.c.id, day, attempts.c.reserved_units.label("was")).where(_short())
             .order_by(attempts.c.item_pk, attempts.c.id).with_for_update().cte("short"))
    if dialect == "postgresql":
        short = (update(attempts).where(attempts.c.id == short.c.id).values(reserved_units=_UNITS)
                 .returning(short.c.day, short.c.was).cte("raised"))
    return select(short.c.day, cast(func.sum(_UNITS - short.c.was), BigInteger).label("more")).group_by(short.c.day)


_SHORT = {dialect: _raised(dialect) for dialect in ("sqlite", "postgresql")}
_RAISE = update(attempts).where(_short()).values(reserved_units=_UNITS)


class Whose(NamedTuple):
    """Of a batch, or of one that may be opened: what caps go by."""

    account: str
    job: str


AT_ONCE = 1000  # attempts in one transaction of `reserve_some`: some 20 ms of an idle core


async def reserve_some(connection: AsyncConnection, batch_pk: int, *, units: int, after: int) -> int | None:
    """A step of the way to `reserve_up_to`, in a transaction for which claims can wait: of what ended at a cost nobody knows, the
    next attempts behind row `after`, as far as the cap that still holds bears it. Answers the last row; None: there are no more.

    Whole by itself: attempts, batch and days agree after each step, and who begins anew finds only what is left. What it leaves,
    and what ends meanwhile, is for `reserve_up_to`. Locks as there: attempts in the order of their rows, and then the batch."""
    dialect = connection.dialect.name
    rows = (await connection.execute(_NEXT[dialect], {"short_of": batch_pk, "units": units, "after": after})).all()
    batch = (await connection.execute(_MONEY, {"short_of": batch_pk})).one_or_none()
    if batch is None:  # another run took it out while it was loaded
        return None
    room = math.inf if batch.cap_units is None else batch.cap_units - batch.spent_units - batch.reserved_units
    sums = accumulate(units - row.was for row in rows)
    raised = [row for row, so_far in zip(rows, sums, strict=True) if so_far <= room]
    if raised:
        await connection.execute(_RAISE_THESE[dialect], {"units": units, "these": [row.id for row in raised]})
        days = Counter[str]()
        for row in raised:
            days[row.day] += units - row.was
        await note_money(connection, batch_pk, {day: (more, 0) for day, more in days.items()})
    return rows[-1].item_pk if len(raised) == AT_ONCE else None


def _next(dialect: str) -> Select[Any]:
    day = utc_day(attempts.c.created_at, dialect=dialect).label("day")
    return (select(attempts.c.id, attempts.c.item_pk, day, attempts.c.reserved_units.label("was"))
            .where(attempts.c.batch_pk == bindparam("short_of"), text(UNPRICED), attempts.c.item_pk > bindparam("after"),
                   attempts.c.reserved_units < _UNITS)
            .order_by(attempts.c.item_pk, attempts.c.id).limit(AT_ONCE).with_for_update())


_NEXT = {dialect: _next(dialect) for dialect in ("sqlite", "postgresql")}
_MONEY = (select(batches.c.cap_units, batches.c.spent_units, batches.c.reserved_units)
          .where(batches.c.pk == bindparam("short_of")).with_for_update(key_share=True))
_RAISE_THESE = {dialect: update(attempts).where(among(attempts.c.id, "these", dialect=dialect)).values(reserved_units=_UNITS)
                for dialect in ("sqlite", "postgresql")}


async def bounds(connection: AsyncConnection, batch: Row[Any] | Whose, caps: Sequence[Cap], *, now: datetime,
                 asks_out: bool = False, reserve_units: int | None = None) -> list[Bound]:
    """How these caps stand for a batch. `asks_out`: tell of each what is reserved for attempts of its scope that are out, at the
    same instant, and whether their ends may free the `reserve_units` of a row."""
    if not caps:
        return []
    rows = (await connection.execute(_sums(batch, caps, now=now, asks_out=asks_out))).all()
    found = []
    for cap in caps:
        of_it = [row for row in rows if (row.own or not cap.scope.of_job) and (row.today or not cap.scope.of_day)]
        bound = Bound(cap, sum(row.spent for row in of_it), sum(row.reserved for row in of_it))
        if asks_out:
            out_units = max((getattr(row, f"out_{cap.scope.name}") for row in rows), default=0)  # alike in all
            bound = bound.beside(out_units, reserve_units=reserve_units)
        found.append(bound)
    return found


def _sums(batch: Any, caps: Sequence[Cap], *, now: datetime, asks_out: bool) -> Select[Any]:
    """From the days alone: a batch's own row is read past its model's schema, of a hundred kilobytes, to get at its money."""
    is_own, is_today = _OTHERS.c.job == batch.job, batch_days.c.day == day_of(now)
    sums = [cast(func.sum(column), BigInteger).label(name) for column, name in (
        (batch_days.c.spent_units, "spent"), (batch_days.c.reserved_units, "reserved"))]
    out = [_out(batch, cap, now=now).scalar_subquery().label(f"out_{cap.scope.name}") for cap in caps if asks_out]
    some = (select(is_own.label("own"), is_today.label("today"), *sums, *out)
            .join(_OTHERS, _OTHERS.c.pk == batch_days.c.batch_pk).where(_OTHERS.c.account == batch.account))
    some = some.where(is_own) if all(cap.scope.of_job for cap in caps) else some
    some = some.where(is_today) if all(cap.scope.of_day for cap in caps) else some
    return some.group_by(text("own"), text("today"))


async def out_units(connection: AsyncConnection, batch: Row[Any], cap: Cap, *, now: datetime) -> int:
    """What is reserved for attempts of a cap's scope that are out."""
    return int((await connection.execute(_out(batch, cap, now=now))).scalar_one())


def _out(batch: Row[Any], cap: Cap, *, now: datetime) -> Select[Any]:
    """What attempts of a cap's scope reserve that are alive, or may be. By the index of such: the sum with 0 keeps both databases
    from that of a batch's attempts, by which they would walk through all of them."""
    reserved = cast(func.coalesce(func.sum(attempts.c.reserved_units), 0), BigInteger)
    some = select(reserved).where(attempts.c.account == batch.account, alive("attempts"))
    if cap.scope is Scope.BATCH:
        some = some.where(attempts.c.batch_pk + 0 == batch.pk)
    if cap.scope.of_job:
        of_job = select(batches.c.pk).where(batches.c.account == batch.account, batches.c.job == batch.job)
        some = some.where((attempts.c.batch_pk + 0).in_(of_job))
    if cap.scope.of_day:
        some = some.where(attempts.c.created_at >= now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0))
    return some
