"""What a batch that is under way will have cost in the end: what is spent, and what is left at the mean of its own rows. Pure."""

from decimal import Decimal

from orchestrator.core.estimate import EXACT, Estimate
from orchestrator.core.lifecycle import IN_AIR_ITEM, BatchState, ItemState
from orchestrator.core.records import Batch, Counts

ENOUGH_ROWS = 20  # with a known cost: from then on a batch's own rows tell more than an estimate
_GOES_ON = (BatchState.LOADING, BatchState.RUNNING, BatchState.PAUSED)
_ENDED = (ItemState.COLLECTING, ItemState.SUCCEEDED, ItemState.FAILED, ItemState.CANCELED)


def projected_usd(batch: Batch, counts: Counts) -> Decimal | None:
    """Spent and still to be spent in all, of rows whose cost is known; None where nobody can say, or the batch has ended."""
    if batch.state not in _GOES_ON:
        return None
    expected = Estimate.from_json(batch.estimate_json)
    in_air = counts.own(*IN_AIR_ITEM)
    known, left = max(0, _ended(counts, in_air) - counts.cost_unknown_items), in_air + _waiting(batch, counts)
    if counts.cost_unknown_items and not counts.spent_usd:  # rows that failed may be free: that says nothing of the others
        return None
    if known >= min(ENOUGH_ROWS, max(1, left)):
        return (counts.spent_usd + left * counts.spent_usd / known).quantize(EXACT)
    per_row = None if expected is None else expected.expected.usd
    return None if per_row is None else (counts.spent_usd + left * per_row).quantize(EXACT)


def _ended(counts: Counts, in_air: int) -> int:
    """Rows that were bought and have ended: not what was never bought, nor what came back (429, an outage, handed back) and waits
    for another try."""
    return min(counts.own(*_ENDED), max(0, counts.started - in_air - counts.tried_before))


def _waiting(batch: Batch, counts: Counts) -> int:
    """Rows that wait, as far as they will be bought: a limit is one of rows that were never tried."""
    rows = counts.own(ItemState.PENDING)
    if batch.start_limit is None:
        return rows
    return min(rows, counts.tried_before + max(0, batch.start_limit - counts.started))
