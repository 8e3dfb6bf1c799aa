"""Blocking rooms, walked through off the loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


async def in_threads(make: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
    """A blocking iterator, each step in a thread."""
    found, end = await asyncio.to_thread(make), object()
    step: Callable[[], Awaitable[Any]] = lambda: asyncio.to_thread(next, found, end)  # noqa: E731
    while (item := await step()) is not end:
        yield item
