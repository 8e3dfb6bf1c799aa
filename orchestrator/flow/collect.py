"""Bring outputs home before the provider deletes them: oldest first, streamed, hashed, durable, then noted."""

import asyncio
import json
import logging
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from orchestrator.core import poison
from orchestrator.core.errors import CollectError, Unreachable
from orchestrator.core.inputs import FileRef, shape_of
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.naming import extension, stem
from orchestrator.core.ports import Rooms, Storage
from orchestrator.core.records import Batch, OutputName, StoredOutput, ToCollect, Wake
from orchestrator.core.template import OutputNamer
from orchestrator.flow.expiry import buy_expired_again
from orchestrator.flow.homecoming import AGAIN_S, Home, Poisonous, Trip, noted, take_away
from orchestrator.flow.leases import Leases

log = logging.getLogger("orchestrator.flow")


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


async def collect(rooms: Rooms, batch_id: str, lane: int) -> list[Wake]:
    """Bring home what a batch has finished, for one slice of time; answers when to go on."""
    batch = await rooms.ledger.batch(batch_id)
    if batch is None or batch.state in (BatchState.FINISHED, BatchState.CANCELED):
        return []
    async with noted(rooms, batch, Leases(rooms)) as home:
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


async def _slice(rooms: Rooms, batch: Batch, home: Home, *, lane: int) -> bool:
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


async def _porter(rooms: Rooms, batch: Batch, haul: _Haul, home: Home) -> None:
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
        await take_away(storage, await rooms.ledger.superseded(again))
    return [_Package(item, by_item[item.item_pk], storage) for item in items if item.item_pk in by_item]


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


async def _trip(rooms: Rooms, package: _Package) -> Trip:
    item, stored = package.item, list[StoredOutput]()
    if item.deaths >= poison.POISON:
        return Trip(item, package.storage, stored, Poisonous(poison.reason("fetched")))
    try:
        for errand in package.errands:
            output = await _bring(rooms, errand, package.storage)
            stored.append(output)
    except Exception as error:  # the address is a text that a model made up: whatever it provokes is this row's own
        if not isinstance(error, CollectError | OSError):
            log.exception("an output of row %s could not be fetched", item.row_id)
        return Trip(item, package.storage, stored, error)
    return Trip(item, package.storage, stored)


async def _bring(rooms: Rooms, errand: _Errand, storage: Storage) -> StoredOutput:
    """One output, from its URL to a durable file."""
    async with rooms.outputs.fetch(errand.ref.url) as fetched:
        path = f"files/{errand.stem}{extension(errand.ref.url, fetched.media_type)}"
        size, sha256 = await storage.put(path, fetched.chunks, length=fetched.length)
    media_type = fetched.media_type or "application/octet-stream"
    url = "data:" if errand.ref.url.startswith("data:") else errand.ref.url
    return StoredOutput(errand.item.item_pk, errand.ref.index, path, size, sha256, media_type, url, rooms.clock.now(),
                        errand.item.attempt_id)
