"""Rows whose outputs the provider deleted before they were at home: alarmed, and bought again once where the job allows it."""

import logging

from orchestrator.core.job import Job
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch, Wake

log = logging.getLogger("orchestrator.flow")


async def buy_expired_again(rooms: Rooms, batch: Batch) -> list[Wake]:
    """With `retry: {expired: buy}`: rows that this happened to once wait again; the wakes that buy them."""
    if Job.model_validate_json(batch.job_json).retry.expired != "buy":
        return []
    many = await rooms.ledger.reopen_expired(batch.pk)
    if not many:
        return []
    log.warning("batch %s: the outputs of %d rows were deleted before they were fetched; they are bought again", batch.id, many)
    return [Wake("submit", batch.id, lane) for lane in range(rooms.tempo.submit_lanes)]


async def alarm(rooms: Rooms, batch: Batch) -> None:
    """Say in the log what was paid for and is lost."""
    if many := await rooms.ledger.expired(batch.pk):
        log.warning("batch %s: %d rows were paid for, and their outputs deleted before they were fetched (class expired)",
                    batch.id, many)
