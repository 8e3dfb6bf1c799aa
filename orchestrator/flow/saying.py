"""Why a batch waits: one sentence in its row of the ledger, where every screen reads it."""

from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.waiting import is_of_storage, is_outage, is_same, is_usual
from orchestrator.flow.hearing import Ear

SAID_FOR_S = 2.0  # a usual reason stands for so long before another one replaces it: the row is read by everybody
STALE_S = 15.0  # an outage is over with the next answer, or when it was not met again for so long


class Voice:
    """Of one submitting task: writes the reason when it changes, and no more often than anybody can read."""

    def __init__(self, rooms: Rooms, batch: Batch, ear: Ear) -> None:
        self.said = batch.reason  # as this task knows it to stand in the ledger
        self._rooms = rooms
        self._batch_id = batch.id
        self._ear = ear
        self._said_at_s = rooms.clock.boottime() if is_outage(batch.reason or "") else float("-inf")

    async def say(self, reason: str | None) -> None:
        """This is why the batch waits now; None: it does not."""
        if is_same(reason, self.said) or self._is_too_soon(reason) or self._is_unproven(reason):
            return
        current = await self._rooms.ledger.batch(self._batch_id)
        if current is not None and is_usual(reason) and await self._cannot_store(current):
            return
        if current is not None and not is_same(reason, current.reason) and current.state is BatchState.RUNNING:
            await self._rooms.ledger.note_reason(current.pk, reason)
        self.said, self._said_at_s = reason, self._rooms.clock.boottime()

    async def _cannot_store(self, current: Batch) -> bool:
        """Whether files cannot be stored still: for as long as the pause that says so. No row to buy is no news then."""
        return is_of_storage(current.reason) and await self._rooms.limiter.paused(f"batch:{current.id}") is not None

    def _is_too_soon(self, reason: str | None) -> bool:
        """For one usual reason after another; but with nothing out it is the last word for a while."""
        return self._ear.is_busy and is_usual(reason) and is_usual(self.said) and self._since_s() < SAID_FOR_S

    def _is_unproven(self, reason: str | None) -> bool:
        """A pause has ended, and nobody knows yet whether the outage has."""
        is_over = self._ear.answered_at_s >= self._said_at_s or self._since_s() >= STALE_S
        return reason is not None and is_usual(reason) and is_outage(self.said or "") and not is_over

    def _since_s(self) -> float:
        return self._rooms.clock.boottime() - self._said_at_s
