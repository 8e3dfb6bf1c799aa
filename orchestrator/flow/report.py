"""From settled items to the results table, the manifest and the summary; at the end of a batch, or at any moment."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from orchestrator.core.errors import Unreachable
from orchestrator.core.inputs import shape_of
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import REWRITE_LANE, Batch, Wake
from orchestrator.core.results import result_row, summary
from orchestrator.flow.expiry import alarm, buy_expired_again
from orchestrator.flow.storing import say_full

LONGEST_S = 1800.0  # writing the results of millions of rows takes minutes
AFTER_REFUSAL_S = 10.0  # a disk that is full now may have room by then
log = logging.getLogger("orchestrator.flow")
SUFFIX = {"parquet": ".parquet", "csv": ".csv", "jsonl": ".jsonl"}


async def report(rooms: Rooms, batch_id: str, lane: int = 0) -> list[Wake]:
    """End a batch whose rows have all settled: results first, then its final state. In the other lane, tell of an ended batch
    what was learned since."""
    batch = await rooms.ledger.batch(batch_id)
    if batch is None or batch.state is BatchState.LOADING:
        return []
    if lane == REWRITE_LANE:
        return await _rewrite(rooms, batch)
    if batch.state in _ENDED:
        return []
    if batch.state is BatchState.PAUSED or await rooms.ledger.unsettled(batch.pk):
        return [Wake("report", batch_id, due_at=rooms.clock.now() + timedelta(seconds=min(1.0, rooms.tempo.idle_s)))]
    if again := await buy_expired_again(rooms, batch):  # the last rows may have expired since a porter looked
        return [*again, Wake("report", batch_id)]
    to, reason = await _end_of(rooms, batch)
    await rooms.storage(batch.output_to).clean(older_than_s=0.0)  # nothing is on its way home: a killed worker left these
    told = await rooms.ledger.counts(batch.pk)
    try:
        async with _held(rooms, Wake("report", batch_id)):
            await write_all(rooms, batch, state=to)
    except OSError as error:
        await say_full(rooms, batch, error, again_s=AFTER_REFUSAL_S)
        return [Wake("report", batch_id, due_at=rooms.clock.now() + timedelta(seconds=AFTER_REFUSAL_S))]
    if await rooms.ledger.end_batch(batch.pk, to=to, of=batch.state, reason=reason, told=told, now=rooms.clock.now()):
        await alarm(rooms, batch)
        return []
    now = await rooms.ledger.batch(batch_id)  # while the results were written, something moved or the batch was steered
    is_over = now is not None and now.state in _ENDED  # by a report that began later and knew more
    return [Wake("report", batch_id, REWRITE_LANE if is_over else 0)]


@asynccontextmanager
async def _held(rooms: Rooms, wake: Wake) -> AsyncIterator[bool]:
    """The station's message does not count as lost while the block runs, however long that takes; a few seconds after its process
    has died it does. Gives whether there is such a wake."""
    async def hold() -> bool:
        return await rooms.ledger.hold(wake, until=rooms.clock.now() + timedelta(seconds=rooms.tempo.hold_s))

    async def go_on() -> None:
        while True:
            await rooms.clock.sleep(rooms.tempo.hold_s / 4)
            with suppress(Unreachable):
                await hold()

    is_there = await hold()
    holding = asyncio.create_task(go_on())
    try:
        yield is_there
    finally:
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


_ENDED = frozenset({BatchState.FINISHED, BatchState.CANCELED})


async def _rewrite(rooms: Rooms, batch: Batch) -> list[Wake]:
    """The documents of an ended batch, written again if a fact has asked for it; a batch that goes on will write its own."""
    wake = Wake("report", batch.id, REWRITE_LANE)
    told = await rooms.ledger.counts(batch.pk)
    try:
        async with _held(rooms, wake) as is_wanted:
            if is_wanted and batch.state in _ENDED:
                await write_all(rooms, batch)
    except OSError as error:
        log.warning("the results of %s are behind its ledger: cannot write to %s: %s", batch.id, batch.output_to, error)
        return [replace(wake, due_at=rooms.clock.now() + timedelta(seconds=AFTER_REFUSAL_S))]
    return [] if not is_wanted or await rooms.ledger.dismiss(wake, batch.pk, told=told) else [wake]


async def _end_of(rooms: Rooms, batch: Batch) -> tuple[BatchState, str | None]:
    """Finished, canceled, or (with rows that a start limit kept back) only paused."""
    if batch.state is BatchState.CANCELING:
        await rooms.ledger.cancel_pending(batch.pk)  # rows that a 429 or a stop threw back after the verb
        return BatchState.CANCELED, None
    pending = (await rooms.ledger.counts(batch.pk)).by_state.get(ItemState.PENDING, 0)
    return (BatchState.PAUSED, "start limit") if pending else (BatchState.FINISHED, None)


def results_path(batch: Batch) -> str:
    """Where the results of a batch are, once written."""
    kind = Job.model_validate_json(batch.job_json).output.results
    return str(Path(batch.output_to) / f"results{SUFFIX[kind]}")


async def write_all(rooms: Rooms, batch: Batch, *, state: BatchState | None = None) -> str:
    """Results, manifest and summary into the output folder; the results' path. `state`: what the batch is about to be."""
    folder, results = Path(batch.output_to), results_path(batch)
    await export(rooms, batch, path=results, kind=Job.model_validate_json(batch.job_json).output.results)
    await _manifest(rooms, batch, str(folder / "manifest.jsonl"))
    counts = await rooms.ledger.counts(batch.pk)
    document = summary(batch, counts, results=results, now=rooms.clock.now(), state=state or batch.state)
    await asyncio.to_thread(rooms.tables.document, str(folder / "summary.json"), document)
    return results


async def export(rooms: Rooms, batch: Batch, *, path: str, kind: str) -> int:
    """The results table as it stands now, in input order; how many rows."""
    shape = shape_of(batch.schema_json)
    hidden = batch.target.version is None
    rows = 0
    with rooms.tables.results(path, kind=kind, source_schema_json=batch.source_schema_json or "") as table:
        async for blob, items in rooms.ledger.results(batch.pk):
            written = [result_row(item, shape=shape, hidden=hidden) for item in items]
            await asyncio.to_thread(table.write, blob, written)
            rows += len(written)
    return rows


async def _manifest(rooms: Rooms, batch: Batch, path: str) -> None:
    with rooms.tables.lines(path) as write:
        async for line in rooms.ledger.manifest(batch.pk):
            write(line)
