"""What was spent, told by batch, job, model, day, or a column of a batch's source. Reads only."""

import asyncio
import json
from collections.abc import AsyncIterator

from orchestrator.core.errors import BadInput
from orchestrator.core.estimate import Estimate
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.nearest import did_you_mean, listed
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.spending import (
    BATCH,
    COLUMN,
    DAY,
    JOB,
    MOST_VALUES,
    BatchNames,
    By,
    Line,
    Spent,
    added,
    grouped,
    total,
)


async def spending(rooms: Rooms, by: By, *, batch: Batch | None) -> tuple[list[Line], Spent]:
    """A line for each group, and all together; of one batch, or (None) of all. Raises BadInput."""
    chosen = [_names(batch)] if batch is not None else await rooms.ledger.batch_names()
    pks = None if batch is None else [batch.pk]
    of_batches = await rooms.ledger.spent_by_batch(pks)
    together = total(of_batches.get(one.pk, Spent()) for one in chosen)
    if by.kind == DAY:
        return [Line(day, spent) for day, spent in await rooms.ledger.spent_by_day(pks)], together
    if by.kind == COLUMN:
        if batch is None or by.column is None:
            raise BadInput("--by column:NAME needs a batch: columns are those of its source")
        return await _by_column(rooms, batch, by.column), together
    if by.kind == BATCH:
        return [Line(one.id, of_batches.get(one.pk, Spent()), one.expected, one.has_ended) for one in chosen], together
    return _dearest_first(grouped((_key(one, by.kind), of_batches.get(one.pk, Spent())) for one in chosen)), together


def _names(batch: Batch) -> BatchNames:
    return BatchNames(batch.pk, batch.id, batch.job, batch.target.name, Estimate.from_json(batch.estimate_json),
                      batch.state is BatchState.FINISHED)


def _key(names: BatchNames, kind: str) -> str:
    return names.job if kind == JOB else names.model


def _dearest_first(lines: list[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (-line.spent.units, line.key or ""))


async def _by_column(rooms: Rooms, batch: Batch, column: str) -> list[Line]:
    """Chunk by chunk; only the sums are kept."""
    known = list(json.loads(batch.source_schema_json or "{}").get("columns", {}))
    if column not in known:
        raise BadInput(f"--by column:{column}: the source of {batch.id} has no such column{did_you_mean(column, known)}; "
                       f"it has {listed(known)}")
    found: dict[str | None, Spent] = {}
    async for cell, spent in _cells(rooms, batch, column):
        found[cell] = added(found.get(cell, Spent()), spent)
        if len(found) > MOST_VALUES:
            raise BadInput(f"--by column:{column}: it has more than {MOST_VALUES:,} different values; `orchestrator export "
                           f"{batch.id}` writes what each row cost")
    return _dearest_first([Line(cell, spent) for cell, spent in found.items()])


async def _cells(rooms: Rooms, batch: Batch, column: str) -> AsyncIterator[tuple[str | None, Spent]]:
    """Each row that was tried: its cell in this column, and what it cost."""
    async for first, blob, spent in rooms.ledger.spent_by_row(batch.pk):
        cells = await asyncio.to_thread(rooms.tables.column, blob, column) if spent else []
        for index, of_row in spent.items():
            yield cells[index - first], of_row
