"""Outputs on their way home: which are due, who holds them, and which were deleted before."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import ColumnElement, and_, bindparam, exists, func, null, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import RETRY, AttemptState, BatchState, ItemState
from orchestrator.core.poison import SUSPECT
from orchestrator.core.records import ToCollect
from orchestrator.gateways.ledger.bulk import write_many
from orchestrator.gateways.ledger.failing import lower_known
from orchestrator.gateways.ledger.sharing import ROWS
from orchestrator.gateways.ledger.tables import AGAIN_AT, COLLECTING, attempts, batches, items
from orchestrator.gateways.ledger.text import clean

_COLLECTING = ItemState.COLLECTING.value


async def to_collect(connection: AsyncConnection, batch_pk: int, *, count: int, now: datetime,
                     lease_until: datetime) -> list[ToCollect]:
    """Oldest completion first, for it is deleted first; leased by moving its due time. Who leases may die: each counts as a
    death until he gives word."""
    due = (select(items.c.pk, items.c.batch_pk, items.c.idx, items.c.row_id, items.c.attempt_id, items.c.completed_at,
                  items.c.tries, items.c.deaths)
           .where(items.c.batch_pk == batch_pk, text(f"items.{COLLECTING}"), items.c.due_at <= now,
                  or_(items.c.deaths.is_(None), items.c.deaths < SUSPECT, _is_next_suspect(batch_pk, now=now)))
           .order_by(items.c.completed_at).limit(count).with_for_update(skip_locked=True))
    rows = (await connection.execute(due)).all()
    if not rows:
        return []
    await write_many(connection, _LEASE, [
        {"b_pk": row.pk, "b_due_at": lease_until, "b_deaths": (row.deaths or 0) + 1, "b_state": _COLLECTING} for row in rows])
    bought = await connection.execute(select(attempts.c.id, attempts.c.n, attempts.c.prediction_id, attempts.c.output_json).where(
        attempts.c.id.in_([row.attempt_id for row in rows])))
    found = {row.id: row for row in bought}
    return [ToCollect(row.attempt_id, row.pk, row.batch_pk, row.idx, row.row_id, found[row.attempt_id].prediction_id,
                      found[row.attempt_id].output_json or "null", row.completed_at, row.tries, row.deaths or 0,
                      found[row.attempt_id].n) for row in rows]


def _is_next_suspect(batch_pk: int, *, now: datetime) -> ColumnElement[bool]:
    """Of the items that may end their worker one at a time is held; looked up only where there are such items."""
    held, first = items.alias("held"), items.alias("first")
    is_held = exists().where(held.c.batch_pk == batch_pk, held.c.state == _COLLECTING, held.c.deaths > SUSPECT,
                             held.c.due_at > now)
    return items.c.pk == (select(first.c.pk).where(
        first.c.batch_pk == batch_pk, first.c.state == _COLLECTING, first.c.deaths >= SUSPECT, first.c.due_at <= now, ~is_held
    ).order_by(first.c.completed_at, first.c.pk).limit(1).scalar_subquery())


_LEASE = (update(items).where(items.c.pk == bindparam("b_pk"), items.c.state == bindparam("b_state"))
          .values(due_at=bindparam("b_due_at"), deaths=bindparam("b_deaths"), error=null()))
# A word about a lease counts while it is the one that was given, or renewed: it may have lapsed, and be somebody else's.
_MINE = and_(items.c.state == bindparam("b_state"), items.c.due_at == bindparam("b_was"))
_HAND_BACK = (update(items).where(items.c.pk == bindparam("b_pk"), _MINE)
              .values(due_at=bindparam("b_due_at"), deaths=items.c.deaths - bindparam("b_one"), error=null()))
_DELAY = (update(items).where(items.c.pk == bindparam("b_pk"), _MINE)
          .values(due_at=bindparam("b_due_at"), deaths=bindparam("b_deaths"), tries=items.c.tries + bindparam("b_more"),
                  error=bindparam("b_error")))
_HOLD = (update(items).where(items.c.pk.in_(bindparam("b_pks", expanding=True)), _MINE)
         .values(due_at=bindparam("b_due_at")).returning(items.c.pk))
_AT_ONCE = 400


async def lease_collect(connection: AsyncConnection, leases: Mapping[int, datetime], *, until: datetime) -> set[int]:
    """Whoever holds these rows, each until the time that he knows of, holds them until then; which of them he still held."""
    held: set[int] = set()
    for was in sorted(set(leases.values())):
        pks = sorted(pk for pk, end in leases.items() if end == was)
        for start in range(0, len(pks), _AT_ONCE):
            found = await connection.execute(_HOLD, {
                "b_pks": pks[start:start + _AT_ONCE], "b_was": was, "b_state": _COLLECTING, "b_due_at": until})
            held |= {row.pk for row in found}
    return held


async def hand_back(connection: AsyncConnection, leases: Mapping[int, datetime], *, now: datetime) -> None:
    """Anybody's again, and nobody died of them."""
    await write_many(connection, _HAND_BACK, [
        {"b_pk": pk, "b_was": was, "b_due_at": now, "b_one": 1, "b_state": _COLLECTING} for pk, was in sorted(leases.items())])


