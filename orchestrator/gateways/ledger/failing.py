"""How the rows of a batch fared, counted no further than anybody asks, and the pause that may come of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, case, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.failing import SAMPLE, Cause, Tally, still_known
from orchestrator.core.lifecycle import IN_AIR_ITEM, BatchState, ItemState
from orchestrator.core.records import Batch
from orchestrator.gateways.ledger.loading import batch_of, set_state
from orchestrator.gateways.ledger.sharing import ROWS
from orchestrator.gateways.ledger.tables import UNPRICED, attempts, batches, items

_KNOWN = (batches.c.known_failed, batches.c.known_refused, batches.c.known_shared)
_WORKED = [ItemState.SUCCEEDED.value, ItemState.COLLECTING.value]
_OUT = [state.value for state in IN_AIR_ITEM]
_ALL = 2**62
_BOUGHT_NOTHING = and_(items.c.error_class == "invalid_input", attempts.c.prediction_id.is_(None))


async def tally(connection: AsyncConnection, batch_pk: int, *, most: int) -> Tally:
    """Reads only, and short: each number is counted up to what can make a difference."""
    known = (await connection.execute(select(*_KNOWN).where(batches.c.pk == batch_pk))).one()
    known_failed, known_refused, known_shared = (int(many or 0) for many in known)
    worked = select(items.c.pk, items.c.copies).where(items.c.batch_pk == batch_pk, items.c.state.in_(_WORKED))
    failed, of_failed = await _many(connection, _failed(batch_pk, is_refused=False), known_failed + most)
    refused, of_refused = await _many(connection, _failed(batch_pk, is_refused=True), known_refused + most)
    return Tally(worked=(await _many(connection, worked, SAMPLE))[0], failed=failed + of_failed, refused=refused + of_refused,
                 known_failed=known_failed, known_refused=known_refused, shared=of_failed + of_refused,
                 known_shared=known_shared)


async def _many(connection: AsyncConnection, query: Select[Any], count: int) -> tuple[int, int]:
    """How many rows a query has, counted up to `count`, and how many share with these."""
    some = query.limit(count).subquery()
    rows, twins = (await connection.execute(select(func.count(), func.sum(some.c.copies)).select_from(some))).one()
    return int(rows), int(twins or 0)


def _failed(batch_pk: int, *, is_refused: bool) -> Select[Any]:
    """Failed rows that were sent; one that was not taken into the batch as it stands was refused before there was a batch."""
    is_other = or_(items.c.error_class.is_(None), items.c.error_class != "invalid_input",
                   attempts.c.prediction_id.is_not(None))
    return (select(items.c.pk, items.c.copies).select_from(items.join(attempts, attempts.c.id == items.c.attempt_id))
            .where(*_failed_rows(batch_pk), _BOUGHT_NOTHING if is_refused else is_other))


def _failed_rows(batch_pk: int) -> tuple[ColumnElement[bool], ...]:
    return items.c.batch_pk == batch_pk, items.c.state == ItemState.FAILED.value


async def pause(connection: AsyncConnection, batch_pk: int, *, most: int, decide: Callable[[Batch, Tally], str | None],
                now: datetime) -> bool:
    """Decided under the batch's lock: since somebody looked, a person may have said "go on", or changed the job."""
    found = (await connection.execute(select(batches).where(batches.c.pk == batch_pk).with_for_update())).one_or_none()
    if found is None or found.state != BatchState.RUNNING.value:
        return False
    stands = await _in_full(connection, batch_pk, await tally(connection, batch_pk, most=most))
    reason = decide(batch_of(found), stands)
    if reason is None:
        return False
    return await set_state(connection, batch_pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}), reason=reason,
                           now=now)


async def _in_full(connection: AsyncConnection, batch_pk: int, some: Tally) -> Tally:
    """The same with all that failed, by cause: one query, so that the sums are those of their parts, whatever fails meanwhile."""
    rows = (await connection.execute(_by_cause(*_failed_rows(batch_pk), items.c.attempts > 0))).all()
    refused = sum(int(row.refused) for row in rows)
    return replace(some, failed=sum(int(row.many) for row in rows) - refused, refused=refused,
                   shared=sum(int(row.shared) for row in rows), causes=_causes(rows),
                   unknown=await _unknown(connection, batch_pk), out=await _out(connection, batch_pk))


def _by_cause(*failed: ColumnElement[bool]) -> Select[Any]:
    example, other = func.min(items.c.error), func.max(items.c.error)
    copies = func.coalesce(items.c.copies, 0)
    refused = func.sum(case((_BOUGHT_NOTHING, 1 + copies), else_=0))
    return (select(items.c.error_class, ROWS.label("many"), refused.label("refused"), func.sum(copies).label("shared"),
                   example.label("example"), (example != other).label("differs"))
            .select_from(items.outerjoin(attempts, attempts.c.id == items.c.attempt_id))
            .where(*failed).group_by(items.c.error_class).order_by(ROWS.desc(), items.c.error_class))


def _causes(rows: Sequence[Row[Any]]) -> tuple[Cause, ...]:
    return tuple(Cause(row.error_class or "unknown", int(row.many), row.example, bool(row.differs)) for row in rows)


async def causes(connection: AsyncConnection, batch_pk: int) -> tuple[Cause, ...]:
    """Why rows failed, the most frequent class first."""
    return _causes((await connection.execute(_by_cause(*_failed_rows(batch_pk)))).all())


async def _unknown(connection: AsyncConnection, batch_pk: int) -> int:
    """Rows of which nobody knows what they cost."""
    return int((await connection.execute(select(func.count(attempts.c.item_pk.distinct())).where(
        attempts.c.batch_pk == batch_pk, text(UNPRICED)))).scalar_one())


async def _out(connection: AsyncConnection, batch_pk: int) -> int:
    """Rows in the air."""
    return int((await connection.execute(select(func.count()).select_from(items).where(
        items.c.batch_pk == batch_pk, items.c.state.in_(_OUT)))).scalar_one())


async def lower_known(connection: AsyncConnection, batch_pk: int) -> None:
    """After rows of it were reopened: what a person knew of and is no failure any more is no leave for as many new ones. The lock
    lets those be who only keep the batch from ending: two that reopen rows of it would wait for each other."""
    known = select(*_KNOWN).where(batches.c.pk == batch_pk).with_for_update(key_share=True)
    if any((await connection.execute(known)).one()):
        failed, refused, shared = still_known(await tally(connection, batch_pk, most=_ALL))
        await connection.execute(update(batches).where(batches.c.pk == batch_pk).values(
            known_failed=failed, known_refused=refused, known_shared=shared))


async def know(connection: AsyncConnection, batch_pk: int) -> None:
    """All that has failed until now is known."""
    def counted(*, is_refused: bool) -> tuple[Any, Any]:
        of_kind = _failed(batch_pk, is_refused=is_refused).subquery()
        twins = func.coalesce(func.sum(of_kind.c.copies), 0)
        rows, shared = (select(many).select_from(of_kind).scalar_subquery() for many in (func.count() + twins, twins))
        return rows, shared

    (failed, of_failed), (refused, of_refused) = counted(is_refused=False), counted(is_refused=True)
    await connection.execute(update(batches).where(batches.c.pk == batch_pk).values(
        known_failed=failed, known_refused=refused, known_shared=of_failed + of_refused))
