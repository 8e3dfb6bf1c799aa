"""A folder that takes nothing more: said, and until it does nothing is bought that could not be brought home in time."""

from contextlib import suppress

from orchestrator.core.errors import Unreachable
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.waiting import cannot_write

MARGIN_S = 3.0  # a pause of buying outlasts the wait for the next try by this: the try comes first


async def say_full(rooms: Rooms, batch: Batch, error: OSError, *, again_s: float) -> None:
    """`again_s`: until it is tried again. For so long the batch's pause stands, and the sentence with it (`flow/saying.py`)."""
    reason = cannot_write(batch.output_to, error)
    with suppress(Unreachable):
        await rooms.limiter.pause(f"batch:{batch.id}", seconds=again_s + MARGIN_S, reason=reason)
    await rooms.ledger.note_reason(batch.pk, reason)
