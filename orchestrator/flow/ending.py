"""End a canceling batch: rows that wait are withdrawn, predictions that are out are ended at the provider."""

import asyncio
from dataclasses import dataclass
from itertools import islice

from orchestrator.core.errors import ProviderAway, ProviderRefusal, Throttled, Unreachable
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import Batch, Prediction
from orchestrator.flow.asking import paced
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
        ended = await asyncio.gather(*(_end(rooms, batch.account, *one) for one in some))
        over += ended.count(True)
        if None in ended:
            break
    return Ended(withdrawn, len(out), over)


async def _end(rooms: Rooms, account: str, attempt_id: str, prediction_id: str) -> bool | None:
    """Whether it is over: ended by us, or by itself before. None: the provider cannot be asked for now."""
    try:
        prediction = await _canceled(rooms, account, prediction_id)
    except Throttled:
        return None
    except ProviderRefusal:
        return False  # ended in the meantime, or unknown there: the list says which
    if prediction.status not in TERMINAL:
        return False
    await record(rooms, [fact_of(prediction, at=rooms.clock.now(), attempt_id=attempt_id, via="get")])
    return True


async def _canceled(rooms: Rooms, account: str, prediction_id: str) -> Prediction:
    """Within the budget for reads; but what is out costs money by the second, and does not wait for a limiter that is away."""
    try:
        return await paced(rooms, account, rooms.predictions.cancel, prediction_id)
    except ProviderAway:
        raise
    except Unreachable:
        return await rooms.predictions.cancel(prediction_id)
