"""Caps on money, bought against with the real stations: to the last row that fits, by many at once, on both databases."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.core.caps import AccountBudget
from orchestrator.core.errors import BadInput
from orchestrator.core.lateness import Lateness
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.permits import Grant
from orchestrator.core.ports import Claimable, ClaimTerms
from orchestrator.core.records import Batch, Prediction
from orchestrator.flow.collect import collect
from orchestrator.flow.control import START_LIMIT, go_on, resume
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.record import fact_of, record
from orchestrator.flow.submit import _why as why_it_waits
from orchestrator.flow.submit import submit
from orchestrator.gateways.ledger import Database
from orchestrator.gateways.testing import MemoryLimiter
from orchestrator.settings import read_settings
from tests.conftest import administer
from tests.contract.test_ledger_caps import asked, history
from tests.e2e.desk import Provider
from tests.flow.conftest import QUICK, Stage
from tests.flow.test_money import ECHO, loaded
from tests.flow.test_stations import Flaky, settle

PRICED = ECHO + "price: { per_run_usd: 0.003 }\n"
DEAR = ECHO + "price: { per_second_usd: 1 }\nbudget: { usd: 100, per_row_usd: 0.002 }\n"  # how many seconds nobody knows before
DOLLAR = 10**12


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new ledger on either database."""
    if request.param == "sqlite":
        (tmp_path / "home").mkdir()
        yield f"sqlite:///{tmp_path / 'home' / 'ledger.db'}"
        return
    url: Callable[[str], str] = request.getfixturevalue("postgresql_url")
    administer(url, "CREATE DATABASE caps")
    yield url("caps")
    administer(url, "DROP DATABASE caps WITH (FORCE)")


@pytest.fixture
async def counter(tmp_path: Path, provider: Provider, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """The stations on that ledger."""
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_simulator")
    monkeypatch.setenv("REPLICATE_BASE_URL", provider.url)
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", ledger_url)
    settings = read_settings(tmp_path / "home").model_copy(update={"tempo": QUICK})
    limiter = MemoryLimiter(wiring.clock())
    async with wiring.rooms(settings) as rooms:
        yield Stage(replace(rooms, limiter=limiter), provider, tmp_path, limiter)


async def bought_by_many(stage: Stage, batch: Batch, *, within_s: float = 30.0) -> Batch:
    """Eight submitters at once, and what hears and fetches beside them, until the batch stops or has nothing left to do."""
    over = asyncio.Event()

    async def lane(number: int) -> None:
        while not over.is_set():
            await submit(stage.rooms, batch.id, number)
            await asyncio.sleep(0.05)

    async def rest() -> None:
        while not over.is_set():
            await sweep(stage.rooms, batch.account)
            await collect(stage.rooms, batch.id, 0)
            now = await stage.rooms.ledger.batch(batch.id)
            if (now is None or now.state is not BatchState.RUNNING) or not await stage.rooms.ledger.unsettled(batch.pk):
                over.set()

    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(lane(n) for n in range(8)), rest())
    return await stage.rooms.ledger.batch(batch.id) or batch


