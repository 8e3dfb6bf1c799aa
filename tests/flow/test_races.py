"""Two things at once, and the one that had looked before the other acted."""

import asyncio
import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.apps.machine import anybody_lives
from orchestrator.core.errors import BadInput
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Decide
from orchestrator.core.records import REWRITE_LANE, Batch, Change, Fact, Prediction, Role, Wake
from orchestrator.flow.control import cancel, resume, retry
from orchestrator.flow.ending import SIDE_BY_SIDE, wind_up
from orchestrator.flow.presence import at_work, present
from orchestrator.flow.report import report
from orchestrator.flow.submit import submit
from tests.flow.conftest import QUICK, Stage
from tests.flow.test_stations import Flaky, settle


async def again(stage: Stage, batch: Batch) -> Batch:
    """The batch as it stands now."""
    found = await stage.rooms.ledger.batch(batch.id)
    assert found is not None
    return found


async def failed(stage: Stage, rows: int) -> Batch:
    """A batch whose rows have all failed."""
    stage.provider.put("faults", {"fail": 1.0})
    batch = await stage.load(rows)
    await settle(stage, batch)
    assert await stage.states(batch) == {"failed": rows}
    stage.provider.put("faults", {"fail": None})
    return batch


async def test_retry_while_the_results_are_written(stage: Stage):
    """Rows reopened meanwhile are bought: the batch does not end over them."""
    batch = await failed(stage, 3)
    real = stage.rooms.ledger.counts
    asked: list[int] = []

    async def counts(pk: int) -> Any:
        asked.append(pk)
        if len(asked) == 2:  # the end is decided, and the summary is being written
            await retry(stage.rooms, await again(stage, batch), classes=frozenset())
        return await real(pk)

    rooms = replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, counts=counts))
    (wake,) = await report(rooms, batch.id)
    assert wake.station == "report"
    assert (await again(stage, batch)).state is BatchState.RUNNING
    assert await settle(stage, batch) == {"succeeded": 3}
    assert await report(stage.rooms, batch.id) == []
    assert (await again(stage, batch)).state is BatchState.FINISHED


async def test_results_on_a_full_disk(stage: Stage):
    """A report that cannot be written says why, and is tried again soon."""
    batch = await stage.load(1)
    await settle(stage, batch)

    def results(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    rooms = replace(stage.rooms, tables=Flaky(stage.rooms.tables, results=results))
    (wake,) = await report(rooms, batch.id)
    assert wake.due_at is not None
    assert 0 < (wake.due_at - rooms.clock.now()).total_seconds() < 60
    assert "No space left on device" in ((await again(stage, batch)).reason or "")


async def test_a_report_that_dies(stage: Stage):
    """Killed while it wrote the results, it left the batch unended for half an hour: nobody began again."""
    batch = await stage.load(1)
    await settle(stage, batch)
    await stage.rooms.ledger.schedule([Wake("report", batch.id)], now=stage.rooms.clock.now())
    await stage.rooms.ledger.take_due(now=stage.rooms.clock.now(), hold_s=QUICK.hold_s)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await report(replace(stage.rooms, tables=Flaky(stage.rooms.tables, results=killed)), batch.id)
    soon = stage.rooms.clock.now() + timedelta(seconds=QUICK.hold_s + 1)
    assert Wake("report", batch.id) in [replace(w, due_at=None) for w in await stage.rooms.ledger.take_due(now=soon, hold_s=40)]


async def test_two_reports_at_once(stage: Stage):
    """Woken again by a second `run`, each took away what the other one was writing, and the batch never ended."""
    batch = await stage.load(3)
    await settle(stage, batch)
    writing, second = threading.Event(), threading.Event()

    class Table:
        """Waits in the midst of the rows until the other report has begun and ended."""

        def __init__(self, real: Any) -> None:
            self._real = real

        def __enter__(self) -> Any:
            self._table = self._real.__enter__()
            return self

        def __exit__(self, *exc: Any) -> Any:
            return self._real.__exit__(*exc)

        def write(self, *args: Any) -> None:
            self._table.write(*args)
            writing.set()
            second.wait(20)

    tables = Flaky(stage.rooms.tables, results=lambda *args, **more: Table(stage.rooms.tables.results(*args, **more)))
    first = asyncio.create_task(report(replace(stage.rooms, tables=tables), batch.id))
    await asyncio.to_thread(writing.wait, 20)
    assert await report(stage.rooms, batch.id) == []
    second.set()
    assert await first == [Wake("report", batch.id, REWRITE_LANE)]  # what it wrote is older than what the other one knew
    assert (await again(stage, batch)).state is BatchState.FINISHED
    assert sorted(p.name for p in Path(batch.output_to).iterdir() if p.suffix == ".part") == []


async def test_resume_while_a_sweep_winds_up(stage: Stage):
    """A sweep that had seen the batch canceling stops ending its predictions once somebody has set it going."""
    batch = await stage.load(SIDE_BY_SIDE + 6)
    await submit(stage.rooms, batch.id, 0)
    real, ended = stage.rooms.predictions.cancel, []

    async def slowly(prediction_id: str) -> Prediction:
        if not ended:
            await stage.rooms.ledger.set_state(batch.pk, to=BatchState.RUNNING, allowed=frozenset(BatchState), reason=None,
                                               now=stage.rooms.clock.now())
        ended.append(prediction_id)
        return await real(prediction_id)

    rooms = replace(stage.rooms, predictions=Flaky(stage.rooms.predictions, cancel=slowly))
    await rooms.ledger.set_state(batch.pk, to=BatchState.CANCELING, allowed=frozenset(BatchState), reason=None,
                                 now=rooms.clock.now())
    await wind_up(rooms, await again(stage, batch))
    assert len(ended) == SIDE_BY_SIDE  # those that were asked together
    assert (await again(stage, batch)).state is BatchState.RUNNING


async def test_resume_while_predictions_are_being_canceled(stage: Stage):
    """They would end as rows that failed for a reason nobody understands: refused until the last of them has ended."""
    stage.provider.put("faults", {"stuck": 1.0})
    batch = await stage.load(3)
    await submit(stage.rooms, batch.id, 0)
    await stage.rooms.ledger.set_state(batch.pk, to=BatchState.CANCELING, allowed=frozenset(BatchState), reason=None,
                                       now=stage.rooms.clock.now())
    with pytest.raises(BadInput, match="still being canceled"):
        await resume(stage.rooms, await again(stage, batch))
    await wind_up(stage.rooms, await again(stage, batch))
    assert await resume(stage.rooms, await again(stage, batch))
    assert (await again(stage, batch)).state is BatchState.RUNNING


async def test_one_strange_error_while_recording(stage: Stage):
    """A database that fails once in an unknown way costs no answer: what was learned is recorded one by one."""
    batch = await stage.load(8)
    real = stage.rooms.ledger.move
    strange = iter([RuntimeError("deadlock, or something like it")])

    async def move(facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
        for error in strange:
            raise error
        return await real(facts, decide=decide)

    await submit(replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, move=move)), batch.id, 0)
    assert "claimed" not in await stage.states(batch)


