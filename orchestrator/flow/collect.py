"""Bring outputs home before the provider deletes them: oldest first, streamed, hashed, durable, then noted."""

import asyncio
import errno
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.core import poison
from orchestrator.core.errors import CollectError, OutputForbidden, OutputGone, Unreachable
from orchestrator.core.inputs import FileRef, shape_of
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState, Event, ItemState
from orchestrator.core.naming import extension, stem
from orchestrator.core.ports import Rooms, Storage
from orchestrator.core.records import Batch, Fact, OutputName, StoredOutput, ToCollect, Wake
from orchestrator.core.retry import backoff_s
from orchestrator.core.template import OutputNamer
from orchestrator.core.verify import HomeFile
from orchestrator.flow.expiry import buy_expired_again
from orchestrator.flow.leases import Leases
from orchestrator.flow.listing import ask_clock, provider_now
from orchestrator.flow.record import record

log = logging.getLogger("orchestrator.flow")
STORE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR})
STORE_AGAIN_S = 15.0  # at most, between two tries to write to a folder that takes nothing
STORE_MARGIN_S = 3.0  # a pause of buying outlasts the wait for the next try by this: the try comes first
AGAIN_S = 1.0  # between two tries to tell a ledger that is away
STOPPING_S = 5.0  # how long a process that stops tries the same
OUTPUTS_REFUSED = "no output was fetched: "  # how the reason of such a pause begins


class _Poisonous(CollectError):
    """Whoever fetches this dies."""


@dataclass(frozen=True, slots=True)
class _Errand:
    """One output to fetch."""

    item: ToCollect
    ref: FileRef
    stem: str


@dataclass(frozen=True, slots=True)
class _Package:
    """One item, all that is to be fetched for it, and where it goes."""

    item: ToCollect
    errands: list[_Errand]
    storage: Storage


@dataclass(frozen=True, slots=True)
class _Trip:
    """How one item's errands ended, and where its files are."""

    item: ToCollect
    storage: Storage
    stored: list[StoredOutput]
    error: BaseException | None = None


async def collect(rooms: Rooms, batch_id: str, lane: int) -> list[Wake]:
    """Bring home what a batch has finished, for one slice of time; answers when to go on."""
    batch = await rooms.ledger.batch(batch_id)
    if batch is None or batch.state in (BatchState.FINISHED, BatchState.CANCELED):
        return []
    async with _noted(rooms, batch, Leases(rooms)) as home:
        drained = await _slice(rooms, batch, home, lane=lane)
    after = rooms.clock.now() + timedelta(seconds=rooms.tempo.idle_s) if drained else None
    return [*home.wakes, *await buy_expired_again(rooms, batch), Wake("collect", batch_id, lane, after)]


@dataclass(slots=True)
class _Haul:
    """What one task has claimed: in hand, and under way. `drained`: nothing more was due."""

    ends_at: float  # clock.boottime(): no trip begins later
    in_hand: deque[_Package] = field(default_factory=deque)
    under_way: set[int] = field(default_factory=set)  # items
    leased: set[int] = field(default_factory=set)  # items: in hand, under way, or lost to an outage between the two
    drained: bool = False
    outage: Unreachable | None = None  # why nothing more could be claimed; downloads under way went on meanwhile
    claiming: asyncio.Lock = field(default_factory=asyncio.Lock)

    def is_over(self, rooms: Rooms) -> bool:
        """Whether no trip begins any more."""
        return rooms.clock.boottime() >= self.ends_at or rooms.stopping()


async def _slice(rooms: Rooms, batch: Batch, home: "_Home", *, lane: int) -> bool:
    """Porters side by side, so that a slow trip holds up nobody; whether nothing is left that is due.

    A large file may take longer than a slice: its item's lease and the station's message are held as long as it comes."""
    haul = _Haul(rooms.clock.boottime() + rooms.tempo.slice_s)
    porters = {asyncio.create_task(_porter(rooms, batch, haul, home)) for _ in range(rooms.tempo.collect_concurrency)}
    try:
        while porters:
            done, porters = await asyncio.wait(porters, timeout=rooms.tempo.hold_s / 4, return_when=asyncio.FIRST_EXCEPTION)
            for porter in done:
                porter.result()
            if porters:
                await _hold(rooms, haul, home.leases, Wake("collect", batch.id, lane))
    finally:
        for porter in porters:
            porter.cancel()
        await asyncio.gather(*porters, return_exceptions=True)
        await _hand_back(rooms, haul, home.leases)
    if haul.outage is not None:
        raise haul.outage
    return haul.drained


