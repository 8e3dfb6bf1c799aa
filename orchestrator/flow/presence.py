"""A process says that it is at work, so that another command uses it instead of doubling it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from orchestrator.core.errors import Unreachable
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Role

FORGOTTEN_S = 3600.0
log = logging.getLogger("orchestrator.flow")


@asynccontextmanager
async def at_work(rooms: Rooms, *, role: str, version: str, place: str | None = None) -> AsyncIterator[Role]:
    """While the block runs, everybody who shares the ledger can see this role."""
    now = rooms.clock.now()
    me = Role(f"{role}@{rooms.owner}", role, place, version, now, now)
    await rooms.ledger.beat(me)
    beating = asyncio.create_task(_beat(rooms, me))
    try:
        yield me
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
        with suppress(Unreachable):
            await rooms.ledger.depart([me.id], now=rooms.clock.now(), within_s=FORGOTTEN_S)


async def _beat(rooms: Rooms, me: Role) -> None:
    while True:
        await rooms.clock.sleep(rooms.tempo.beat_s)
        try:
            await rooms.ledger.beat(replace(me, seen_at=rooms.clock.now()))
        except Unreachable:
            pass  # not seen means not there: nobody is misled
        except Exception:  # one odd answer of a database must not silence a role for ever
            log.exception("%s could not say that it is at work", me.id)


async def present(rooms: Rooms) -> list[Role]:
    """Who is at work for this ledger now."""
    return await rooms.ledger.present(now=rooms.clock.now(), within_s=rooms.tempo.alive_s)
