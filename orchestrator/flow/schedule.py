"""The slots of scheduled jobs: noted as rows, judged by their policy, started once. Two schedulers do no harm."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.core.errors import BadInput, OrchestratorError, Unreachable
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.schedule import (
    GRACE_S,
    MOST_SLOTS,
    Plan,
    Slot,
    SlotRun,
    SlotsStanding,
    SlotState,
    decide,
    rule_of,
    run_of,
    split_open,
)

NO_RULE = ""  # of a job without a schedule, to be told from one that nobody looked at meanwhile
TAKEN_OUT = "taken out"


@dataclass(frozen=True, slots=True)
class Terms:
    """Durations of a look, in seconds."""

    grace_s: float = GRACE_S  # a slot noticed later than this is missed
    lease_s: float = 120.0  # who starts a slot and is not heard of for so long counts as dead
    again_s: float = 30.0  # a slot that could not be started, as something was away, is tried again after this
    most_slots: int = MOST_SLOTS  # noted for one job in one look


@dataclass(frozen=True, slots=True)
class ScheduledJob:
    """A job, with a schedule or without one any more. `key`: how the ledger calls it (`core.schedule.job_key`)."""

    key: str
    job: Job


@dataclass(frozen=True, slots=True)
class Fired:
    """What became of a slot in a look: running with its batch, done, skipped, failed, or due again, and why."""

    key: str
    slot_at: datetime
    state: SlotState
    batch_id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found: slots that are settled, and those that are now the caller's to `begin`."""

    settled: list[Fired]
    claimed: list[SlotRun]


Start = Callable[[SlotRun], Awaitable[str]]  # prepare, load and wake the run; answers its batch's id

DEFAULT = Terms()


async def fire(rooms: Rooms, jobs: Sequence[ScheduledJob], *, start: Start, terms: Terms = DEFAULT) -> list[Fired]:
    """One look, and whatever it is to start, started: returns when all of it is loaded. Raises Unreachable for the ledger.

    A start takes as long as its source is long. Who looks again meanwhile uses `look`, and `begin` as a task for each."""
    found = await look(rooms, jobs, terms=terms)
    begun = await asyncio.gather(*(begin(rooms, run, start=start, terms=terms) for run in found.claimed), return_exceptions=True)
    for outcome in begun:
        if isinstance(outcome, BaseException):
            raise outcome
    return found.settled + [outcome for outcome in begun if isinstance(outcome, Fired)]


async def look(rooms: Rooms, jobs: Sequence[ScheduledJob], *, terms: Terms = DEFAULT) -> Look:
    """Note the slots that have come, close those whose batch has ended, and claim what is to be started now."""
    found = Look([], [])
    for scheduled in jobs:
        await _look_at(rooms, scheduled, terms, found)
    return found


async def _look_at(rooms: Rooms, scheduled: ScheduledJob, terms: Terms, found: Look) -> None:
    schedule, key, now = scheduled.job.schedule, scheduled.key, rooms.clock.now()
    standing = await _standing(rooms, key, rule_of(schedule) if schedule else NO_RULE, now)
    ended, waiting, busy = split_open(standing.open, now=now)
    found.settled.extend([await _close(rooms, slot) for slot in ended])
    if schedule is None:
        await _take_out(rooms, key, waiting, now, found)
        return
    known = [standing.known_at or now, standing.last_slot_at, *(slot.slot_at for slot in standing.open)]
    plan = decide(schedule, since=max(at for at in known if at is not None), now=now,
                  waiting=[slot.slot_at for slot in waiting], busy=busy, grace_s=terms.grace_s, most=terms.most_slots)
    await _note(rooms, key, plan, {slot.slot_at for slot in waiting}, now, found)
    held = {slot.slot_at for slot in waiting if slot.lease_until is not None and slot.lease_until > now}
    if plan.fire is not None and plan.fire not in held:
        await _claim(rooms, scheduled, plan.fire, terms, found)


async def _standing(rooms: Rooms, key: str, rule: str, now: datetime) -> SlotsStanding:
    """How the job stands under this rule, which is in force from now on, unless it was before."""
    standing = await rooms.ledger.slots_standing(key, rule=rule)
    if standing.known_at is not None:
        return standing
    await rooms.ledger.know_schedule(key, rule=rule, now=now)
    return await rooms.ledger.slots_standing(key, rule=rule)