async def _hand_back(rooms: Rooms, haul: _Haul, leases: Leases) -> None:
    """What was not brought home is anybody's again at once. With the ledger away that waits for it: leases outlast most outages,
    and nobody could have fetched anything meanwhile. A process that stops leaves them to lapse."""
    until_s = rooms.clock.boottime() + rooms.tempo.collect_lease_s
    while haul.leased:
        try:
            await leases.give_back(sorted(haul.leased))
            break
        except Unreachable:
            if rooms.stopping() or rooms.clock.boottime() > until_s:
                break
            await rooms.clock.sleep(AGAIN_S)


async def _porter(rooms: Rooms, batch: Batch, haul: _Haul, home: "_Home") -> None:
    """One trip after the other, until the slice ends or nothing is due."""
    while (package := await _next(rooms, batch, haul, home.leases)) is not None:
        trip = await _trip(rooms, package)
        home.trips.append(trip)  # not in one line: the list may be another one by the time the trip has ended
        haul.under_way.remove(package.item.item_pk)
        haul.leased.discard(package.item.item_pk)  # from here on whoever notes the trip sees to it


async def _next(rooms: Rooms, batch: Batch, haul: _Haul, leases: Leases) -> _Package | None:
    """What to fetch next, under way from now on. Who finds the slice over hands back at once what is in hand: a trip that began
    before may still take minutes."""
    package: _Package | None = None
    if not haul.is_over(rooms):
        async with haul.claiming:
            if not haul.in_hand and not haul.drained:
                await _refill(rooms, batch, haul, leases)
        if haul.in_hand:
            package = haul.in_hand.popleft()
            haul.under_way.add(package.item.item_pk)
    if haul.in_hand and haul.is_over(rooms):
        in_hand = [waiting.item.item_pk for waiting in haul.in_hand]
        haul.in_hand.clear()
        with suppress(Unreachable):  # tried again when the last trip has ended
            await leases.give_back(in_hand)
            haul.leased.difference_update(in_hand)
    return package


async def _refill(rooms: Rooms, batch: Batch, haul: _Haul, leases: Leases) -> None:
    try:
        haul.in_hand.extend(await _claimed(rooms, batch, leases, haul.leased))
    except Unreachable as error:
        haul.outage = error
    haul.drained = not haul.in_hand


async def _claimed(rooms: Rooms, batch: Batch, leases: Leases, leased: set[int]) -> list[_Package]:
    """The next items, oldest completion first, and what is to be fetched for each; added to `leased` as soon as they are."""
    items = await leases.take(batch.pk, count=rooms.tempo.collect_chunk)
    leased.update(item.item_pk for item in items)
    by_item: dict[int, list[_Errand]] = {item.item_pk: [] for item in items}
    for item, errand in await _errands(rooms, batch, items):
        if errand is not None:
            by_item[item.item_pk].append(errand)
        else:
            by_item.pop(item.item_pk, None)
    now_known = await rooms.ledger.batch(batch.id) or batch  # asked after the names were given: from then on the folder stays
    storage = rooms.storage(now_known.output_to)
    if again := [item.item_pk for item in items if item.purchase > 1]:
        await _take_away(storage, await rooms.ledger.superseded(again))
    return [_Package(item, by_item[item.item_pk], storage) for item in items if item.item_pk in by_item]


async def _take_away(storage: Storage, files: Sequence[StoredOutput | HomeFile]) -> None:
    """Files of purchases that count no longer: nobody would know them. Nothing depends on it."""
    try:
        await storage.remove([(file.path, file.bytes, file.sha256) for file in files])
    except OSError as error:
        log.warning("files of earlier purchases could not be removed: %s", error)


