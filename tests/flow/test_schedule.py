"""Looks of one scheduler or two, on a real SQLite and a clock moved by hand: each slot once, whatever happens in between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.core.errors import BadInput, OrchestratorError, ProviderAway, TokenRefused
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import NewBatch, Target
from orchestrator.core.schedule import SlotRun, SlotState
from orchestrator.flow import control
from orchestrator.flow.ingest import Order, load, prepare
from orchestrator.flow.schedule import TAKEN_OUT, Fired, ScheduledJob, Terms, begin, fire, look
from orchestrator.gateways.testing import HandClock
from orchestrator.settings import read_settings
from tests.flow.conftest import Stage

KEY = "jobs/night.yaml"
NIGHT = datetime(2026, 3, 28, 0, 0, tzinfo=UTC)  # the night before Berlin's clocks go forward


def scheduled(cron: str = "0 * * * *", *, source: str = "rows.csv", key: str = KEY, **schedule: Any) -> ScheduledJob:
    job = {"model": "simulator/echo", "source": {"path": source}, "schedule": {"cron": cron} | schedule}
    return ScheduledJob(key, Job.model_validate(job))


def at(hour: int, minute: int = 0) -> datetime:
    return NIGHT.replace(hour=hour, minute=minute)


@dataclass
class Desk:
    """A ledger, a clock, and starts that open a batch of no rows, or raise what they are told to."""

    rooms: Rooms
    clock: HandClock
    runs: list[SlotRun] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)

    async def start(self, run: SlotRun) -> str:
        """As ingest does it: one batch for each run key."""
        self.runs.append(run)
        if self.trouble:
            raise self.trouble.pop(0)
        batch, _ = await self.rooms.ledger.open_batch(NewBatch(
            id=f"b{len(self.runs)}", job="night", run_key=run.run_key, account="acme", created_at=self.clock.now(),
            target=Target("models", "acme/draw", None), job_json="{}", schema_json="{}", source_json="[]", price_json="null",
            output_to="/out", in_flight=1, max_attempts=1))
        await self.rooms.ledger.seal(batch.pk, total=0, source_schema_json="{}", now=self.clock.now())
        return batch.id

    async def at(self, moment: datetime, *jobs: ScheduledJob) -> list[Fired]:
        """One look at this moment."""
        self.clock.advance((moment - self.clock.now()).total_seconds())
        return await fire(self.rooms, jobs or [scheduled()], start=self.start)

    async def end(self, batch_id: str | None, *, to: BatchState = BatchState.FINISHED) -> None:
        """The batch has run."""
        batch = await self.rooms.ledger.batch(batch_id or "")
        assert batch is not None
        await self.rooms.ledger.set_state(batch.pk, to=to, allowed=frozenset(BatchState), reason=None, now=self.clock.now())

    async def slots(self, key: str = KEY) -> list[tuple[int, str, str | None]]:
        """Hour, state and reason of every slot, in order."""
        slots = await self.rooms.ledger.slots_of(key, limit=1000)
        return [(slot.slot_at.hour, slot.state.value, slot.reason) for slot in reversed(slots)]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """An empty ledger, just before one in the morning."""
    clock = HandClock(start_at=NIGHT + timedelta(minutes=50))
    settings = read_settings(tmp_path / "home", api_token=None)
    async with wiring.rooms(settings, token_needed=False) as rooms:
        yield Desk(replace(rooms, clock=clock), clock)


async def test_a_slot_is_started_once(desk: Desk) -> None:
    """The look that meets a slot starts it; the looks after it close it when its batch has ended, and start nothing."""
    assert await desk.at(at(0, 55)) == []
    assert await desk.at(at(1)) == [Fired(KEY, at(1), SlotState.RUNNING, "b1")]
    assert await desk.at(at(1, 1)) == []
    await desk.end("b1")
    assert await desk.at(at(1, 2)) == [Fired(KEY, at(1), SlotState.DONE, "b1")]
    assert await desk.at(at(1, 3)) == []
    assert len(desk.runs) == 1


async def test_nothing_from_before_it_was_known(desk: Desk) -> None:
    """A job met for the first time just after a slot has not missed it; nor has one whose rule was changed."""
    assert await desk.at(at(1, 1)) == []
    assert await desk.at(at(1, 59)) == []
    assert await desk.at(at(2, 1), scheduled("30 1 * * *")) == []
    assert await desk.at(at(2, 2), scheduled("30 2 * * *")) == []
    assert await desk.at(at(2, 30), scheduled("30 2 * * *")) == [Fired(KEY, at(2, 30), SlotState.RUNNING, "b1")]


def unscheduled() -> ScheduledJob:
    """The same job, its schedule commented out."""
    job = scheduled().job
    return ScheduledJob(KEY, job.model_copy(update={"schedule": None}))


@pytest.mark.parametrize("meanwhile", [scheduled("0 0 1 1 *"), unscheduled()], ids=["another rule", "no schedule"])
async def test_nothing_from_while_it_was_not_in_force(desk: Desk, meanwhile: ScheduledJob) -> None:
    """A rule that is taken back, or a schedule put back, has not missed what it would have started in between."""
    await desk.at(at(0, 55))
    (first,) = await desk.at(at(1))
    await desk.end(first.batch_id)
    assert await desk.at(at(1, 10), meanwhile) == [Fired(KEY, at(1), SlotState.DONE, "b1")]
    assert await desk.at(at(3), meanwhile) == []
    assert await desk.at(at(5, 2)) == []
    assert await desk.at(at(6)) == [Fired(KEY, at(6), SlotState.RUNNING, "b2")]
    assert await desk.slots() == [(1, "done", None), (6, "running", None)]


async def test_an_absence_is_still_one_after_changes(desk: Desk) -> None:
    """With the rule in force again, slots that nobody looked for are missed as ever."""
    for moment, job in ((at(0, 55), scheduled()), (at(1, 10), unscheduled()), (at(1, 20), scheduled())):
        await desk.at(moment, job)
    assert await desk.at(at(3, 30)) == [Fired(KEY, at(2), SlotState.SKIPPED, None, "missed"),
                                        Fired(KEY, at(3), SlotState.RUNNING, "b1")]


async def test_what_waited_is_taken_out_with_its_schedule(desk: Desk) -> None:
    """Slots in a queue do not outlive their schedule; the run under way does, and is closed when it has ended."""
    queue = scheduled(overlap="queue")
    for hour in (0, 1, 2, 3):
        await desk.at(at(hour, 59), queue)
    taken = [Fired(KEY, at(hour), SlotState.SKIPPED, None, TAKEN_OUT) for hour in (2, 3)]
    assert await desk.at(at(4, 10), unscheduled()) == taken
    assert await desk.at(at(4, 11), unscheduled()) == []
    await desk.end("b1")
    assert await desk.at(at(6, 30), queue) == [Fired(KEY, at(1), SlotState.DONE, "b1")]
    assert len(desk.runs) == 1


async def test_a_canceled_batch_closes_its_slot(desk: Desk) -> None:
    """An operator's cancel is the end of a slot, and is said."""
    await desk.at(at(0, 55))
    await desk.at(at(1))
    await desk.end("b1", to=BatchState.CANCELED)
    await desk.at(at(1, 1))
    assert await desk.slots() == [(1, "done", "its batch was canceled")]


