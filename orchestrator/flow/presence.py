"""A process says that it is at work, so that another command uses it instead of doubling it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta

from orchestrator.core.errors import Unreachable
from orchestrator.core.ports import Clock, Ledger
from orchestrator.core.records import Role

BEAT_S = 5.0
ALIVE_S = 16.0  # three beats and a little: who was not seen for so long has gone
FORGOTTEN_S = 3600.0


@asynccontextmanager
async def at_work(ledger: Ledger, clock: Clock, *, role: str, owner: str, version: str,
                  place: str | None = None) -> AsyncIterator[Role]:
    """While the block runs, everybody who shares the ledger can see this role. `owner`: host and pid."""
    now = clock.now()
    me = Role(f"{role}@{owner}", role, place, version, now, now)
    await ledger.beat(me)
    beating = asyncio.create_task(_beat(ledger, clock, me))
    try:
        yield me
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
        with suppress(Unreachable):
            await ledger.depart([me.id], before=clock.now() - timedelta(seconds=FORGOTTEN_S))


async def _beat(ledger: Ledger, clock: Clock, me: Role) -> None:
    while True:
        await clock.sleep(BEAT_S)
        with suppress(Unreachable):  # not seen means not there: nobody is misled
            await ledger.beat(replace(me, seen_at=clock.now()))


async def present(ledger: Ledger, clock: Clock) -> list[Role]:
    """Who is at work for this ledger now."""
    return await ledger.present(since=clock.now() - timedelta(seconds=ALIVE_S))
