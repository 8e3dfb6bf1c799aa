"""Rows on their way to the provider: how many may go, which, and the attempts committed before any of them does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, bindparam, exists, func, or_, select, text, update
from sqlalchemy import insert as plain_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.caps import Bound, Cap, Scope, day_of, is_spent, stopped
from orchestrator.core.homeward import LOOK_S
from orchestrator.core.lifecycle import IN_AIR_ITEM, AttemptState, BatchState, ItemState
from orchestrator.core.poison import SUSPECT
from orchestrator.core.ports import Claimable, ClaimTerms
from orchestrator.core.records import Batch, Claim
from orchestrator.gateways.ledger.backlog import backlog, behind_since
from orchestrator.gateways.ledger.bulk import write_many
from orchestrator.gateways.ledger.loading import batch_of, set_state
from orchestrator.gateways.ledger.money import bounds, hold_terms, note_days, out_units, queue
from orchestrator.gateways.ledger.session import is_postgresql
from orchestrator.gateways.ledger.tables import FRESH_AT, PENDING, alive, attempts, batches, items

_ALIVE = [state.value for state in IN_AIR_ITEM]
_MODELS_LOCK = 0x0B0A  # the first half of the advisory locks' keys; the second is made from account and model
_SENDING = [ItemState.CLAIMED.value, ItemState.UNSURE.value]


@dataclass(frozen=True, slots=True)
class _Room:
    """How many rows may go, and of these how many that were never started; what holds back the rest, and of money which cap."""

    count: int
    fresh: int
    reason: str | None
    bound: Bound | None


async def claimable(connection: AsyncConnection, batch_pk: int, *, count: int, terms: ClaimTerms) -> Claimable:
    """What `claim` would give now, with the reason for giving no more; and, where asked, how far downloads are behind."""
    found = (await connection.execute(select(batches).where(batches.c.pk == batch_pk))).one_or_none()
    if found is None or found.state != BatchState.RUNNING.value:
        return Claimable(0, "not running")
    if _is_amended(found, terms):
        return Claimable(0, "amended")
    room = await _room(connection, found, count=count, terms=terms)
    answer = await _claimable(connection, found, room, count=count, terms=terms)
    return await _with_backlog(connection, found, answer, terms=terms) if terms.asks_behind else answer


async def _claimable(connection: AsyncConnection, batch: Row[Any], room: _Room, *, count: int, terms: ClaimTerms) -> Claimable:
    again = await _many(connection, _again(batch.pk, now=terms.now), count=count)
    fresh = await _many(connection, _fresh(batch.pk), count=count)
    available = min(count, again + min(fresh, _fresh_room(batch)))
    if available == 0:
        next_due_at = (await connection.execute(
            select(func.min(items.c.due_at)).where(*_pending(batch.pk), items.c.due_at > terms.now))).scalar()
        return Claimable(0, "start limit" if fresh else "none due", next_due_at)
    if room.count < available:
        return Claimable(room.count, room.reason)
    if available == count:
        return Claimable(available, None)
    return Claimable(available, "start limit" if again + fresh > available else "none due")


async def _with_backlog(connection: AsyncConnection, batch: Row[Any], room: Claimable, *, terms: ClaimTerms) -> Claimable:
    """Counted is only where something waits for longer than downloads take: one short read while all is well."""
    since = await behind_since(connection, batch)
    offset_s = terms.offset_s or 0.0
    if since is None or (terms.now - since).total_seconds() + offset_s < LOOK_S:
        return replace(room, behind_since=since)
    found = await backlog(connection, batch, since=since, now=terms.now, offset_s=offset_s)
    return replace(room, behind_since=since, backlog=found)


async def pause_for_budget(connection: AsyncConnection, batch_pk: int, *, terms: ClaimTerms) -> bool:
    """Decided under the batch's lock: money that was freed since somebody looked is there to be spent."""
    batch = (await connection.execute(select(batches).where(batches.c.pk == batch_pk).with_for_update())).one_or_none()
    if batch is None or batch.state != BatchState.RUNNING.value or _is_amended(batch, terms):
        return False
    room = await _room(connection, batch, count=1, terms=terms)
    found = await _claimable(connection, batch, room, count=1, terms=terms)
    if not is_spent(found.reason) or room.bound is None:
        return False
    reason = stopped(room.bound, reserve_units=terms.reserve_units, day=day_of(terms.now))
    return await set_state(connection, batch_pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}), reason=reason,
                           now=terms.now)