@pytest.mark.parametrize(("missed", "expected", "started"), [
    ("run-once", [(1, "skipped", "missed"), (2, "skipped", "missed"), (3, "running", None)], 1),
    ("skip", [(1, "skipped", "missed"), (2, "skipped", "missed"), (3, "skipped", "missed")], 0)])
async def test_missed(desk: Desk, missed: str, expected: list[Any], started: int) -> None:
    """After an absence the newest slot runs once, or none does; each is noted, and found by no later look."""
    job = scheduled(missed=missed)
    await desk.at(at(0, 55), job)
    await desk.at(at(3, 30), job)
    assert await desk.at(at(3, 31), job) == []
    assert await desk.slots() == expected
    assert len(desk.runs) == started


async def test_overlap_skip(desk: Desk) -> None:
    """While the batch is on, even paused, slots are skipped; after it has ended the next one runs."""
    await desk.at(at(0, 55))
    await desk.at(at(1))
    assert await desk.at(at(2)) == [Fired(KEY, at(2), SlotState.SKIPPED, None, "overlap")]
    await desk.end("b1", to=BatchState.PAUSED)
    assert await desk.at(at(3)) == [Fired(KEY, at(3), SlotState.SKIPPED, None, "overlap")]
    await desk.end("b1")
    await desk.at(at(4))
    assert await desk.slots() == [(1, "done", None), (2, "skipped", "overlap"), (3, "skipped", "overlap"), (4, "running", None)]


