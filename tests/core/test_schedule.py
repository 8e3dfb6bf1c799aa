"""Slots: each wall-clock time once, also where the clocks are changed; and what becomes of those missed or overlapped."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.core.errors import BadInput
from orchestrator.core.job import Job, Schedule
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.schedule import (
    Plan,
    Slot,
    SlotState,
    date_of,
    date_words,
    dated,
    decide,
    job_key,
    next_slot,
    run_of,
    slots_between,
    split_open,
)

BERLIN, NEW_YORK, LORD_HOWE, KOLKATA = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"
# Around each change of the clocks: half a day before it, in UTC. Lord Howe moves by thirty minutes.
CHANGES = {
    (BERLIN, "spring"): datetime(2026, 3, 28, 13, tzinfo=UTC), (BERLIN, "autumn"): datetime(2026, 10, 24, 13, tzinfo=UTC),
    (NEW_YORK, "spring"): datetime(2026, 3, 7, 19, tzinfo=UTC), (NEW_YORK, "autumn"): datetime(2026, 10, 31, 18, tzinfo=UTC),
    (LORD_HOWE, "spring"): datetime(2026, 10, 3, 3, tzinfo=UTC), (LORD_HOWE, "autumn"): datetime(2026, 4, 4, 3, tzinfo=UTC),
    (KOLKATA, "spring"): datetime(2026, 3, 28, 8, tzinfo=UTC),
}
DAY = timedelta(days=1)


def rule(cron: str, zone: str = BERLIN, **more: Any) -> Schedule:
    return Schedule.model_validate({"cron": cron, "timezone": zone} | more)


def local(instants: list[datetime], zone: str) -> list[str]:
    return [f"{at.astimezone(ZoneInfo(zone)):%H:%M%z}" for at in instants]


def slots(cron: str, zone: str, season: str) -> list[str]:
    start = CHANGES[zone, season]
    return local(slots_between(rule(cron, zone), after=start, until=start + DAY), zone)


@pytest.mark.parametrize(("cron", "zone", "season", "expected"), [
    ("30 2 * * *", BERLIN, "spring", ["03:30+0200"]),
    ("30 2 * * *", BERLIN, "autumn", ["02:30+0200"]),
    ("0,30 2 * * *", BERLIN, "spring", ["03:00+0200", "03:30+0200"]),
    ("*/30 2 * * *", BERLIN, "spring", ["03:00+0200", "03:30+0200"]),
    ("*/30 2 * * *", BERLIN, "autumn", ["02:00+0200", "02:30+0200"]),
    ("0 2,3 * * *", BERLIN, "spring", ["03:00+0200"]),
    ("0 2 * * *", BERLIN, "spring", ["03:00+0200"]),
    ("30 1,3 * * *", BERLIN, "autumn", ["01:30+0200", "03:30+0100"]),
    ("30 2 * * *", NEW_YORK, "spring", ["03:30-0400"]),
    ("30 1 * * *", NEW_YORK, "autumn", ["01:30-0400"]),
    ("15 2 * * *", LORD_HOWE, "spring", ["02:45+1100"]),
    ("45 1 * * *", LORD_HOWE, "autumn", ["01:45+1100"]),
    ("30 2 * * *", KOLKATA, "spring", ["02:30+0530"]),
])
def test_changed_clocks(cron: str, zone: str, season: str, expected: list[str]) -> None:
    """A time left out comes as much later as the clocks went forward; a time that comes twice is the first of the two."""
    assert slots(cron, zone, season) == expected


@pytest.mark.parametrize(("zone", "season", "hours"), [
    (BERLIN, "spring", 1), (BERLIN, "autumn", 1), (NEW_YORK, "spring", 1), (NEW_YORK, "autumn", 1), (KOLKATA, "spring", 1)])
def test_every_hour_goes_on(zone: str, season: str, hours: int) -> None:
    """A rule of every hour follows the hours that pass: none is doubled or left out when the clocks are changed."""
    start = CHANGES[zone, season]
    found = slots_between(rule("20 * * * *", zone), after=start, until=start + DAY)
    assert len(found) == 24
    assert {later - one for one, later in pairwise(found)} == {timedelta(hours=hours)}


def test_every_hour_where_half_an_hour_is_left_out() -> None:
    """The slot at two, which Lord Howe's clocks leave out, comes at half past."""
    assert slots("0 * * * *", LORD_HOWE, "spring")[11:15] == ["01:00+1030", "02:30+1100", "03:00+1100", "04:00+1100"]


