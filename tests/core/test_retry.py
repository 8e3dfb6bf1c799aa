"""One decision for every fact: which move, what error, what charge, when again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cost import Price, to_units
from orchestrator.core.lifecycle import FINAL_ITEM, AttemptState, Event, ItemState
from orchestrator.core.records import Fact, Prediction, Rules, Standing
from orchestrator.core.retry import LONGEST_BACKOFF_S, Policy, backoff_s, contest, decide, event_of

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


def test_what_is_unknown_stays_reserved():
    """An end of unknown cost releases nothing; a known one, and what was never bought, do."""
    for end, releases in ((fact("succeeded", data_removed=True), False), (fact("succeeded", output=["u"]), True),
                          (fact("canceled"), False), (fact("aborted"), True)):
        change = decide(standing(), end, policy=policy(canceling=True), jitter=0.5)
        assert change is not None and change.final_charge
        assert change.releases is releases, end


def test_more_than_was_reserved():
    """Under a cap it is an alarm that names the row; what fits, and what no cap bounds, is none."""
    for is_capped, reserved_usd, is_alarm in ((True, "0.005", True), (True, "0.006", False), (False, "0.005", False)):
        where = standing()._replace(reserved_units=to_units(Decimal(reserved_usd)), row=41)
        change = decide(where, fact("succeeded", output=["u1", "u2"]), policy=replace(policy(), is_capped=is_capped), jitter=0)
        assert change is not None and change.charge_units == to_units(Decimal("0.006"))
        assert ("row 41 cost $0.006, and only $0.005" in (change.alarm or "")) is is_alarm


def test_succeeded_without_an_output():
    """No output and nothing deleted: the model gave none, which costs nothing per output."""
    change = decide(standing(), fact("succeeded"), policy=policy(), jitter=0.5)
    assert change is not None
    assert (change.item_to, change.charge_units) == (ItemState.COLLECTING, 0)


def gone(item: ItemState, *, attempt: AttemptState = AttemptState.ABSENT, is_current: bool = True) -> Standing:
    return Standing("a1", attempt, None, 1, item, is_current, 0, 1, 0, RULES)


@pytest.mark.parametrize("attempt,item", [
    (AttemptState.ABSENT, ItemState.PENDING), (AttemptState.LOST, ItemState.FAILED), (AttemptState.LOST, ItemState.PENDING)])
def test_there_after_all_and_wanted(attempt: AttemptState, item: ItemState):
    """A prediction that turns up before its row was bought again is what the row gets."""
    change = decide(gone(item, attempt=attempt), fact("succeeded", output=["u"]), policy=policy(), jitter=0)
    assert change is not None
    assert (change.event, change.attempt_to, change.item_to) == (Event.SURFACED, AttemptState.RUNNING, ItemState.RUNNING)
    assert not change.final_charge


@pytest.mark.parametrize("item", [ItemState.CLAIMED, ItemState.RUNNING, ItemState.SUCCEEDED])
def test_there_after_all_and_bought_again(item: ItemState):
    """Once the row has another attempt, it is surplus, and the row stays what it is."""
    change = decide(gone(item, is_current=False), fact("processing"), policy=policy(), jitter=0)
    assert change is not None
    assert (change.event, change.attempt_to, change.item_to) == (Event.SURPLUS, AttemptState.RUNNING, item)


@pytest.mark.parametrize("item", [ItemState.PENDING, ItemState.FAILED])
def test_an_older_attempt_gives_its_row_what_it_bought(item: ItemState):
    """While the row only waits to be bought again, or failed, no other attempt of it is alive: nothing is surplus."""
    change = decide(gone(item, is_current=False), fact("processing"), policy=policy(), jitter=0)
    assert change is not None
    assert (change.event, change.item_to) == (Event.SURFACED, ItemState.RUNNING)


def test_there_after_all_and_withdrawn():
    """Nobody wants it any more: surplus."""
    for standing_, rules in ((gone(ItemState.CANCELED), policy()), (gone(ItemState.PENDING), policy(canceling=True))):
        change = decide(standing_, fact("processing"), policy=rules, jitter=0)
        assert change is not None and change.event is Event.SURPLUS


def test_there_after_all_when_the_batch_has_ended():
    """The only purchase of a row that was given up is no surplus: it lives on, for `retry` to fetch, and the row stays failed."""
    ended = replace(policy(), is_live=False)
    change = decide(gone(ItemState.FAILED, attempt=AttemptState.LOST), fact("processing"), policy=ended, jitter=0)
    assert change is not None
    assert (change.event, change.attempt_to, change.item_to) == (Event.SURFACED, AttemptState.RUNNING, ItemState.FAILED)
    bound = gone(ItemState.FAILED, attempt=AttemptState.RUNNING)._replace(prediction_id="p1")
    end = decide(bound, fact("succeeded", output=["u"]), policy=ended, jitter=0)
    assert end is not None
    assert (end.attempt_to, end.item_to) == (AttemptState.SUCCEEDED, ItemState.FAILED)
    assert end.charge_units == to_units(Decimal("0.003"))


@pytest.mark.parametrize("status,to", [
    ("succeeded", AttemptState.SUCCEEDED), ("failed", AttemptState.FAILED), ("canceled", AttemptState.CANCELED)])
def test_the_end_of_a_surplus(status: str, to: AttemptState):
    """It is recorded with its charge, whatever the row does meanwhile; a failure of it is not the row's."""
    surplus = standing(item=ItemState.RUNNING)._replace(is_surplus=True, is_current=False)
    change = decide(surplus, fact(status, output=["u"], error="(code: PA)"), policy=policy(), jitter=0)
    assert change is not None
    assert (change.attempt_to, change.item_to, change.final_charge, change.failures) == (to, ItemState.RUNNING, True, None)


