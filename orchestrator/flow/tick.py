"""Wake what is due: the only thing a scheduler does besides keeping time."""

from orchestrator.core.errors import Unreachable
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Clock, Ledger, Queue
from orchestrator.core.tempo import Tempo
from orchestrator.core.waiting import is_outage

NO_BROKER = "cannot go on: the message broker"  # how the reason of a batch begins whose stations cannot be called


async def tick(ledger: Ledger, queue: Queue, *, clock: Clock, tempo: Tempo) -> int:
    """Send every due wake once; how many. A broker that is away costs delay only: the rows come due again."""
    wakes = await ledger.take_due(now=clock.now(), hold_s=tempo.hold_s)
    if wakes:
        try:
            await queue.send(wakes)
        except Unreachable as error:
            await ledger.schedule(wakes, now=clock.now(), force=True)
            await say_away(ledger, str(error))
            raise
    return len(wakes)


async def say_away(ledger: Ledger, outage: str | None) -> None:
    """Why nothing moves, where every command can read it; None: it is over. Another outage that is said already stays."""
    said = None if outage is None else f"cannot go on: {outage}"
    for batch in await ledger.live_batches():
        reason = batch.reason or ""
        is_ours = not is_outage(reason) if said else reason.startswith(NO_BROKER)
        if batch.state is BatchState.RUNNING and is_ours:
            await ledger.note_reason(batch.pk, said)
