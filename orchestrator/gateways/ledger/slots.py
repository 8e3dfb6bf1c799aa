"""The slots of scheduled jobs: each is a row, so that of all schedulers exactly one starts it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypedDict

from sqlalchemy import Row, Select, and_, delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import BatchState
from orchestrator.core.schedule import NewSlot, Slot, SlotsStanding, SlotState
from orchestrator.gateways.ledger.session import insert
from orchestrator.gateways.ledger.tables import OPEN_SLOT, batches, schedules, slots
from orchestrator.gateways.ledger.text import clean

_DUE, _RUNNING = SlotState.DUE.value, SlotState.RUNNING.value


class Values(TypedDict):
    """What becomes of a slot."""

    state: SlotState
    reason: str | None
    batch_id: str | None
    lease_until: datetime | None


async def standing(connection: AsyncConnection, job: str, *, rule: str) -> SlotsStanding:
    """Since when the rule is in force, the last slot, and the open ones, oldest first.

    In force is the rule that became known last: ledgers from before keep older ones of a job beside it.
    The last slot is read first: one noted in between is then met as an open one, never overlooked."""
    newest = select(schedules).where(schedules.c.job == job).order_by(schedules.c.known_at.desc()).limit(1)
    known = (await connection.execute(newest)).one_or_none()
    last_at = (await connection.execute(select(func.max(slots.c.slot_at)).where(slots.c.job == job))).scalar_one_or_none()
    rows = await connection.execute(_slots(job).where(text(f"slots.{OPEN_SLOT}")).order_by(slots.c.slot_at))
    known_at = known.known_at if known is not None and known.rule == rule else None
    return SlotsStanding(known_at, last_at, [_slot(row) for row in rows])


async def know(connection: AsyncConnection, job: str, *, rule: str, now: datetime) -> None:
    """The first to know a rule says since when; it replaces the one before it, which would be new if it came back."""
    replaced = await connection.execute(delete(schedules).where(schedules.c.job == job, schedules.c.rule != rule))
    statement = insert(connection, schedules).values(job=job, rule=rule, known_at=now)
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["job", "rule"], set_={"known_at": now}) if replaced.rowcount
        else statement.on_conflict_do_nothing())


async def note(connection: AsyncConnection, job: str, *, new: Sequence[NewSlot], now: datetime) -> None:
    """Rows for slots. What is there already stays, but for a due one, which may still be skipped."""
    rows: list[dict[str, Any]] = [
        {"job": job, "slot_at": one.slot_at, "state": one.state.value, "reason": one.reason, "noted_at": now}
        for one in sorted(new, key=lambda one: one.slot_at)]
    statement = insert(connection, slots)
    skips = and_(slots.c.state == _DUE, statement.excluded.state == SlotState.SKIPPED.value)
    await connection.execute(statement.on_conflict_do_update(
        index_elements=["job", "slot_at"], where=skips,
        set_={"state": statement.excluded.state, "reason": statement.excluded.reason, "lease_until": None}), rows)


async def claim(connection: AsyncConnection, job: str, *, slot_at: datetime, owner: str, now: datetime,
                lease_until: datetime) -> bool:
    """Begin to start it, unless somebody else does, or it is not to be tried again yet."""
    is_over = or_(slots.c.lease_until.is_(None), slots.c.lease_until <= now)
    is_free = or_(slots.c.state == _DUE, and_(slots.c.state == _RUNNING, slots.c.batch_id.is_(None)))
    claimed = await connection.execute(
        update(slots).where(slots.c.job == job, slots.c.slot_at == slot_at, is_free, is_over)
        .values(state=_RUNNING, reason=None, claimed_by=owner, lease_until=lease_until))
    return claimed.rowcount == 1


async def hold(connection: AsyncConnection, job: str, *, slot_at: datetime, owner: str, lease_until: datetime) -> bool:
    """A longer lease for who starts it."""
    held = await connection.execute(
        update(slots).where(slots.c.job == job, slots.c.slot_at == slot_at, slots.c.state == _RUNNING,
                            slots.c.batch_id.is_(None), slots.c.claimed_by == owner).values(lease_until=lease_until))
    return held.rowcount == 1


async def finish(connection: AsyncConnection, job: str, *, slot_at: datetime, owner: str | None, values: Values) -> bool:
    """What became of a running slot. Whoever lost it to another has nothing to say."""
    finished = await connection.execute(
        update(slots).where(slots.c.job == job, slots.c.slot_at == slot_at, slots.c.state == _RUNNING,
                            slots.c.claimed_by == owner)
        .values(state=values["state"].value, reason=clean(values["reason"]), lease_until=values["lease_until"],
                batch_id=func.coalesce(values["batch_id"], slots.c.batch_id)))
    return finished.rowcount == 1


async def latest(connection: AsyncConnection, job: str, *, limit: int) -> list[Slot]:
    """The newest first."""
    rows = await connection.execute(_slots(job).order_by(slots.c.slot_at.desc()).limit(limit))
    return [_slot(row) for row in rows]


def _slots(job: str) -> Select[Any]:
    """Slots with the state of their batch. The state's name is `slots.state`, as the partial index has it."""
    return (select(slots, batches.c.state.label("batch_state"))
            .join_from(slots, batches, batches.c.id == slots.c.batch_id, isouter=True).where(slots.c.job == job))


def _slot(row: Row[Any]) -> Slot:
    return Slot(row.job, row.slot_at, SlotState(row.state), row.reason, row.batch_id,
                BatchState(row.batch_state) if row.batch_state else None, row.claimed_by, row.lease_until, row.noted_at)
