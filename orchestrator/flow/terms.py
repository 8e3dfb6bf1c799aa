"""On what terms the rows of a batch are bought: its price, its deadline, and the rates it has to keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.caps import Cap, caps_of, shared
from orchestrator.core.cost import Pricing, to_units
from orchestrator.core.job import Job
from orchestrator.core.pacing import HORIZON_S
from orchestrator.core.permits import Budget, Flow, flow_of
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.tempo import ModelLimits

UNTOLD_PER_MINUTE = 600.0  # what a part is taken of, where no rate is set


@dataclass(frozen=True, slots=True)
class Order:
    """Read anew when the batch was amended."""

    batch: Batch
    budgets: tuple[Budget, ...]  # the account's first, then the batch's, then its model's where that has one
    flow: Flow
    cancel_after_s: float | None
    reserve_units: int | None  # a row's worst case in 10^-12 USD
    model: ModelLimits
    caps: tuple[Cap, ...]  # that other batches share


def order_of(rooms: Rooms, batch: Batch) -> Order:
    """The terms of a batch as it stands."""
    job = Job.model_validate_json(batch.job_json)
    tempo = rooms.tempo
    budgets = [Budget(f"creates:{batch.account}", tempo.creates_per_minute, tempo.create_burst)]
    if job.limits.per_minute is not None and job.limits.per_minute < (tempo.creates_per_minute or math.inf):
        budgets.append(_budget(f"batch:{batch.id}", job.limits.per_minute))
    else:
        budgets.append(Budget(f"batch:{batch.id}", 0.0, 1))  # no rate of its own, but it may be told to pause
    model = tempo.of_model(batch.target.name)
    if model.per_minute is not None:
        budgets.append(_budget(f"model:{batch.account}:{batch.target.name}", model.per_minute))
    worst = Pricing.from_json(batch.price_json).worst_case_usd(
        cancel_after_s=job.limits.cancel_after, per_row_usd=job.budget.per_row_usd if job.budget else None)
    return Order(batch, tuple(budgets), flow_of(batch.id, priority=job.limits.priority), job.limits.cancel_after,
                  None if worst is None else to_units(worst), model, shared(caps_of(job, rooms.budget)))


def _budget(key: str, per_minute: float) -> Budget:
    """A rate of a batch's or a model's own. Its burst is what it may do by the horizon: beside others on the account it takes its
    permits in one go, as a slower schedule would waste what lies in between."""
    return Budget(key, float(per_minute), max(2, 1 + math.ceil(per_minute * HORIZON_S / 60)))


def budgets_for(order: Order, *, part: float) -> Sequence[Budget]:
    """The order's; where downloads are behind and leave only a part, with a slower rate of the batch's own."""
    if part >= 1:
        return order.budgets
    account, own, *model = order.budgets
    full = min((budget.per_minute for budget in (account, own) if budget.per_minute > 0), default=UNTOLD_PER_MINUTE)
    return account, Budget(own.key, full * part, 1), *model
