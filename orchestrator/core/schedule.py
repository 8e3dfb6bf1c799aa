"""Schedules: which slots have come, and what becomes of each. Pure; slots are rows, and the ledger decides who starts one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import PurePath

from orchestrator.core.cron import instants, next_instant, zone_of
from orchestrator.core.job import Job, Schedule
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.template import with_date

GRACE_S = 300.0  # a slot noticed so late still counts as on time
MOST_SLOTS = 1000  # noted in one look: of a longer absence the newest
MISSED, OVERLAP = "missed", "overlap"


class SlotState(StrEnum):
    """Where a slot stands. The last three are final."""

    DUE = "due"  # noted, to be started, or to be started when the one before it has ended
    RUNNING = "running"  # somebody starts it (no batch yet), or its batch runs
    DONE = "done"  # its batch has ended
    SKIPPED = "skipped"  # never started: missed, or overlapped
    FAILED = "failed"  # could not be started: the job or its source is wrong


@dataclass(frozen=True, slots=True)
class Slot:
    """One time at which a job was to run. `slot_at` is UTC; with the job's key it names the slot."""

    job: str
    slot_at: datetime
    state: SlotState
    reason: str | None  # why it was skipped or failed, or what it waits for
    batch_id: str | None
    batch_state: BatchState | None
    claimed_by: str | None
    lease_until: datetime | None  # of who starts it; of a due one: not before
    noted_at: datetime

    @property
    def has_ended(self) -> bool:
        """Whether its batch has."""
        return self.batch_state in (BatchState.FINISHED, BatchState.CANCELED)


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A slot to be noted."""

    slot_at: datetime
    state: SlotState
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SlotsStanding:
    """What the ledger knows of a job's slots. `known_at`: since when its rule is known; None: not yet."""

    known_at: datetime | None
    last_slot_at: datetime | None
    open: list[Slot] = field(default_factory=list)  # due or running, oldest first


@dataclass(frozen=True, slots=True)
class Plan:
    """What a look decides: start at most one slot; these are skipped, for a reason; these wait for their turn."""

    fire: datetime | None
    skipped: list[tuple[datetime, str]]
    queued: list[datetime]

    def notes(self) -> list[NewSlot]:
        """The same as rows."""
        due = [at for at in (self.fire, *self.queued) if at is not None]
        return [NewSlot(at, SlotState.DUE) for at in due] + [NewSlot(at, SlotState.SKIPPED, why) for at, why in self.skipped]


@dataclass(frozen=True, slots=True)
class SlotRun:
    """A slot to be started: its run key is job and slot, and its date stands in the job's paths."""

    key: str
    slot_at: datetime
    job: Job
    run_key: str
    date: str


def rule_of(schedule: Schedule) -> str:
    """Rule and zone as one text: slots from before this text was known are nobody's."""
    return f"{schedule.cron} {schedule.timezone}"


def slots_between(schedule: Schedule, *, after: datetime, until: datetime, limit: int = MOST_SLOTS) -> list[datetime]:
    """Slots in (`after`, `until`] as UTC instants in order; of more than `limit` the newest."""
    return instants(schedule.cron, zone=schedule.timezone, after=after, until=until, limit=limit)


def next_slot(schedule: Schedule, *, after: datetime) -> datetime:
    """The first slot after this instant, UTC."""
    return next_instant(schedule.cron, zone=schedule.timezone, after=after)


def decide(schedule: Schedule, *, since: datetime, now: datetime, waiting: Sequence[datetime] = (), busy: bool = False,
           grace_s: float = GRACE_S, most: int = MOST_SLOTS) -> Plan:
    """What becomes of the slots in (`since`, `now`], and of those that wait already.

    `since`: the last slot noted, or when the schedule became known. `busy`: the job's last batch has not ended. A slot
    noticed more than `grace_s` after its time is missed. With `run-once` the newest runs though missed, unless a later one is
    on time: that is the one run. A job never has two runs at once: slots that come meanwhile are skipped, or queue in order.
    """
    found = slots_between(schedule, after=since, until=now, limit=most)
    missed = _missed(schedule, found, before=now - timedelta(seconds=grace_s))
    ready = sorted({*waiting, *found}.difference(missed))
    fire = None if busy or not ready else ready[0]
    rest = [at for at in ready if at != fire]
    skipped = [(at, MISSED) for at in missed]
    if schedule.overlap == "queue":
        return Plan(fire, skipped, rest)
    return Plan(fire, skipped + [(at, OVERLAP) for at in rest], [])


def _missed(schedule: Schedule, found: Sequence[datetime], *, before: datetime) -> list[datetime]:
    late = [at for at in found if at < before]
    if schedule.missed == "run-once" and late and len(late) == len(found):
        return late[:-1]
    return late


def date_words(at: datetime, *, zone: str) -> dict[str, str]:
    """What a template may say of an instant: `date`, YYYY-MM-DD, as the zone's calendar has it then."""
    return {"date": f"{at.astimezone(zone_of(zone)):%Y-%m-%d}"}


def date_of(job: Job, *, at: datetime) -> str:
    """`{{ date }}` of a run at this instant: the date in the zone of the job's schedule, or in UTC."""
    return date_words(at, zone=job.schedule.timezone if job.schedule else "UTC")["date"]


def dated(job: Job, *, date: str) -> Job:
    """The job with `{{ date }}` in `source.path` filled in. Raises BadInput. `output.to` has its own names."""
    return _reading(job, with_date(job.source.path, date=date, where="source.path"))


def run_of(key: str, job: Job, *, slot_at: datetime) -> SlotRun:
    """What a slot starts: the job on the source of that slot. Raises BadInput where a path cannot be rendered."""
    date = date_of(job, at=slot_at)
    if job.schedule is None or job.schedule.source is None:
        return SlotRun(key, slot_at, dated(job, date=date), slot_run_key(key, slot_at=slot_at), date)
    source = with_date(job.schedule.source, date=date, where="schedule.source")
    return SlotRun(key, slot_at, _reading(job, source), slot_run_key(key, slot_at=slot_at), date)


def _reading(job: Job, path: str) -> Job:
    return job if path == job.source.path else job.model_copy(
        update={"source": job.source.model_copy(update={"path": path})})


def slot_run_key(key: str, *, slot_at: datetime) -> str:
    """Job and slot: `jobs/nightly.yaml@2026-03-29T01:30:00Z`."""
    return f"{key}@{slot_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def job_key(path: PurePath, *, home: PurePath) -> str:
    """How the ledger calls a job file: its path from the folder that holds the home, else folder and name.

    Both absolute. Schedulers on two machines mean the same job by it, wherever the project lies on each; two projects need two
    ledgers."""
    project = home.parent
    return (path.relative_to(project) if path.is_relative_to(project) else PurePath(*path.parts[-2:])).as_posix()


def split_open(slots: Collection[Slot], *, now: datetime) -> tuple[list[Slot], list[Slot], bool]:
    """Open slots by what they ask for: those whose batch has ended, those to be started, and whether a run is under way.

    One that somebody began to start, and whose lease is over without a batch, is to be started again."""
    ended = [slot for slot in slots if slot.state is SlotState.RUNNING and slot.has_ended]
    waiting = [slot for slot in slots if slot.state is SlotState.DUE or _is_abandoned(slot, now)]
    return ended, waiting, len(ended) + len(waiting) < len(slots)


def _is_abandoned(slot: Slot, now: datetime) -> bool:
    return (slot.state is SlotState.RUNNING and slot.batch_id is None
            and (slot.lease_until is None or slot.lease_until <= now))
