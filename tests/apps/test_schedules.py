"""What `jobs` says of schedules, and how a wrong one is reported."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import wiring
from orchestrator.apps.cli import look, schedules
from orchestrator.apps.orders import scheduled_jobs
from orchestrator.core.errors import BadInput
from orchestrator.core.job import Schedule
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.records import Role
from orchestrator.core.schedule import NewSlot, Slot, SlotState
from orchestrator.settings import read_settings

BERLIN = Schedule.model_validate({"cron": "30 2 * * *", "timezone": "Europe/Berlin"})
EVENING = datetime(2026, 3, 28, 20, 0, tzinfo=UTC)


def slot(state: str, *, reason: str | None = None, batch: str | None = None, batch_state: BatchState | None = None) -> Slot:
    at = datetime(2026, 3, 28, 1, 30, tzinfo=UTC)
    return Slot("jobs/night.yaml", at, SlotState(state), reason, batch, batch_state, None, None, at)


def test_the_next_slot_on_both_clocks() -> None:
    """The night in which half past two is left out: the next slot as Berlin's clocks show it, and in UTC."""
    assert schedules.line(BERLIN, last=None, now=EVENING) == (
        "  next Sun 2026-03-29 03:30 Europe/Berlin (2026-03-29 01:30 UTC); no slot yet")
    told = schedules.document(BERLIN, last=None, now=EVENING)
    assert (told["next_at"], told["next_local"], told["last"]) == ("2026-03-29T01:30:00Z", "2026-03-29T03:30:00+02:00", None)


@pytest.mark.parametrize(("last", "words"), [
    (slot("skipped", reason="missed"), "last 2026-03-28 02:30: skipped, missed"),
    (slot("failed", reason="there is no file"), "last 2026-03-28 02:30: failed, there is no file"),
    (slot("running", batch="n-1", batch_state=BatchState.RUNNING), "last 2026-03-28 02:30: running (batch n-1)"),
    (slot("running", batch="n-1", batch_state=BatchState.PAUSED), "last 2026-03-28 02:30: paused (batch n-1)"),
    (slot("running", batch="n-1", batch_state=BatchState.FINISHED), "last 2026-03-28 02:30: done (batch n-1)"),
])
def test_what_became_of_the_last_slot(last: Slot, words: str) -> None:
    """Its local time, its state, and why or as which batch."""
    assert schedules.line(BERLIN, last=last, now=EVENING).endswith(words)
    assert schedules.document(BERLIN, last=last, now=EVENING)["last"]["slot_at"] == "2026-03-28T01:30:00Z"


def write(folder: Path, schedule: str) -> Path:
    """A project with one job."""
    path = folder / "jobs" / "night.yaml"
    path.parent.mkdir()
    path.write_text(f"model: acme/shoes\nsource: {{ path: rows.csv }}\nschedule:\n{schedule}")
    return path


async def test_jobs_shows_what_the_ledger_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`jobs` finds the last slot by the job's key, and says whether any scheduler is at work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORCHESTRATOR_HOME", raising=False)
    write(tmp_path, '  cron: "30 2 * * *"\n')
    unknown = await look.jobs()
    assert unknown.document["jobs"][0]["schedule"]["last"] is None
    assert unknown.lines[-1].startswith("note: no scheduler is at work here")
    assert not (tmp_path / ".orchestrator").exists()
    now = wiring.clock().now()
    async with wiring.ledger(read_settings(tmp_path / ".orchestrator")) as ledger:
        await ledger.note_slots("jobs/night.yaml", [NewSlot(now - timedelta(days=1), SlotState.SKIPPED, "missed")], now=now)
        await ledger.beat(Role("scheduler@here:1", "scheduler", None, "1", now, now))
    known = await look.jobs()
    assert known.document["jobs"][0]["schedule"]["last"]["reason"] == "missed"
    assert json.loads(json.dumps(known.document)) == known.document
    assert known.lines[-1].endswith("skipped, missed")


def test_jobs_without_a_schedule_are_looked_at_too(tmp_path: Path) -> None:
    """A scheduler must see that a schedule was taken out; what is wrong with other jobs is only `run`'s to say."""
    path = write(tmp_path, '  cron: "30 2 * * *"\n')
    settings = read_settings(tmp_path / ".orchestrator")
    for text, cron in ((path.read_text(), "30 2 * * *"), (path.read_text().partition("schedule")[0], None)):
        path.write_text(text)
        ((job,), by_key, wrong) = scheduled_jobs(settings, tmp_path)
        assert (job.key, list(by_key), wrong) == ("jobs/night.yaml", ["jobs/night.yaml"], [])
        assert (job.job.schedule.cron if job.job.schedule else None) == cron


def test_a_wrong_schedule_has_its_place(tmp_path: Path) -> None:
    """Cron, zone and source are each reported with file, line and field."""
    path = write(tmp_path, '  cron: "0 25 * * *"\n  timezone: Europe/Berlim\n  source: "in/{{ day }}.csv"\n')
    with pytest.raises(BadInput) as caught:
        wiring.load_job(path, changes={})
    lines = [line.partition("night.yaml:")[2] for line in str(caught.value).splitlines()]
    assert [line.split(": ")[:2] for line in lines] == [
        ["4", "schedule.cron"], ["5", "schedule.timezone"], ["6", "schedule.source"]]
