"""The one wrapper around tenacity: a few safe repeats, seconds long, inside a gateway."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

T = TypeVar("T")
Hint = Callable[[BaseException], float | None]


async def repeat(call: Callable[[], Awaitable[T]], *, on: tuple[type[Exception], ...], attempts: int = 4,
                 first_wait_s: float = 0.2, max_wait_s: float = 5.0, hint: Hint | None = None,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> T:
    """Make a call that may safely be made twice (a read, a write under a fixed key) until it works.

    NEVER around a purchase: a POST whose answer was lost may have bought (docs/guarantees.md, "bought once").
    Only exceptions in `on` are repeated, `attempts` calls in all; the last one passes through as it is. Waits are
    seconds: random between 0 and first_wait_s * 2^n, never above `max_wait_s`. `hint` may name a wait for an exception
    (a Retry-After); it is obeyed exactly, and one above `max_wait_s` ends the repeats: a long wait is a row's due time,
    not a sleeping worker."""
    backoff = wait_random_exponential(multiplier=first_wait_s, max=max_wait_s)

    def hinted_s(state: RetryCallState) -> float | None:
        error = state.outcome.exception() if state.outcome is not None else None
        return hint(error) if hint is not None and error is not None else None

    def wait(state: RetryCallState) -> float:
        wanted_s = hinted_s(state)
        return float(backoff(state)) if wanted_s is None else max(0.0, wanted_s)

    def enough(state: RetryCallState) -> bool:
        return stop_after_attempt(attempts)(state) or (hinted_s(state) or 0.0) > max_wait_s

    async def awaited() -> T:  # tenacity takes a lambda for a plain function and would not await what it gives
        return await call()

    retrying = AsyncRetrying(retry=retry_if_exception_type(on), stop=enough, wait=wait, sleep=sleep, reraise=True)
    return await retrying(awaited)
