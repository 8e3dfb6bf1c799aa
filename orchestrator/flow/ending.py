"""End a canceling batch: rows that wait are withdrawn, predictions that are out are ended at the provider."""

import asyncio
from dataclasses import dataclass
from itertools import islice

from orchestrator.core.errors import ProviderRefusal
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import Batch
from orchestrator.flow.record import fact_of, record

AT_ONCE = 1000
SIDE_BY_SIDE = 20  # each answer takes the provider a good tenth of a second


@dataclass(frozen=True, slots=True)
class Ended:
    """What one round did: rows withdrawn, predictions asked to end, and those of them that have ended."""

    withdrawn: int
    asked: int
    over: int


async def wind_up(rooms: Rooms, batch: Batch) -> Ended:
    """One round; it is repeated by every sweep until nothing is out, as answers to the last POSTs may still come in."""
    withdrawn = await rooms.ledger.cancel_pending(batch.pk)
    out = await rooms.ledger.in_air(batch.pk, count=AT_ONCE)
    waiting, over = iter(out), 0
    while some := list(islice(waiting, SIDE_BY_SIDE)):
        now = await rooms.ledger.batch(batch.id)
        if now is None or now.state is not BatchState.CANCELING:
            break  # resumed meanwhile: a round of many takes minutes
        over += sum(await asyncio.gather(*(_end(rooms, attempt_id, prediction_id) for attempt_id, prediction_id in some)))
    return Ended(withdrawn, len(out), over)


async def _end(rooms: Rooms, attempt_id: str, prediction_id: str) -> bool:
    """Whether it is over: ended by us, or by itself before."""
    try:
        prediction = await rooms.predictions.cancel(prediction_id)
    except ProviderRefusal:
        return False  # ended in the meantime, or unknown there: the list says which
    if prediction.status not in TERMINAL:
        return False
    await record(rooms, [fact_of(prediction, at=rooms.clock.now(), attempt_id=attempt_id, via="get")])
    return True
