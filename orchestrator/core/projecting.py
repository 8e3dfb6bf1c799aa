"""What a batch that is under way will have cost in the end: what is spent, and what is left at the mean of its own rows. Pure."""

from decimal import Decimal

from orchestrator.core.estimate import EXACT, Estimate
from orchestrator.core.lifecycle import IN_AIR_ITEM, BatchState, ItemState
from orchestrator.core.records import Batch, Counts

ENOUGH_ROWS = 20  # with a known cost: from then on a batch's own rows tell more than an estimate
_GOES_ON = (BatchState.LOADING, BatchState.RUNNING, BatchState.PAUSED)


def projected_usd(batch: Batch, counts: Counts) -> Decimal | None:
    """Spent and still to be spent in all, of rows whose cost is known; None where nobody can say, or the batch has ended."""
    if batch.state not in _GOES_ON:
        return None
    expected = Estimate.from_json(batch.estimate_json)
    in_air = counts.own(*IN_AIR_ITEM)
    ended, left = max(0, counts.started - in_air), in_air + _not_started(batch, counts)
    known = max(0, ended - counts.cost_unknown_items)
    if counts.cost_unknown_items and not counts.spent_usd:  # rows that failed may be free: that says nothing of the others
        return None
    if known >= min(ENOUGH_ROWS, max(1, left)):
        return (counts.spent_usd + left * counts.spent_usd / known).quantize(EXACT)
    per_row = None if expected is None else expected.expected.usd
    return None if per_row is None else (counts.spent_usd + left * per_row).quantize(EXACT)


def _not_started(batch: Batch, counts: Counts) -> int:
    """Rows that wait, as far as they will be bought."""
    rows = counts.own(ItemState.PENDING)
    return rows if batch.start_limit is None else min(rows, max(0, batch.start_limit - counts.started))
