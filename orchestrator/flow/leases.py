"""Which collecting items a porter's task holds: what it says of one counts only while it does.

A task can be stopped for longer than its leases last (a paused machine, a suspended laptop). Then others hold its items, or have
ended them and bought them again, and its word about them is out of date."""

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta

from orchestrator.core.ports import Rooms
from orchestrator.core.records import ToCollect


class Leases:
    """The leases of one task. One call at a time: each goes by the end that the one before it has set."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._until: dict[int, datetime] = {}
        self._one_at_a_time = asyncio.Lock()

    def _end(self) -> datetime:
        return self._rooms.clock.now() + timedelta(seconds=self._rooms.tempo.collect_lease_s)

    async def take(self, batch_pk: int, *, count: int) -> list[ToCollect]:
        """The next items of a batch, oldest completion first."""
        until = self._end()
        items = await self._rooms.ledger.to_collect(batch_pk, count=count, now=self._rooms.clock.now(), lease_until=until)
        self._until.update((item.item_pk, until) for item in items)
        return items

    async def renew(self, item_pks: Iterable[int]) -> set[int]:
        """From now on for a whole lease; which of these were still held."""
        async with self._one_at_a_time:
            asked, until = self._held(item_pks), self._end()
            held = await self._rooms.ledger.lease_collect(asked, until=until) if asked else set()
            self.forget(asked.keys() - held)
            self._until.update((pk, until) for pk in held)
            return held

    async def give_back(self, item_pks: Iterable[int]) -> None:
        """Anybody's again, at once."""
        async with self._one_at_a_time:
            if asked := self._held(item_pks):
                await self._rooms.ledger.hand_back(asked, now=self._rooms.clock.now())
                self.forget(asked)

    async def delay(self, item_pk: int, *, due_at: datetime, error: str) -> None:
        """To be tried again then, by anybody."""
        async with self._one_at_a_time:
            if asked := self._held([item_pk]):
                await self._rooms.ledger.delay_collect(asked, due_at=due_at, error=error)
                self.forget(asked)

    def forget(self, item_pks: Iterable[int]) -> None:
        """These have ended, or are somebody else's."""
        for pk in list(item_pks):
            self._until.pop(pk, None)

    def _held(self, item_pks: Iterable[int]) -> dict[int, datetime]:
        return {pk: self._until[pk] for pk in item_pks if pk in self._until}
