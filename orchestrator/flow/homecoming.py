"""What porters brought home, or could not: noted every quarter second, whatever the others of their task are doing."""

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.core import poison
from orchestrator.core.errors import CollectError, OutputForbidden, OutputGone, Unreachable
from orchestrator.core.lifecycle import BatchState, Event, ItemState
from orchestrator.core.ports import Rooms, Storage
from orchestrator.core.records import Batch, Fact, StoredOutput, ToCollect, Wake
from orchestrator.core.retry import backoff_s
from orchestrator.core.verify import HomeFile
from orchestrator.flow.leases import Leases
from orchestrator.flow.listing import ask_clock, provider_now
from orchestrator.flow.record import record
from orchestrator.flow.storing import say_full

log = logging.getLogger("orchestrator.flow")
STORE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR})
STORE_AGAIN_S = 15.0  # at most, between two tries to write to a folder that takes nothing
AGAIN_S = 1.0  # between two tries to tell a ledger that is away
STOPPING_S = 5.0  # how long a process that stops tries the same
OUTPUTS_REFUSED = "no output was fetched: "  # how the reason of such a pause begins


class Poisonous(CollectError):
    """Whoever fetches this dies."""


@dataclass(frozen=True, slots=True)
class Trip:
    """How one item's errands ended, and where its files are."""

    item: ToCollect
    storage: Storage
    stored: list[StoredOutput]
    error: BaseException | None = None


@dataclass(slots=True)
class Home:
    """Trips that ended and are not noted yet, and the wakes that followed from those that are."""

    leases: Leases
    trips: list[Trip] = field(default_factory=list)
    wakes: list[Wake] = field(default_factory=list)


@asynccontextmanager
async def noted(rooms: Rooms, batch: Batch, leases: Leases) -> AsyncIterator[Home]:
    """What comes home while the block runs is noted every quarter second, and at its end, whatever ends it: a file that is home
    must not be fetched again because its neighbours were slow."""
    home, over = Home(leases), asyncio.Event()
    noting = asyncio.create_task(_pulse(rooms, batch, home, over))
    try:
        yield home
    finally:
        over.set()
        await asyncio.shield(noting)


async def _pulse(rooms: Rooms, batch: Batch, home: Home, over: asyncio.Event) -> None:
    failing_since: float | None = None
    while not over.is_set() or home.trips:
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), rooms.tempo.record_every_s)
        trips, home.trips = home.trips, []
        if not trips:
            continue
        try:
            home.wakes += await _note(rooms, batch, home.leases, trips)
            failing_since = None
        except Unreachable:
            home.trips, failing_since = trips + home.trips, failing_since or rooms.clock.boottime()
            patience_s = STOPPING_S if rooms.stopping() else rooms.tempo.collect_lease_s
            if over.is_set() and rooms.clock.boottime() - failing_since > patience_s:
                raise  # their leases lapse, and they are fetched again
            await rooms.clock.sleep(AGAIN_S)
        except Exception:
            log.exception("%d rows could not be noted together; now one by one", len(trips))
            await _one_by_one(rooms, batch, home, trips)


async def _one_by_one(rooms: Rooms, batch: Batch, home: Home, trips: list[Trip]) -> None:
    """A row that cannot be noted must not cost its neighbours: it is tried again later, like one that could not be fetched."""
    for place, trip in enumerate(trips):
        try:
            home.wakes += await _note(rooms, batch, home.leases, [trip])
        except Unreachable:
            home.trips = trips[place:] + home.trips
            return
        except Exception as error:
            log.exception("what became of row %s could not be noted; it is tried again", trip.item.row_id)
            due_at = rooms.clock.now() + timedelta(seconds=_wait_s(rooms, trip))
            with suppress(Exception):  # its lease lapses, and says the same
                await home.leases.delay(trip.item.item_pk, due_at=due_at, error=f"could not be noted: {error}")


async def _note(rooms: Rooms, batch: Batch, leases: Leases, trips: list[Trip]) -> list[Wake]:
    """Files first, then the items that they complete: a death in between only fetches again. What failed comes last, as the
    provider may be asked about it."""
    trips = await _stored(rooms, trips)
    home = [trip.item for trip in trips if trip.error is None]
    wakes = await record(rooms, [Fact(Event.COLLECTED, rooms.clock.now(), item.attempt_id) for item in home])
    leases.forget(item.item_pk for item in home)
    if failed := [trip for trip in trips if trip.error is not None]:
        wakes += await _note_failed(rooms, batch, leases, failed)
    return wakes


