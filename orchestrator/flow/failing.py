"""Asked by who buys, before rows are bought: have too many rows of this batch failed to buy the rest of them?"""

import logging
from dataclasses import dataclass, replace
from functools import lru_cache

from orchestrator.core.failing import Bounds, Tally, bounds, reason, verdict
from orchestrator.core.job import Job
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch

LOOK_S = 0.2  # between two looks
REST = 20  # times as long as it took passes before the next one: counting a share of a million rows takes its time
log = logging.getLogger("orchestrator.flow")


@dataclass(slots=True)
class Watch:
    """What one submitting task knows of it. Once a row has worked, a job without a tolerance is not looked at any more."""

    rooms: Rooms
    next_s: float = float("-inf")  # clock.boottime()
    has_worked: bool = False

    async def stops(self, batch: Batch) -> bool:
        """Whether the batch has been paused for it now."""
        clock, limits = self.rooms.clock, _bounds(batch.job_json, batch.total or 0)
        if self.has_worked:
            limits = replace(limits, all_failed=None)
        began_s = clock.boottime()
        if not limits.most or began_s < self.next_s:
            return False
        tally = await self.rooms.ledger.tally(batch.pk, most=limits.most)
        self.has_worked = tally.worked > 0
        took_s = clock.boottime() - began_s
        self.next_s = began_s + took_s + max(LOOK_S, REST * took_s)
        return verdict(tally, limits) is not None and await self._pause(batch, limits.most)

    async def _pause(self, batch: Batch, most: int) -> bool:
        is_paused = await self.rooms.ledger.pause_for_failures(batch.pk, most=most, decide=_reason, now=self.rooms.clock.now())
        if is_paused:
            log.warning("batch %s is paused: too many of its rows failed; `orchestrator status %s` says more", batch.id, batch.id)
        return is_paused


def _reason(batch: Batch, tally: Tally) -> str | None:
    """By the job as it is when the decision is taken."""
    return reason(batch, tally, _bounds(batch.job_json, batch.total or 0))


@lru_cache(maxsize=64)
def _bounds(job_json: str, total: int) -> Bounds:
    return bounds(Job.model_validate_json(job_json).retry, total=total)
