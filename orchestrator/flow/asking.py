"""What is asked of the provider besides purchases: each call within the account's budget for reads, a 429 a pause for
everybody who shares it."""

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple, ParamSpec, TypeVar

from orchestrator.core.errors import Throttled, Unreachable
from orchestrator.core.permits import Budget, Grant, Heard
from orchestrator.core.ports import Rooms

P = ParamSpec("P")
T = TypeVar("T")

CALLS = 4  # of one question that is refused again and again
LONGEST_WAIT_S = 20.0  # for one answer, with all its pauses: a station that waits for longer does better to come again
STEP_S = 1.0  # a process that stops waits for no pause
NO_HINT_S = 2.0  # a 429 that does not say how long to wait
BURST = 50
FEW_LEFT_S = 1.0  # at our own rate: what the provider says is left of its own budget is passed on below that
THROTTLED = "reads are throttled by the provider (429)"


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