async def test_one_fact_that_cannot_be_recorded(stage: Stage):
    """It costs itself, and none of its neighbours."""
    batch = await stage.load(8)
    real = stage.rooms.ledger.move
    poison: list[str] = []

    async def move(facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
        ids = [fact.attempt_id or "" for fact in facts]
        poison.extend(ids[:1] if not poison else [])
        if poison[0] in ids:
            raise RuntimeError("this one cannot be written")
        return await real(facts, decide=decide)

    await submit(replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, move=move)), batch.id, 0)
    states = await stage.states(batch)
    assert states["claimed"] == 1
    assert sum(states.values()) == 8


async def test_canceled_for_good(stage: Stage):
    """Without anybody resuming it, a canceled batch ends with all its rows canceled."""
    batch = await stage.load(4)
    await cancel(stage.rooms, batch)
    await report(stage.rooms, batch.id)
    assert await stage.states(batch) == {"canceled": 4}
    assert (await again(stage, batch)).state is BatchState.CANCELED


async def test_a_role_survives_an_odd_answer(stage: Stage):
    """One beat that fails in a way nobody foresaw does not make a role look gone for ever."""
    real, odd = stage.rooms.ledger.beat, iter([None, RuntimeError("deadlock detected")])
    beats: list[Role] = []

    async def beat(role: Role) -> None:
        error = next(odd, None)
        if error is not None:
            raise error
        beats.append(role)
        await real(role)

    rooms = replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, beat=beat), tempo=replace(stage.rooms.tempo, beat_s=0.02))
    async with at_work(rooms, role="worker", version="1"):
        await asyncio.sleep(0.3)
        assert await anybody_lives(rooms)
    assert len(beats) > 2
    assert not await anybody_lives(rooms)


async def test_a_role_that_was_killed_is_nobody(stage: Stage):
    """What a killed process of this machine left in the ledger keeps no command from being alone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    dead = replace(stage.rooms, owner=f"{socket.gethostname()}:{ended.pid}")
    async with at_work(dead, role="worker", version="1"):
        assert [role.role for role in await present(stage.rooms)] == ["worker"]
        assert not await anybody_lives(stage.rooms)
