"""Bodies of requests, read whole: bounded in size and in time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_BODY = 64 * 1024 * 1024  # a body with data URIs has tens of megabytes; refused, its completion would be lost
BODY_TIMEOUT_S = 30.0


class Refused(Exception):
    """An answer that is given before anything was judged."""

    def __init__(self, status: int, word: str) -> None:
        super().__init__(word)
        self.status = status
        self.word = word


class Bodies:
    """Reads bodies. Who takes too long is found by one look for all: a timer of its own for each cost 7 us."""

    def __init__(self) -> None:
        self._since: dict[asyncio.Task[Any], float] = {}
        self._cut: set[asyncio.Task[Any]] = set()

    async def read(self, receive: Receive) -> bytes:
        """All of the body. Raises Refused for one that is too long, too slow, or cut."""
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = time.monotonic()
        try:
            return await _whole(receive)
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            raise Refused(408, "too slow") from None
        finally:
            del self._since[task]
            self._cut.discard(task)

    def cut_slow(self) -> None:
        """End the reading of bodies that began too long ago."""
        for task, since in self._since.items():
            if time.monotonic() - since > BODY_TIMEOUT_S and task not in self._cut:
                self._cut.add(task)
                task.cancel()


async def _whole(receive: Receive) -> bytes:
    message = await receive()
    if not message.get("more_body") and message["type"] == "http.request":
        return bytes(message.get("body", b""))
    parts, size = [], 0
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > LARGEST_BODY:
            raise Refused(413, "larger than 64 MB")
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    raise Refused(400, "cut")
