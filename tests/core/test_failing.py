"""When failures stop a batch: the rule, without a ledger."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.failing import FAILING, Bounds, Cause, Tally, bounds, reason, still_known, verdict
from orchestrator.core.job import Retry
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.records import Batch, Target

ALL = Bounds(all_failed=20, too_many=None, sample=0)
SHARE = Bounds(all_failed=None, too_many=6, sample=20)
BATCH = Batch(1, "shots-1", "shots", "key", "acme", BatchState.RUNNING, None, datetime(2026, 1, 5, tzinfo=UTC), None,
              Target("models", "acme/draw", None), "{}", "{}", "[]", "null", None, "/out", 200, 3, None, 200, None,
              spent_units=42 * 10**9, reserved_units=0)


@pytest.mark.parametrize(("retry", "total", "expected"), [
    (Retry(), 1000, Bounds(20, None, 0)),  # a tolerance of none stops nothing
    (Retry(stop_after=0), 1000, Bounds(None, None, 0)),
    (Retry(tolerate_failed="5%"), 100, Bounds(20, 6, 20)),
    (Retry(tolerate_failed="5%"), 10, Bounds(20, None, 20)),  # half a row: none
    (Retry(tolerate_failed=3, stop_after=1), 100, Bounds(1, 4, 0)),
    (Retry(tolerate_failed=3), 3, Bounds(20, None, 0)),  # all of them may fail
    (Retry(tolerate_failed="100%"), 100, Bounds(20, None, 20)),
])
def test_what_a_job_says(retry: Retry, total: int, expected: Bounds):
    """A wrong bound stops a batch that its job lets go on, or buys a million rows that all fail."""
    assert bounds(retry, total=total) == expected


@pytest.mark.parametrize(("tally", "stops"), [
    (Tally(worked=0, failed=19, refused=0), False),
    (Tally(worked=0, failed=20, refused=0), True),
    (Tally(worked=0, failed=0, refused=20), True),  # all of one kind: the mapping is wrong, not a row
    (Tally(worked=0, failed=15, refused=5), True),
    (Tally(worked=1, failed=5000, refused=0), False),  # the model works
    (Tally(worked=0, failed=30, refused=0, shared=11), False),  # nineteen inputs, and rows that are equal to one of them
    (Tally(worked=0, failed=30, refused=2, shared=12), True),
    (Tally(worked=0, failed=39, refused=0, known_failed=20), False),  # resumed: twenty more
    (Tally(worked=0, failed=40, refused=0, known_failed=20), True),
    (Tally(worked=0, failed=20, refused=20, known_failed=10, known_refused=11), False),
    (Tally(worked=0, failed=60, refused=0, known_failed=20, shared=38, known_shared=0), False),  # two inputs more
    (Tally(worked=0, failed=90, refused=0, known_failed=50, shared=50, known_shared=30), True),
])
def test_not_one_has_succeeded(tally: Tally, stops: bool):
    """Twenty failures and no success: not before, not with a success, and not for what a person knew of."""
    assert (verdict(tally, ALL) is not None) is stops


@pytest.mark.parametrize(("tally", "stops"), [
    (Tally(worked=15, failed=5, refused=0), False),
    (Tally(worked=14, failed=6, refused=0), True),
    (Tally(worked=13, failed=6, refused=0), False),  # nineteen rows say nothing of a share
    (Tally(worked=13, failed=6, refused=1), True),
    (Tally(worked=20, failed=5, refused=500), False),  # those cost nothing
    (Tally(worked=20, failed=11, refused=0, known_failed=6), False),  # resumed: as many more are borne
    (Tally(worked=20, failed=12, refused=0, known_failed=6), True),
])
def test_more_than_is_tolerated(tally: Tally, stops: bool):
    """A share needs a sample, refused inputs do not stop the others, and what is known counts no more."""
    assert (verdict(tally, SHARE) is not None) is stops


THREE = st.tuples(*(st.integers(0, 6),) * 3)


@given(THREE, THREE)
def test_what_stands_no_more_is_no_leave_for_others(stands: tuple[int, int, int], knew: tuple[int, int, int]):
    """However rows came and went, and with whatever twins: the next failure counts, and what stands alone stops nothing."""
    (failed, refused, shared), (known_failed, known_refused, known_shared) = stands, knew
    tally = Tally(0, failed, refused, known_failed, known_refused, min(shared, failed + refused),
                  min(known_shared, known_failed + known_refused))
    now = replace(tally, **dict(zip(("known_failed", "known_refused", "known_shared"), still_known(tally), strict=True)))
    assert all(a <= b for a, b in ((now.known_failed, failed), (now.known_refused, refused), (now.known_shared, now.shared)))
    after = replace(now, failed=failed + 1)
    assert verdict(after, Bounds(1, None, 0)) is not None and verdict(after, Bounds(None, 1, 0)) is not None
    if tally.known_failed >= failed and tally.known_refused >= refused:
        assert verdict(now, Bounds(1, 1, 0)) is None


def test_a_count_needs_no_sample():
    """Four failures where three are borne are beyond doubt, whatever else has ended."""
    assert verdict(Tally(worked=0, failed=4, refused=0), Bounds(None, 4, 0)) == "4 have failed, and the job tolerates 3"


def test_how_many_more_than_were_known():
    """After a resume: all that failed, and how many of them came since."""
    assert verdict(Tally(worked=0, failed=41, refused=0, known_failed=21), ALL) == (
        "not one has succeeded, and 41 have failed, 20 more than the 21 known")
    assert verdict(Tally(worked=20, failed=12, refused=0, known_failed=6), SHARE) == (
        "12 have failed, 6 more than the 6 known, and the job tolerates 5")


def test_the_sentence():
    """It names the class with an example on one line, the money, and both ways to go on."""
    causes = (Cause("memory", 21, "CUDA out of memory\n  at step 3"), Cause("model", 1, None))
    told = reason(BATCH, Tally(0, 22, 0, causes=causes), ALL)
    assert told == (f"{FAILING}: not one has succeeded, and 22 have failed (21 × memory: CUDA out of memory at step 3); $0.042 "
                    "was spent until then. `orchestrator resume shots-1` buys the rest all the same, `orchestrator retry "
                    "shots-1` the failed rows as well")
    half_known = reason(BATCH, Tally(0, 22, 0, causes=causes, unknown=7, out=5), ALL)
    assert half_known is not None
    assert "; $0.042 was spent until then, and what 7 rows cost is not known, 5 more were out. `orch" in half_known
    assert reason(BATCH, Tally(1, 22, 0, causes=causes), ALL) is None


def test_refused_inputs_are_not_offered_for_another_try():
    """A retry leaves them out, so it would be said in vain; a message of a megabyte stays short."""
    told = reason(BATCH, Tally(0, 0, 20, causes=(Cause("invalid_input", 20, "x" * 10**6),)), ALL)
    assert told is not None and "retry" not in told and len(told) < 500