async def test_overlap_queue(desk: Desk) -> None:
    """Slots that come meanwhile run one after another, in order, each with its own time, however late."""
    job = scheduled(overlap="queue")
    for hour in (0, 1, 2, 3):
        await desk.at(at(hour, 59), job)
    assert await desk.slots() == [(1, "running", None), (2, "due", None), (3, "due", None)]
    await desk.end("b1")
    assert [f.slot_at.hour for f in await desk.at(at(3, 59), job)] == [1, 2]
    await desk.end("b2")
    await desk.at(at(3, 59), job)
    assert await desk.slots() == [(1, "done", None), (2, "done", None), (3, "running", None)]
    assert [run.slot_at.hour for run in desk.runs] == [1, 2, 3]


async def test_a_wrong_job_fails_its_slot(desk: Desk) -> None:
    """A source that is not there ends the slot with that sentence; the next slot is tried anew."""
    await desk.at(at(0, 55))
    desk.trouble = [BadInput("there is no file in/2026-03-28.csv")]
    assert (await desk.at(at(1)))[0].state is SlotState.FAILED
    assert await desk.at(at(1, 1)) == []
    await desk.at(at(2))
    assert await desk.slots() == [(1, "failed", "there is no file in/2026-03-28.csv"), (2, "running", None)]


@pytest.mark.parametrize("error", [ProviderAway("nobody answers"), TokenRefused("the token is refused")])
async def test_what_is_away_leaves_a_slot_due(desk: Desk, error: OrchestratorError) -> None:
    """An outage is no mistake of the job: its slot is tried again after half a minute, for as long as it takes."""
    await desk.at(at(0, 55))
    desk.trouble = [error]
    assert (await desk.at(at(1)))[0].state is SlotState.DUE
    assert await desk.slots() == [(1, "due", f"waiting: {error}")]
    assert await desk.at(at(1) + timedelta(seconds=29)) == []
    assert await desk.at(at(1, 40)) == [Fired(KEY, at(1), SlotState.RUNNING, "b2")]


async def test_two_schedulers(desk: Desk) -> None:
    """Two that look at the same moments, for a day and a half with a change of the clocks in it, start each slot once."""
    job = scheduled("30 1-3 * * *", timezone="Europe/Berlin")
    other = replace(desk.rooms, owner="another:2")
    await desk.at(at(0, 55), job)
    for moment in range(0, 60 * 36, 10):
        desk.clock.advance((at(1) + timedelta(minutes=moment) - desk.clock.now()).total_seconds())
        pair = await asyncio.gather(*(fire(rooms, [job], start=desk.start) for rooms in (desk.rooms, other)))
        started = [fired for found in pair for fired in found if fired.state is SlotState.RUNNING]
        assert len(started) <= 1
        for fired in started:
            await desk.end(fired.batch_id)
    assert [f"{run.slot_at:%d %H:%M}" for run in desk.runs] == ["28 01:30", "28 02:30", "29 00:30", "29 01:30"]


async def test_a_scheduler_that_dies_in_mid_start(desk: Desk) -> None:
    """A slot claimed by a scheduler that was killed is started by another when the lease is over: the same run."""
    await desk.at(at(0, 55))
    desk.clock.advance(300)
    (run,) = (await look(desk.rooms, [scheduled()])).claimed
    lost = await desk.start(run)  # it got as far as its batch, but not to writing that down
    other = replace(desk, rooms=replace(desk.rooms, owner="another:2"))
    assert await other.at(at(1, 1)) == []
    assert await other.at(at(1, 2)) == [Fired(KEY, at(1), SlotState.RUNNING, lost)]
    assert {again.run_key for again in desk.runs} == {"jobs/night.yaml@2026-03-28T01:00:00Z"}


async def test_dying_over_and_over_keeps_the_policy(desk: Desk) -> None:
    """While a start is left half-way, later slots overlap it; none is started beside it."""
    await desk.at(at(0, 55))
    desk.clock.advance(300)
    await look(desk.rooms, [scheduled()])
    assert await desk.at(at(2)) == [Fired(KEY, at(2), SlotState.SKIPPED, None, "overlap"),
                                    Fired(KEY, at(1), SlotState.RUNNING, "b1")]


