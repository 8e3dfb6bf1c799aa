"""End a canceling batch: rows that wait are withdrawn, predictions that are out are ended at the provider."""

from dataclasses import dataclass

from orchestrator.core.errors import ProviderRefusal
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import Batch
from orchestrator.flow.record import fact_of, record

AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Ended:
    """What one round ended: rows never bought, predictions ended at the provider, and those still out."""

    pending: int
    ended: int
    still_out: int


async def wind_up(rooms: Rooms, batch: Batch) -> Ended:
    """One round; it is repeated by every sweep until nothing is out, as answers to the last POSTs may still come in."""
    pending = await rooms.ledger.cancel_pending(batch.pk)
    out = await rooms.ledger.in_air(batch.pk, count=AT_ONCE)
    ended = 0
    for attempt_id, prediction_id in out:
        now = await rooms.ledger.batch(batch.id)
        if now is None or now.state is not BatchState.CANCELING:
            break  # resumed meanwhile: a round of many takes minutes
        ended += await _end(rooms, attempt_id, prediction_id)
    return Ended(pending, ended, len(out) - ended)


async def _end(rooms: Rooms, attempt_id: str, prediction_id: str) -> int:
    try:
        prediction = await rooms.predictions.cancel(prediction_id)
    except ProviderRefusal:
        return 0  # ended in the meantime, or unknown there: the list says which
    if prediction.status not in TERMINAL:
        return 0
    await record(rooms, [fact_of(prediction, at=rooms.clock.now(), attempt_id=attempt_id, via="get")])
    return 1