async def test_a_dollar_of_rows(counter: Stage, ledger_url: str):
    """333 rows of $0.003 and not one more, whoever buys them: never above the cap, by the database's own history; a raised cap
    buys the rest."""
    batch = await loaded(counter, PRICED + "budget: { usd: 1.00 }\n", rows=340)
    async with Database.open(ledger_url) as database:
        await history(database)
        paused = await bought_by_many(counter, batch)
        ((most, seen),) = await asked(database, "SELECT MAX(units), COUNT(*) FROM money_seen")
    assert (paused.state, most) == (BatchState.PAUSED, 999 * DOLLAR // 1000) and seen > 8
    assert len(counter.provider.purchases()) == 333
    assert paused.reason == ("budget: $0.999 of $1.00 are spent, and the next row may need up to $0.003; raise budget.usd in the "
                             "job and run it again")
    again = await loaded(counter, PRICED + "budget: { usd: 1.02 }\n", rows=340)
    assert await go_on(counter.rooms, again)
    assert await settle(counter, again) == {"succeeded": 340}
    assert len(counter.provider.purchases()) == 340


async def test_rows_of_unknown_cost(stage: Stage):
    """A cap with nothing but `per_row_usd`, for a model without a price: twenty of forty, and what they hold is told."""
    batch = await loaded(stage, ECHO + "budget: { usd: 1.00, per_row_usd: 0.05 }\n", rows=40)
    paused = await bought_by_many(stage, batch)
    assert (paused.state, len(stage.provider.purchases())) == (BatchState.PAUSED, 20)
    assert "$0.00 of $1.00 are spent and $1.00 are held for rows whose cost is not known" in (paused.reason or "")
    counts = await stage.rooms.ledger.counts(batch.pk)
    assert (counts.spent_usd, counts.reserved_usd, counts.cost_unknown_items) == (0, 1, 20)


async def test_a_row_dearer_than_reserved(stage: Stage, caplog: pytest.LogCaptureFixture):
    """It pauses its batch and is written to the log; `resume` goes on, until the next one."""
    batch = await loaded(stage, DEAR, rows=60)
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, submit_chunk=2, submit_concurrency=2, slice_s=0.2))
    with caplog.at_level(logging.WARNING, logger="orchestrator.flow"):
        await settle(stage, batch, within_s=4)
    paused = await stage.rooms.ledger.batch(batch.id)
    assert paused is not None and paused.state is BatchState.PAUSED
    assert re.search(r"cost \$\d\S+, and only \$0\.002 were reserved for it", paused.reason or "")
    assert f"batch {batch.id} buys nothing more: budget: row " in caplog.text
    bought = len(stage.provider.purchases())
    assert 0 < bought < 60
    assert await stage.states(batch) == {"succeeded": bought, "pending": 60 - bought}
    assert await resume(stage.rooms, paused)
    await settle(stage, batch, within_s=4)
    assert bought < len(stage.provider.purchases()) < 60
    assert (await stage.rooms.ledger.batch(batch.id) or batch).state is BatchState.PAUSED


async def test_a_charge_that_nobody_believes_is_told(stage: Stage, caplog: pytest.LogCaptureFixture):
    """Without a cap nothing stops; the log has the row."""
    batch = await loaded(stage, ECHO + "price: { per_second_usd: 1000000 }\n", rows=2)
    now = stage.rooms.clock.now()
    await stage.rooms.ledger.claim(batch.pk, attempt_ids=["a0"], terms=ClaimTerms(now, now, now, "a:1", 0))
    with caplog.at_level(logging.WARNING, logger="orchestrator.flow"):
        await record(stage.rooms, [fact_of(Prediction("p0", "succeeded", output="x", metrics={"predict_time": 2.0}),
                                           at=now, attempt_id="a0", via="list")])
    assert f"batch {batch.id}: by its price row 0 cost more than $1,000,000, which nobody believes" in caplog.text
    counts = await stage.rooms.ledger.counts(batch.pk)
    assert (counts.spent_usd, counts.cost_unknown_items) == (0, 1)


