"""An operator's verb that was killed between two of its transactions is finished by saying it again."""

from orchestrator.core.lifecycle import BatchState
from orchestrator.flow.control import cancel, resume, retry
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


async def test_resume_killed_before_the_rows_were_reopened(stage: Stage):
    """The batch ran on without them, and a second `resume` refused: it runs already."""
    batch = await stage.load(3)
    await cancel(stage.rooms, batch)
    assert await report(stage.rooms, batch.id) == []
    await stage.rooms.ledger.set_state(batch.pk, to=BatchState.RUNNING, allowed=frozenset({BatchState.CANCELED}), reason=None,
                                       now=stage.rooms.clock.now())  # and here it died
    assert await stage.states(batch) == {"canceled": 3}
    assert await resume(stage.rooms, await again(stage, batch))
    assert await settle(stage, batch) == {"succeeded": 3}
