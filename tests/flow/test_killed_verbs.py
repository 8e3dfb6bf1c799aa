"""An operator's verb that was killed between two of its transactions is finished by saying it again."""

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.core.lifecycle import BatchState
from orchestrator.flow.control import RESUMING, cancel, go_on, resume, retry
from orchestrator.flow.report import report
from tests.flow.conftest import Stage
from tests.flow.test_races import again, failed
from tests.flow.test_stations import settle


async def test_retry_killed_before_the_batch_was_set_going(stage: Stage):
    """Its rows waited in a finished batch that nothing woke, and a second `retry` found no failed rows."""
    batch = await failed(stage, 3)
    assert await report(stage.rooms, batch.id) == []
    await stage.rooms.ledger.reopen_failed(batch.pk, classes=frozenset())  # and here it died
    assert await retry(stage.rooms, await again(stage, batch), classes=frozenset()) == (0, 3)
    assert (await again(stage, batch)).state is BatchState.RUNNING
    assert await settle(stage, batch) == {"succeeded": 3}


async def test_retry_of_a_finished_batch_without_failures(stage: Stage):
    """Nothing was left by anybody: it stays finished."""
    batch = await stage.load(2)
    await settle(stage, batch)
    assert await report(stage.rooms, batch.id) == []
    assert await retry(stage.rooms, await again(stage, batch), classes=frozenset()) == (0, 0)
    assert (await again(stage, batch)).state is BatchState.FINISHED


@pytest.mark.parametrize("verb", [resume, go_on])
async def test_resume_killed_before_the_rows_were_reopened(stage: Stage, verb: Any):
    """Set going first, the batch ended without them, and only a second `resume` in time would have helped: `run` is typed too."""
    batch = await stage.load(3)
    await cancel(stage.rooms, batch)
    assert await report(stage.rooms, batch.id) == []
    await stage.rooms.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.CANCELED}), reason=RESUMING,
                                       now=stage.rooms.clock.now())  # and here it died
    assert await report(stage.rooms, batch.id) != []
    assert await stage.states(batch) == {"canceled": 3}
    assert await verb(stage.rooms, await again(stage, batch))
    assert await settle(stage, batch) == {"succeeded": 3}


async def test_a_batch_set_going_is_looked_at(stage: Stage):
    """Killed right after its state was written, a batch that had ended would run for ever and nobody be called for it."""
    batch = await failed(stage, 1)
    assert await report(stage.rooms, batch.id) == []
    await stage.rooms.ledger.take_due(now=stage.rooms.clock.now() + timedelta(days=1), hold_s=1)
    await retry(stage.rooms, await again(stage, batch), classes=frozenset())
    woken = {w.station for w in await stage.rooms.ledger.take_due(now=stage.rooms.clock.now(), hold_s=1)}
    assert woken == {"submit", "collect", "sweep", "report"}