def test_unsure_bought_again_where_the_job_says_so():
    """Given up is then one failure of the row; the last one it may have ends it."""
    unsure = Standing("a1", AttemptState.UNSURE, None, 1, ItemState.UNSURE, True, 0, 1, 5, RULES)
    given_up = Fact(Event.GIVEN_UP, NOW, "a1", error="?", error_class="unsure")
    buys = replace(policy(), buys_unsure=True)
    again = decide(unsure, given_up, policy=buys, jitter=0)
    assert again is not None
    assert (again.event, again.attempt_to, again.item_to, again.failures) == (
        Event.DOUBTED, AttemptState.LOST, ItemState.PENDING, 1)
    for last in (decide(unsure._replace(failures=2), given_up, policy=buys, jitter=0),
                 decide(unsure, given_up, policy=policy(), jitter=0),
                 decide(unsure, given_up, policy=replace(buys, is_live=False, max_attempts=1), jitter=0)):
        assert last is not None and (last.event, last.item_to) == (Event.GIVEN_UP, ItemState.FAILED)


@pytest.mark.parametrize("owner_by,owner_state,claim_by,verdict", [
    ("input", AttemptState.RUNNING, "post", Event.EVICTED), ("input", AttemptState.RUNNING, "url", Event.EVICTED),
    ("input", AttemptState.SUCCEEDED, "post", Event.ANSWER_LOST), ("input", AttemptState.RUNNING, "input", None),
    ("post", AttemptState.RUNNING, "url", None), (None, AttemptState.RUNNING, "post", None)])
def test_who_keeps_a_prediction(owner_by: str | None, owner_state: AttemptState, claim_by: str, verdict: Event | None):
    """Found by its input it is held until better evidence comes; any other is kept."""
    owner = standing(owner_state)._replace(bound_by=owner_by)
    claimant = Standing("a2", AttemptState.OPEN, None, 2, ItemState.CLAIMED, True, 0, 1, 5, RULES)
    told = fact("processing")._replace(attempt_id="a2", bound_by=claim_by)
    assert contest(owner, claimant, told) is verdict
    assert contest(owner, claimant._replace(prediction_id="p2"), told) is None