async def delay_collect(connection: AsyncConnection, leases: Mapping[int, datetime], *, due_at: datetime, error: str) -> None:
    """One more failed try, and when to try again. Whoever tried lives."""
    await write_many(connection, _DELAY, [
        {"b_pk": pk, "b_was": was, "b_due_at": due_at, "b_more": 1, "b_deaths": 0, "b_error": clean(error),
         "b_state": _COLLECTING} for pk, was in sorted(leases.items())])


async def release_leases(connection: AsyncConnection) -> None:
    """Every collecting item is due now: whoever held some of them is gone."""
    await connection.execute(
        update(items).where(text(f"items.{COLLECTING}"), items.c.due_at > AGAIN_AT).values(due_at=AGAIN_AT))


EXPIRED = "expired"
_REOPENED_AT_ONCE = 5000


def _expired(batch_pk: int) -> ColumnElement[bool]:
    return and_(items.c.batch_pk == batch_pk, items.c.state == ItemState.FAILED.value, items.c.error_class == EXPIRED)


async def expired(connection: AsyncConnection, batch_pk: int) -> int:
    """Rows that were paid for and whose outputs were deleted before they were fetched, with those that share them."""
    return int((await connection.execute(select(ROWS).select_from(items).where(_expired(batch_pk)))).scalar_one())


async def reopen_expired(connection: AsyncConnection, batch_pk: int) -> int:
    """Some of those that have succeeded there once only wait again, while their batch is alive and tries rows more than once.

    A purchase that came to nothing stays what it is, with its charge; failures are not forgotten, as no person asked."""
    state = (await connection.execute(select(batches.c.state, batches.c.max_attempts).where(batches.c.pk == batch_pk)
                                      .with_for_update())).one()
    if state.state not in (BatchState.RUNNING.value, BatchState.PAUSED.value) or state.max_attempts < 2:
        return 0
    bought = (select(func.count()).select_from(attempts).where(
        attempts.c.item_pk == items.c.pk, attempts.c.state == AttemptState.SUCCEEDED.value,
        attempts.c.surplus_at.is_(None)).scalar_subquery())
    some = select(items.c.pk).where(_expired(batch_pk), bought < 2).limit(_REOPENED_AT_ONCE)
    moved = await connection.execute(
        update(items).where(items.c.pk.in_(some), items.c.state == ItemState.FAILED.value)
        .values(state=RETRY.item_to.value, due_at=AGAIN_AT, tries=0, error=None, error_class=None))
    if moved.rowcount:
        await lower_known(connection, batch_pk)
    return moved.rowcount
