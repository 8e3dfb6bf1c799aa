"""What predictions that are out may still cost. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator.core.caps import AccountBudget, caps_of
from orchestrator.core.cost import Pricing
from orchestrator.core.estimate import Estimate
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import IN_AIR_ITEM
from orchestrator.core.quote import worst_case_usd
from orchestrator.core.records import Batch, Counts


@dataclass(frozen=True, slots=True)
class Coming:
    """Predictions that are out, or may be: what they cost at worst, and what is expected of them, in USD; None: nobody knows."""

    predictions: int
    most_usd: Decimal | None
    expected_usd: Decimal | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, money as decimal text."""
        return {"predictions": self.predictions, "at_most_usd": _text(self.most_usd), "expected_usd": _text(self.expected_usd)}


NOTHING = Coming(0, Decimal(0), Decimal(0))


def coming(batch: Batch, counts: Counts, budget: AccountBudget) -> Coming:
    """Of one batch. A row's own bound (`budget.per_row_usd`) holds only under a cap."""
    out = counts.own(*IN_AIR_ITEM)
    if not out:
        return NOTHING
    job, expected = Job.model_validate_json(batch.job_json), Estimate.from_json(batch.estimate_json)
    pricing = None if batch.price_json == "null" else Pricing.from_json(batch.price_json)
    worst = None if pricing is None else worst_case_usd(job, pricing, is_capped=bool(caps_of(job, budget)))
    per_row = None if expected is None else expected.expected.usd
    return Coming(out, None if worst is None else out * worst, None if per_row is None else out * per_row)


def together(parts: Iterable[Coming]) -> Coming:
    """Of several batches; what is not known of one is not known of all."""
    some = [part for part in parts if part.predictions]
    most, expected = ([getattr(part, name) for part in some] for name in ("most_usd", "expected_usd"))
    return Coming(sum(part.predictions for part in some), None if None in most else sum(most, Decimal(0)),
                  None if None in expected else sum(expected, Decimal(0)))


def _text(usd: Decimal | None) -> str | None:
    return None if usd is None else format(usd.normalize(), "f")
