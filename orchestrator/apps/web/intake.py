"""Group commit: what came in while one transaction ran is the next one.

A transaction costs most of a millisecond before its first row. At 450 webhooks a second one followed the other at once with two
or three webhooks in each, and took half a core; so a small group waits until the one before it began `APART_S` ago. After a
pause the first webhook waits for nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from orchestrator.core.errors import OrchestratorError
from orchestrator.core.records import Delivery, Receipt

Take = Callable[[Sequence[Delivery]], Awaitable[list[Receipt]]]
LARGEST_GROUP = 200
LARGE_GROUP = 32  # waits for nothing
APART_S = 0.02


class Intake:
    """Deliveries in, one commit for as many as have come, a receipt for each."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._waiting: list[tuple[Delivery, asyncio.Future[Receipt]]] = []
        self._task: asyncio.Task[None] | None = None
        self._began_s = float("-inf")  # the last transaction, by the loop's clock
        self._is_large = asyncio.Event()

    async def offer(self, delivery: Delivery) -> Receipt:
        """Returns once the delivery is committed. Raises what the ledger raised."""
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._waiting.append((delivery, receipt))
        if len(self._waiting) == LARGE_GROUP:
            self._is_large.set()
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await receipt

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                group, self._waiting = self._waiting[:LARGEST_GROUP], self._waiting[LARGEST_GROUP:]
                await self._commit(group)
        finally:
            self._task = None

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        early_s = self._began_s + APART_S - loop.time()
        if early_s > 0 and len(self._waiting) < LARGE_GROUP:
            self._is_large.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_large.wait(), early_s)
        self._began_s = loop.time()

    async def _commit(self, group: list[tuple[Delivery, asyncio.Future[Receipt]]]) -> None:
        try:
            receipts = await self._take([delivery for delivery, _ in group])
        except OrchestratorError as error:
            _fail(group, error)
        except Exception as error:  # one delivery that the ledger cannot take must not cost the others their place
            if len(group) == 1:
                _fail(group, error)
                return
            for one in group:
                await self._commit([one])
        else:
            for (_, waiting), receipt in zip(group, receipts, strict=True):
                if not waiting.done():  # its sender may have gone
                    waiting.set_result(receipt)


def _fail(group: list[tuple[Delivery, asyncio.Future[Receipt]]], error: Exception) -> None:
    for _, waiting in group:
        if not waiting.done():
            waiting.set_exception(error)
