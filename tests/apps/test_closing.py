"""The last words of a run."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.apps.cli.closing import ThisRun, close, still_out
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.options import RunOptions
from orchestrator.core.caps import NO_BUDGET
from orchestrator.core.cost import Price, Pricing
from orchestrator.core.estimate import Estimate, Figure
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import Batch
from orchestrator.core.tempo import Tempo
from orchestrator.gateways.ledger import Database, SqlLedger
from orchestrator.gateways.testing import HandClock
from tests.contract.conftest import NOW, Acts

JOB = '{"model": "acme/draw", "source": {"path": "rows.csv"}}'


@pytest.fixture
async def acts(tmp_path: Path) -> AsyncIterator[Acts]:
    """An empty ledger."""
    async with Database.open(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        yield Acts(SqlLedger(database))


async def closed(acts: Acts, batch: Batch, *, options: RunOptions | None = None, clock: HandClock | None = None) -> Ending:
    """How a run of this batch ends that began when the clock was made."""
    rooms: Any = SimpleNamespace(ledger=acts.ledger, clock=clock or HandClock(start_at=NOW), tempo=Tempo())
    run = ThisRun(rooms, options or RunOptions("shots"), 0.0)
    return await close(run, replace(batch, job_json=JOB), await acts.ledger.counts(batch.pk), code=Exit.DONE, lines=[])


async def limited(acts: Acts, rows: int) -> Batch:
    """A batch that was paused by `--limit 1`."""
    batch = await acts.loaded(rows, start_limit=1)
    await acts.claim(batch, 1)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0"))
    await acts.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset(BatchState), reason="start limit", now=NOW)
    return await acts.again(batch)


async def test_the_time_is_of_this_run(acts: Acts):
    """A batch born a night ago: the minute and two seconds of this run are told, in the document too."""
    batch = await acts.loaded(2, created_at=NOW.replace(day=1))
    clock = HandClock(start_at=NOW)
    clock.advance(62)
    ending = await closed(acts, batch, clock=clock)
    assert ending.lines[0].endswith("; 1:02")
    assert ending.document["elapsed_s"] == 62.0


async def test_what_was_expected_stands_beside_it(acts: Acts):
    """Of a batch that has finished; before, and where nothing was known, there is nothing to hold against."""
    batch, figure = await limited(acts, 2), Figure(Decimal("1.25"), "")
    expecting = replace(batch, estimate_json=json.dumps(Estimate(2, figure, figure, figure, None).to_json()))
    ended = replace(expecting, state=BatchState.FINISHED, finished_at=NOW)
    assert "$1.00 (expected: $2.50); " in (await closed(acts, ended)).lines[0]
    for other in (expecting, replace(ended, estimate_json=None)):
        assert "expected" not in (await closed(acts, other)).lines[0]


async def test_what_a_limit_left(acts: Acts):
    """How many rows were not started, why, and the command for them: what was typed, without the limit."""
    batch = await limited(acts, 58)
    ending = await closed(acts, batch, options=RunOptions("shots", limit=1, changes={"steps": "3"}))
    assert ending.lines[1] == "  57 rows not started (--limit 1); the rest: orchestrator run shots --set steps=3"
    ending = await closed(acts, batch, options=RunOptions("shots", limit=1, fresh=True))
    assert ending.lines[1].endswith("the rest: orchestrator run shots --run-key b")


async def test_who_needs_no_such_line(acts: Acts):
    """The demo's batch is not gone on with; a batch paused for another reason has another remedy."""
    batch = await limited(acts, 2)
    assert "1 row not started" in (await closed(acts, batch)).lines[1]
    assert len((await closed(acts, batch, options=RunOptions("demo", limit=1, rehearsal=True))).lines) == 1
    assert len((await closed(acts, replace(batch, reason="budget"))).lines) == 1


async def test_failed_rows_have_causes(acts: Acts):
    """The three most frequent classes with what was said, beside the commands that look and try again."""
    batch = await acts.loaded(8)
    await acts.claim(batch, 8)
    classes = ["input", "input", "input", "model", "model", "safety", "safety", "auth"]
    await acts.tell(*(acts.said(Event.REFUSED, f"a{n}", error=f"{name} is wrong", error_class=name)
                      for n, name in enumerate(classes)))
    told = (await closed(acts, batch)).lines
    assert told[1:4] == ("  failed   3 × input: input is wrong", "  failed   2 × model: model is wrong",
                         "  failed   2 × safety: safety is wrong")
    assert "1 more class" in told[4]
    assert "--state failed" in told[5] and "retry b" in told[5]


async def test_what_is_to_be_typed_again(acts: Acts):
    """The same words again, but the limit; a batch begun with --fresh by its key, as --fresh would begin another."""
    nightly = await acts.loaded(1, "nightly-1")
    typed = RunOptions("jobs/my shots.yaml", source="a.csv", changes={"steps": "3"}, limit=2, yes=True)
    assert typed.command(nightly) == "orchestrator run 'jobs/my shots.yaml' --source a.csv --set steps=3"
    assert typed.again(nightly) == "run the same command again"
    fresh = replace(typed, fresh=True, source=None, run_key="nightly")
    assert fresh.command(nightly) == "orchestrator run 'jobs/my shots.yaml' --run-key nightly-1 --set steps=3"
    assert fresh.again(nightly).endswith("--run-key nightly-1 --set steps=3 --limit 2")
    assert replace(fresh, rehearsal=True).again(nightly) == "run the same command again"


async def test_what_is_out_may_still_cost(acts: Acts):
    """On leaving early, beside what is out and until when it is kept there: the most that it will cost."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 3)
    await acts.tell(*(acts.answered(f"a{n}", f"p{n}") for n in range(3)))
    pricing = Pricing(Price("job", "run", Decimal("0.003")), 1, None, Decimal("0.003"))
    rooms: Any = SimpleNamespace(ledger=acts.ledger, clock=HandClock(start_at=NOW), tempo=Tempo(), budget=NO_BUDGET)
    run, counts = ThisRun(rooms, RunOptions("shots"), 0.0), await acts.ledger.counts(batch.pk)
    (line,) = await still_out(run, replace(batch, job_json=JOB, price_json=pricing.to_json()), counts)
    assert line.startswith("interrupted: 3 paid predictions are still out; ")
    assert "UTC at least; up to $0.009 more for 3 predictions that are out; to go on: " in line


async def test_what_the_deadline_ended(acts: Acts):
    """How many rows `cancel_after` stopped, and what they cost until then; without one it is somebody else's doing."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 3)
    for n, seconds in enumerate((4.0, 6.0, None)):
        await acts.tell(acts.answered(f"a{n}", f"p{n}"))
        ended = acts.ended(f"p{n}", "canceled", output=None, seconds=seconds or 1.0)
        assert ended.prediction is not None
        metrics = ended.prediction.metrics if seconds else {}
        await acts.tell(ended._replace(prediction=ended.prediction._replace(metrics=metrics)))
    stopped = JOB[:-1] + ', "limits": {"cancel_after": "5s"}}'
    rooms: Any = SimpleNamespace(ledger=acts.ledger, clock=HandClock(start_at=NOW), tempo=Tempo())
    run, counts = ThisRun(rooms, RunOptions("shots"), 0.0), await acts.ledger.counts(batch.pk)
    told = await close(run, replace(batch, job_json=stopped), counts, code=Exit.DONE, lines=[])
    assert ("  3 predictions ended by cancel_after (5 s), or canceled at the provider; billed until then: $5.00 + 1 row of "
            "unknown cost") in told.lines
    assert not any("cancel_after" in line for line in (await closed(acts, batch)).lines)
