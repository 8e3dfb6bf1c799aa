"""How far a batch's downloads are behind. Everything here reads, and only where there is something behind it reads more."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, TextClause, and_, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.homeward import SAMPLE, Backlog, passed_over
from orchestrator.core.lifecycle import IN_AIR_ITEM
from orchestrator.gateways.ledger.tables import COLLECTING, attempts, items, outputs

_IN_AIR = [state.value for state in IN_AIR_ITEM]
PACE_S = 600.0  # what came home so long before the backlog began tells its pace
_LOOKED_AT = 5 * SAMPLE  # ends on the account, among which a batch's own are sought


async def behind_since(connection: AsyncConnection, batch: Row[Any]) -> datetime | None:
    """When the oldest output that counts and is not home was made, by the provider's clock; None: no more than the few wait that
    do not count."""
    found: datetime | None = (await connection.execute(oldest(batch.pk, batch.started))).scalar()
    return found


def oldest(batch_pk: int, started: int) -> Select[Any]:
    """The end of the oldest row that counts: entries of an index, in its order."""
    return (select(items.c.completed_at).where(items.c.batch_pk == batch_pk, text(f"items.{COLLECTING}"))
            .order_by(items.c.completed_at, items.c.due_at).offset(passed_over(started)).limit(1))


async def backlog(connection: AsyncConnection, batch: Row[Any], *, since: datetime, now: datetime, offset_s: float) -> Backlog:
    """What is behind `since`, and the pace of what came home before it. `now`: of this machine, `offset_s` of the provider's."""
    waiting = await _many(connection, batch.pk, text(f"items.{COLLECTING}"))
    in_air = await _many(connection, batch.pk, items.c.state.in_(_IN_AIR))
    age_s = (now - since).total_seconds() + offset_s
    # What came home before a break says nothing of how fast it comes now: sixty files of the day before made ten late by hours.
    after = now - timedelta(seconds=max(0.0, age_s) + PACE_S)
    home = await _home(connection, batch, before=await _next(connection, batch.pk, now=now) or since, after=after)
    home_s, idle_s = 0.0, age_s
    if home.rows:
        # Fewer than a sample: they are all there were, and took as long as there was something to fetch.
        since_s = (home.last - home.made).total_seconds() + offset_s
        home_s = (home.last - home.first).total_seconds() if home.rows == SAMPLE else since_s
        idle_s = min(age_s, (now - home.last).total_seconds())
    return Backlog(max(0, waiting - passed_over(batch.started)), age_s, in_air, home.rows, max(0.0, home_s), max(0.0, idle_s))


async def _many(connection: AsyncConnection, batch_pk: int, condition: ColumnElement[bool] | TextClause) -> int:
    query = select(func.count()).select_from(items).where(items.c.batch_pk == batch_pk, condition)
    return int((await connection.execute(query)).scalar_one())


async def _next(connection: AsyncConnection, batch_pk: int, *, now: datetime) -> datetime | None:
    """When what is fetched next was made: all that is older is home, being fetched, or stubborn."""
    found: datetime | None = (await connection.execute(
        select(items.c.completed_at).where(items.c.batch_pk == batch_pk, text(f"items.{COLLECTING}"), items.c.due_at <= now,
                                           items.c.tries == 0).order_by(items.c.completed_at).limit(1))).scalar()
    return found


class _Home(NamedTuple):
    """The rows that came home last: how many, when the first of them ended there, and when the first and the last were home."""

    rows: int
    made: datetime
    first: datetime
    last: datetime


async def _home(connection: AsyncConnection, batch: Row[Any], *, before: datetime, after: datetime) -> _Home:
    """Of the rows that ended `before` then and have come home `after` then, the last ones: downloads go by age."""
    ended = (select(attempts.c.id, attempts.c.item_pk, attempts.c.batch_pk, attempts.c.completed_at)
             .where(attempts.c.account == batch.account, attempts.c.completed_at.is_not(None), attempts.c.completed_at < before)
             .order_by(attempts.c.completed_at.desc()).limit(_LOOKED_AT).subquery())
    is_of = and_(outputs.c.item_pk == ended.c.item_pk, outputs.c.idx == 0, outputs.c.attempt_id == ended.c.id)
    home = (select(ended.c.completed_at, outputs.c.stored_at).select_from(ended.join(outputs, is_of))
            .where(ended.c.batch_pk == batch.pk, outputs.c.stored_at > after)
            .order_by(ended.c.completed_at.desc()).limit(SAMPLE).subquery())
    ends = func.min(home.c.completed_at), func.min(home.c.stored_at), func.max(home.c.stored_at)
    return _Home(*(await connection.execute(select(func.count(), *ends).select_from(home))).one())
