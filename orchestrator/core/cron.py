"""Cron on a zone's clocks: the instants that a rule of five fields means, where the clocks are changed too. Pure.

cronsim (2.x) reads the fields and walks them on a clock that is never changed; what a change does is decided here, because
cronsim's own rules, Debian cron's, lose `*/15 2 * * *` in spring, buy it twice in autumn, and put `0,30 2 * * *` on one
instant. Here a wall-clock time that does not exist comes as much later as the clocks were put forward (02:30 is 03:30), and one
that comes twice is the first of the two. Only a rule of every hour (`*`) goes on through both: an hour passes either way.
Where two times of a rule fall on the same instant, it is one slot.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

from orchestrator.core.nearest import did_you_mean

EXAMPLE = "0 2 * * *"
# Samoa left out a whole day in 2011; other clocks move by two hours at most. A wall-clock time is that near its instant.
_LONGEST_CHANGE = timedelta(hours=26)
_NO_CHANGE = datetime(2000, 1, 1)  # noqa: DTZ001 (a wall clock, which has no zone)


def check_cron(text: str) -> str:
    """The rule with single spaces. Raises ValueError with a sentence for what is no rule, or one that never comes."""
    fields = text.split()
    if len(fields) != 5:
        raise ValueError(f"{text!r} has {len(fields)} fields; cron has five fields: minute, hour, day of month, month, day of "
                         f"week, such as {EXAMPLE!r}")
    rule = " ".join(fields)
    try:
        next(CronSim(rule, _NO_CHANGE))
    except (CronSimError, ValueError) as error:
        what = str(error).removeprefix("Bad ").replace("-", " ")
        raise ValueError(f"{text!r} is no rule that can come: look at the {what}; such as {EXAMPLE!r}, every day at two"
                         ) from None
    except StopIteration:
        raise ValueError(f"{text!r} never comes; such as {EXAMPLE!r}, every day at two") from None
    return rule


def check_zone(name: str) -> str:
    """The name itself. Raises ValueError, with the nearest name, for what is no IANA time zone."""
    zone_of(name)
    return name


@lru_cache(maxsize=64)
def zone_of(name: str) -> ZoneInfo:
    """The zone of this IANA name. Raises ValueError with the nearest name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder of zones, such as Europe
        raise ValueError(f"{name!r} is no IANA time zone{did_you_mean(name, available_timezones())}; such as Europe/Berlin "
                         "or UTC") from None


def instants(rule: str, *, zone: str, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """The slots of a rule that has been checked, in (`after`, `until`], as UTC instants in order; the newest `limit`."""
    clocks = zone_of(zone)
    oldest = _wall(after, clocks) - _LONGEST_CHANGE
    found: set[datetime] = set()
    for wall in _walls_before(rule, _wall(until, clocks) + _LONGEST_CHANGE):
        if wall < oldest:
            break
        found.update(instant for instant in _meant(rule, wall, clocks) if after < instant <= until)
        if len(found) >= limit:  # what is older by more than any change cannot be among the newest
            oldest = max(oldest, wall - _LONGEST_CHANGE)
    return sorted(found)[-limit:]


def next_instant(rule: str, *, zone: str, after: datetime) -> datetime:
    """The first slot after this instant, UTC. The rule has been checked, so there is one."""
    clocks = zone_of(zone)
    for wall in CronSim(rule, _wall(after, clocks) - _LONGEST_CHANGE):
        later = [instant for instant in _meant(rule, wall, clocks) if instant > after]
        if later:  # a change may have put another one before it
            return instants(rule, zone=zone, after=after, until=min(later), limit=10_000)[0]
    raise ValueError(f"{rule!r} never comes again")


def _wall(instant: datetime, clocks: ZoneInfo) -> datetime:
    """What the clocks on the wall show then."""
    return instant.astimezone(clocks).replace(tzinfo=None, fold=0)


def _walls_before(rule: str, wall: datetime) -> Iterator[datetime]:
    """The rule's times on a clock that is never changed, newest first."""
    return CronSim(rule, wall, reverse=True)


def _meant(rule: str, wall: datetime, clocks: ZoneInfo) -> set[datetime]:
    """The instants that a wall-clock time of a rule means. PEP 495: in a gap, fold 0 counts from before the change."""
    first = wall.replace(tzinfo=clocks)
    if rule.split()[1] != "*" or _wall(first.astimezone(UTC), clocks) != wall:
        return {first.astimezone(UTC)}
    return {first.astimezone(UTC), first.replace(fold=1).astimezone(UTC)}
