"""A batch whose rows fail stops buying, says why, and goes on when a person says so."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.core.failing import FAILING
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.records import Batch
from orchestrator.flow.control import go_on, resume, retry
from orchestrator.flow.ingest import Order, load, prepare
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.submit import submit
from tests.flow.conftest import QUICK, Stage
from tests.flow.test_stations import settle

BROKEN = {"fail": {"p": 1.0, "text": "CUDA out of memory"}}
REFUSED = {"error_before": {"p": 1.0, "status": 422}}
FEW = "limits: { in_flight: 5 }\n"


@pytest.fixture
def steady(stage: Stage) -> Stage:
    """Chunks of a few rows, so that a look comes between two of them."""
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, submit_chunk=5, slice_s=0.15))
    return stage


async def stands(stage: Stage, batch: Batch) -> Batch:
    """The batch as it is now."""
    found = await stage.rooms.ledger.batch(batch.id)
    assert found is not None
    return found


async def go(stage: Stage, batch: Batch, *, within_s: float = 40.0) -> dict[str, int]:
    """On until nothing of it moves, paused or not."""
    return await settle(stage, batch, within_s=within_s)


def bought(stage: Stage) -> int:
    """Predictions made."""
    return len(stage.provider.purchases())


async def test_a_model_that_always_fails(steady: Stage):
    """Of 200 rows about twenty are bought, and then the batch waits, with the reason; nothing is bought while it does."""
    steady.provider.put("faults", BROKEN)
    batch = await steady.load(200, more=FEW)
    states = await go(steady, batch)
    assert 20 <= bought(steady) <= 20 + 2 * 5, states
    assert states == {"failed": bought(steady), "pending": 200 - bought(steady)}
    now = await stands(steady, batch)
    assert now.state is BatchState.PAUSED
    assert now.reason is not None and now.reason.startswith(f"{FAILING}: not one has succeeded")
    assert "× memory: CUDA out of memory" in now.reason and f"orchestrator resume {batch.id}" in now.reason
    before = bought(steady)
    assert await submit(steady.rooms, batch.id, 0) == []
    assert bought(steady) == before


async def test_run_again_without_a_change(steady: Stage):
    """The same command once more buys not one row: nothing that it was stopped for is any different."""
    steady.provider.put("faults", BROKEN)
    batch = await steady.load(100, more=FEW)
    await go(steady, batch)
    before = bought(steady)
    for _ in range(3):
        assert await go_on(steady.rooms, await stands(steady, batch))
        await go(steady, batch)
        assert (await stands(steady, batch)).state is BatchState.PAUSED
    assert bought(steady) == before


async def test_resume_goes_on_knowing(steady: Stage):
    """What had failed stops it no more; twenty others that fail do; and once a row works, nothing does."""
    steady.provider.put("faults", BROKEN)
    batch = await steady.load(90, more=FEW)
    await go(steady, batch)
    first = bought(steady)
    assert await resume(steady.rooms, await stands(steady, batch))
    await go(steady, batch)
    second = bought(steady)
    assert first + 20 <= second <= first + 20 + 2 * 5
    assert (await stands(steady, batch)).state is BatchState.PAUSED
    steady.provider.put("faults", {"fail": None})
    assert await resume(steady.rooms, await stands(steady, batch))
    assert await go(steady, batch) == {"failed": second, "succeeded": 90 - second}


async def test_retry_tries_the_failed_ones_too(steady: Stage):
    """The model works again: all rows come home. And what was known before counts for nothing among rows tried anew."""
    steady.provider.put("faults", BROKEN)
    batch = await steady.load(60, more=FEW)
    await go(steady, batch)
    failed = bought(steady)
    assert await retry(steady.rooms, await stands(steady, batch), classes=frozenset()) == (0, failed)
    await go(steady, batch)
    again = bought(steady)
    assert failed + 20 <= again <= failed + 20 + 2 * 5
    assert (await stands(steady, batch)).state is BatchState.PAUSED
    steady.provider.put("faults", {"fail": None})
    await retry(steady.rooms, await stands(steady, batch), classes=frozenset())
    assert await go(steady, batch) == {"succeeded": 60}


async def anew(stage: Stage, batch: Batch, more: str) -> Batch:
    """The same batch with a job file that was edited: `run` again."""
    (stage.folder / "job.yaml").write_text(
        f'model: simulator/echo\nsource: {{ path: rows.csv }}\ninput: {{ text: "{{{{ text }}}}" }}\n{more}')
    found = wiring.load_job(stage.folder / "job.yaml", changes={})
    order = Order(job=found.job, name="job", folder=str(stage.folder), output_to="out", output_base=str(stage.folder))
    again, _ = await load(stage.rooms, await prepare(stage.rooms, order, book={}))
    assert again.pk == batch.pk
    await go_on(stage.rooms, await stands(stage, batch))
    return await stands(stage, batch)


async def test_more_failures_than_are_tolerated(steady: Stage):
    """Ten of a hundred are borne: the eleventh pauses the batch, and a job file that bears more goes on."""
    limits = "limits: { in_flight: 4 }\n"
    batch = await steady.load(100, more=limits + "retry: { tolerate_failed: 10% }\n")
    await steady.rooms.ledger.amend(batch.pk, in_flight=4, max_attempts=3, cap_units=None, price_json=batch.price_json,
                                    start_limit=20, job_json=batch.job_json)
    assert (await go(steady, batch))["succeeded"] == 20
    steady.provider.put("faults", BROKEN)
    await anew(steady, batch, limits + "retry: { tolerate_failed: 10% }\n")
    states = await go(steady, batch)
    assert 11 <= states["failed"] <= 11 + 2 * 4
    now = await stands(steady, batch)
    assert now.state is BatchState.PAUSED
    assert now.reason is not None and f"{states['failed']} have failed, and the job tolerates 10 (" in now.reason
    steady.provider.put("faults", {"fail": None})
    await anew(steady, batch, limits + "retry: { tolerate_failed: 50% }\n")
    assert await go(steady, batch) == {"failed": states["failed"], "succeeded": 100 - states["failed"]}


async def test_refused_inputs_do_not_stop_the_others(steady: Stage):
    """They cost nothing: one row is tolerated, six are refused, and the rest is bought all the same."""
    batch = await steady.load(40, more=FEW + "retry: { tolerate_failed: 1 }\n")
    steady.provider.put("faults", {"error_before": {"next": 6, "status": 422}})
    assert await go(steady, batch) == {"failed": 6, "succeeded": 34}


async def test_all_of_the_first_are_refused(steady: Stage):
    """Twenty refusals and nothing else: that is the mapping, not a row. Nothing was bought, and no retry is offered."""
    steady.provider.put("faults", REFUSED)
    batch = await steady.load(100, more=FEW)
    states = await go(steady, batch)
    now = await stands(steady, batch)
    assert now.state is BatchState.PAUSED and 20 <= states["failed"] <= 20 + 2 * 5
    assert bought(steady) == 0
    assert now.reason is not None and "× invalid_input" in now.reason and "orchestrator retry" not in now.reason


@pytest.mark.parametrize(("rows", "more"), [(60, "retry: { stop_after: 0 }\n"), (24, ""), (20, "")])
async def test_what_is_bought_to_the_end(steady: Stage, rows: int, more: str):
    """With 0 nothing stops it; and where nothing is left to buy there is nothing to stop."""
    steady.provider.put("faults", BROKEN)
    steady.rooms = replace(steady.rooms, tempo=replace(steady.rooms.tempo, slice_s=1.0))  # all are out before one has failed
    batch = await steady.load(rows, more=f"limits: {{ in_flight: {60 if more else 25} }}\n{more}")
    assert await go(steady, batch) == {"failed": rows}
    assert (await stands(steady, batch)).state is BatchState.RUNNING  # which its report ends


async def test_a_person_in_between(steady: Stage):
    """Resumed between a lane's look and its pause, the batch goes on: the pause is decided anew, by what is known by then."""
    steady.provider.put("faults", BROKEN)
    batch = await steady.load(80, more=FEW)
    await go(steady, batch)
    ledger = steady.rooms.ledger
    assert await go_on(steady.rooms, await stands(steady, batch))
    looked, resumed = asyncio.Event(), asyncio.Event()

    class Slow:
        """The ledger, with a pause between looking and acting."""

        def __getattr__(self, name: str) -> Any:
            return getattr(ledger, name)

        async def pause_for_failures(self, *args: Any, **words: Any) -> bool:
            looked.set()
            await resumed.wait()
            return await ledger.pause_for_failures(*args, **words)

    slow = replace(steady.rooms, ledger=Slow())
    lane = asyncio.create_task(submit(slow, batch.id, 0))
    await asyncio.wait_for(looked.wait(), 10)
    await ledger.know_failures(batch.pk)  # what `resume` says first
    resumed.set()
    before = bought(steady)
    await lane
    assert (await stands(steady, batch)).state is BatchState.RUNNING
    assert bought(steady) > before
    await sweep(steady.rooms, batch.account)