async def test_resume_leaves_a_cap_that_was_lowered_meanwhile(stage: Stage):
    """`resume` has read a batch that stopped at --limit; before it goes on, another run lowers the cap: that holds."""
    batch = await loaded(stage, PRICED + "budget: { usd: 1.00 }\n", rows=9)
    ledger, now = stage.rooms.ledger, stage.rooms.clock.now()
    await ledger.amend(batch.pk, in_flight=batch.in_flight, max_attempts=3, cap_units=batch.cap_units,
                       price_json=batch.price_json, start_limit=1, job_json=batch.job_json)
    await ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset(BatchState), reason=START_LIMIT, now=now)
    read = await ledger.batch(batch.id)
    lowered = await loaded(stage, PRICED + "budget: { usd: 0.006 }\n", rows=9)
    assert read is not None and await resume(stage.rooms, read)
    paused = await bought_by_many(stage, batch)
    assert (paused.cap_units, paused.job_json, paused.start_limit) == (6 * DOLLAR // 1000, lowered.job_json, None)
    assert len(stage.provider.purchases()) == 2


async def test_a_cap_that_comes_with_the_settings(stage: Stage):
    """A job that sets too little aside for a row may be loaded without a cap; under one that comes later, what a row is known to
    cost is reserved."""
    batch = await loaded(stage, PRICED + "budget: { per_row_usd: 0.001 }\n", rows=20)
    stage.rooms = replace(stage.rooms, budget=AccountBudget(account_usd=Decimal("0.01")))
    paused = await bought_by_many(stage, batch)
    assert (paused.state, len(stage.provider.purchases())) == (BatchState.PAUSED, 3)
    assert "$0.009 of $0.01 are spent by all batches of this account" in (paused.reason or "")


async def test_an_account_and_its_day(stage: Stage):
    """The settings' caps count what all jobs buy: paused at the day's, gone on with on the next day, until the account's."""
    now = datetime(2026, 1, 5, 23, 59, tzinfo=UTC)
    clock: Any = Flaky(stage.rooms.clock, now=lambda: now)
    stage.rooms = replace(stage.rooms, clock=clock, budget=AccountBudget(Decimal("0.015"), Decimal("0.010")),
                          tempo=replace(QUICK, slice_s=0.2))
    batch = await loaded(stage, PRICED, rows=9)

    async def stopped() -> tuple[int, str]:
        for _ in range(4):
            await submit(stage.rooms, batch.id, 0)
            await asyncio.sleep(0.15)
            await sweep(stage.rooms, batch.account)
            await collect(stage.rooms, batch.id, 0)
        return len(stage.provider.purchases()), (await stage.rooms.ledger.batch(batch.id) or batch).reason or ""

    bought, why = await stopped()
    assert bought == 3 and "$0.009 of $0.01 are spent by this account on 2026-01-05 (UTC)" in why
    now += timedelta(hours=1)
    assert await go_on(stage.rooms, await stage.rooms.ledger.batch(batch.id) or batch)
    bought, why = await stopped()
    assert bought == 5 and "$0.015 of $0.015 are spent by all batches of this account" in why and "account_usd" in why


@pytest.mark.parametrize("budget,named,line", [
    ("", "a cap (account_per_day_usd under [budget] in the settings) cannot", "budget: { per_row_usd: 0.05 }"),
    ("budget: { job_usd: 5, job_per_day_usd: 1.50 }\n", "a cap cannot",
     "budget: { job_usd: 5, job_per_day_usd: 1.50, per_row_usd: 0.05 }")])
async def test_a_cap_that_could_not_be_kept(stage: Stage, budget: str, named: str, line: str):
    """Under any cap a row needs a worst case; the line that is named is enough."""
    stage.rooms = replace(stage.rooms, budget=AccountBudget(account_per_day_usd=Decimal(3)))
    with pytest.raises(BadInput) as said:
        await loaded(stage, ECHO + budget)
    assert f"so {named} be kept" in str(said.value) and f"\n{line}   # 0.05 is an example" in str(said.value)
    assert (await loaded(stage, ECHO + line + "\n")).total == 1


@pytest.mark.parametrize("before,after,held", [
    ("", "price: { per_run_usd: 0.50 }\nbudget: { usd: 1.00 }\n", "$5.00 of $1.00 are spent, and"),
    ("", "budget: { usd: 1.00, per_row_usd: 0.10 }\n", "$0.00 of $1.00 are spent and $1.00 are held for rows whose cost"),
    ("price: { per_run_usd: 0.10 }\nbudget: { usd: 2.00 }\n", "price: { per_run_usd: 0.50 }\nbudget: { usd: 2.00 }\n",
     "$5.00 of $2.00 are spent, and")])
async def test_a_cap_counts_what_is_out_already(stage: Stage, before: str, after: str, held: str):
    """Ten rows are out when a price, a cap or a correction comes: they are paid for, and nothing more is bought."""
    batch = await loaded(stage, ECHO + "limits: { in_flight: 10 }\n" + before, rows=20)
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, slice_s=0.2, submit_chunk=10))
    await submit(stage.rooms, batch.id, 0)
    assert len(stage.provider.purchases()) == 10
    again = await loaded(stage, ECHO + "limits: { in_flight: 20 }\n" + after, rows=20)
    paused = await bought_by_many(stage, again, within_s=10)
    assert (paused.state, len(stage.provider.purchases())) == (BatchState.PAUSED, 10)
    assert held in (paused.reason or "")


@pytest.mark.parametrize(("permits", "said"), [(5, None), (66, "budget: the last rows that there is money for")])
def test_the_last_rows_are_said_when_they_are_bought(permits: int, said: str | None):
    """Of a hundred rows there is money for 66: no word of it while five of them go."""
    task: Any = SimpleNamespace(part=1.0, rooms=SimpleNamespace(lateness=Lateness()), order=SimpleNamespace(
        budgets=(), batch=SimpleNamespace(in_flight=200), model=SimpleNamespace(in_flight=None)))
    assert why_it_waits(task, Claimable(66, "budget"), Grant(permits, 0, 0)) == said
