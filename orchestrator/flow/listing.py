"""The provider's list, page by page, within the budget for reads. Shared by who sweeps and who verifies."""

from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.ports import Budget, Rooms
from orchestrator.core.records import Prediction

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


async def permit(rooms: Rooms, account: str) -> None:
    """Wait for a permit to read."""
    budget = Budget(f"reads:{account}", rooms.tempo.reads_per_minute, 50)
    while True:
        grant = await rooms.limiter.reserve([budget], count=1)
        await rooms.clock.sleep(grant.first_in_s)
        if grant.count:
            return