async def _close(rooms: Rooms, slot: Slot) -> Fired:
    """Its batch has ended, and with it the slot."""
    reason = "its batch was canceled" if slot.batch_state is BatchState.CANCELED else None
    await rooms.ledger.finish_slot(slot.job, slot_at=slot.slot_at, owner=slot.claimed_by, state=SlotState.DONE, reason=reason)
    return Fired(slot.job, slot.slot_at, SlotState.DONE, slot.batch_id, reason)


async def _take_out(rooms: Rooms, key: str, waiting: Sequence[Slot], now: datetime, found: Look) -> None:
    """What still waited when its schedule was taken out is not started when that is put back, perhaps a month later."""
    due = [slot.slot_at for slot in waiting if slot.state is SlotState.DUE]
    await _note(rooms, key, Plan(None, [(at, TAKEN_OUT) for at in due], []), set(due), now, found)


async def _note(rooms: Rooms, key: str, plan: Plan, waiting: set[datetime], now: datetime, found: Look) -> None:
    """Only what is news: most looks find nothing, and then write nothing."""
    news = [note for note in plan.notes() if note.state is SlotState.SKIPPED or note.slot_at not in waiting]
    await rooms.ledger.note_slots(key, news, now=now)
    found.settled.extend(Fired(key, at, SlotState.SKIPPED, None, reason) for at, reason in plan.skipped)


async def _claim(rooms: Rooms, scheduled: ScheduledJob, slot_at: datetime, terms: Terms, found: Look) -> None:
    """The slot is this scheduler's, if no other was first. A job whose paths cannot be rendered ends it at once."""
    key, now = scheduled.key, rooms.clock.now()
    if not await rooms.ledger.claim_slot(key, slot_at=slot_at, owner=rooms.owner, now=now,
                                         lease_until=now + timedelta(seconds=terms.lease_s)):
        return
    try:
        found.claimed.append(run_of(key, scheduled.job, slot_at=slot_at))
    except BadInput as error:
        found.settled.append(await _end(rooms, Fired(key, slot_at, SlotState.FAILED, None, str(error))))


async def begin(rooms: Rooms, run: SlotRun, *, start: Start, terms: Terms = DEFAULT) -> Fired:
    """Start a claimed slot, and write down what became of it.

    BadInput ends it as failed; whatever is away, or refuses the token, leaves it due, to be tried again. A death in the middle
    leaves a lease that ends: the next to start the slot meets the same run key, and so the same batch. Raises Unreachable when
    the ledger does not take the outcome."""
    try:
        batch_id = await _held(rooms, run, start, terms)
    except BadInput as error:
        return await _end(rooms, Fired(run.key, run.slot_at, SlotState.FAILED, None, str(error)))
    except OrchestratorError as error:
        again_at = rooms.clock.now() + timedelta(seconds=terms.again_s)
        return await _end(rooms, Fired(run.key, run.slot_at, SlotState.DUE, None, f"waiting: {error}"), not_before=again_at)
    except asyncio.CancelledError:
        with suppress(Unreachable):
            await _end(rooms, Fired(run.key, run.slot_at, SlotState.DUE, None, "waiting: its start was interrupted"))
        raise
    return await _end(rooms, Fired(run.key, run.slot_at, SlotState.RUNNING, batch_id))


async def _held(rooms: Rooms, run: SlotRun, start: Start, terms: Terms) -> str:
    """The start, with the lease made longer for as long as it takes."""
    starting = asyncio.ensure_future(start(run))
    try:
        while not (await asyncio.wait({starting}, timeout=terms.lease_s / 4))[0]:
            with suppress(Unreachable):  # the lease may lapse then, and another start the same run: the same batch
                await rooms.ledger.hold_slot(run.key, slot_at=run.slot_at, owner=rooms.owner,
                                             lease_until=rooms.clock.now() + timedelta(seconds=terms.lease_s))
        return starting.result()
    finally:
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})


async def _end(rooms: Rooms, fired: Fired, *, not_before: datetime | None = None) -> Fired:
    await rooms.ledger.finish_slot(fired.key, slot_at=fired.slot_at, owner=rooms.owner, state=fired.state, reason=fired.reason,
                                   batch_id=fired.batch_id, lease_until=not_before)
    return fired
