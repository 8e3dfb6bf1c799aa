"""What was spent, summed by SQL: by batch, by batch and day, and by row of one chunk."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, and_, case, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.estimate import Estimate
from orchestrator.core.lifecycle import AttemptState, BatchState, ItemState
from orchestrator.core.spending import BatchNames, Spent
from orchestrator.gateways.ledger.money import utc_day
from orchestrator.gateways.ledger.tables import UNPRICED, attempts, batches, items, source_chunks

_IS_SURPLUS = attempts.c.surplus_at.is_not(None)
_SUCCEEDED = attempts.c.state == AttemptState.SUCCEEDED.value
# Ended by the provider at a deadline, it is `aborted` here whatever the provider calls it; before it began, it cost nothing.
_CANCELED = or_(attempts.c.state == AttemptState.CANCELED.value,
                and_(attempts.c.state == AttemptState.ABORTED.value, attempts.c.status == "canceled"))
# It succeeded, and its row has failed all the same, or is to be bought again, or was: what it gave never came home.
_LOST = or_(items.c.state.not_in([ItemState.COLLECTING.value, ItemState.SUCCEEDED.value]), items.c.attempt_id != attempts.c.id)
_HOME = and_(_SUCCEEDED, ~_LOST)
_UNPRICED = text(UNPRICED.replace("state", "attempts.state"))
_BOUGHT = or_(attempts.c.prediction_id.is_not(None), _UNPRICED)


def _sum(condition: Any) -> Any:
    return func.coalesce(func.sum(case((condition, attempts.c.charge_units), else_=0)), 0)


_FIGURES = (
    func.count(case((_BOUGHT, attempts.c.item_pk)).distinct()).label("rows"),
    func.count(attempts.c.prediction_id).label("predictions"),
    _sum(and_(~_IS_SURPLUS, _HOME)).label("succeeded"),
    _sum(and_(~_IS_SURPLUS, ~_HOME, ~_CANCELED)).label("failed"),
    _sum(and_(~_IS_SURPLUS, _CANCELED)).label("canceled"), _sum(_IS_SURPLUS).label("surplus"),
    func.count(case((_UNPRICED, attempts.c.item_pk)).distinct()).label("unknown_rows"),
    _sum(attempts.c.charge_basis == "estimate").label("estimated"))


def _spent(row: Row[Any]) -> Spent:
    return Spent(int(row.rows), int(row.predictions), int(row.succeeded), int(row.failed), int(row.canceled), int(row.surplus),
                 int(row.unknown_rows), int(row.estimated))


def _sums(*keys: Any) -> Select[Any]:
    """The figures of attempts, each beside the row it was made for."""
    return select(*keys, *_FIGURES).select_from(attempts.join(items, items.c.pk == attempts.c.item_pk))


async def batch_names(connection: AsyncConnection) -> list[BatchNames]:
    """Newest first; a batch's schema alone may be a hundred kilobytes, and is left where it is."""
    rows = await connection.execute(
        select(batches.c.pk, batches.c.id, batches.c.job, batches.c.target_name, batches.c.state, batches.c.estimate_json)
        .order_by(batches.c.pk.desc()))
    return [BatchNames(row.pk, row.id, row.job, row.target_name, Estimate.from_json(row.estimate_json),
                       row.state == BatchState.FINISHED.value) for row in rows]


async def by_batch(connection: AsyncConnection, batch_pks: Sequence[int] | None) -> dict[int, Spent]:
    """Each batch that has tried anything; None: all there are."""
    query = _sums(attempts.c.batch_pk).group_by(attempts.c.batch_pk)
    rows = await connection.execute(query if batch_pks is None else query.where(attempts.c.batch_pk.in_(batch_pks)))
    return {row.batch_pk: _spent(row) for row in rows}


async def by_day(connection: AsyncConnection, batch_pks: Sequence[int] | None) -> list[tuple[str, Spent]]:
    """Each day (UTC, YYYY-MM-DD) on which something ended, was answered, or at least tried, in order."""
    some = _sums(_day(connection).label("day")).group_by(text("day")).order_by(text("day"))
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
    rows = await connection.execute(_sums(attempts.c.batch_pk, day.label("day")).where(*bounds)
                                    .group_by(attempts.c.batch_pk, text("day")).order_by(attempts.c.batch_pk, text("day")))
    return [(row.batch_pk, str(row.day), _spent(row)) for row in rows]


async def estimated_units(connection: AsyncConnection, batch_pk: int) -> int:
    """How much of what a batch has spent is only estimated."""
    return int((await connection.execute(select(func.coalesce(func.sum(attempts.c.charge_units), 0)).where(
        attempts.c.batch_pk == batch_pk, attempts.c.charge_basis == "estimate"))).scalar_one())


async def accounts(connection: AsyncConnection) -> list[str]:
    """Whose batches there are."""
    rows = await connection.execute(select(batches.c.account).distinct().order_by(batches.c.account))
    return [row.account for row in rows]


async def by_row(connection: AsyncConnection, batch_pk: int, *, first: int, end: int) -> tuple[bytes, dict[int, Spent]]:
    """One chunk's snapshot, and what each of its rows cost that was tried, by its number."""
    blob = (await connection.execute(select(source_chunks.c.blob).where(
        source_chunks.c.batch_pk == batch_pk, source_chunks.c.first_index == first))).scalar_one()
    rows = await connection.execute(_sums(items.c.idx).where(
        items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.idx < end).group_by(items.c.idx))
    return bytes(blob), {row.idx: _spent(row) for row in rows}
