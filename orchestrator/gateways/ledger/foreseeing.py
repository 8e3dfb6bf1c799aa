"""What the ledger has already of an order that is not placed yet: its batch, one of the same rows, and how its caps stand."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.caps import Bound, Cap, Scope, shared
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Begun, Met
from orchestrator.core.runkey import FRESH_KEY_CHARACTERS
from orchestrator.gateways.ledger.money import Whose, bounds, out_units
from orchestrator.gateways.ledger.session import revision
from orchestrator.gateways.ledger.tables import FRESH_AT, HEAD, PENDING, batches, items

_OF = batches.c
_FEW = (_OF.pk, _OF.id, _OF.account, _OF.run_key, _OF.state, _OF.reason, _OF.started, _OF.spent_units, _OF.reserved_units)


async def met(connection: AsyncConnection, run_key: str, *, account: str, job: str, caps: Sequence[Cap],
              reserve_units: int | None, now: datetime) -> Met:
    """As the port says. Of a ledger of another version how caps stand is not known."""
    found = (await connection.execute(select(*_FEW).where(_OF.run_key == run_key))).one_or_none()
    rows = None if found is None or found.state == BatchState.LOADING.value else await _never_started(connection, found.pk)
    stand = None
    if await revision(connection) == HEAD:
        stand = await _stand(connection, found, Whose(account, job), caps, reserve_units=reserve_units, now=now)
    fresh = (await connection.execute(select(*_FEW).where(
        _OF.account == account, _OF.job == job, _OF.run_key.startswith(f"{run_key}-", autoescape=True),
        func.length(_OF.run_key) == len(run_key) + 1 + FRESH_KEY_CHARACTERS).order_by(_OF.pk.desc()).limit(1))).one_or_none()
    return Met(_begun(found, rows), _begun(fresh, None), stand)


def _begun(row: Any, never_started: int | None) -> Begun | None:
    return None if row is None else Begun(row.id, row.run_key, BatchState(row.state), row.reason, row.started, never_started)


async def _never_started(connection: AsyncConnection, batch_pk: int) -> int:
    return int((await connection.execute(select(func.count()).select_from(items).where(
        items.c.batch_pk == batch_pk, text(f"items.{PENDING}"), items.c.due_at == FRESH_AT))).scalar_one())


async def _stand(connection: AsyncConnection, batch: Any, whose: Whose, caps: Sequence[Cap], *,
                 reserve_units: int | None, now: datetime) -> tuple[Bound, ...]:
    """The batch's own cap by its own row, the others by the days of all batches."""
    found = []
    for cap in (cap for cap in caps if cap.scope is Scope.BATCH):
        own = Bound(cap, 0, 0) if batch is None else Bound(cap, batch.spent_units, batch.reserved_units).beside(
            await out_units(connection, batch, cap, now=now), reserve_units=reserve_units)
        found.append(own)
    return (*found, *await bounds(connection, whose, shared(caps), now=now, asks_out=True, reserve_units=reserve_units))
