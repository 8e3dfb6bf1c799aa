"""What a fact means for an attempt and its row: one pure decision, the same for POST answer, list, GET and webhook."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.core.caps import alarm
from orchestrator.core.cost import NOT_BOUGHT, Charge, Price, charge, to_units
from orchestrator.core.lifecycle import BY_EVENT, FINAL_ITEM, GONE_ATTEMPT, AttemptState, Event, ItemState, Move, advance, alone
from orchestrator.core.poison import deaths_after, set_aside
from orchestrator.core.prediction import classify
from orchestrator.core.records import REWRITE_LANE, Change, Fact, Prediction, Standing, Wake

LONGEST_BACKOFF_S = 600.0
# The classes a failed row can be of: those of `classify`, of refusals, and of what became of a prediction or its outputs.
FAILURE_CLASSES = ("invalid_input", "safety", "memory", "infrastructure", "timeout", "model", "not_found", "refused",
                   "aborted", "canceled", "expired", "output_forbidden", "unsure", "poison", "vanished")


@dataclass(frozen=True, slots=True)
class Policy:
    """What a batch wants done: attempts per row (provider failures), first pause, price, whether it is canceling, has not
    ended, buys again what was given up, and is under a cap."""

    max_attempts: int
    retry_first_s: float
    canceling: bool
    price: Price | None
    count_files: Callable[[object], int]  # of an output value
    is_live: bool = True
    buys_unsure: bool = False
    failed: str = "unknown"  # what a failed run costs where there is no price: free, billed, unknown
    is_capped: bool = False


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
    if standing.attempt_state in GONE_ATTEMPT and fact.prediction is not None:
        return _there_after_all(standing, fact, policy)
    if not standing.is_current or standing.is_surplus:
        return _change(standing, fact, alone(fact.event, attempt=standing.attempt_state), policy=policy)
    refined, failures = _refine(standing, set_aside(standing, fact), policy)
    move = advance(refined.event, attempt=standing.attempt_state, item=standing.item_state)
    is_over = standing.item_state in FINAL_ITEM  # its row has ended without it: what was in doubt must not be so for ever
    if move is None and (fact.prediction is not None or fact.event is Event.EVICTED or is_over):
        return _change(standing, fact, alone(fact.event, attempt=standing.attempt_state), policy=policy)
    return _change(standing, refined, move, policy=policy, failures=failures, jitter=jitter)


_WANTS = frozenset({ItemState.PENDING, ItemState.FAILED})


def _there_after_all(standing: Standing, fact: Fact, policy: Policy) -> Change | None:
    """A prediction of an attempt that was given up or found absent. It is only bound here; told again, its end is recorded."""
    found = fact._replace(event=Event.SURFACED, error=None, error_class=None)
    move = alone(Event.SURFACED, attempt=standing.attempt_state)
    if policy.canceling:
        move = None
    elif policy.is_live and (standing.is_current or standing.item_state in _WANTS):  # no other attempt of it is alive
        move = advance(Event.SURFACED, attempt=standing.attempt_state, item=standing.item_state)
    elif not (standing.is_current and standing.item_state is ItemState.FAILED):
        move = None
    if move is None:
        found, move = found._replace(event=Event.SURPLUS), BY_EVENT[Event.SURPLUS]
    return _change(standing, found, move, policy=policy)


def _change(standing: Standing, fact: Fact, move: Move | None, *, policy: Policy, failures: int | None = None,
            jitter: float = 0.0) -> Change | None:
    if move is None:
        return None
    wait_s = _wait_s(fact.event, failures=failures, first_s=policy.retry_first_s, jitter=jitter)
    cost = _charge(standing, fact, policy)
    units = None if cost is None or cost.usd is None else to_units(cost.usd)
    is_absurd = cost is not None and cost.is_absurd
    return Change(
        standing, fact.event, move.attempt_to, move.item_to or standing.item_state, fact.at,
        due_at=None if wait_s is None else fact.at + timedelta(seconds=wait_s), failures=failures,
        error=fact.error, error_class=fact.error_class, prediction=fact.prediction,
        charge_units=units, charge_basis=None if cost is None else cost.basis, final_charge=cost is not None, via=fact.via,
        bound_by=fact.bound_by, deaths=deaths_after(standing, fact),
        charge_line=None if cost is None else cost.line, is_absurd=is_absurd,
        alarm=alarm(standing.row, charge_units=units or 0, reserved_units=standing.reserved_units,
                    is_absurd=is_absurd) if policy.is_capped else None)


STRONG = frozenset({"post", "url"})


def contest(owner: Standing, claimant: Standing, fact: Fact) -> Event | None:
    """What comes of a fact that gives `claimant` a prediction which `owner` was given for its input: EVICTED, the owner is in
    doubt again and the claimant takes it; ANSWER_LOST, the owner's end is recorded already, so the two change places and the
    claimant looks for the other one; None, the prediction is the owner's."""
    if fact.bound_by not in STRONG or owner.bound_by != "input" or claimant.prediction_id is not None:
        return None
    return Event.EVICTED if owner.attempt_state is AttemptState.RUNNING else Event.ANSWER_LOST


