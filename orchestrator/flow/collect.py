"""Bring outputs home before the provider deletes them: oldest first, streamed, hashed, durable, then noted."""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.core.errors import CollectError, OutputForbidden
from orchestrator.core.inputs import FileRef, shape_of
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.naming import extension, stem
from orchestrator.core.ports import Rooms, Storage
from orchestrator.core.records import Batch, Fact, OutputName, StoredOutput, ToCollect, Wake
from orchestrator.core.retry import backoff_s
from orchestrator.core.template import OutputNamer
from orchestrator.flow.record import record


@dataclass(frozen=True, slots=True)
class _Errand:
    """One output to fetch."""

    item: ToCollect
    ref: FileRef
    stem: str


@dataclass(frozen=True, slots=True)
class _Trip:
    """How one item's errands ended."""

    item: ToCollect
    stored: list[StoredOutput]
    error: BaseException | None = None


async def collect(rooms: Rooms, batch_id: str, lane: int) -> list[Wake]:
    """Bring home what a batch has finished, for one slice of time; answers when to go on."""
    batch = await rooms.ledger.batch(batch_id)
    if batch is None or batch.state in (BatchState.FINISHED, BatchState.CANCELED):
        return []
    ends_at = rooms.clock.boottime() + rooms.tempo.slice_s
    wakes: list[Wake] = []
    while rooms.clock.boottime() < ends_at:
        now = rooms.clock.now()
        items = await rooms.ledger.to_collect(batch.pk, count=rooms.tempo.collect_chunk, now=now,
                                              lease_until=now + timedelta(seconds=rooms.tempo.collect_lease_s))
        if not items:
            idle = Wake("collect", batch_id, lane, now + timedelta(seconds=rooms.tempo.idle_s))
            return [*wakes, idle]
        wakes += await _chunk(rooms, batch, items)
    return [*wakes, Wake("collect", batch_id, lane)]


async def _chunk(rooms: Rooms, batch: Batch, items: list[ToCollect]) -> list[Wake]:
    errands = await _errands(rooms, batch, items)
    storage = rooms.storage(batch.output_to)
    gate = asyncio.Semaphore(rooms.tempo.collect_concurrency)
    by_item: dict[int, list[_Errand]] = {item.item_pk: [] for item in items}
    for errand in errands:
        by_item[errand.item.item_pk].append(errand)
    trips = await asyncio.gather(*(_trip(rooms, item, by_item[item.item_pk], gate=gate, storage=storage) for item in items))
    return await _note(rooms, batch, list(trips))


async def _errands(rooms: Rooms, batch: Batch, items: list[ToCollect]) -> list[_Errand]:
    """Which files there are, each with a name that no other row has."""
    shape = shape_of(batch.schema_json)
    namer = OutputNamer(Job.model_validate_json(batch.job_json).output.name)
    wanted = [(item, ref) for item in items for ref in shape.files(json.loads(item.output_json))]
    names = [OutputName(item.item_pk, batch.pk, item.attempt_id, item.index, ref.index,
                        stem(namer.stem(id=item.row_id, index=ref.index, row=item.index, batch=batch.id)))
             for item, ref in wanted]
    granted = await rooms.ledger.grant_names(names) if names else []
    return [_Errand(item, ref, name) for (item, ref), name in zip(wanted, granted, strict=True)]


async def _trip(rooms: Rooms, item: ToCollect, errands: list[_Errand], *, gate: asyncio.Semaphore, storage: Storage) -> _Trip:
    stored: list[StoredOutput] = []
    try:
        for errand in errands:
            async with gate:
                stored.append(await _bring(rooms, errand, storage))
    except (CollectError, OSError) as error:
        return _Trip(item, stored, error)
    return _Trip(item, stored)


async def _bring(rooms: Rooms, errand: _Errand, storage: Storage) -> StoredOutput:
    """One output, from its URL to a durable file."""
    async with rooms.outputs.fetch(errand.ref.url) as fetched:
        path = f"files/{errand.stem}{extension(errand.ref.url, fetched.media_type)}"
        size, sha256 = await storage.put(path, fetched.chunks, length=fetched.length)
    media_type = fetched.media_type or "application/octet-stream"
    url = "data:" if errand.ref.url.startswith("data:") else errand.ref.url
    return StoredOutput(errand.item.item_pk, errand.ref.index, path, size, sha256, media_type, url, rooms.clock.now())


async def _note(rooms: Rooms, batch: Batch, trips: list[_Trip]) -> list[Wake]:
    """Files first, then the items that they complete: a death in between only fetches again."""
    await rooms.ledger.store_outputs([output for trip in trips for output in trip.stored])
    facts = [fact for trip in trips if (fact := _fact(rooms, trip)) is not None]
    wakes = await record(rooms, facts)
    waiting = [trip for trip in trips if trip.error is not None and _fact(rooms, trip) is None]
    for trip in waiting:
        pause_s = min(120.0, backoff_s(trip.item.tries + 1, first_s=1.0, jitter=rooms.clock.jitter()))
        due_at = rooms.clock.now() + timedelta(seconds=pause_s)
        await rooms.ledger.delay_collect([trip.item.item_pk], due_at=due_at, error=str(trip.error))
    full = next((trip.error for trip in waiting if isinstance(trip.error, OSError)), None)
    if full is not None:
        await rooms.ledger.note_reason(batch.pk, f"cannot write to {batch.output_to}: {full.strerror or full}")
    return wakes


def _fact(rooms: Rooms, trip: _Trip) -> Fact | None:
    """Home, hopeless, or (None) worth another try while the hour lasts."""
    now, item = rooms.clock.now(), trip.item
    if trip.error is None:
        return Fact(Event.COLLECTED, now, item.attempt_id)
    if isinstance(trip.error, OutputForbidden):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class="output_forbidden")
    if isinstance(trip.error, CollectError) and now > item.completed_at + timedelta(seconds=rooms.tempo.retention_s):
        return Fact(Event.UNCOLLECTABLE, now, item.attempt_id, error=str(trip.error), error_class="expired")
    return None


