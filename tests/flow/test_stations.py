"""What each station does when things go well, and when they end half-way."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.core.errors import Unreachable
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.ports import CreateAnswer, Decide
from orchestrator.core.records import Batch, Change, Fact
from orchestrator.core.tempo import Tempo
from orchestrator.flow.collect import collect
from orchestrator.flow.control import START_LIMIT, cancel, go_on, pause, resume
from orchestrator.flow.reconcile import interval_s, sweep
from orchestrator.flow.record import buffered
from orchestrator.flow.report import report
from orchestrator.flow.submit import submit
from orchestrator.gateways.testing import MemoryLimiter
from tests.flow.conftest import Stage


class Flaky:
    """A room that answers like another one, except for the calls it is told to spoil."""

    def __init__(self, room: Any, **spoiled: Any) -> None:
        self._room = room
        self._spoiled = spoiled

    def __getattr__(self, name: str) -> Any:
        return self._spoiled.get(name) or getattr(self._room, name)


async def settle(stage: Stage, batch: Any, *, within_s: float = 10.0) -> dict[str, int]:
    """Sweep and collect until nothing moves any more."""
    until = asyncio.get_running_loop().time() + within_s
    while await stage.rooms.ledger.unsettled(batch.pk) and asyncio.get_running_loop().time() < until:
        await submit(stage.rooms, batch.id, 0)
        await sweep(stage.rooms, batch.account)
        await sweep(stage.rooms, batch.account, 1)
        await collect(stage.rooms, batch.id, 0)
        await asyncio.sleep(0.05)
    return await stage.states(batch)


async def test_rows_go_all_the_way(stage: Stage):
    """Submit, sweep, collect and report bring every row home, each bought once."""
    batch = await stage.load(30, model="black-forest-labs/flux-schnell")
    assert await settle(stage, batch) == {"succeeded": 30}
    await report(stage.rooms, batch.id)
    finished = await stage.rooms.ledger.batch(batch.id)
    assert finished is not None and finished.state is BatchState.FINISHED
    assert len(list((stage.folder / "out" / "files").iterdir())) == 30
    assert len(stage.provider.purchases()) == 30


async def test_without_a_limiter_nothing_is_sent(stage: Stage):
    """Redis away: submit says so, and no row is claimed, let alone bought."""
    batch = await stage.load(5)
    stage.limiter.away = True
    with pytest.raises(Unreachable):
        await submit(stage.rooms, batch.id, 0)
    assert await stage.states(batch) == {"pending": 5}
    assert stage.provider.purchases() == []


async def test_a_paused_batch_is_not_submitted(stage: Stage):
    """A message for a batch that is paused buys nothing."""
    batch = await stage.load(5)
    await pause(stage.rooms, batch)
    assert await submit(stage.rooms, batch.id, 0) == []
    assert stage.provider.purchases() == []


async def test_a_stopping_worker_hands_rows_back(stage: Stage):
    """Rows whose permit lies ahead when the stop comes wait again, with no attempt counted as failed."""
    batch = await stage.load(40)
    stopping = False
    rooms = replace(stage.rooms, stopping=lambda: stopping, tempo=replace(stage.rooms.tempo, creates_per_minute=600, slice_s=5))
    task = asyncio.create_task(submit(rooms, batch.id, 0))
    while not stage.provider.purchases():
        await asyncio.sleep(0.02)
    stopping = True
    await asyncio.wait_for(task, 3)
    states = await stage.states(batch)
    bought = len(stage.provider.purchases())
    assert bought < 40
    assert states["pending"] == 40 - bought


async def test_an_outage_of_the_ledger_loses_no_answer(stage: Stage):
    """The ledger refuses the first recordings: the answers are kept and recorded when it is back."""
    batch = await stage.load(10)
    refusals = iter([Unreachable("gone")] * 2)
    real = stage.rooms.ledger.move

    async def move(facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
        for error in refusals:
            raise error
        return await real(facts, decide=decide)

    tempo = replace(stage.rooms.tempo, lease_margin_s=10)
    rooms = replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, move=move), tempo=tempo)
    await submit(rooms, batch.id, 0)
    states = await stage.states(batch)
    assert states.get("claimed", 0) == 0
    assert sum(states.get(s, 0) for s in ("running", "collecting")) == 10


async def test_facts_survive_an_error_of_the_block(stage: Stage):
    """Whatever ends the block, what was added is recorded."""
    batch = await stage.load(1)
    await submit(stage.rooms, batch.id, 0)
    with pytest.raises(RuntimeError, match="in the middle"):
        async with buffered(stage.rooms) as facts:
            (attempt_id, _), = await stage.rooms.ledger.in_air(batch.pk, count=1)
            facts.add(Fact(Event.FAILED, stage.rooms.clock.now(), attempt_id, error="x", error_class="model"))
            raise RuntimeError("in the middle")
    assert await stage.states(batch) == {"failed": 1}


async def test_a_canceled_post_is_unsure(stage: Stage):
    """A task that is canceled while its POST is out leaves an unsure row, never a pending one."""
    stage.provider.put("faults", {"slow_answer": {"p": 1.0, "seconds": 2}})
    batch = await stage.load(1)
    task = asyncio.create_task(submit(stage.rooms, batch.id, 0))
    while not stage.provider.purchases():
        await asyncio.sleep(0.02)
    for other in asyncio.all_tasks():
        if "object _post " in repr(other.get_coro()):
            other.cancel()
    await asyncio.wait_for(task, 3)
    assert await stage.states(batch) == {"unsure": 1}
    stage.provider.put("faults", {"slow_answer": None})
    assert await settle(stage, batch) == {"succeeded": 1}
    assert len(stage.provider.purchases()) == 1


async def test_an_attempt_that_never_left_is_bought_after_all(stage: Stage):
    """A connection that is reset before the purchase: absence is proven twice, then the row is bought."""
    stage.provider.put("faults", {"reset_before": {"next": 2}})
    batch = await stage.load(6)
    patient = Stage(replace(stage.rooms, tempo=replace(stage.rooms.tempo, unsure_give_up_s=20)), stage.provider, stage.folder,
                    stage.limiter)
    assert await settle(patient, batch, within_s=25) == {"succeeded": 6}
    assert len(stage.provider.purchases()) == 6


async def test_a_silent_worker_makes_its_rows_unsure(stage: Stage):
    """Attempts whose lease has lapsed without an answer are found in the list, not bought again."""
    batch = await stage.load(4)

    async def create(*args: Any, **more: Any) -> CreateAnswer:
        await stage.rooms.predictions.create(*args, **more)
        await asyncio.sleep(3600)
        raise AssertionError

    tempo = replace(stage.rooms.tempo, permit_life_s=0.05, request_timeout_s=0.5, lease_margin_s=0.2)
    rooms = replace(stage.rooms, predictions=Flaky(stage.rooms.predictions, create=create), tempo=tempo)
    task = asyncio.create_task(submit(rooms, batch.id, 0))
    while len(stage.provider.purchases()) < 4:
        await asyncio.sleep(0.02)
    for other in asyncio.all_tasks():  # as kill -9 would: nobody records anything any more
        if any(name in repr(other.get_coro()) for name in ("object _post ", "FactsBuffer.pulse", "object submit ")):
            other.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await settle(stage, batch) == {"succeeded": 4}
    assert len(stage.provider.purchases()) == 4


@pytest.mark.parametrize("fault,state", [("output_truncated", "succeeded"), ("output_error", "succeeded"),
                                         ("output_wrong_type", "succeeded")])
async def test_spoiled_downloads_are_fetched_again(stage: Stage, fault: str, state: str):
    """A cut body, an error of the store, a wrong type: fetched again while the hour lasts, nothing bought again."""
    stage.provider.put("faults", {fault: {"next": 2}})
    batch = await stage.load(3, model="black-forest-labs/flux-schnell")
    assert await settle(stage, batch, within_s=20) == {state: 3}
    assert len(stage.provider.purchases()) == 3


async def test_expired_outputs_are_told_apart(stage: Stage):
    """Outputs that are gone after the retention end failed, class expired."""
    stage.provider.put("faults", {"output_404": 1.0})
    batch = await stage.load(2, model="black-forest-labs/flux-schnell")
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, retention_s=0.5))
    short = Stage(rooms, stage.provider, stage.folder, stage.limiter)
    assert await settle(short, batch, within_s=15) == {"failed": 2}
    failures = await stage.rooms.ledger.failures(batch.pk)  # type: ignore[attr-defined]
    assert [(f.error_class, f.count) for f in failures] == [("expired", 2)]


def test_sweeps_keep_a_tenth_of_the_latency():
    """Every two seconds, or a tenth of the median latency where that is longer."""
    from orchestrator.core.ports import OpenWindow

    assert interval_s(OpenWindow(1, 0, None, None), tempo=Tempo(sweep_min_s=2), webhooks_tell=False) == 2
    assert interval_s(OpenWindow(1, 0, None, 90.0), tempo=Tempo(sweep_min_s=2), webhooks_tell=False) == 9
    assert interval_s(OpenWindow(1, 0, None, None), tempo=Tempo(sweep_webhooks_s=15), webhooks_tell=True) == 15


async def test_the_double_limits_like_the_real_one(stage: Stage):
    """The stage's limiter keeps a rate: 600 per minute cannot sell 40 rows in a second."""
    batch = await stage.load(40)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, creates_per_minute=600))
    assert isinstance(rooms.limiter, MemoryLimiter)
    await submit(rooms, batch.id, 0)
    assert 0 < len(stage.provider.purchases()) <= 21


