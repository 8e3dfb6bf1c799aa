"""The provider's list, page by page, within the budget for reads. Shared by who sweeps and who verifies."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timedelta

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.permits import Budget
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Prediction

CLOCK_ANSWER_S = 5.0  # for how long the provider is waited for that is asked for the time only
CLOCK_MARGIN_S = 60.0  # around every window in the provider's time


async def pages(rooms: Rooms, account: str, edge: datetime) -> AsyncIterator[list[Prediction]]:
    """Pages of predictions created after `edge` (provider's time), newest first, within the budget for reads."""
    url: str | None = None
    while True:
        await permit(rooms, account)
        page = await rooms.predictions.list_page(url=url, created_after=None if url else edge)
        if page.provider_offset_s is not None and url is None:
            await rooms.ledger.note_offset(account, offset_s=page.provider_offset_s, now=rooms.clock.now())
        yield [p for p in page.predictions if p.created_at is None or p.created_at >= edge]
        oldest = min((p.created_at for p in page.predictions if p.created_at), default=None)
        url = page.next_url
        if url is None or (oldest is not None and oldest < edge):
            return


async def learn_clock(rooms: Rooms) -> None:
    """Once for each process: every answer tells the provider's time, and what is lost is looked for by it."""
    if rooms.predictions.offset_s is None:
        with suppress(OrchestratorError):
            await rooms.predictions.account()


async def ask_clock(rooms: Rooms) -> None:
    """The provider's time as it is now, where it answers soon: this machine's own clock may have jumped since its last answer."""
    with suppress(OrchestratorError, TimeoutError):
        async with asyncio.timeout(CLOCK_ANSWER_S):
            await rooms.predictions.account()


async def provider_now(rooms: Rooms, account: str) -> datetime:
    """What time it is at the provider, by its newest answer to this process, else to any process of this ledger, else by this
    machine: what it says of its own doings (`completed_at`) is to be compared with nothing else."""
    offset_s = rooms.predictions.offset_s
    if offset_s is None:
        offset_s = await rooms.ledger.offset(account)
    return rooms.clock.now() + timedelta(seconds=offset_s or 0.0)


async def permit(rooms: Rooms, account: str) -> None:
    """Wait for a permit to read."""
    budget = Budget(f"reads:{account}", rooms.tempo.reads_per_minute, 50)
    while True:
        grant = await rooms.limiter.reserve([budget], count=1)
        await rooms.clock.sleep(grant.first_in_s)
        if grant.count:
            return
