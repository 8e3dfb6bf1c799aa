"""Which processes are at work for this ledger: each says so every few seconds."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.records import Role
from orchestrator.gateways.ledger.session import insert
from orchestrator.gateways.ledger.tables import roles


async def beat(connection: AsyncConnection, role: Role) -> None:
    """This role is alive."""
    values = {"role": role.role, "place": role.place, "version": role.version, "started_at": role.started_at,
              "seen_at": role.seen_at}
    await connection.execute(insert(connection, roles).values(id=role.id, **values)
                             .on_conflict_do_update(index_elements=["id"], set_=values))


async def present(connection: AsyncConnection, *, since: datetime) -> list[Role]:
    """Roles that were seen since then, those that started first before the others."""
    rows = await connection.execute(select(roles).where(roles.c.seen_at >= since).order_by(roles.c.started_at, roles.c.id))
    return [Role(row.id, row.role, row.place, row.version, row.started_at, row.seen_at) for row in rows]


async def depart(connection: AsyncConnection, role_ids: Sequence[str], *, before: datetime) -> None:
    """These have ended; so have all that were not seen since `before`."""
    await connection.execute(delete(roles).where(roles.c.id.in_(role_ids) | (roles.c.seen_at < before)))
