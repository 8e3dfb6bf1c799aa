"""What a fact means for an attempt and its row: one pure decision, the same for POST answer, list, GET and webhook."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from orchestrator.core.cost import Price, charge, to_units
from orchestrator.core.lifecycle import Event, advance
from orchestrator.core.prediction import classify
from orchestrator.core.records import Change, Fact, Prediction, Standing

LONGEST_BACKOFF_S = 600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What a batch wants done: attempts per row (provider failures), first pause, price, and whether it is canceling."""

    max_attempts: int
    retry_first_s: float
    canceling: bool
    price: Price | None
    count_files: Callable[[object], int]  # of an output value


_BY_STATUS = {"succeeded": Event.SUCCEEDED, "failed": Event.FAILED, "canceled": Event.CANCELED, "aborted": Event.CANCELED}


def event_of(prediction: Prediction) -> Event:
    """The event that a provider's account of a prediction is."""
    return _BY_STATUS.get(prediction.status, Event.ANSWERED)


def backoff_s(failures: int, *, first_s: float, jitter: float) -> float:
    """Seconds before attempt `failures + 1`: doubling, half of it by chance (`jitter` in [0, 1)), at most ten minutes."""
    full = min(LONGEST_BACKOFF_S, first_s * 2.0 ** max(0, min(failures - 1, 30)))
    return full * (0.5 + jitter / 2)


def decide(standing: Standing, fact: Fact, *, policy: Policy, jitter: float) -> Change | None:
    """The change this fact makes, or None: late, doubled, or already known."""
    fact, failures = _refine(standing, fact, policy)
    move = advance(fact.event, attempt=standing.attempt_state, item=standing.item_state)
    if move is None:
        return None
    change = Change(standing, fact.event, move.attempt_to, move.item_to, fact.at, failures=failures, error=fact.error,
                    error_class=fact.error_class, prediction=fact.prediction, via=fact.via)
    if fact.event is Event.FAILED_AGAIN:
        pause = timedelta(seconds=backoff_s(failures or 1, first_s=policy.retry_first_s, jitter=jitter))
        change = replace(change, due_at=fact.at + pause)
    elif fact.event is Event.NOT_SENT:
        change = replace(change, due_at=fact.at + timedelta(seconds=1 + jitter))
    return _priced(change, policy)


def _refine(standing: Standing, fact: Fact, policy: Policy) -> tuple[Fact, int | None]:
    """A provider's plain verdict becomes what it means here: worth another attempt, asked for, or a deadline."""
    prediction = fact.prediction
    if prediction is None:
        return fact, None
    if fact.event is Event.FAILED:
        error_class, worth_again = classify(prediction)
        failures = standing.failures + 1
        again = worth_again and failures < policy.max_attempts and not policy.canceling
        event = Event.FAILED_AGAIN if again else Event.FAILED
        return replace(fact, event=event, error=prediction.error or "failed without a reason", error_class=error_class), failures
    if fact.event is Event.CANCELED and not policy.canceling:
        text = f"the provider ended it ({prediction.status}): its deadline passed, or somebody canceled it there"
        return replace(fact, event=Event.DEADLINE, error=text, error_class=prediction.status), None
    return fact, None


_ENDS = {Event.SUCCEEDED, Event.FAILED, Event.FAILED_AGAIN, Event.CANCELED, Event.DEADLINE}
_NEVER_BOUGHT = {Event.NOT_SENT, Event.THROTTLED, Event.HELD, Event.REFUSED, Event.ABSENT}


def _priced(change: Change, policy: Policy) -> Change:
    """With an end comes a charge, and the reservation is released. What is unsure keeps its reservation."""
    if change.event in _NEVER_BOUGHT:
        return replace(change, charge_units=0, charge_basis="not bought", final_charge=True)
    if change.event not in _ENDS or change.prediction is None:
        return change
    files = policy.count_files(change.prediction.output) if change.prediction.output is not None else 0
    cost = charge(change.prediction, price=policy.price, outputs=files)
    units = None if cost.usd is None else to_units(cost.usd)
    return replace(change, charge_units=units, charge_basis=cost.basis, final_charge=True)
