"""An operator's verbs: pause, resume, cancel, retry."""

from dataclasses import dataclass

from orchestrator.core.errors import BadInput, NotFound, ProviderRefusal
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import Batch, Wake
from orchestrator.flow.record import fact_of, record


async def pause(rooms: Rooms, batch: Batch, *, reason: str = "paused by an operator") -> bool:
    """Buy nothing more; what is out is still brought home."""
    return await rooms.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}),
                                        reason=reason, now=rooms.clock.now())


async def resume(rooms: Rooms, batch: Batch) -> bool:
    """Go on with a paused or canceled batch: canceled rows that were never bought wait again."""
    allowed = frozenset({BatchState.PAUSED, BatchState.CANCELED, BatchState.CANCELING})
    moved = await rooms.ledger.set_state(batch.pk, to=BatchState.RUNNING, allowed=allowed, reason=None,
                                         now=rooms.clock.now())
    if moved and batch.state is not BatchState.PAUSED:
        await rooms.ledger.reopen_canceled(batch.pk)
    if moved:
        await wake_all(rooms, batch)
    return moved


@dataclass(frozen=True, slots=True)
class Canceled:
    """What canceling did: rows never bought, predictions ended at the provider, and those it had ended before."""

    pending: int
    ended: int
    still_out: int


async def cancel(rooms: Rooms, batch: Batch) -> Canceled:
    """Buy nothing more, and end at the provider what is out."""
    allowed = frozenset({BatchState.RUNNING, BatchState.PAUSED, BatchState.CANCELING})
    if not await rooms.ledger.set_state(batch.pk, to=BatchState.CANCELING, allowed=allowed,
                                        reason="canceled by an operator", now=rooms.clock.now()):
        raise BadInput(f"batch {batch.id} is {batch.state.value}: there is nothing to cancel")
    pending = await rooms.ledger.cancel_pending(batch.pk)
    ended, out = 0, await rooms.ledger.in_air(batch.pk, count=100_000)
    for attempt_id, prediction_id in out:
        ended += await _cancel_one(rooms, attempt_id, prediction_id)
    await wake_all(rooms, batch)
    return Canceled(pending, ended, len(out) - ended)


async def _cancel_one(rooms: Rooms, attempt_id: str, prediction_id: str) -> int:
    try:
        prediction = await rooms.predictions.cancel(prediction_id)
    except (NotFound, ProviderRefusal):
        return 0  # ended in the meantime, or unknown there: the sweep says which
    if prediction.status not in TERMINAL:
        return 0
    await record(rooms, [fact_of(prediction, at=rooms.clock.now(), attempt_id=attempt_id)])
    return 1


async def retry(rooms: Rooms, batch: Batch, *, classes: frozenset[str]) -> int:
    """Failed rows (of these classes; empty: all but bad input) wait for another attempt; how many."""
    if batch.state is BatchState.LOADING:
        raise BadInput(f"batch {batch.id} is still loading")
    count = await rooms.ledger.reopen_failed(batch.pk, classes=classes)
    if count:
        ended = frozenset({BatchState.FINISHED, BatchState.CANCELED, BatchState.PAUSED})
        await rooms.ledger.set_state(batch.pk, to=BatchState.RUNNING, allowed=ended, reason=None, now=rooms.clock.now())
        await wake_all(rooms, batch)
    return count


async def wake_all(rooms: Rooms, batch: Batch) -> None:
    """Every station looks at this batch now."""
    tempo = rooms.tempo
    wakes = [Wake("submit", batch.id, lane) for lane in range(tempo.submit_lanes)]
    wakes += [Wake("collect", batch.id, lane) for lane in range(tempo.collect_lanes)]
    wakes += [Wake("sweep", batch.account), Wake("report", batch.id)]
    await rooms.ledger.schedule(wakes, now=rooms.clock.now())
