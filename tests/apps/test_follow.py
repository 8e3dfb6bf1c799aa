"""Following a batch: what is said of a wait."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.apps.cli.follow import RATE_WINDOW_S, Follower, Look
from orchestrator.core.caps import NO_BUDGET, AccountBudget, Scope
from orchestrator.core.lifecycle import Event
from orchestrator.core.tempo import Tempo
from orchestrator.gateways.ledger import Database, SqlLedger
from orchestrator.gateways.testing import HandClock
from tests.contract.conftest import NOW, Acts


@pytest.fixture
async def acts(tmp_path: Path) -> AsyncIterator[Acts]:
    """An empty ledger."""
    async with Database.open(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        yield Acts(SqlLedger(database))


class OneLook:
    """A screen that keeps what it is shown, and then ends the following."""

    def __init__(self) -> None:
        self.enough = asyncio.Event()
        self.seen: list[Look] = []

    def show(self, look: Look) -> None:
        """Once is enough."""
        self.seen.append(look)
        self.enough.set()


def follower(acts: Acts, batch_id: str, screen: OneLook, *, machine: Any = None, clock: HandClock | None = None) -> Follower:
    """Of this batch, where no limit holds anything back."""
    async def not_paused(_: str) -> None:
        return None

    rooms: Any = SimpleNamespace(ledger=acts.ledger, clock=clock or HandClock(start_at=NOW), tempo=Tempo(), budget=NO_BUDGET,
                                 limiter=SimpleNamespace(paused=not_paused))
    return Follower(rooms, batch_id, screen, machine, 0, 0.0)


async def reason(acts: Acts, batch_id: str, *, machine: Any = None) -> str:
    """Why this batch waits, as `run` says it with a machine and `watch` without."""
    screen = OneLook()
    await follower(acts, batch_id, screen, machine=machine).follow(screen.enough)
    return screen.seen[0].reason or ""


async def test_lost_answers_are_settled_by_a_time(acts: Acts):
    """The wait takes minutes: until when at the latest is said, and to whom it is of use that one may leave."""
    batch = await acts.loaded(2)
    await acts.ledger.amend(batch.pk, in_flight=2, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json='{"model": "acme/draw", "source": {"path": "rows.csv"}}')
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.said(Event.ANSWER_LOST, "a1"))
    (first, _) = await acts.ledger.unsure(batch.account)
    latest = (first.sent_until_at or first.created_at + timedelta(seconds=31.5)) + timedelta(seconds=120 + 600 + 60)
    said = await reason(acts, batch.id)
    assert said.startswith("2 answers were lost; ")
    assert f"settled by {latest:%H:%M} UTC at the latest)" in said
    assert "you may leave" in await reason(acts, batch.id, machine=SimpleNamespace(trouble=None))


async def test_dollars_per_minute_and_in_all(acts: Acts):
    """Of the last quarter minute, as the rate is; in all what four rows will cost that cost a dollar each. Nothing is said while
    nothing is spent, or nobody knows."""
    batch = await acts.loaded(4)
    await acts.ledger.amend(batch.pk, in_flight=4, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json='{"model": "acme/draw", "source": {"path": "rows.csv"}}')
    clock, screen = HandClock(start_at=NOW), OneLook()
    watching = follower(acts, batch.id, screen, clock=clock)
    screen.enough.set()

    async def looked() -> Look:
        screen.enough.clear()
        await watching.follow(screen.enough)
        return screen.seen[-1]

    first = await looked()
    assert (first.usd_per_minute, first.projected_usd) == (None, None)
    await acts.claim(batch, 3)
    for n in (0, 1):
        await acts.tell(acts.answered(f"a{n}", f"p{n}"), acts.ended(f"p{n}", seconds=2.0))
    clock.advance(10)
    second = await looked()
    assert (second.usd_per_minute, second.projected_usd) == (Decimal(12), Decimal(4))
    for _ in range(3):
        clock.advance(RATE_WINDOW_S)
        latest = await looked()
    assert (latest.usd_per_minute, latest.projected_usd) == (None, Decimal(4))


async def test_the_rate_counts_what_is_bought(acts: Acts):
    """Also rows that are tried again: a batch whose failed rows are bought once more is not at a standstill."""
    batch = await acts.loaded(4)
    await acts.ledger.amend(batch.pk, in_flight=4, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json='{"model": "acme/draw", "source": {"path": "rows.csv"}}')
    await acts.claim(batch, 4)
    for n in range(4):
        await acts.tell(acts.answered(f"a{n}", f"p{n}"), acts.ended(f"p{n}", "failed", output=None, error="broken"))
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset())
    clock, screen = HandClock(start_at=NOW), OneLook()
    clock.advance(3600)
    await acts.claim(batch, 3, prefix="again", now=clock.now())
    for n in range(3):
        await acts.tell(acts.answered(f"again{n}", f"q{n}")._replace(at=clock.now()))
    clock.advance(5)
    watching = follower(acts, batch.id, screen, clock=clock)
    await watching.follow(screen.enough)
    assert screen.seen[-1].per_minute == 3 * 60 / RATE_WINDOW_S


async def test_caps_that_batches_share(acts: Acts):
    """How each stands, whoever spent it; and where the first of them ends this batch, but for that of a day."""
    other, batch = await acts.loaded(2, "other"), await acts.loaded(2)
    await acts.ledger.amend(batch.pk, in_flight=4, max_attempts=3, cap_units=None, price_json="null", start_limit=None, job_json=(
        '{"model": "acme/draw", "source": {"path": "rows.csv"}, "budget": {"job_usd": 3, "job_per_day_usd": 2.5}}'))
    for one, prefix in ((other, "o"), (batch, "a")):
        await acts.claim(one, 1, prefix=prefix, reserve_units=10**12)
        await acts.tell(acts.ended(f"{prefix}p", attempt_id=f"{prefix}0", seconds=1.0))
    screen = OneLook()
    watching = follower(acts, batch.id, screen)
    watching.rooms.budget = AccountBudget(account_usd=Decimal(50))
    await watching.follow(screen.enough)
    (look,) = screen.seen
    assert [(bound.cap.scope, bound.left_units) for bound in look.bounds] == [
        (Scope.JOB, 2 * 10**12), (Scope.ACCOUNT, 49 * 10**12), (Scope.JOB_DAY, 15 * 10**11)]
    assert look.ends_at_usd == Decimal("2.5")