async def _hold(rooms: Rooms, haul: _Haul, leases: Leases, wake: Wake) -> None:
    """Still at work: nobody else is to begin it."""
    now = rooms.clock.now()
    with suppress(Unreachable):  # the downloads under way need no ledger, and a lease outlasts many of these looks
        await rooms.ledger.hold(wake, until=now + timedelta(seconds=rooms.tempo.hold_s))
        await leases.renew(haul.under_way)


async def _errands(rooms: Rooms, batch: Batch, items: list[ToCollect]) -> list[tuple[ToCollect, _Errand | None]]:
    """Which files there are, each with a name that no other row has; None: its row was bought again since it was leased."""
    shape = shape_of(batch.schema_json)
    namer = OutputNamer(Job.model_validate_json(batch.job_json).output.name)
    wanted = [(item, ref) for item in items for ref in shape.files(json.loads(item.output_json))]
    names = [OutputName(item.item_pk, batch.pk, item.attempt_id, item.index, ref.index,
                        stem(namer.stem(id=item.row_id, index=ref.index, row=item.index, batch=batch.id)))
             for item, ref in wanted]
    granted = await rooms.ledger.grant_names(names) if names else []
    return [(item, None if name is None else _Errand(item, ref, name))
            for (item, ref), name in zip(wanted, granted, strict=True)]


async def _trip(rooms: Rooms, package: _Package) -> _Trip:
    item, stored = package.item, list[StoredOutput]()
    if item.deaths >= poison.POISON:
        return _Trip(item, package.storage, stored, _Poisonous(poison.reason("fetched")))
    try:
        for errand in package.errands:
            output = await _bring(rooms, errand, package.storage)
            stored.append(output)
    except Exception as error:  # the address is a text that a model made up: whatever it provokes is this row's own
        if not isinstance(error, CollectError | OSError):
            log.exception("an output of row %s could not be fetched", item.row_id)
        return _Trip(item, package.storage, stored, error)
    return _Trip(item, package.storage, stored)


async def _bring(rooms: Rooms, errand: _Errand, storage: Storage) -> StoredOutput:
    """One output, from its URL to a durable file."""
    async with rooms.outputs.fetch(errand.ref.url) as fetched:
        path = f"files/{errand.stem}{extension(errand.ref.url, fetched.media_type)}"
        size, sha256 = await storage.put(path, fetched.chunks, length=fetched.length)
    media_type = fetched.media_type or "application/octet-stream"
    url = "data:" if errand.ref.url.startswith("data:") else errand.ref.url
    return StoredOutput(errand.item.item_pk, errand.ref.index, path, size, sha256, media_type, url, rooms.clock.now(),
                        errand.item.attempt_id)


@dataclass(slots=True)
class _Home:
    """Trips that ended and are not noted yet, and the wakes that followed from those that are."""

    leases: Leases
    trips: list[_Trip] = field(default_factory=list)
    wakes: list[Wake] = field(default_factory=list)


@asynccontextmanager
async def _noted(rooms: Rooms, batch: Batch, leases: Leases) -> AsyncIterator[_Home]:
    """What comes home while the block runs is noted every quarter second, and at its end, whatever ends it: a file that is home
    must not be fetched again because its neighbours were slow."""
    home, over = _Home(leases), asyncio.Event()
    noting = asyncio.create_task(_pulse(rooms, batch, home, over))
    try:
        yield home
    finally:
        over.set()
        await asyncio.shield(noting)


async def _pulse(rooms: Rooms, batch: Batch, home: _Home, over: asyncio.Event) -> None:
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


async def _one_by_one(rooms: Rooms, batch: Batch, home: _Home, trips: list[_Trip]) -> None:
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


async def _note(rooms: Rooms, batch: Batch, leases: Leases, trips: list[_Trip]) -> list[Wake]:
    """Files first, then the items that they complete: a death in between only fetches again. What failed comes last, as the
    provider may be asked about it."""
    trips = await _stored(rooms, trips)
    home = [trip.item for trip in trips if trip.error is None]
    wakes = await record(rooms, [Fact(Event.COLLECTED, rooms.clock.now(), item.attempt_id) for item in home])
    leases.forget(item.item_pk for item in home)
    if failed := [trip for trip in trips if trip.error is not None]:
        wakes += await _note_failed(rooms, batch, leases, failed)
    return wakes