async def test_a_row_canceled_before_its_permit_is_handed_back(stage: Stage):
    """A task canceled while it waits for its permit has sent nothing: the row waits again, it is not unsure."""
    batch = await stage.load(30)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, creates_per_minute=60, create_burst=1, slice_s=0.2))
    task = asyncio.create_task(submit(rooms, batch.id, 0))
    waiting: list[asyncio.Task[Any]] = []
    while not waiting and not task.done():
        await asyncio.sleep(0.01)
        waiting = [other for other in asyncio.all_tasks() if "object _post " in repr(other.get_coro())]
    for other in waiting:
        other.cancel()
    await asyncio.wait_for(task, 5)
    states = await stage.states(batch)
    assert states.get("unsure", 0) == 0
    assert states["pending"] + len(stage.provider.purchases()) == 30


async def limit(stage: Stage, batch: Batch, rows: int) -> None:
    """What `run --limit` sets."""
    await stage.rooms.ledger.amend(batch.pk, in_flight=batch.in_flight, max_attempts=batch.max_attempts, cap_units=None,
                                   price_json=batch.price_json, start_limit=rows, job_json=batch.job_json)


async def held_by_a_limit(stage: Stage, rows: int, *, started: int) -> Batch:
    """A batch that was begun with --limit, and paused when so many rows were done."""
    batch = await stage.load(rows)
    await limit(stage, batch, started)
    await settle(stage, batch)
    await report(stage.rooms, batch.id)
    paused = await stage.rooms.ledger.batch(batch.id)
    assert paused is not None and (paused.state, paused.reason) == (BatchState.PAUSED, START_LIMIT)
    return paused


