"""Rows whose outputs the provider deleted before they were at home: told apart, alarmed, bought again where a job says so."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from orchestrator import wiring
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.records import Batch
from orchestrator.flow.collect import collect
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.report import report
from orchestrator.flow.submit import submit
from orchestrator.gateways.testing import MemoryLimiter
from orchestrator.settings import read_settings
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import Provider
from tests.flow.conftest import QUICK, Stage
from tests.flow.test_money import PICTURES
from tests.flow.test_stations import settle

BUY = "retry: { expired: buy }\nprice: { per_output_usd: 0.003 }\n"


@pytest.fixture
async def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A provider that keeps outputs for three seconds, and a program that knows it."""
    config = SimulatorConfig(port=0, latency_s=0.05, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0, seed=3,
                             retention_s=3.0)
    with running(config) as url:
        monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_simulator")
        monkeypatch.setenv("REPLICATE_BASE_URL", url)
        monkeypatch.setenv("ORCHESTRATOR_OUTPUT_HOSTS", url.removeprefix("http://"))
        settings = read_settings(tmp_path / "home").model_copy(update={"tempo": replace(QUICK, retention_s=3.0)})
        async with wiring.rooms(settings) as rooms:
            limiter = MemoryLimiter(wiring.clock())
            yield Stage(replace(rooms, limiter=limiter), Provider(url), tmp_path, limiter)


async def expired(stage: Stage, rows: int, more: str) -> Batch:
    """A batch whose rows were bought, and which nobody looked after until it was too late."""
    batch = await stage.load(rows, model=PICTURES, more=more)
    await submit(stage.rooms, batch.id, 0)
    await lose(stage, batch)
    return batch


async def lose(stage: Stage, batch: Batch) -> None:
    """Time passes at the provider, and the list tells what became of it."""
    httpx.post(f"{stage.provider.url}/_admin/advance", json={"seconds": 10}).raise_for_status()
    while (await stage.states(batch)).get("running"):
        await sweep(stage.rooms, batch.account)
        await asyncio.sleep(0.05)


async def test_not_bought_again_without_a_word(forgetful: Stage, caplog: pytest.LogCaptureFixture):
    """The default: rows end failed, class expired, each bought once, and the log raises the alarm."""
    batch = await expired(forgetful, 3, "")
    await collect(forgetful.rooms, batch.id, 0)
    with caplog.at_level(logging.WARNING, "orchestrator.flow"):
        await report(forgetful.rooms, batch.id)
    assert await forgetful.states(batch) == {"failed": 3}
    assert len(forgetful.provider.purchases()) == 3
    assert "3 rows were paid for" in caplog.text


async def test_bought_again_where_the_job_allows_it(forgetful: Stage):
    """Each row once more, and home this time; the first purchase stays in the ledger, its cost unknown."""
    batch = await expired(forgetful, 3, BUY)
    assert await forgetful.states(batch) == {"failed": 3}
    wakes = await collect(forgetful.rooms, batch.id, 0)
    assert "submit" in {wake.station for wake in wakes}
    assert await settle(forgetful, batch) == {"succeeded": 3}
    assert len(forgetful.provider.purchases()) == 6
    counts = await forgetful.rooms.ledger.counts(batch.pk)
    assert (str(counts.spent_usd), counts.cost_unknown_items) == ("0.009", 3)


async def test_the_last_rows_of_a_batch_expire(forgetful: Stage):
    """Though no porter looked in between, the batch does not end before they are bought again."""
    batch = await expired(forgetful, 2, BUY)
    wakes = await report(forgetful.rooms, batch.id)
    assert {wake.station for wake in wakes} == {"submit", "report"}
    assert await forgetful.states(batch) == {"pending": 2}
    assert await settle(forgetful, batch) == {"succeeded": 2}
    await report(forgetful.rooms, batch.id)
    found = await forgetful.rooms.ledger.batch(batch.id)
    assert found is not None and found.state is BatchState.FINISHED


async def test_never_in_a_loop(forgetful: Stage):
    """A row that expires again stays failed, however often the stations look: twice it was paid for, not three times."""
    batch = await expired(forgetful, 2, BUY)
    for _ in range(3):
        await collect(forgetful.rooms, batch.id, 0)
        await submit(forgetful.rooms, batch.id, 0)
        await lose(forgetful, batch)
    await report(forgetful.rooms, batch.id)
    assert await forgetful.states(batch) == {"failed": 2}
    assert len(forgetful.provider.purchases()) == 4


async def test_attempts_bound_it(forgetful: Stage):
    """With one attempt for each row there is no second purchase."""
    batch = await expired(forgetful, 1, "retry: { expired: buy, attempts: 1 }\n")
    await collect(forgetful.rooms, batch.id, 0)
    await report(forgetful.rooms, batch.id)
    assert await forgetful.states(batch) == {"failed": 1}
    assert len(forgetful.provider.purchases()) == 1


async def test_within_the_budget(forgetful: Stage):
    """Buying again keeps to the cap like any purchase: where there is no money left, the row waits."""
    job = 'retry: { expired: buy }\nprice: { per_second_usd: 0.1 }\nbudget: { usd: 1.00, per_row_usd: 0.60 }\n'
    batch = await expired(forgetful, 1, job)
    await collect(forgetful.rooms, batch.id, 0)
    spent = (await forgetful.rooms.ledger.counts(batch.pk)).spent_usd
    assert spent > 0
    await submit(forgetful.rooms, batch.id, 0)
    counts = await forgetful.rooms.ledger.counts(batch.pk)
    assert counts.spent_usd + counts.reserved_usd <= 1