def test_a_day_left_out() -> None:
    """Samoa had no 30 December 2011: its slot is that of the day after, not lost and not doubled."""
    around = {"after": datetime(2011, 12, 29, 0, tzinfo=UTC), "until": datetime(2012, 1, 1, 0, tzinfo=UTC)}
    daily = slots_between(rule("0 12 * * *", "Pacific/Apia"), **around)
    friday = slots_between(rule("0 12 * * 5", "Pacific/Apia"), **around)
    assert [f"{at.astimezone(ZoneInfo('Pacific/Apia')):%d}" for at in daily] == ["29", "31", "01"]
    assert friday == [daily[1]]


CRONS = ["30 2 * * *", "0,15,30,45 1-3 * * *", "*/20 2 * * *", "15 */2 * * *", "7 1 * * 0", "0 3 29 3 *"]
WHERE = st.sampled_from(sorted(CHANGES))


def walls(cron: str, zone: str, *, after: datetime, until: datetime) -> int:
    """How many different instants the wall-clock times of a rule mean: counted minute by minute, without cronsim's walk."""
    minute, hour, day, month, weekday = cron.split()
    clock = after.astimezone(ZoneInfo(zone)).replace(tzinfo=None, second=0, microsecond=0) - DAY
    meant = set()
    while clock < until.replace(tzinfo=None) + 2 * DAY:
        if (_in(minute, clock.minute, 60) and _in(hour, clock.hour, 24) and _in(day, clock.day, 32)
                and _in(month, clock.month, 13) and _in(weekday, clock.isoweekday() % 7, 7)):
            meant.add(clock.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC))
        clock += timedelta(minutes=1)
    return len([at for at in meant if after < at <= until])


def _in(field: str, value: int, most: int) -> bool:
    if field.startswith("*"):
        return value % int(field.partition("/")[2] or 1) == 0
    spans = [part.partition("-") for part in field.split(",")]
    return any(int(one) <= value <= int(last or one) for one, _, last in spans) and value < most


@settings(deadline=None, max_examples=60)
@given(where=WHERE, cron=st.sampled_from([*CRONS, "* * * * *", "5 * * * *"]),
       cuts=st.lists(st.integers(0, 4 * 1440 * 60), max_size=12))
def test_looks_at_any_moments_see_each_slot_once(where: tuple[str, str], cron: str, cuts: list[int]) -> None:
    """However four days around a change are cut into looks, together they see what one look sees: nothing twice, nothing
    lost."""
    start = CHANGES[where] - DAY
    schedule, end = rule(cron, where[0]), start + 4 * DAY
    moments = [start, *(start + timedelta(seconds=cut) for cut in sorted(cuts)), end]
    seen = [at for one, later in pairwise(moments) for at in slots_between(schedule, after=one, until=later, limit=10_000)]
    assert seen == slots_between(schedule, after=start, until=end, limit=10_000)
    assert len(seen) == len(set(seen))


@settings(deadline=None, max_examples=40)
@given(where=WHERE, cron=st.sampled_from(CRONS), offset_s=st.integers(0, 86_400))
def test_each_wall_clock_time_is_one_slot(where: tuple[str, str], cron: str, offset_s: int) -> None:
    """Counted minute by minute on the wall, every time of the rule has its one instant."""
    start = CHANGES[where] - timedelta(seconds=offset_s)
    found = slots_between(rule(cron, where[0]), after=start, until=start + 2 * DAY)
    assert len(found) == walls(cron, where[0], after=start, until=start + 2 * DAY)


@settings(deadline=None, max_examples=60)
@given(where=WHERE, cron=st.sampled_from([*CRONS, "5 * * * *"]), offset_s=st.integers(0, 2 * 86_400), limit=st.integers(1, 5))
def test_next_and_newest_agree_with_all(where: tuple[str, str], cron: str, offset_s: int, limit: int) -> None:
    """The next slot is the first of all that follow; a limit keeps the newest."""
    schedule, start = rule(cron, where[0]), CHANGES[where] + timedelta(seconds=offset_s) - DAY
    following = next_slot(schedule, after=start)
    assert slots_between(schedule, after=start, until=following) == [following]
    found = slots_between(schedule, after=start, until=start + 3 * DAY)
    assert slots_between(schedule, after=start, until=start + 3 * DAY, limit=limit) == found[-limit:]


