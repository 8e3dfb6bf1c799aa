"""Following a batch: what is said of a wait."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.apps.cli.follow import Follower, Look
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


async def reason(acts: Acts, batch_id: str, *, machine: Any = None) -> str:
    """Why this batch waits, as `run` says it with a machine and `watch` without."""
    async def not_paused(_: str) -> None:
        return None

    rooms: Any = SimpleNamespace(ledger=acts.ledger, clock=HandClock(start_at=NOW), tempo=Tempo(),
                                 limiter=SimpleNamespace(paused=not_paused))
    screen = OneLook()
    await Follower(rooms, batch_id, screen, machine, 0, 0.0).follow(screen.enough)
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