async def claim(connection: AsyncConnection, batch_pk: int, *, attempt_ids: Sequence[str],
                terms: ClaimTerms) -> list[Claim]:
    """Rows claimed, attempts committed, money reserved: one transaction, one batch at a time, and one of those under a cap."""
    await queue(connection, batch_pk, terms.caps)
    if terms.model_in_flight is not None:
        await _queue_for_model(connection, batch_pk)
    await hold_terms(connection, batch_pk)
    found = (await connection.execute(
        select(batches).where(batches.c.pk == batch_pk).with_for_update(key_share=True))).one_or_none()
    if found is None or found.state != BatchState.RUNNING.value or _is_amended(found, terms):
        return []
    room = await _room(connection, found, count=len(attempt_ids), terms=terms)
    if room.count <= 0:
        return []
    rows = await _due(connection, batch_pk, room=room, now=terms.now)
    if not rows:
        return []
    pairs = list(zip(attempt_ids, sorted(rows, key=lambda row: int(row.idx)), strict=False))
    await _write(connection, batch_of(found), pairs=pairs, terms=terms)
    return [Claim(i, row.pk, row.idx, row.row_id, row.input_json) for i, row in pairs]


async def _queue_for_model(connection: AsyncConnection, batch_pk: int) -> None:
    """Batches of one model claim one after the other, until the transaction ends. On SQLite all writers do.

    Before the batch's row is locked, always: whoever waited here with that row in hand would keep its facts waiting too."""
    if is_postgresql(connection):
        lock = func.pg_advisory_xact_lock(_MODELS_LOCK, func.hashtext(batches.c.account + "\n" + batches.c.target_name))
        await connection.execute(select(lock).where(batches.c.pk == batch_pk))


async def _room(connection: AsyncConnection, batch: Row[Any], *, count: int, terms: ClaimTerms) -> _Room:
    """What the caps leave. Rows in the air are counted only where a cap may bind: no more are out than were ever started."""
    limits: list[tuple[int, str, Bound | None]] = [(count, "", None)]
    if batch.started + count > batch.in_flight:
        limits.append((batch.in_flight - await _alive(connection, batch.pk), "in flight", None))
    if terms.model_in_flight is not None:
        limits.append((terms.model_in_flight - await _alive_of_model(connection, batch), "in flight: this model", None))
    limits += [(bound.affordable(count=count, reserve_units=terms.reserve_units), bound.reason, bound)
               for bound in await _binding(connection, batch, count=count, terms=terms)]
    # Of limits that leave as much as each other the first one that nothing can lift which is out.
    least, reason, bound_ = min(limits, key=lambda limit: (limit[0], limit[2] is None or limit[2].waits))
    return _Room(min(count, max(0, least)), _fresh_room(batch), reason if least < count else None, bound_)


async def _binding(connection: AsyncConnection, batch: Row[Any], *, count: int, terms: ClaimTerms) -> list[Bound]:
    """The caps on money that leave less than is wanted; what is reserved for rows that are out is asked of these alone."""
    def binds(bound: Bound) -> bool:
        return bound.affordable(count=count, reserve_units=terms.reserve_units) < count

    found = []
    if batch.cap_units is not None:
        own = Bound(Cap(Scope.BATCH, batch.cap_units), batch.spent_units, batch.reserved_units)
        if binds(own):
            out = await out_units(connection, batch, own.cap, now=terms.now)
            found.append(own.beside(out, reserve_units=terms.reserve_units))
    tight = [bound.cap for bound in await bounds(connection, batch, terms.caps, now=terms.now) if binds(bound)]
    again = await bounds(connection, batch, tight, now=terms.now, asks_out=True, reserve_units=terms.reserve_units)
    return found + [bound for bound in again if binds(bound)]


def _is_amended(batch: Row[Any], terms: ClaimTerms) -> bool:
    """Whether price, deadline or budget may be others by now than those that the reservation was computed from."""
    return terms.made_from is not None and terms.made_from != (batch.job_json, batch.price_json)


async def _alive(connection: AsyncConnection, batch_pk: int) -> int:
    """Rows in the air."""
    return int((await connection.execute(select(func.count()).select_from(items).where(
        items.c.batch_pk == batch_pk, items.c.state.in_(_ALIVE)))).scalar_one())


async def _alive_of_model(connection: AsyncConnection, batch: Row[Any]) -> int:
    """Predictions of the batch's model that are alive at the provider, or may be, over all batches of the account.

    Counted are attempts, not rows: what is in doubt may live, and what was bought beyond need does although its row has another.
    Nothing has to be given back: a fact that ends an attempt ends its counting."""
    some = (select(attempts.c.batch_pk, func.count().label("alive")).where(attempts.c.account == batch.account, alive("attempts"))
            .group_by(attempts.c.batch_pk).subquery())
    total = select(func.coalesce(func.sum(some.c.alive), 0)).select_from(some.join(batches, batches.c.pk == some.c.batch_pk))
    return int((await connection.execute(total.where(batches.c.target_name == batch.target_name))).scalar_one())


