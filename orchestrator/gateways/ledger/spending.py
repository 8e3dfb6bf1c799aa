"""What was spent, summed by SQL: by batch, by batch and day, and by row of one chunk."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, and_, case, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.estimate import Estimate
from orchestrator.core.lifecycle import AttemptState, BatchState
from orchestrator.core.spending import BatchNames, Spent
from orchestrator.gateways.ledger.money import utc_day
from orchestrator.gateways.ledger.tables import UNPRICED, attempts, batches, items, source_chunks

_IS_SURPLUS = attempts.c.surplus_at.is_not(None)
_SUCCEEDED = attempts.c.state == AttemptState.SUCCEEDED.value
_CANCELED = attempts.c.state == AttemptState.CANCELED.value


def _sum(condition: Any) -> Any:
    return func.coalesce(func.sum(case((condition, attempts.c.charge_units), else_=0)), 0)


_FIGURES = (
    func.count(attempts.c.item_pk.distinct()).label("rows"), func.count(attempts.c.prediction_id).label("predictions"),
    _sum(and_(~_IS_SURPLUS, _SUCCEEDED)).label("succeeded"),
    _sum(and_(~_IS_SURPLUS, ~_SUCCEEDED, ~_CANCELED)).label("failed"),
    _sum(and_(~_IS_SURPLUS, _CANCELED)).label("canceled"), _sum(_IS_SURPLUS).label("surplus"),
    func.count(case((text(UNPRICED), attempts.c.item_pk)).distinct()).label("unknown_rows"))


def _spent(row: Row[Any]) -> Spent:
    return Spent(int(row.rows), int(row.predictions), int(row.succeeded), int(row.failed), int(row.canceled), int(row.surplus),
                 int(row.unknown_rows))


async def batch_names(connection: AsyncConnection) -> list[BatchNames]:
    """Newest first; a batch's schema alone may be a hundred kilobytes, and is left where it is."""
    rows = await connection.execute(
        select(batches.c.pk, batches.c.id, batches.c.job, batches.c.target_name, batches.c.state, batches.c.estimate_json)
        .order_by(batches.c.pk.desc()))
    return [BatchNames(row.pk, row.id, row.job, row.target_name, Estimate.from_json(row.estimate_json),
                       row.state == BatchState.FINISHED.value) for row in rows]


async def by_batch(connection: AsyncConnection, batch_pks: Sequence[int] | None) -> dict[int, Spent]:
    """Each batch that has tried anything; None: all there are."""
    query = select(attempts.c.batch_pk, *_FIGURES).group_by(attempts.c.batch_pk)
    rows = await connection.execute(query if batch_pks is None else query.where(attempts.c.batch_pk.in_(batch_pks)))
    return {row.batch_pk: _spent(row) for row in rows}


async def by_day(connection: AsyncConnection, batch_pks: Sequence[int] | None) -> list[tuple[str, Spent]]:
    """Each day (UTC, YYYY-MM-DD) on which something ended, was answered, or at least tried, in order."""
    some = select(_day(connection).label("day"), *_FIGURES).group_by(text("day")).order_by(text("day"))
    rows = await connection.execute(some if batch_pks is None else some.where(attempts.c.batch_pk.in_(batch_pks)))
    return [(str(row.day), _spent(row)) for row in rows]


def _day(connection: AsyncConnection) -> Any:
    at = func.coalesce(attempts.c.completed_at, attempts.c.answered_at, attempts.c.created_at)
    return utc_day(at, dialect=connection.dialect.name)


async def by_batch_and_day(connection: AsyncConnection, *, account: str | None, first: str | None,
                           last: str | None) -> list[tuple[int, str, Spent]]:
    """Each batch and day between these two (None: no bound), of one account or of all."""
    day = _day(connection)
    bounds: list[Any] = [] if account is None else [attempts.c.account == account]
    bounds += [] if first is None else [day >= first]
    bounds += [] if last is None else [day <= last]
    rows = await connection.execute(select(attempts.c.batch_pk, day.label("day"), *_FIGURES).where(*bounds)
                                    .group_by(attempts.c.batch_pk, text("day")).order_by(attempts.c.batch_pk, text("day")))
    return [(row.batch_pk, str(row.day), _spent(row)) for row in rows]


async def accounts(connection: AsyncConnection) -> list[str]:
    """Whose batches there are."""
    rows = await connection.execute(select(batches.c.account).distinct().order_by(batches.c.account))
    return [row.account for row in rows]


async def by_row(connection: AsyncConnection, batch_pk: int, *, first: int, end: int) -> tuple[bytes, dict[int, Spent]]:
    """One chunk's snapshot, and what each of its rows cost that was tried, by its number."""
    blob = (await connection.execute(select(source_chunks.c.blob).where(
        source_chunks.c.batch_pk == batch_pk, source_chunks.c.first_index == first))).scalar_one()
    here = select(items.c.pk).where(items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.idx < end)
    sums = select(attempts.c.item_pk, *_FIGURES).where(attempts.c.item_pk.in_(here)).group_by(attempts.c.item_pk).subquery()
    rows = await connection.execute(select(items.c.idx, sums).join(sums, sums.c.item_pk == items.c.pk))
    return bytes(blob), {row.idx: _spent(row) for row in rows}