def test_a_change_may_turn_the_order_round() -> None:
    """Lord Howe's 02:20 is left out and comes at 02:50, after 02:40: the next is the one, the newest the other."""
    schedule, start = rule("20,40 2 * * *", LORD_HOWE), CHANGES[LORD_HOWE, "spring"]
    assert local([next_slot(schedule, after=start)], LORD_HOWE) == ["02:40+1100"]
    assert local(slots_between(schedule, after=start, until=start + DAY, limit=1), LORD_HOWE) == ["02:50+1100"]


def test_a_leap_day_is_waited_for() -> None:
    """A rule for 29 February finds it years ahead."""
    assert next_slot(rule("0 0 29 2 *", "UTC"), after=datetime(2025, 1, 1, tzinfo=UTC)) == datetime(2028, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(("fields", "part"), [
    ({"cron": "* * *"}, "five fields"), ({"cron": "0 2 * * * *"}, "five fields"), ({"cron": "0 25 * * *"}, "look at the hour"),
    ({"cron": "0 2 * * mo"}, "look at the day of week"), ({"cron": "0 0 30 2 *"}, "look at the day of month"),
    ({"cron": "0 0 31 4,6 *"}, "no rule that can come"),
    ({"cron": "0 2 * * *", "timezone": "Europe/Berlim"}, "did you mean 'Europe/Berlin'"),
    ({"cron": "0 2 * * *", "timezone": "CEST+1"}, "no IANA time zone"), ({"cron": "0 2 * * *", "timezone": "Europe"}, "no IANA"),
    ({"cron": "0 2 * * *", "timezone": "../etc/passwd"}, "no IANA"),
    ({"cron": "0 2 * * *", "source": "in/{{ day }}.csv"}, "schedule.source: unknown name 'day'"),
    ({"cron": "0 2 * * *", "missed": "all"}, "'run-once' or 'skip'"),
])
def test_wrong_schedules(fields: dict[str, str], part: str) -> None:
    """What is wrong is named, with what would be right."""
    with pytest.raises(ValidationError) as caught:
        Schedule.model_validate(fields)
    assert part in str(caught.value)


def test_a_rule_is_kept_with_single_spaces() -> None:
    """Two ways to write a rule are one rule to the ledger."""
    assert rule(" 0  2 * *   1-5 ").cron == "0 2 * * 1-5"


NOON = datetime(2026, 1, 5, 12, 0, 20, tzinfo=UTC)


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 1, 5, hour, minute, tzinfo=UTC)


def plan(since: datetime, *, cron: str = "0 * * * *", now: datetime = NOON, missed: str = "run-once", overlap: str = "skip",
         **more: Any) -> Plan:
    return decide(rule(cron, "UTC", missed=missed, overlap=overlap), since=since, now=now, **more)


def test_a_slot_on_time_is_started() -> None:
    """Twenty seconds after its time a slot is started; the same look again, from that slot on, finds nothing."""
    assert plan(at(11)) == Plan(at(12), [], [])
    assert plan(at(12)) == Plan(None, [], [])


def test_missed_run_once() -> None:
    """Of all slots missed the newest runs; where one is on time, that one runs and all missed ones are noted."""
    assert plan(at(8), now=at(11, 30)) == Plan(at(11), [(at(9), "missed"), (at(10), "missed")], [])
    assert plan(at(9)) == Plan(at(12), [(at(10), "missed"), (at(11), "missed")], [])


def test_missed_skip() -> None:
    """No slot missed is run, however new it is."""
    assert plan(at(9), now=at(11, 30), missed="skip") == Plan(None, [(at(10), "missed"), (at(11), "missed")], [])


@pytest.mark.parametrize(("late_s", "fires"), [(300, True), (301, False)])
def test_grace(late_s: int, fires: bool) -> None:
    """A slot noticed within the grace is on time, its last second included."""
    found = plan(at(11), now=at(12) + timedelta(seconds=late_s), missed="skip", grace_s=300)
    assert (found.fire == at(12)) is fires
    assert bool(found.skipped) is not fires


def test_overlap() -> None:
    """While the last run is on, a slot is skipped, or waits its turn."""
    assert plan(at(11), busy=True) == Plan(None, [(at(12), "overlap")], [])
    assert plan(at(11), busy=True, overlap="queue") == Plan(None, [], [at(12)])
    assert plan(at(12), waiting=[at(11), at(12)], overlap="queue") == Plan(at(11), [], [at(12)])


