"""Caps on money: which hold, what they leave, and what is said."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.caps import (
    NO_BUDGET,
    AccountBudget,
    Bound,
    Cap,
    Scope,
    alarm,
    caps_of,
    day_of,
    held_text,
    is_alarm,
    is_budget,
    is_spent,
    shared,
    stopped,
)
from orchestrator.core.job import Job
from orchestrator.core.waiting import in_words, kind_of

CENT = 10**10
DAY = "2026-01-05"


def job(**budget: Any) -> Job:
    return Job.model_validate({"model": "acme/draw", "source": {"path": "rows.csv"}, "budget": budget or None})


def bound(scope: Scope, cap: int, *, spent: int = 0, reserved: int = 0, waits: bool = False) -> Bound:
    return Bound(Cap(scope, cap * CENT), spent * CENT, reserved * CENT, waits=waits)


def test_every_cap_there_is():
    """In the order in which they are told: those that a new day does not lift first. What is not said is no cap, 0 is one."""
    account = AccountBudget(account_usd=Decimal(9), account_per_day_usd=Decimal(0))
    found = caps_of(job(job_per_day_usd=1, usd="0.5", job_usd=2), account)
    assert [(cap.scope, cap.units // CENT) for cap in found] == [
        (Scope.BATCH, 50), (Scope.JOB, 200), (Scope.ACCOUNT, 900), (Scope.JOB_DAY, 100), (Scope.ACCOUNT_DAY, 0)]
    assert [cap.scope for cap in shared(found)] == [Scope.JOB, Scope.ACCOUNT, Scope.JOB_DAY, Scope.ACCOUNT_DAY]
    assert caps_of(job(), NO_BUDGET) == caps_of(job(per_row_usd=1), NO_BUDGET) == ()


@given(cap=st.integers(0, 100), spent=st.integers(0, 100), reserved=st.integers(0, 100), row=st.integers(0, 9),
       count=st.integers(0, 50))
def test_what_a_cap_leaves(cap: int, spent: int, reserved: int, row: int, count: int) -> None:
    """As many rows as fit with their worst case, and not one more; none where more was spent than it bears."""
    rows = bound(Scope.JOB, cap, spent=spent, reserved=reserved).affordable(count=count, reserve_units=row * CENT)
    assert rows == 0 or spent + reserved + rows * row <= cap
    assert rows == count or spent + reserved > cap or spent + reserved + (rows + 1) * row > cap


def test_nothing_without_a_worst_case():
    """Where nobody knows what a row may cost, no cap lets one be bought."""
    assert bound(Scope.BATCH, 100).affordable(count=3, reserve_units=None) == 0


@pytest.mark.parametrize("spent,reserved,out,row,waits", [
    (1, 2, 2, 2, True), (1, 2, 2, 3, False), (0, 3, 1, 2, False), (0, 3, 0, 1, False), (4, 2, 3, 0, True), (4, 2, 4, 1, True),
    (4, 2, 2, 1, False), (4, 0, 0, 0, False), (0, 0, 0, 1, False), (0, 2, 2, None, False)])
def test_what_may_be_freed(spent: int, reserved: int, out: int, row: int | None, waits: bool) -> None:
    """A cap of three waits for rows that are out only where the next row would fit if all of them cost nothing."""
    stands = bound(Scope.ACCOUNT, 3, spent=spent, reserved=reserved)
    assert stands.beside(out * CENT, reserve_units=None if row is None else row * CENT).waits is waits


@pytest.mark.parametrize("scope", list(Scope))
def test_what_the_ledger_answers(scope: Scope):
    """Waiting is told from an end, and both are of the kind `budget`; on screen neither is a code."""
    waits, ends = bound(scope, 1, waits=True).reason, bound(scope, 1).reason
    assert (is_spent(waits), is_spent(ends), is_budget(waits), is_budget(ends)) == (False, True, True, True)
    shown = [in_words(reason, batch=9, model=None) for reason in (waits, ends)]
    assert shown == [waits, "budget: the last rows that there is money for"]
    assert {kind_of(said) for said in shown} == {"budget"}


def test_what_is_no_budget():
    """Other reasons, and none."""
    for reason in (None, "in flight", "budgets", "the account has no credit left"):
        assert not is_budget(reason) and not is_spent(reason)


@pytest.mark.parametrize("scope,words", [
    (Scope.BATCH, "$0.99 of $1.00 are spent, and the next row may need up to $0.05; raise budget.usd in the job and run it "
     "again"),
    (Scope.JOB, "$0.99 of $1.00 are spent by all batches of this job, and the next row may need up to $0.05; raise "
     "budget.job_usd in the job and run it again"),
    (Scope.ACCOUNT, "$0.99 of $1.00 are spent by all batches of this account, and the next row may need up to $0.05; raise "
     "account_usd under [budget] in the settings and run it again"),
    (Scope.JOB_DAY, "$0.99 of $1.00 are spent by this job on 2026-01-05 (UTC), and the next row may need up to $0.05; it goes on "
     "after 00:00 UTC: run it again then, or raise budget.job_per_day_usd in the job first"),
    (Scope.ACCOUNT_DAY, "$0.99 of $1.00 are spent by this account on 2026-01-05 (UTC), and the next row may need up to $0.05; it "
     "goes on after 00:00 UTC: run it again then, or raise account_per_day_usd under [budget] in the settings first"),
])
def test_why_it_is_paused(scope: Scope, words: str):
    """What is spent of how much, by whom, what the next row may need, which setting it is, and what to do."""
    assert stopped(bound(scope, 100, spent=99), reserve_units=5 * CENT, day=DAY) == f"budget: {words}"


def test_what_is_held_is_told():
    """Money that is neither spent nor free; and of a day's cap that bears not even one row, that no day lifts it."""
    held = stopped(bound(Scope.BATCH, 100, spent=10, reserved=90), reserve_units=5 * CENT, day=DAY)
    assert "$0.10 of $1.00 are spent and $0.90 are held for rows whose cost is not known, and the next row" in held
    out = bound(Scope.BATCH, 100, spent=10, reserved=90).beside(60 * CENT, reserve_units=80 * CENT)
    assert ("$0.10 of $1.00 are spent and $0.60 are reserved for rows that are out and $0.30 are held for rows whose cost is not "
            "known, and the next row") in stopped(out, reserve_units=80 * CENT, day=DAY)
    never = stopped(bound(Scope.JOB_DAY, 4), reserve_units=5 * CENT, day=DAY)
    assert "00:00" not in never and never.endswith("raise budget.job_per_day_usd in the job and run it again")
    assert [held_text(90 * CENT, is_out=is_out) for is_out in (True, False)] == [
        "$0.90 reserved", "$0.90 held for rows whose cost is not known"]
    assert held_text(0, is_out=True) == ""


