"""The one wrapper around tenacity: a few safe repeats, seconds long, inside a gateway."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

T = TypeVar("T")


async def repeat(call: Callable[[], Awaitable[T]], *, on: tuple[type[Exception], ...], attempts: int = 4,
                 first_wait_s: float = 0.2, max_wait_s: float = 5.0,
                 sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> T:
    """Make a call that may safely be made twice (a read, a write under a fixed key) until it works.

    NEVER around a purchase: a POST whose answer was lost may have bought (docs/guarantees.md, "bought once").
    Only exceptions in `on` are repeated, `attempts` calls in all; the last one passes through as it is. Waits are
    seconds: random between 0 and first_wait_s * 2^n, never above `max_wait_s`. A 429 is not repeated here: whoever is
    told to wait is not alone (flow/listing.py)."""

    async def awaited() -> T:  # tenacity takes a lambda for a plain function and would not await what it gives
        return await call()

    backoff = wait_random_exponential(multiplier=first_wait_s, max=max_wait_s)
    retrying = AsyncRetrying(retry=retry_if_exception_type(on), stop=stop_after_attempt(attempts), wait=backoff, sleep=sleep,
                             reraise=True)
    return await retrying(awaited)
