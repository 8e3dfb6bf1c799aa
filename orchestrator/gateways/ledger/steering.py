"""An operator's verbs on the rows of a batch, whether anything still moves, and wakes with their due times."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, exists, func, not_, or_, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import REFETCH, REJOIN, REOPEN, RETRY, WITHDRAW, AttemptState, BatchState, ItemState, Step
from orchestrator.core.records import REWRITE_LANE, Counts, Wake
from orchestrator.gateways.ledger.loading import set_state
from orchestrator.gateways.ledger.session import insert
from orchestrator.gateways.ledger.tables import AGAIN_AT, FRESH_AT, PENDING, SURPLUS, attempts, batches, items, work
from orchestrator.gateways.ledger.views import counts

STEP_ROWS = 5000
# Reopening these needs them named: the first cannot be bought at all, the second may have been bought, the others were.
NOT_BY_DEFAULT = ("invalid_input", "unsure", "expired", "vanished")
_MOVING = [state.value for state in (ItemState.CLAIMED, ItemState.UNSURE, ItemState.RUNNING, ItemState.COLLECTING)]


# Each verb moves at most STEP_ROWS rows and says how many: the caller repeats it until none is left, so that nobody
# waits long for its transaction.
async def cancel_pending(connection: AsyncConnection, batch_pk: int) -> int:
    """Rows that wait are withdrawn, unless somebody has resumed the batch."""
    state = (await connection.execute(
        select(batches.c.state).where(batches.c.pk == batch_pk).with_for_update())).scalar_one_or_none()
    if state not in (BatchState.CANCELING.value, BatchState.CANCELED.value):
        return 0
    return await _step(connection, WITHDRAW, items.c.batch_pk == batch_pk)


async def reopen_canceled(connection: AsyncConnection, batch_pk: int) -> int:
    """Canceled rows wait again."""
    return await _step(connection, REOPEN, items.c.batch_pk == batch_pk)


async def refetch(connection: AsyncConnection, batch_pk: int, *, classes: frozenset[str], after: datetime) -> int:
    """Failed rows of these classes whose prediction succeeded, after `after`: what they bought is fetched again."""
    bought = exists().where(attempts.c.id == items.c.attempt_id, attempts.c.state == AttemptState.SUCCEEDED.value,
                            attempts.c.output_json.is_not(None),
                            func.coalesce(items.c.completed_at, attempts.c.completed_at, attempts.c.answered_at) > after)
    return await _step(connection, REFETCH, items.c.batch_pk == batch_pk, _in(classes), bought)


async def rejoin(connection: AsyncConnection, batch_pk: int, *, classes: frozenset[str]) -> int:
    """Failed rows of these classes whose prediction is alive at the provider after all."""
    return await _step(connection, REJOIN, items.c.batch_pk == batch_pk, _in(classes), _is_out())


def _is_out() -> ColumnElement[bool]:
    return exists().where(attempts.c.id == items.c.attempt_id, attempts.c.state == AttemptState.RUNNING.value)


async def reopen_failed(connection: AsyncConnection, batch_pk: int, *, classes: frozenset[str]) -> int:
    """Failed rows of these classes wait again; without classes, all that can be tried again without a doubt."""
    is_usable = items.c.input_json.is_not(None)
    return await _step(connection, RETRY, items.c.batch_pk == batch_pk, _of(classes), is_usable, not_(_is_out()))


def _in(classes: frozenset[str]) -> ColumnElement[bool]:
    """Where nothing is bought, no class needs to be named."""
    return items.c.error_class.in_(sorted(classes)) if classes else true()


def _of(classes: frozenset[str]) -> ColumnElement[bool]:
    if classes:
        return items.c.error_class.in_(sorted(classes))
    return or_(items.c.error_class.is_(None), items.c.error_class.not_in(NOT_BY_DEFAULT))


async def _step(connection: AsyncConnection, step: Step, *which: ColumnElement[bool]) -> int:
    due_at = case((items.c.attempts == 0, FRESH_AT), else_=AGAIN_AT)
    values: dict[str, Any] = {"state": step.item_to.value, "due_at": due_at}
    if step.item_to in (ItemState.PENDING, ItemState.COLLECTING, ItemState.RUNNING):
        values |= {"failures": 0, "tries": 0, "deaths": 0, "error": None, "error_class": None}
    if step is REFETCH:  # of a row that was given up, only its attempt knows when it was completed
        own = select(func.coalesce(attempts.c.completed_at, attempts.c.answered_at)).where(attempts.c.id == items.c.attempt_id)
        values["completed_at"] = func.coalesce(items.c.completed_at, own.scalar_subquery())
    is_from = items.c.state.in_([state.value for state in step.item_from])
    some = select(items.c.pk).where(*which, is_from).limit(STEP_ROWS)
    moved = await connection.execute(update(items).where(items.c.pk.in_(some), is_from).values(**values))
    return moved.rowcount


async def unsettled(connection: AsyncConnection, batch_pk: int) -> bool:
    """Whether a row can still move by itself: on its way, or waiting in a batch that would start it. What was bought beyond need
    counts as well while it runs: it is paid for, and is to be canceled."""
    moving = select(items.c.pk).where(items.c.batch_pk == batch_pk, items.c.state.in_(_MOVING))
    beyond = select(attempts.c.id).where(
        attempts.c.batch_pk == batch_pk, text(f"attempts.{SURPLUS}"), attempts.c.state == AttemptState.RUNNING.value)
    for query in (moving, beyond):
        if (await connection.execute(query.limit(1))).first() is not None:
            return True
    of_batch = select(batches.c.state, batches.c.start_limit, batches.c.started).where(batches.c.pk == batch_pk)
    batch = (await connection.execute(of_batch)).one_or_none()
    if batch is None or batch.state != BatchState.RUNNING.value:
        return batch is not None and batch.state == BatchState.LOADING.value
    waiting = select(items.c.pk).where(items.c.batch_pk == batch_pk, text(f"items.{PENDING}")).limit(1)
    if batch.start_limit is not None and batch.started >= batch.start_limit:
        waiting = waiting.where(items.c.due_at > FRESH_AT)
    return (await connection.execute(waiting)).first() is not None


async def steer(connection: AsyncConnection, batch_pk: int, *, to: BatchState, allowed: frozenset[BatchState],
                reason: str | None, now: datetime, wakes: Sequence[Wake]) -> bool:
    """A guarded move of the batch, and its wakes in the same transaction: a batch set going that nobody is called for would
    stand still for ever. Wakes from before are replaced, not moved: a tick that was about to sweep them up, as the batch had
    ended, waits for their rows, and on PostgreSQL would go on to delete what they have become."""
    moved = await set_state(connection, batch_pk, to=to, allowed=allowed, reason=reason, now=now)
    if moved and wakes:
        await connection.execute(delete(work).where(work.c.key.in_({wake.key for wake in wakes}), not_(_IS_REWRITE)))
        await schedule(connection, wakes, now=now, force=True)
    return moved


_IS_REWRITE = and_(work.c.station == "report", work.c.lane == REWRITE_LANE)


async def end(connection: AsyncConnection, batch_pk: int, *, to: BatchState, of: BatchState, reason: str | None,
              told: Counts, now: datetime) -> bool:
    """The batch's end, if nothing can move: since somebody looked, rows may have been reopened, the batch steered, or a purchase
    that was given up found and charged."""
    state = (await connection.execute(
        select(batches.c.state).where(batches.c.pk == batch_pk).with_for_update())).scalar_one_or_none()
    if state != of.value or await unsettled(connection, batch_pk) or await counts(connection, batch_pk) != told:
        return False
    return await set_state(connection, batch_pk, to=to, allowed=frozenset({of}), reason=reason, now=now)


async def dismiss(connection: AsyncConnection, wake: Wake, batch_pk: int, *, told: Counts) -> bool:
    """A wake whose work is done, if what was told is still so: who recorded a fact since then found the wake's message out, and
    left it at that. The wake is locked first, so that such a fact is counted, or waits and then wakes anew."""
    of_wake = and_(work.c.station == wake.station, work.c.key == wake.key, work.c.lane == wake.lane)
    await connection.execute(select(work.c.key).where(of_wake).with_for_update())
    if await counts(connection, batch_pk) != told:
        return False
    await connection.execute(delete(work).where(of_wake))
    return True


async def schedule(connection: AsyncConnection, wakes: Sequence[Wake], *, now: datetime, force: bool = False) -> None:
    """A wake sooner than what is set wins; a later one replaces only a time that has passed.

    One whose message is out is left alone: its station is at work and looks again when it ends. Without that rule every
    sweep would send another collect beside those that run. `force` is for the station itself, and for operators.
    """
    if not wakes:
        return
    new = insert(connection, work).values(
        station=bindparam("b_station"), key=bindparam("b_key"), lane=bindparam("b_lane"), due_at=bindparam("b_due_at"))
    statement = new.on_conflict_do_update(
        index_elements=["station", "key", "lane"], set_={"due_at": new.excluded.due_at, "sent_at": None},
        where=None if force else or_(
            and_(new.excluded.due_at < work.c.due_at, work.c.sent_at.is_(None)), work.c.due_at <= now))
    ordered = sorted(wakes, key=lambda wake: (wake.station, wake.key, wake.lane, -(wake.due_at or now).timestamp()))
    await connection.execute(statement, [
        {"b_station": wake.station, "b_key": wake.key, "b_lane": wake.lane, "b_due_at": wake.due_at or now}
        for wake in ordered])


async def due(connection: AsyncConnection, *, now: datetime) -> list[Wake]:
    """Wakes whose time has come, longest due first. Reads only: most ticks find nothing."""
    rows = await connection.execute(select(work).where(work.c.due_at <= now).order_by(work.c.due_at))
    return [Wake(row.station, row.key, row.lane, row.due_at) for row in rows]


async def take(connection: AsyncConnection, found: Sequence[Wake], *, now: datetime, hold_s: float) -> list[Wake]:
    """Those of `found` that nobody else took in the meantime, held back for `hold_s`. What batches that have ended left behind
    is swept up here: a station that has nothing more to do says nothing, and its wake came due again for ever."""
    await connection.execute(_SWEEP, {"b_now": now})
    taken = []
    for wake in sorted(found, key=lambda wake: (wake.station, wake.key, wake.lane)):
        held = await connection.execute(_HOLD, {
            "b_station": wake.station, "b_key": wake.key, "b_lane": wake.lane, "b_due_at": wake.due_at, "b_now": now,
            "b_until": now + timedelta(seconds=hold_s)})
        if held.rowcount == 1:
            taken.append(wake)
    return taken


_HOLD = (update(work)
         .where(work.c.station == bindparam("b_station"), work.c.key == bindparam("b_key"),
                work.c.lane == bindparam("b_lane"), work.c.due_at == bindparam("b_due_at"))
         .values(due_at=bindparam("b_until"), sent_at=bindparam("b_now")))


_SWEEP = delete(work).where(
    work.c.due_at <= bindparam("b_now"), not_(_IS_REWRITE),
    exists().where(batches.c.id == work.c.key, batches.c.state.in_([BatchState.FINISHED.value, BatchState.CANCELED.value])))


async def hold(connection: AsyncConnection, wake: Wake, *, until: datetime) -> bool:
    """The station is at work for longer than usual. Says whether there is such a wake."""
    held = await connection.execute(update(work).where(
        work.c.station == wake.station, work.c.key == wake.key, work.c.lane == wake.lane).values(due_at=until))
    return held.rowcount == 1


async def release_holds(connection: AsyncConnection, *, now: datetime) -> None:
    """Every wake comes due now."""
    await connection.execute(update(work).where(work.c.due_at > now).values(due_at=now, sent_at=None))


async def hasten(connection: AsyncConnection, *, now: datetime, latest: datetime) -> None:
    """Every wake comes due now, and rows that would wait beyond a moment wait no longer."""
    await release_holds(connection, now=now)
    live = select(batches.c.pk).where(batches.c.state.not_in([BatchState.FINISHED.value, BatchState.CANCELED.value]))
    await connection.execute(
        update(items).where(items.c.batch_pk.in_(live), items.c.due_at > latest,
                            items.c.state.in_([ItemState.PENDING.value, ItemState.COLLECTING.value])).values(due_at=AGAIN_AT))
