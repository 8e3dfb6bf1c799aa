"""The provider's list, page by page, and its clock. Shared by who sweeps and who verifies."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.ports import Page, Rooms
from orchestrator.flow.asking import paced

log = logging.getLogger("orchestrator.flow")

CLOCK_ANSWER_S = 5.0  # for how long the provider is waited for that is asked for the time only
CLOCK_MARGIN_S = 60.0  # around every window in the provider's time


async def pages(rooms: Rooms, account: str, edge: datetime) -> AsyncIterator[Page]:
    """Pages of predictions created after `edge` (provider's time), newest first. What cannot be read is left out and said."""
    url: str | None = None
    while True:
        page = await paced(rooms, account, rooms.predictions.list_page, url=url, created_after=None if url else edge)
        if page.provider_offset_s is not None and url is None:
            await rooms.ledger.note_offset(account, offset_s=page.provider_offset_s, now=rooms.clock.now())
        say_unreadable(page)
        yield replace(page, predictions=[p for p in page.predictions if p.created_at is None or p.created_at >= edge])
        oldest = min((p.created_at for p in page.predictions if p.created_at), default=None)
        url = page.next_url
        if url is None or (oldest is not None and oldest < edge):
            return


def say_unreadable(page: Page) -> None:
    """One line in the log for each prediction of a page that cannot be read, once for a process: every sweep meets it again."""
    for why in page.unreadable:
        _say_once(why)


@lru_cache(maxsize=1000)
def _say_once(why: str) -> None:
    log.warning("the provider's list shows a prediction that cannot be read, and is left out: %s", why)


async def learn_clock(rooms: Rooms) -> None:
    """Once for each process: every answer tells the provider's time, a refusal too, and what is lost is looked for by it. No
    permit: purchases wait for this, and must not wait for reads that are paused."""
    if rooms.predictions.offset_s is None:
        with suppress(OrchestratorError):
            await rooms.predictions.account()


async def ask_clock(rooms: Rooms, account: str) -> None:
    """The provider's time as it is now, where it answers soon: this machine's own clock may have jumped since its last answer."""
    with suppress(OrchestratorError, TimeoutError):
        async with asyncio.timeout(CLOCK_ANSWER_S):
            await paced(rooms, account, rooms.predictions.account)


async def provider_now(rooms: Rooms, account: str) -> datetime:
    """What time it is at the provider, by its newest answer to this process, else to any process of this ledger, else by this
    machine: what it says of its own doings (`completed_at`) is to be compared with nothing else."""
    offset_s = rooms.predictions.offset_s
    if offset_s is None:
        offset_s = await rooms.ledger.offset(account)
    return rooms.clock.now() + timedelta(seconds=offset_s or 0.0)