async def _stored(rooms: Rooms, trips: list[_Trip]) -> list[_Trip]:
    """The trips whose row has not been bought again since they began. Of the others nothing is left, and nothing is said."""
    unwanted = await rooms.ledger.store_outputs([output for trip in trips for output in trip.stored])
    late = {output.attempt_id for output in unwanted}
    for trip in trips:
        if trip.item.attempt_id in late:
            log.warning("a file of row %s came home after the row had been bought again; it is removed", trip.item.row_id)
            await _take_away(trip.storage, trip.stored)
    return [trip for trip in trips if trip.item.attempt_id not in late]


async def _note_failed(rooms: Rooms, batch: Batch, leases: Leases, trips: list[_Trip]) -> list[Wake]:
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


async def _time_there(rooms: Rooms, batch: Batch, trips: list[_Trip]) -> datetime:
    """The provider's time, asked for anew where an hour seems to be over: that ends what was paid for, and a machine's clock
    that was set meanwhile must not."""
    there = await provider_now(rooms, batch.account)
    if not any(_is_over(rooms, trip, there=there) for trip in trips):
        return there
    await ask_clock(rooms)
    return await provider_now(rooms, batch.account)


async def _heed_store(rooms: Rooms, batch: Batch, waiting: Sequence[_Trip]) -> None:
    """A folder that takes nothing more: said, and until it does nothing is bought that could not be brought home in time."""
    full = next((trip.error for trip in waiting if isinstance(trip.error, OSError) and trip.error.errno in STORE_ERRORS), None)
    if full is None:
        return
    reason = f"cannot write to {batch.output_to}: {full.strerror or full}"
    await rooms.ledger.note_reason(batch.pk, reason)
    again_s = max(_wait_s(rooms, trip) for trip in waiting)
    with suppress(Unreachable):
        await rooms.limiter.pause(f"batch:{batch.id}", seconds=again_s + STORE_MARGIN_S, reason=reason)


def _wait_s(rooms: Rooms, trip: _Trip) -> float:
    """Until the next try of one item; shorter for a folder that may take files again at any moment."""
    longest_s = STORE_AGAIN_S if isinstance(trip.error, OSError) else 120.0
    return min(longest_s, backoff_s(trip.item.tries + 1, first_s=1.0, jitter=rooms.clock.jitter()))


async def _heed_refusal(rooms: Rooms, batch: Batch, trips: list[_Trip]) -> None:
    """Outputs on a host that is not allowed, and not one row at home: that is the set-up, not a row, and buying more would only
    cost more. What was bought is fetched by `retry` once the host is named."""
    refused = next((trip.error for trip in trips if isinstance(trip.error, OutputForbidden)), None)
    if refused is None or (await rooms.ledger.counts(batch.pk)).by_state.get(ItemState.SUCCEEDED, 0):
        return
    reason = f"{OUTPUTS_REFUSED}{refused}; then `orchestrator retry {batch.id}` fetches what was bought"
    await rooms.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}), reason=reason,
                                 now=rooms.clock.now())


def _hopeless(rooms: Rooms, trip: _Trip, *, there: datetime) -> Fact | None:
    """Why a row's outputs never come home; None: worth another try while the hour lasts. `there`: the provider's time."""
    now, item = rooms.clock.now(), trip.item
    if isinstance(trip.error, _Poisonous):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class=poison.CLASS)
    if isinstance(trip.error, OutputForbidden):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class="output_forbidden")
    if _is_over(rooms, trip, there=there):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class="expired")
    return None


LONGER = 13 / 12  # of the hour


def _is_over(rooms: Rooms, trip: _Trip, *, there: datetime) -> bool:
    """Whether the provider has deleted what this row bought. A folder that takes nothing is another matter; an answer that only
    failed (a 500, a cut one) says nothing of it, and gets five minutes more."""
    if isinstance(trip.error, OSError):
        return False
    kept_s = rooms.tempo.retention_s * (1 if isinstance(trip.error, OutputGone) else LONGER)
    return there > trip.item.completed_at + timedelta(seconds=kept_s)