def test_two_on_time_in_one_look() -> None:
    """A job never has two runs at once: the second of two slots overlaps the first."""
    assert plan(at(11, 57), cron="*/2 * * * *") == Plan(at(11, 58), [(at(12), "overlap")], [])
    assert plan(at(11, 57), cron="*/2 * * * *", overlap="queue") == Plan(at(11, 58), [], [at(12)])


def test_a_long_absence_is_noted_within_bounds() -> None:
    """After a year without a scheduler a minutely job notes the newest slots, not half a million."""
    found = plan(NOON - 365 * DAY, cron="* * * * *", now=NOON + timedelta(minutes=0), missed="skip", most=50, grace_s=0)
    assert len(found.skipped) == 50
    assert found.skipped[-1] == (at(12), "missed")


def job(**fields: Any) -> Job:
    return Job.model_validate({"model": "acme/shoes", "source": {"path": "in/{{ date }}.csv"}} | fields)


def test_the_date_is_the_zone_s() -> None:
    """Two in the morning in Berlin is the evening before in UTC, but the day is Berlin's."""
    late = datetime(2026, 7, 1, 22, 30, tzinfo=UTC)
    assert date_words(late, zone=BERLIN) == {"date": "2026-07-02"}
    assert date_of(job(), at=late) == "2026-07-01"
    assert dated(job(), date=date_of(job(), at=late)).source.path == "in/2026-07-01.csv"


def test_a_slot_reads_the_source_of_its_day() -> None:
    """The schedule's source is rendered with the slot's date, and the run key is job and slot."""
    slot_at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    schedule = {"cron": "30 2 * * *", "timezone": BERLIN}
    run = run_of("jobs/night.yaml", job(schedule=schedule | {"source": "night/{{ date }}.parquet"}), slot_at=slot_at)
    assert (run.job.source.path, run.date) == ("night/2026-03-29.parquet", "2026-03-29")
    assert run.run_key == "jobs/night.yaml@2026-03-29T01:30:00Z"
    assert run_of("k", job(schedule=schedule), slot_at=slot_at).job.source.path == "in/2026-03-29.csv"


def test_wrong_dates_in_paths() -> None:
    """A name that is no name of a path, and an expression that fails, are the job's mistakes."""
    with pytest.raises(ValidationError, match=r"source\.path: unknown name 'dat' \(did you mean 'date'\?\)"):
        job(source={"path": "in/{{ dat }}.csv"})
    with pytest.raises(ValidationError, match=r"source\.path: cannot be rendered"):
        job(source={"path": "in/{{ date.year.month }}.csv"})
    with pytest.raises(BadInput, match="cannot be rendered"):
        dated(job(source={"path": "in/{{ 1 // ((date[:4] | int) - 2020) }}.csv"}), date="2020-01-01")


def test_paths_without_braces_are_left_alone() -> None:
    """A file name that merely looks odd is no template."""
    plain = job(source={"path": "in/{#1}%}.csv"})
    assert dated(plain, date="2026-01-01") is plain


def test_job_keys() -> None:
    """Wherever the project lies, its job has one key; a file from elsewhere is called by folder and name."""
    assert job_key(PurePosixPath("/a/p/jobs/x.yaml"), home=PurePosixPath("/a/p/.orchestrator")) == "jobs/x.yaml"
    assert job_key(PurePosixPath("/srv/p/jobs/x.yaml"), home=PurePosixPath("/srv/p/.orchestrator")) == "jobs/x.yaml"
    assert job_key(PurePosixPath("/app/jobs/x.yaml"), home=PurePosixPath("/var/lib/home")) == "jobs/x.yaml"


def test_a_mid_start_left_by_the_dead_is_started_again() -> None:
    """A claim whose lease is over without a batch waits again; with a batch, or within the lease, the job is busy."""
    def slot(state: str, *, lease_until: datetime | None = None, batch: BatchState | None = None) -> Slot:
        return Slot("j", at(9), SlotState(state), None, "b" if batch else None, batch, "me", lease_until, at(9))

    dead, alive = slot("running", lease_until=at(11)), slot("running", lease_until=at(13))
    on, over = slot("running", batch=BatchState.PAUSED), slot("running", batch=BatchState.FINISHED)
    assert split_open([dead], now=NOON) == ([], [dead], False)
    assert split_open([alive], now=NOON) == ([], [], True)
    assert split_open([on], now=NOON) == ([], [], True)
    assert split_open([over, slot("due")], now=NOON) == ([over], [slot("due")], False)
