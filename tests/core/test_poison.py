"""A row that ends its workers is bought again, but not for ever."""

from datetime import UTC, datetime

import pytest

from orchestrator.core.lifecycle import AttemptState, Event, ItemState
from orchestrator.core.poison import POISON, VIA_LEASE, deaths_after, set_aside
from orchestrator.core.records import Fact, Rules, Standing
from orchestrator.core.retry import Policy, decide

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
RULES = Rules("b-1", True, False, 3, "null", "{}", "{}")
POLICY = Policy(max_attempts=3, retry_first_s=2.0, canceling=False, price=None, count_files=lambda _: 1)


def standing(attempt: AttemptState, item: ItemState, *, deaths: int) -> Standing:
    return Standing("a1", attempt, None, 1, item, True, 0, 1, 5, RULES, deaths=deaths)


@pytest.mark.parametrize(("event", "via", "expected"), [
    (Event.ANSWER_LOST, VIA_LEASE, 3), (Event.ANSWER_LOST, None, 0), (Event.THROTTLED, None, 0), (Event.ANSWERED, "list", 0),
    (Event.NOT_SENT, None, None), (Event.ABSENT, None, None), (Event.GIVEN_UP, None, None)])
def test_what_counts_as_a_death(event: Event, via: str | None, expected: int | None):
    """Only a lease that ran out; any word about the row proves that its holder lived, and a hand-back says nothing."""
    assert deaths_after(standing(AttemptState.OPEN, ItemState.CLAIMED, deaths=2), Fact(event, NOW, "a1", via=via)) == expected


def test_a_death_that_was_none():
    """A lease ran out on a slow machine, and then its holder says that nothing was sent."""
    held = standing(AttemptState.UNSURE, ItemState.UNSURE, deaths=2)
    assert deaths_after(held, Fact(Event.NOT_SENT, NOW, "a1")) == 1


def test_nothing_is_written_for_a_row_without_deaths():
    """Nearly all rows: their update sets no further column."""
    assert deaths_after(standing(AttemptState.OPEN, ItemState.CLAIMED, deaths=0), Fact(Event.ANSWERED, NOW, "a1")) is None


def test_set_aside_only_where_it_was_never_bought():
    """Proven absent, the row is set aside at the third death, unpaid; what may have been bought stays `unsure`."""
    unsure = standing(AttemptState.UNSURE, ItemState.UNSURE, deaths=POISON)
    absent = decide(unsure, Fact(Event.ABSENT, NOW, "a1"), policy=POLICY, jitter=0.5)
    assert absent is not None
    assert (absent.attempt_to, absent.item_to, absent.error_class) == (AttemptState.ABSENT, ItemState.FAILED, "poison")
    assert (absent.final_charge, absent.charge_units) == (True, 0)
    assert "--class poison" in (absent.error or "")
    lost = decide(unsure, Fact(Event.GIVEN_UP, NOW, "a1", error_class="unsure"), policy=POLICY, jitter=0.5)
    assert lost is not None and lost.error_class == "unsure"
    assert set_aside(unsure._replace(deaths=POISON - 1), Fact(Event.ABSENT, NOW, "a1")).event is Event.ABSENT