@pytest.mark.parametrize("charge,reserved,is_one", [(6, 5, True), (5, 5, False), (0, 5, False), (5, 0, False)])
def test_an_alarm(charge: int, reserved: int, is_one: bool):
    """Only above what was reserved; the row is named, both sums, and what may be wrong."""
    said = alarm(17, charge_units=charge * CENT, reserved_units=reserved * CENT)
    assert (said is not None) is is_one
    if said:
        for words in ("budget: row 17 cost $0.06", "$0.05 were reserved", "per_row_usd", "the price", "the model", "run it"):
            assert words in said


def test_an_alarm_of_what_nobody_believes():
    """Its charge is unknown, and the cap may not hold all the same."""
    said = alarm(17, charge_units=0, reserved_units=5 * CENT, is_absurd=True)
    assert said is not None and "row 17 cost more than $1,000,000.00, and only $0.05 were reserved for it" in said
    assert is_alarm(said) and not is_alarm(stopped(bound(Scope.BATCH, 1), reserve_units=CENT, day=DAY)) and not is_alarm(None)
    assert alarm(17, charge_units=0, reserved_units=0, is_absurd=True) is None


def test_a_day_is_utc():
    """Whatever zone a clock is in."""
    east = timezone(timedelta(hours=9))
    assert day_of(datetime(2026, 1, 6, 8, 59, tzinfo=east)) == "2026-01-05"
    assert day_of(datetime(2026, 1, 6, 0, 0, tzinfo=UTC)) == "2026-01-06"


def test_a_cap_that_is_no_amount():
    """It is refused as such, like the batch's own."""
    with pytest.raises(ValueError, match="not an amount in US dollars"):
        job(job_usd="ten")
