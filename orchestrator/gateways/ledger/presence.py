"""Which processes are at work for this ledger: each says so every few seconds."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.records import Role
from orchestrator.gateways.ledger.session import insert, is_postgresql
from orchestrator.gateways.ledger.tables import roles


async def beat(connection: AsyncConnection, role: Role) -> None:
    """This role is alive."""
    values = {"role": role.role, "place": role.place, "version": role.version, "started_at": role.started_at,
              "seen_at": await _now(connection, role.seen_at)}
    await connection.execute(insert(connection, roles).values(id=role.id, **values)
                             .on_conflict_do_update(index_elements=["id"], set_=values))


async def _now(connection: AsyncConnection, here: datetime) -> datetime:
    """The time by one clock for all: beside a machine that is a minute behind, another one took itself for alone, and what the
    first had in the air for a dead worker's."""
    if not is_postgresql(connection):
        return here
    found: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return found


async def present(connection: AsyncConnection, *, now: datetime, within_s: float) -> list[Role]:
    """Roles that were seen within these seconds, those that started first before the others."""
    since = await _now(connection, now) - timedelta(seconds=within_s)
    rows = await connection.execute(select(roles).where(roles.c.seen_at >= since).order_by(roles.c.started_at, roles.c.id))
    return [Role(row.id, row.role, row.place, row.version, row.started_at, row.seen_at) for row in rows]


async def depart(connection: AsyncConnection, role_ids: Sequence[str], *, now: datetime, within_s: float) -> None:
    """These have ended; so have all that were not seen within these seconds."""
    before = await _now(connection, now) - timedelta(seconds=within_s)
    await connection.execute(delete(roles).where(roles.c.id.in_(role_ids) | (roles.c.seen_at < before)))