async def _stored(rooms: Rooms, trips: list[Trip]) -> list[Trip]:
    """The trips whose row has not been bought again since they began. Of the others nothing is left, and nothing is said."""
    unwanted = await rooms.ledger.store_outputs([output for trip in trips for output in trip.stored])
    late = {output.attempt_id for output in unwanted}
    for trip in trips:
        if trip.item.attempt_id in late:
            log.warning("a file of row %s came home after the row had been bought again; it is removed", trip.item.row_id)
            await take_away(trip.storage, trip.stored)
    return [trip for trip in trips if trip.item.attempt_id not in late]


async def _note_failed(rooms: Rooms, batch: Batch, leases: Leases, trips: list[Trip]) -> list[Wake]:
    """Those that are hopeless end, the others are tried again. Nothing is said of what somebody else holds by now."""
    held = await leases.renew({trip.item.item_pk for trip in trips})
    trips = [trip for trip in trips if trip.item.item_pk in held]
    there = await _time_there(rooms, batch, trips)
    hopeless = {trip.item.item_pk: fact for trip in trips if (fact := _hopeless(rooms, trip, there=there)) is not None}
    wakes = await record(rooms, list(hopeless.values()))
    leases.forget(hopeless)
    waiting = [trip for trip in trips if trip.item.item_pk not in hopeless]
    for trip in waiting:
        due_at = rooms.clock.now() + timedelta(seconds=_wait_s(rooms, trip))
        await leases.delay(trip.item.item_pk, due_at=due_at, error=str(trip.error))
    await _heed_store(rooms, batch, waiting)
    await _heed_refusal(rooms, batch, trips)
    return wakes


async def _time_there(rooms: Rooms, batch: Batch, trips: list[Trip]) -> datetime:
    """The provider's time, asked for anew where an hour seems to be over: that ends what was paid for, and a machine's clock
    that was set meanwhile must not."""
    there = await provider_now(rooms, batch.account)
    if not any(_is_over(rooms, trip, there=there) for trip in trips):
        return there
    await ask_clock(rooms, batch.account)
    return await provider_now(rooms, batch.account)


async def _heed_store(rooms: Rooms, batch: Batch, waiting: Sequence[Trip]) -> None:
    """A folder that takes nothing more."""
    full = next((trip.error for trip in waiting if isinstance(trip.error, OSError) and trip.error.errno in STORE_ERRORS), None)
    if full is not None:
        await say_full(rooms, batch, full, again_s=max(_wait_s(rooms, trip) for trip in waiting))


def _wait_s(rooms: Rooms, trip: Trip) -> float:
    """Until the next try of one item; shorter for a folder that may take files again at any moment."""
    longest_s = STORE_AGAIN_S if isinstance(trip.error, OSError) else 120.0
    return min(longest_s, backoff_s(trip.item.tries + 1, first_s=1.0, jitter=rooms.clock.jitter()))


async def _heed_refusal(rooms: Rooms, batch: Batch, trips: list[Trip]) -> None:
    """Outputs on a host that is not allowed, and not one row at home: that is the set-up, not a row, and buying more would only
    cost more. What was bought is fetched by `retry` once the host is named."""
    refused = next((trip.error for trip in trips if isinstance(trip.error, OutputForbidden)), None)
    if refused is None or (await rooms.ledger.counts(batch.pk)).own(ItemState.SUCCEEDED):
        return
    reason = f"{OUTPUTS_REFUSED}{refused}; then `orchestrator retry {batch.id}` fetches what was bought"
    await rooms.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}), reason=reason,
                                 now=rooms.clock.now())


def _hopeless(rooms: Rooms, trip: Trip, *, there: datetime) -> Fact | None:
    """Why a row's outputs never come home; None: worth another try while the hour lasts. `there`: the provider's time."""
    now, item = rooms.clock.now(), trip.item
    if isinstance(trip.error, Poisonous):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class=poison.CLASS)
    if isinstance(trip.error, OutputForbidden):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class="output_forbidden")
    if _is_over(rooms, trip, there=there):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class="expired")
    return None


LONGER = 13 / 12  # of the hour


def _is_over(rooms: Rooms, trip: Trip, *, there: datetime) -> bool:
    """Whether the provider has deleted what this row bought. A folder that takes nothing is another matter; an answer that only
    failed (a 500, a cut one) says nothing of it, and gets five minutes more."""
    if isinstance(trip.error, OSError):
        return False
    kept_s = rooms.tempo.retention_s * (1 if isinstance(trip.error, OutputGone) else LONGER)
    return there > trip.item.completed_at + timedelta(seconds=kept_s)


async def take_away(storage: Storage, files: Sequence[StoredOutput | HomeFile]) -> None:
    """Files of purchases that count no longer: nobody would know them. Nothing depends on it."""
    try:
        await storage.remove([(file.path, file.bytes, file.sha256) for file in files])
    except OSError as error:
        log.warning("files of earlier purchases could not be removed: %s", error)
