"""Wake what is due: the only thing a scheduler does besides keeping time."""

from orchestrator.core.errors import Unreachable
from orchestrator.core.ports import Clock, Ledger, Queue
from orchestrator.core.tempo import Tempo


async def tick(ledger: Ledger, queue: Queue, *, clock: Clock, tempo: Tempo) -> int:
    """Send every due wake once; how many. A broker that is away costs delay only: the rows come due again."""
    wakes = await ledger.take_due(now=clock.now(), hold_s=tempo.hold_s)
    if wakes:
        try:
            await queue.send(wakes)
        except Unreachable:
            await ledger.schedule(wakes, now=clock.now(), force=True)
            raise
    return len(wakes)
