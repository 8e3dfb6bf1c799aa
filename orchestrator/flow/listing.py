"""What is asked of the provider besides purchases: each call within the account's budget for reads, a 429 a pause for
everybody who shares it. And its list, page by page."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, ParamSpec, TypeVar

from orchestrator.core.errors import OrchestratorError, Throttled, Unreachable
from orchestrator.core.permits import Budget, Grant, Heard
from orchestrator.core.ports import Page, Rooms

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger("orchestrator.flow")

CALLS = 4  # of one question that is refused again and again
LONGEST_WAIT_S = 20.0  # for one answer, with all its pauses: a station that waits for longer does better to come again
STEP_S = 1.0  # a process that stops waits for no pause
NO_HINT_S = 2.0  # a 429 that does not say how long to wait
BURST = 50
FEW_LEFT_S = 1.0  # at our own rate: what the provider says is left of its own budget is passed on below that
THROTTLED = "reads are throttled by the provider (429)"

CLOCK_ANSWER_S = 5.0  # for how long the provider is waited for that is asked for the time only
CLOCK_MARGIN_S = 60.0  # around every window in the provider's time


class _Permit(NamedTuple):
    budget: Budget
    grant: Grant


async def paced(rooms: Rooms, account: str | None, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Ask the provider something that buys nothing (a read, or a cancel), within the account's budget for that.

    A 429 pauses the budget for all workers, for as long as it says, and the call is made again when it is granted again. Raises
    Throttled when it was refused `CALLS` times, or would have to wait for longer than a station may; Unreachable where the
    limiter is away; and what the call raises. Without an account, that is before it is known or where nobody paces, as in
    `doctor` and `plan`, a 429 is only slept on."""
    until_s = rooms.clock.boottime() + LONGEST_WAIT_S
    for n in range(1, CALLS + 1):
        permit = None if account is None else await _permit(rooms, account, until_s=until_s)
        try:
            answer = await call(*args, **kwargs)
        except Throttled as error:
            await _heed(rooms, permit, error, until_s=until_s if n < CALLS else 0.0)
        else:
            await _tell(rooms, permit)
            return answer
    raise AssertionError("the last refusal is raised")


async def _permit(rooms: Rooms, account: str, *, until_s: float) -> _Permit:
    """Wait for a permit to read, until its moment. Raises Throttled where that does not come in time, or nothing new begins."""
    budget = Budget(f"reads:{account}", rooms.tempo.reads_per_minute, BURST)
    while True:
        grant = await rooms.limiter.reserve([budget], count=1)
        if grant.count:
            await rooms.clock.sleep(grant.first_in_s)
            return _Permit(budget, grant)
        if rooms.stopping() or rooms.clock.boottime() + grant.first_in_s > until_s:
            raise Throttled(f"{grant.reason}: the provider is not asked for {grant.first_in_s:,.0f} s",
                            retry_after_s=grant.first_in_s)
        await rooms.clock.sleep(min(grant.first_in_s, STEP_S))


async def _heed(rooms: Rooms, permit: _Permit | None, error: Throttled, *, until_s: float) -> None:
    """What a 429 means: a pause for everybody, who then come back one by one. Raises it where that lasts too long."""
    pause_s = (NO_HINT_S if error.retry_after_s is None else error.retry_after_s) + rooms.clock.jitter()
    if permit is not None:
        await rooms.limiter.throttle(permit.budget, serial=permit.grant.serial, seconds=pause_s, reason=THROTTLED,
                                     is_low_credit=False)
    if rooms.clock.boottime() + pause_s > until_s:
        raise error
    if permit is None:
        await rooms.clock.sleep(pause_s)


async def _tell(rooms: Rooms, permit: _Permit | None) -> None:
    """An answer's word on what is left of the provider's own budget, where it matters: near its end, or while we go slower than
    we might. Passed on each time it would be a second call to Redis for each read."""
    if permit is None:
        return
    per_minute, left = permit.budget.per_minute, rooms.predictions.reads_left
    is_slow = 0 < permit.grant.per_minute < 0.99 * (per_minute if per_minute > 0 else math.inf)
    is_low = per_minute > 0 and left is not None and left <= max(4.0, per_minute / 60 * FEW_LEFT_S)
    if is_slow or is_low:
        with suppress(Unreachable):  # then nobody gets a permit either
            await rooms.limiter.hear(permit.budget, Heard(permit.grant.serial, remaining=left))


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