async def test_resume_lifts_the_limit_that_stopped_a_batch(stage: Stage):
    """`resume` of a batch that stopped at --limit really goes on: every row comes home, each bought once."""
    batch = await held_by_a_limit(stage, 6, started=2)
    assert await resume(stage.rooms, batch)
    assert await settle(stage, batch) == {"succeeded": 6}
    await report(stage.rooms, batch.id)
    finished = await stage.rooms.ledger.batch(batch.id)
    assert finished is not None and (finished.state, finished.start_limit) == (BatchState.FINISHED, None)
    assert (finished.in_flight, finished.max_attempts, finished.cap_units, finished.job_json) == (
        batch.in_flight, batch.max_attempts, batch.cap_units, batch.job_json)
    assert len(stage.provider.purchases()) == 6


async def test_resume_after_cancel_lifts_it_too(stage: Stage):
    """A batch that stopped at --limit, was canceled and is resumed: its rows wait again, and are bought."""
    batch = await held_by_a_limit(stage, 4, started=1)
    await cancel(stage.rooms, batch)
    await report(stage.rooms, batch.id)
    canceled = await stage.rooms.ledger.batch(batch.id)
    assert canceled is not None and canceled.state is BatchState.CANCELED
    assert await resume(stage.rooms, canceled)
    assert await settle(stage, batch) == {"succeeded": 4}


async def test_a_limit_outlives_an_operators_pause(stage: Stage):
    """`pause` and `resume` while `run --limit 2` is there: no more rows are bought than it allowed."""
    batch = await stage.load(6)
    await limit(stage, batch, 2)
    await pause(stage.rooms, batch)
    paused = await stage.rooms.ledger.batch(batch.id)
    assert paused is not None and await resume(stage.rooms, paused)
    assert await settle(stage, batch) == {"succeeded": 2, "pending": 4}


async def test_a_run_goes_on_within_its_own_limit(stage: Stage):
    """`run --limit 3` of a batch that stopped at 2: one more, as the limit is the one just given."""
    batch = await held_by_a_limit(stage, 6, started=2)
    await limit(stage, batch, 3)
    assert await go_on(stage.rooms, batch)
    assert await settle(stage, batch) == {"succeeded": 3, "pending": 3}


async def test_resume_of_a_running_batch_leaves_its_limit(stage: Stage):
    """The last rows of `run --limit 2` are in the air: there is nothing to resume, and nothing more is bought."""
    batch = await stage.load(6)
    await limit(stage, batch, 2)
    await stage.rooms.ledger.note_reason(batch.pk, START_LIMIT)
    running = await stage.rooms.ledger.batch(batch.id)
    assert running is not None and not await resume(stage.rooms, running)
    assert await settle(stage, batch) == {"succeeded": 2, "pending": 4}


async def test_nothing_half_written_is_left(stage: Stage):
    """What a killed worker left behind is swept out before the results are written, under a command that lives on, too."""
    batch = await stage.load(2)
    assert await settle(stage, batch) == {"succeeded": 2}
    left = stage.folder / "out" / "files" / ".incoming-123-abc.part"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    await report(stage.rooms, batch.id)
    assert not left.exists()