def _fresh_room(batch: Row[Any]) -> int:
    return max(0, batch.start_limit - batch.started) if batch.start_limit is not None else 2**62


def _pending(batch_pk: int) -> tuple[ColumnElement[bool], Any]:
    return items.c.batch_pk == batch_pk, text(f"items.{PENDING}")


def _again(batch_pk: int, *, now: datetime) -> Select[Any]:
    """Rows tried before whose time has come, longest waiting first; of those that may end their worker one at a time."""
    due = *_pending(batch_pk), items.c.due_at > FRESH_AT, items.c.due_at <= now
    return select(items).where(*due, or_(items.c.deaths.is_(None), items.c.deaths < SUSPECT, _is_next_suspect(batch_pk, now=now))
                               ).order_by(items.c.due_at, items.c.idx)


def _is_next_suspect(batch_pk: int, *, now: datetime) -> ColumnElement[bool]:
    """While one is out nobody; looked up only where there are such rows."""
    out, first = items.alias("out"), items.alias("first")
    is_out = exists().where(out.c.batch_pk == batch_pk, out.c.state.in_(_SENDING), out.c.deaths >= SUSPECT)
    return items.c.pk == (select(first.c.pk).where(
        first.c.batch_pk == batch_pk, first.c.state == ItemState.PENDING.value, first.c.deaths >= SUSPECT,
        first.c.due_at <= now, ~is_out).order_by(first.c.due_at, first.c.idx).limit(1).scalar_subquery())


def _fresh(batch_pk: int) -> Select[Any]:
    """Rows never tried, in row order."""
    return select(items).where(*_pending(batch_pk), items.c.due_at == FRESH_AT).order_by(items.c.idx)


async def _many(connection: AsyncConnection, query: Select[Any], *, count: int) -> int:
    """How many rows a query has, counted up to `count`."""
    some = query.with_only_columns(items.c.pk).limit(count).subquery()
    return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())


async def _due(connection: AsyncConnection, batch_pk: int, *, room: _Room, now: datetime) -> list[Row[Any]]:
    """The rows to claim, locked; a row that another transaction has in hand is passed over."""
    columns = items.c.pk, items.c.idx, items.c.row_id, items.c.input_json, items.c.input_hash, items.c.attempts
    rows: list[Any] = []
    for query, limit in ((_again(batch_pk, now=now), room.count), (_fresh(batch_pk), room.fresh)):
        wanted = min(limit, room.count - len(rows))
        if wanted > 0:
            locked = query.with_only_columns(*columns).limit(wanted).with_for_update(skip_locked=True)
            rows.extend((await connection.execute(locked)).all())
    return rows


async def _write(connection: AsyncConnection, batch: Batch, *, pairs: Sequence[tuple[str, Row[Any]]],
                 terms: ClaimTerms) -> None:
    await write_many(connection, _CLAIM, [{"b_pk": row.pk, "b_attempt": attempt_id, "b_from": ItemState.PENDING.value,
                                           "b_to": ItemState.CLAIMED.value, "b_one": 1} for attempt_id, row in pairs])
    shared = {"batch_pk": batch.pk, "account": batch.account, "target_key": batch.target.key, "owner": terms.owner,
              "state": AttemptState.OPEN.value, "created_at": terms.now, "post_by_at": terms.post_by_at,
              "lease_until": terms.lease_until, "reserved_units": terms.reserve_units or 0,
              "offset_s": terms.offset_s}
    await write_many(connection, _INSERT, [
        shared | {"id": attempt_id, "item_pk": row.pk, "n": row.attempts + 1, "input_hash": row.input_hash}
        for attempt_id, row in pairs])
    reserved = (terms.reserve_units or 0) * len(pairs)
    await connection.execute(update(batches).where(batches.c.pk == batch.pk).values(
        reserved_units=batches.c.reserved_units + reserved,
        started=batches.c.started + sum(1 for _, row in pairs if row.attempts == 0)))
    await note_days(connection, batch.pk, {day_of(terms.now): (reserved, 0)})


_INSERT = plain_insert(attempts)
_CLAIM = (update(items).where(items.c.pk == bindparam("b_pk"), items.c.state == bindparam("b_from"))
          .values(state=bindparam("b_to"), attempt_id=bindparam("b_attempt"), attempts=items.c.attempts + bindparam("b_one")))