async def test_a_long_start_keeps_its_lease(desk: Desk) -> None:
    """A source that takes longer to load than a lease lasts stays with the scheduler that loads it."""
    terms = Terms(lease_s=0.04)
    rooms, hold = desk.rooms, desk.rooms.ledger.hold_slot
    held = 0

    async def start(run: SlotRun) -> str:
        nonlocal held
        while held < 3:
            desk.clock.advance(0.03)
            assert (await look(replace(rooms, owner="another:2"), [scheduled()], terms=terms)).claimed == []
            before = held
            while held == before:
                await asyncio.sleep(0.005)
        return await desk.start(run)

    async def counted(*args: Any, **kwargs: Any) -> bool:
        nonlocal held
        kept = await hold(*args, **kwargs)
        held += 1
        return kept

    await look(rooms, [scheduled()])
    desk.clock.advance(600)
    (run,) = (await look(rooms, [scheduled()], terms=terms)).claimed
    watched = replace(rooms, ledger=_With(rooms.ledger, hold_slot=counted))
    assert (await begin(watched, run, start=start, terms=terms)).state is SlotState.RUNNING


class _With:
    """A ledger with one call watched."""

    def __init__(self, ledger: Any, **watched: Callable[..., Any]) -> None:
        self._ledger = ledger
        self._watched = watched

    def __getattr__(self, name: str) -> Any:
        return self._watched.get(name) or getattr(self._ledger, name)


async def test_a_scheduler_that_is_stopped_hands_back(desk: Desk) -> None:
    """Told to stop in the middle of a start, it leaves the slot due, and the next scheduler begins at once."""
    await desk.at(at(0, 55))
    desk.clock.advance(300)
    (run,) = (await look(desk.rooms, [scheduled()])).claimed
    begun = asyncio.Event()

    async def start(_: SlotRun) -> str:
        begun.set()
        await asyncio.Event().wait()
        return ""

    task = asyncio.create_task(begin(desk.rooms, run, start=start))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await desk.at(at(1)) == [Fired(KEY, at(1), SlotState.RUNNING, "b1")]


async def test_jobs_do_not_wait_for_each_other(desk: Desk) -> None:
    """One job's trouble is its own: the others of the same look are started all the same, even beside a defect."""
    jobs = [scheduled(key=f"jobs/{name}.yaml") for name in "abc"]
    await desk.at(at(0, 55), *jobs)
    desk.trouble = [BadInput("wrong"), RuntimeError("a defect")]
    with pytest.raises(RuntimeError, match="a defect"):
        await desk.at(at(1), *jobs)
    assert [(await desk.slots(job.key))[0][1] for job in jobs] == ["failed", "running", "running"]


async def test_a_source_that_cannot_be_named_fails_its_slot(desk: Desk) -> None:
    """An expression in the source's path that fails on this very day is the job's mistake."""
    job = scheduled("0 1 * * *", source="in/{{ 1 // ((date[8:] | int) - 28) }}.csv")
    await desk.at(at(0, 55), job)
    (fired,) = await desk.at(at(1), job)
    assert fired.state is SlotState.FAILED
    assert "source.path: cannot be rendered" in str(fired.reason)


async def test_a_scheduled_run_goes_all_the_way_to_the_ledger(stage: Stage) -> None:
    """A slot is prepared and loaded from the source of its day, under the run key of job and slot."""
    clock = HandClock(start_at=NIGHT)
    rooms = replace(stage.rooms, clock=clock)
    (stage.folder / "in-2026-03-29.csv").write_text("text\none\ntwo\n")
    job = scheduled("30 2 * * *", timezone="Europe/Berlin", source="in-{{ date }}.csv")

    async def start(run: SlotRun) -> str:
        order = Order(job=run.job, name="night", folder=str(stage.folder), output_to="out/{{ batch }}",
                      output_base=str(stage.folder), run_key=run.run_key)
        batch, _ = await load(rooms, await prepare(rooms, order, book=None))
        await control.wake_all(rooms, batch)
        return batch.id

    clock.advance(2 * 3600)
    await fire(rooms, [job], start=start)
    clock.advance(23.5 * 3600)
    (fired,) = await fire(rooms, [job], start=start)
    batch = await rooms.ledger.batch(fired.batch_id or "")
    assert batch is not None
    assert (batch.total, batch.run_key) == (2, "jobs/night.yaml@2026-03-29T01:30:00Z")
    assert fired.slot_at == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # half past three, as there is no half past two
