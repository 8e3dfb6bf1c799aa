"""One decision for every fact: which move, what error, what charge, when again."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cost import Price, to_units
from orchestrator.core.lifecycle import FINAL_ITEM, AttemptState, Event, ItemState
from orchestrator.core.records import Fact, Prediction, Rules, Standing
from orchestrator.core.retry import LONGEST_BACKOFF_S, Policy, backoff_s, decide, event_of

NOW = datetime(2026, 11, 20, 2, 0, tzinfo=UTC)
PRICE = Price("test", "output", Decimal("0.003"), failed="unknown")
RULES = Rules("b1", True, False, 3, "null", "{}", "{}")


def policy(*, attempts: int = 3, canceling: bool = False) -> Policy:
    return Policy(attempts, 2.0, canceling, PRICE, lambda output: len(output) if isinstance(output, list) else 1)


def standing(attempt: AttemptState = AttemptState.RUNNING, item: ItemState = ItemState.RUNNING, *, failures: int = 0) -> Standing:
    return Standing("a1", attempt, "p1", 1, item, True, failures, 1, 5, RULES)


def fact(status: str, **more: object) -> Fact:
    prediction = Prediction("p1", status, **more)  # type: ignore[arg-type]
    return Fact(event_of(prediction), NOW, prediction=prediction)


@pytest.mark.parametrize("status,event", [
    ("starting", Event.ANSWERED), ("processing", Event.ANSWERED), ("succeeded", Event.SUCCEEDED), ("failed", Event.FAILED),
    ("canceled", Event.CANCELED), ("aborted", Event.CANCELED), ("something new", Event.ANSWERED)])
def test_statuses_are_events(status: str, event: Event):
    """Every status of the provider is an event; one that is not known yet means only that the prediction exists."""
    assert event_of(Prediction("p1", status)) is event


def test_success_is_collected_and_charged():
    """A success moves on to collecting and costs its counted outputs."""
    change = decide(standing(), fact("succeeded", output=["u1", "u2"]), policy=policy(), jitter=0)
    assert change is not None
    assert (change.item_to, change.charge_units, change.final_charge) == (ItemState.COLLECTING, to_units(Decimal("0.006")), True)


def test_a_doubled_fact_changes_nothing():
    """The second terminal fact finds another state and is None."""
    ended = standing(AttemptState.SUCCEEDED, ItemState.COLLECTING)
    assert decide(ended, fact("succeeded", output=["u"]), policy=policy(), jitter=0) is None
    assert decide(ended, fact("failed", error="x"), policy=policy(), jitter=0) is None


def test_infrastructure_failures_wait_and_go_again():
    """A failure worth another attempt puts the row back with a due time, and counts."""
    interrupted = fact("failed", error="Prediction interrupted; please retry (code: PA)")
    change = decide(standing(), interrupted, policy=policy(), jitter=0)
    assert change is not None
    assert (change.item_to, change.failures) == (ItemState.PENDING, 1)
    assert change.due_at == NOW + timedelta(seconds=1)


def test_the_last_attempt_is_the_last():
    """After as many provider failures as the job allows, the row is failed."""
    change = decide(standing(failures=2), fact("failed", error="E8765"), policy=policy(), jitter=0)
    assert change is not None and (change.item_to, change.failures) == (ItemState.FAILED, 3)


@pytest.mark.parametrize("error", ["NSFW content detected", "Prediction input failed validation: {}", "ValueError: no"])
def test_hopeless_failures_are_not_repeated(error: str):
    """Refusals of content, bad input and a model's own errors would fail again."""
    change = decide(standing(), fact("failed", error=error), policy=policy(), jitter=0)
    assert change is not None and change.item_to is ItemState.FAILED
    assert change.error == error


def test_a_canceled_prediction_depends_on_who_asked():
    """Asked for here it is canceled; else the provider's deadline ended it, and the row is failed."""
    asked = decide(standing(), fact("canceled"), policy=policy(canceling=True), jitter=0)
    unasked = decide(standing(), fact("aborted"), policy=policy(), jitter=0)
    assert asked is not None and asked.item_to is ItemState.CANCELED
    assert unasked is not None and (unasked.item_to, unasked.error_class) == (ItemState.FAILED, "aborted")
    assert unasked.charge_units == 0


def test_what_was_never_bought_costs_nothing():
    """A refusal releases its reservation with a charge of zero; unsure keeps both open."""
    claimed = standing(AttemptState.OPEN, ItemState.CLAIMED)
    refused = decide(claimed, Fact(Event.REFUSED, NOW, "a1", error="422"), policy=policy(), jitter=0)
    lost = decide(claimed, Fact(Event.ANSWER_LOST, NOW, "a1"), policy=policy(), jitter=0)
    assert refused is not None and (refused.charge_units, refused.final_charge) == (0, True)
    assert lost is not None and (lost.charge_units, lost.final_charge, lost.item_to) == (None, False, ItemState.UNSURE)


def test_a_throttled_row_is_not_to_blame():
    """429 puts the row back at once, and counts nothing."""
    change = decide(standing(AttemptState.OPEN, ItemState.CLAIMED), Fact(Event.THROTTLED, NOW, "a1"), policy=policy(), jitter=0)
    assert change is not None and (change.item_to, change.failures, change.due_at) == (ItemState.PENDING, None, None)


@given(st.integers(1, 10_000), st.floats(0, 0.999), st.floats(0.01, 60))
def test_backoff_is_bounded(failures: int, jitter: float, first_s: float):
    """Never longer than ten minutes, never shorter than half of the first pause."""
    assert first_s / 2 <= backoff_s(failures, first_s=first_s, jitter=jitter) <= LONGEST_BACKOFF_S


@given(st.lists(st.sampled_from(["starting", "processing", "succeeded", "failed", "canceled", "aborted"]), max_size=8))
def test_any_order_of_facts_ends_as_the_first_terminal_one_says(statuses: list[str]):
    """Late and doubled facts never move an attempt that has ended, and never a final item."""
    attempt, item, failures, ended = AttemptState.RUNNING, ItemState.RUNNING, 0, None
    for status in statuses:
        change = decide(standing(attempt, item, failures=failures), fact(status, error="NSFW content detected", output=["u"]),
                        policy=policy(), jitter=0)
        if change is None:
            continue
        assert item not in FINAL_ITEM and ended is None
        attempt, item, failures = change.attempt_to, change.item_to, change.failures or failures
        ended = status if attempt is not AttemptState.RUNNING else None


def test_succeeded_and_deleted_is_expired():
    """Heard of after the provider deleted the outputs: the row fails as expired, and its cost is unknown, not zero."""
    change = decide(standing(), fact("succeeded", data_removed=True), policy=policy(), jitter=0.5)
    assert change is not None
    assert (change.attempt_to, change.item_to, change.error_class) == (AttemptState.SUCCEEDED, ItemState.FAILED, "expired")
    assert (change.charge_units, change.charge_basis, change.final_charge) == (None, None, True)


def test_succeeded_without_an_output():
    """No output and nothing deleted: the model gave none, which costs nothing per output."""
    change = decide(standing(), fact("succeeded"), policy=policy(), jitter=0.5)
    assert change is not None
    assert (change.item_to, change.charge_units) == (ItemState.COLLECTING, 0)
