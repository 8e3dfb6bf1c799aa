"""What a batch under way will have cost in the end."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from orchestrator.core.estimate import Estimate, Figure
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.projecting import projected_usd
from orchestrator.core.records import Batch, Counts, Target

JOB = '{"model": "a/b", "source": {"path": "rows.csv"}, "duplicates": "%s"}'
S = ItemState


def batch(*, per_row: str | None = "0.10", rows: int = 100, state: BatchState = BatchState.RUNNING,
          start_limit: int | None = None, duplicates: str = "buy") -> Batch:
    """A hundred rows that were expected to cost ten cents each."""
    figure = Figure(None if per_row is None else Decimal(per_row), "")
    estimate = json.dumps(Estimate(rows, figure, figure, figure, None).to_json())
    now = datetime(2026, 11, 20, tzinfo=UTC)
    return Batch(1, "b", "shots", "k", "me", state, None, now, None, Target("models", "a/b", None), JOB % duplicates, "{}", "[]",
                 "null", None, "out", 200, 3, start_limit, 100, None, 0, 0, estimate)


def counts(by_state: dict[ItemState, int], spent: str, *, unknown: int = 0, started: int,
           tried_before: int = 0) -> Counts:
    """So many rows in each state."""
    return Counts(by_state, Decimal(spent), Decimal(0), unknown, started=started, tried_before=tried_before)


def test_before_enough_rows_have_ended_the_estimate_counts():
    """Spent, and what is out or waits at what a row was expected to cost; from twenty rows on by the batch's own mean."""
    few = counts({S.SUCCEEDED: 19, S.RUNNING: 1, S.PENDING: 80}, "3.80", started=20)
    assert projected_usd(batch(), few) == Decimal("3.80") + 81 * Decimal("0.10")
    enough = counts({S.SUCCEEDED: 15, S.COLLECTING: 5, S.RUNNING: 1, S.PENDING: 79}, "4.00", started=21)
    assert projected_usd(batch(), enough) == Decimal("20.00")
    assert projected_usd(batch(per_row=None), few) is None
    assert projected_usd(batch(per_row=None), enough) == Decimal("20.00")


def test_of_a_small_batch_its_own_rows_are_enough():
    """As many as are left tell more than an estimate."""
    half = counts({S.SUCCEEDED: 2, S.PENDING: 2}, "0.40", started=2)
    assert projected_usd(batch(rows=4), half) == Decimal("0.80")


def test_rows_that_were_never_bought_dilute_nothing():
    """Fifty bad rows that ended as they were read, and twenty that were bought."""
    found = counts({S.FAILED: 50, S.SUCCEEDED: 20, S.PENDING: 30}, "4.00", started=20)
    assert projected_usd(batch(rows=50), found) == Decimal("10.00")


def test_rows_that_came_back_have_not_ended():
    """Thrown back by 429s or an outage, or handed back: they cost nothing yet, and are still to be bought."""
    back = counts({S.PENDING: 100}, "0", started=25, tried_before=25)
    assert projected_usd(batch(), back) == Decimal("10.00")
    assert projected_usd(batch(per_row=None), back) is None
    half = counts({S.SUCCEEDED: 20, S.FAILED: 50, S.PENDING: 80}, "2.00", started=60, tried_before=40)
    assert projected_usd(batch(), half) == Decimal("10.00")
    limited = counts({S.SUCCEEDED: 20, S.PENDING: 80}, "2.00", started=30, tried_before=10)
    assert projected_usd(batch(start_limit=30), limited) == Decimal("3.00")


def test_what_nobody_knows_is_not_zero():
    """Without a price nothing is projected, though rows that failed were free; of known ones the mean is taken."""
    unpriced = counts({S.SUCCEEDED: 40, S.FAILED: 30, S.PENDING: 30}, "0", unknown=40, started=70)
    assert projected_usd(batch(per_row=None), unpriced) is projected_usd(batch(), unpriced) is None
    partly = counts({S.SUCCEEDED: 50, S.PENDING: 50}, "4.00", unknown=10, started=50)
    assert projected_usd(batch(), partly) == Decimal("9.00")


@pytest.mark.parametrize("state", [BatchState.FINISHED, BatchState.CANCELED, BatchState.CANCELING])
def test_what_has_ended_is_not_projected(state: BatchState):
    """Nothing more is bought."""
    assert projected_usd(batch(state=state), counts({S.SUCCEEDED: 50, S.CANCELED: 50}, "5", started=50)) is None


def test_only_rows_that_will_be_bought_are_left():
    """Up to a start limit; and of equal rows that share a purchase, the one that is bought."""
    found = counts({S.SUCCEEDED: 20, S.PENDING: 80}, "4.00", started=20)
    assert projected_usd(batch(start_limit=30), found) == Decimal("6.00")
    assert projected_usd(batch(start_limit=20), found) == Decimal("4.00")
    twins = replace(found, shared={S.PENDING: 75})
    assert projected_usd(batch(rows=25, duplicates="once"), twins) == Decimal("5.00")
