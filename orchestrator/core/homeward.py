"""What part of its rate a batch may still buy at, so that nothing is bought that cannot be fetched before it is deleted."""

from dataclasses import dataclass

LOOK_S = 10.0  # a younger backlog is not looked at; bought a hundred times as fast as fetched, it is 1,000 s long by then
PAUSE_S = 60.0  # downloads that stand still for less than this have no other pace for it: a worker started anew, a lock
SAMPLE = 200  # rows that came home last, by which the pace is told


def passed_over(started: int) -> int:
    """How many of the oldest files do not count as a sign that downloads are behind: a few that no host gives must not slow a
    batch. Of so many rows that were ever started."""
    return 3 + started // 100


@dataclass(frozen=True, slots=True)
class Backlog:
    """What of a batch is not home, and how fast the last files came home. Rows, and seconds."""

    waiting: int  # ended there, not home; without the oldest, which are passed over
    age_s: float  # since when the first of these waits
    in_air: int  # bought, and not ended
    home: int  # came home last, SAMPLE at most
    home_s: float  # for so long they came
    idle_s: float  # and since then none has


def share(age_s: float, retention_s: float) -> float:
    """What part of its rate a batch may still buy at: 1.0 up to a quarter of the retention, falling evenly to 0.0 at a half.

    What is bought now waits behind all that is there, so it will be as old as this at least when its turn comes. Up to a quarter
    downloads are only busy. At a half there is as long again for what is in the air, for a line that becomes slower by half, and
    for a provider that deletes a little early. In between a rate is found at which as much is bought as comes home, as the age
    then stands still: nothing jumps between all and nothing."""
    return min(1.0, max(0.0, 2.0 - 4.0 * age_s / retention_s))


def wait_s(backlog: Backlog) -> float:
    """How long a row that is bought now will wait for its download once it has ended, should all go on as it goes.

    The age of the oldest file does not tell: it says how long the queue was when that file joined it. Where ten times as much is
    bought as comes home, the oldest is a quarter of an hour old when already two and a half hours of files wait behind it. So
    what waits is counted, and counted for as long as a file takes. What is in the air joins the queue as fast as what waits did
    (`waiting` in `age_s`), while downloads go on: it makes the queue longer by what they are slower than that."""
    each_s = (backlog.home_s + max(0.0, backlog.idle_s - PAUSE_S)) / max(1, backlog.home)
    joins_s = backlog.age_s / max(1, backlog.waiting)
    return backlog.waiting * each_s + backlog.in_air * max(0.0, each_s - joins_s)


def buys(age_s: float, backlog: Backlog | None, *, retention_s: float) -> float:
    """The part of its rate that a batch may buy at. `age_s`: of the oldest file that counts, by the provider's clock; 0.0 where
    none waits."""
    return share(max(age_s, wait_s(backlog) if backlog is not None else 0.0), retention_s)
