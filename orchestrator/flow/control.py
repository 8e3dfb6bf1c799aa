"""An operator's verbs: pause, resume, cancel, retry."""

from collections.abc import Sequence
from datetime import timedelta

from orchestrator.core.errors import BadInput
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch, Wake
from orchestrator.flow.ending import AT_ONCE, wind_up
from orchestrator.flow.listing import learn_clock, provider_now
from orchestrator.flow.unsure import look_for_all

BY_OPERATOR = "paused by an operator"
INTERRUPTED = "interrupted: it goes on when it is run again"
LEFT = "its command ended too soon: it goes on when it is run again"
RESUMING = "being resumed"  # the reason of a canceled batch whose rows are being reopened
START_LIMIT = "start limit"  # the reason of a batch that has started as many rows as `--limit` let it
_CANCELED = frozenset({BatchState.CANCELED, BatchState.CANCELING})


async def pause(rooms: Rooms, batch: Batch, *, reason: str = BY_OPERATOR) -> bool:
    """Buy nothing more; what is out is still brought home."""
    return await _set(rooms, batch, BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}), reason=reason)


async def set_aside(rooms: Rooms, *, but: str) -> list[Batch]:
    """Nobody is at work, so the commands of all attended batches have ended without a word: they are paused, but the one of this
    run key, for who runs one job orders no rows of another one. What they have out is still brought home. Answers which these
    are. A command that began at the same moment sets its batch going again."""
    left = [batch for batch in await rooms.ledger.live_batches() if batch.attended and batch.run_key != but]
    return [batch for batch in left if await pause(rooms, batch, reason=LEFT)]


async def resume(rooms: Rooms, batch: Batch) -> bool:
    """Go on with a paused or canceled batch: canceled rows that were never bought wait again, a start limit that stopped it is
    lifted, and what has failed until now is known and stops it no more. After another pause the limit still holds: the run that
    set it may be there. Raises BadInput while predictions are being canceled: they would end as failures of a batch that nobody
    cancels any more."""
    if batch.state is BatchState.CANCELING and await rooms.ledger.in_air(batch.pk, count=1):
        raise BadInput(f"batch {batch.id} is still being canceled, with predictions out: try again in a moment. If nobody is at "
                       f"work for it, `orchestrator cancel {batch.id}` goes on with it")
    is_held = batch.state is BatchState.PAUSED and batch.reason == START_LIMIT
    if batch.start_limit is not None and (is_held or batch.state in _CANCELED):
        # First: with the limit the report would pause it again. Nothing else of it is as it was read, should it be run meanwhile.
        await rooms.ledger.lift_limit(batch.pk, start_limit=batch.start_limit)
    if batch.state is BatchState.PAUSED or batch.state in _CANCELED:
        await rooms.ledger.know_failures(batch.pk)  # first, likewise
    return await go_on(rooms, batch)


async def go_on(rooms: Rooms, batch: Batch) -> bool:
    """The same within the start limit that `run` has just set."""
    if batch.state in _CANCELED and not await _set(rooms, batch, BatchState.PAUSED, allowed=_CANCELED, reason=RESUMING):
        return False
    if batch.state in _CANCELED or batch.reason == RESUMING:
        await rooms.ledger.reopen_canceled(batch.pk)
    return await _set_going(rooms, batch, allowed=frozenset({BatchState.PAUSED}))


async def _set(rooms: Rooms, batch: Batch, to: BatchState, *, allowed: frozenset[BatchState], reason: str | None = None,
               wakes: Sequence[Wake] = ()) -> bool:
    return await rooms.ledger.set_state(batch.pk, to=to, allowed=allowed, reason=reason, now=rooms.clock.now(), wakes=wakes)


async def _set_going(rooms: Rooms, batch: Batch, *, allowed: frozenset[BatchState]) -> bool:
    return await _set(rooms, batch, BatchState.RUNNING, allowed=allowed, wakes=_all_wakes(rooms, batch))


async def cancel(rooms: Rooms, batch: Batch) -> None:
    """Buy nothing more, and end at the provider what is out. Raises ProviderAway and TokenRefused, with the batch canceling:
    whoever is at work for it, and this verb said again, go on with what is out."""
    allowed = frozenset({BatchState.RUNNING, BatchState.PAUSED, BatchState.CANCELING})
    if not await _set(rooms, batch, BatchState.CANCELING, allowed=allowed, reason="canceled by an operator"):
        raise BadInput(f"batch {batch.id} is {batch.state.value}: there is nothing to cancel")
    try:
        while (ended := await wind_up(rooms, batch)).asked == AT_ONCE and ended.over:
            pass  # nobody else may be at work, and what is out is paid for by the second
    finally:
        await wake_all(rooms, batch)


async def retry(rooms: Rooms, batch: Batch, *, classes: frozenset[str]) -> tuple[int, int]:
    """Failed rows of these classes (empty: all but bad input and unsure ones): how many are fetched again, as what they bought is
    still kept, and how many wait for another attempt. Raises ProviderAway where unsure ones cannot be looked for."""
    if batch.state in (BatchState.LOADING, BatchState.CANCELING):
        raise BadInput(f"batch {batch.id} is still {batch.state.value}: try again when that is over")
    found = await _found(rooms, batch) if "unsure" in classes else 0
    await learn_clock(rooms)
    kept_since = await provider_now(rooms, batch.account) - timedelta(seconds=rooms.tempo.retention_s)
    fetched, bought = await _never_set_going(rooms, batch)
    fetched += found
    fetched += await rooms.ledger.refetch(batch.pk, classes=classes, after=kept_since)
    fetched += await rooms.ledger.rejoin(batch.pk, classes=classes)
    bought += await rooms.ledger.reopen_failed(batch.pk, classes=classes)
    if fetched or bought:
        await rooms.ledger.know_failures(batch.pk)
        ended = frozenset({BatchState.FINISHED, BatchState.CANCELED, BatchState.PAUSED})
        if not await _set_going(rooms, batch, allowed=ended):  # it runs already
            await wake_all(rooms, batch)
    return fetched, bought


async def _found(rooms: Rooms, batch: Batch) -> int:
    """Nobody may have looked since the batch ended: what is there is fetched, and not bought again. How many rows of a batch that
    goes on have taken what was found by that."""
    before = (await rooms.ledger.counts(batch.pk)).own(ItemState.FAILED)
    await look_for_all(rooms, batch.account)
    return max(0, before - (await rooms.ledger.counts(batch.pk)).own(ItemState.FAILED))


async def _never_set_going(rooms: Rooms, batch: Batch) -> tuple[int, int]:
    """Rows that a `retry` reopened before it was killed, to be fetched and to be bought: nothing else leaves any in a batch that
    has ended."""
    if batch.state not in (BatchState.FINISHED, BatchState.CANCELED):
        return 0, 0
    counts = await rooms.ledger.counts(batch.pk)
    return counts.own(ItemState.COLLECTING, ItemState.RUNNING), counts.own(ItemState.PENDING)


async def wake_all(rooms: Rooms, batch: Batch) -> None:
    """Every station looks at this batch now."""
    await rooms.ledger.schedule(_all_wakes(rooms, batch), now=rooms.clock.now(), force=True)


def _all_wakes(rooms: Rooms, batch: Batch) -> list[Wake]:
    tempo = rooms.tempo
    wakes = [Wake("submit", batch.id, lane) for lane in range(tempo.submit_lanes)]
    wakes += [Wake("collect", batch.id, lane) for lane in range(tempo.collect_lanes)]
    return wakes + [Wake("sweep", batch.account, lane) for lane in (0, 1)] + [Wake("report", batch.id)]