def misled(claimant: Standing, fact: Fact) -> bool:
    """Whether an attempt holds another prediction, for its input, than the one that its own answer or its own id now names."""
    return (fact.bound_by in STRONG and claimant.bound_by == "input" and claimant.attempt_state is AttemptState.RUNNING
            and fact.prediction is not None and claimant.prediction_id != fact.prediction.id)


def _wait_s(event: Event, *, failures: int | None, first_s: float, jitter: float) -> float | None:
    """How long the row waits for its next attempt; None: the event says nothing about it."""
    if event is Event.FAILED_AGAIN:
        return backoff_s(failures or 1, first_s=first_s, jitter=jitter)
    return 1 + jitter if event is Event.NOT_SENT else None


def _refine(standing: Standing, fact: Fact, policy: Policy) -> tuple[Fact, int | None]:
    """A provider's plain verdict becomes what it means here: worth another attempt, asked for, or a deadline."""
    prediction = fact.prediction
    buys_again = policy.buys_unsure and not policy.canceling and standing.failures + 1 < policy.max_attempts
    if fact.event is Event.GIVEN_UP and buys_again:
        return fact._replace(event=Event.DOUBTED), standing.failures + 1
    if prediction is None:
        return fact, None
    if fact.event is Event.FAILED:
        error_class, worth_again = classify(prediction)
        failures = standing.failures + 1
        again = worth_again and failures < policy.max_attempts and not policy.canceling
        event = Event.FAILED_AGAIN if again else Event.FAILED
        return fact._replace(event=event, error=prediction.error or "failed without a reason", error_class=error_class), failures
    if fact.event is Event.SUCCEEDED and prediction.data_removed and prediction.output is None:
        text = "it succeeded, and its outputs were deleted before they could be fetched"
        return fact._replace(event=Event.EXPIRED, error=text, error_class="expired"), None
    if fact.event is Event.CANCELED and not policy.canceling:
        text = f"the provider ended it ({prediction.status}): its deadline passed, or somebody canceled it there"
        return fact._replace(event=Event.DEADLINE, error=text, error_class=prediction.status), None
    return fact, None


def untold(changes: Iterable[Change]) -> list[Wake]:
    """Batches that had ended, and whose documents no longer tell what is: a purchase of theirs turned up, or its end."""
    late = {change.standing.rules.batch_id: change.at for change in changes if not change.standing.rules.is_live}
    return [Wake("report", batch_id, REWRITE_LANE, at) for batch_id, at in sorted(late.items())]


_ENDS = {Event.SUCCEEDED, Event.EXPIRED, Event.FAILED, Event.FAILED_AGAIN, Event.CANCELED, Event.DEADLINE}
_NEVER_BOUGHT = {Event.NOT_SENT, Event.THROTTLED, Event.HELD, Event.REFUSED, Event.ABSENT, Event.POISONED}


def _charge(standing: Standing, fact: Fact, policy: Policy) -> Charge | None:
    """What comes with an end: a charge, known or not. None: it is not over, or it is unsure, and so still reserved."""
    if fact.event in _NEVER_BOUGHT:
        return NOT_BOUGHT
    if fact.event not in _ENDS or fact.prediction is None:
        return None
    given = None if standing.input_json is None else json.loads(standing.input_json)
    return charge(fact.prediction, price=policy.price, outputs=outputs_of(fact.prediction, policy.count_files),
                  given=given, failed=policy.failed)


def outputs_of(prediction: Prediction, count_files: Callable[[object], int]) -> int | None:
    """How many files it gave; None: they are deleted, and nobody has counted them."""
    if prediction.output is None:
        return None if prediction.data_removed else 0
    return count_files(prediction.output)
