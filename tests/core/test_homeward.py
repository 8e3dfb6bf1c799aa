"""Buying slows down before more is bought than can be fetched, and goes on as soon as it can."""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.homeward import LOOK_S, PAUSE_S, SAMPLE, Backlog, buys, passed_over, share, wait_s

HOUR = 3600.0
HEARD_S = 15  # ends are heard of so often, where webhooks fail


@dataclass(slots=True)
class Line:
    """A batch on its way home, second by second: bought at a rate, in the air for a while, heard of, fetched oldest first."""

    per_s: Callable[[int], float]  # bought a second at most, by the second
    fetches: Callable[[int], float]  # files a second, by the second
    latency_s: int
    in_flight: int
    by_age_alone: bool = False
    air: list[int] = field(default_factory=list)
    unheard: list[int] = field(default_factory=list)
    waiting: deque[int] = field(default_factory=deque)
    home: deque[tuple[int, int]] = field(default_factory=deque)  # the last: when it ended, and when it was home
    bought: list[int] = field(default_factory=list)  # by the second
    parts: list[float] = field(default_factory=list)
    oldest_s: int = 0  # at which a file came home
    fetched: int = 0

    def run(self, hours: float) -> "Line":
        """So many hours, from an empty line."""
        credit = hands = 0.0
        for now in range(int(hours * HOUR)):
            self._end(now)
            self.parts.append(self._part(now))
            credit = min(credit + self.per_s(now) * self.parts[-1], max(1.0, self.per_s(now)))
            self._buy(now, min(int(credit), max(0, self.in_flight - len(self.air))))
            credit -= int(credit)
            hands = hands + self.fetches(now) if self.waiting else min(hands, 1.0)
            hands -= self._fetch(now, int(hands))
        return self

    def _end(self, now: int) -> None:
        while self.air and self.air[0] <= now:
            self.unheard.append(heapq.heappop(self.air))
        if now % HEARD_S == 0:
            self.waiting.extend(self.unheard)
            self.unheard.clear()

    def _buy(self, now: int, count: int) -> None:
        self.bought.append(count)
        for n in range(count):  # some take four tenths less, some as much more
            heapq.heappush(self.air, now + 1 + int(self.latency_s * (0.6 + 0.8 * ((len(self.bought) * 31 + n * 17) % 100) / 100)))

    def _fetch(self, now: int, count: int) -> int:
        count = min(count, len(self.waiting))
        for _ in range(count):
            ended = self.waiting.popleft()
            self.oldest_s = max(self.oldest_s, now - ended)
            self.home.append((ended, now))
            self.fetched += 1
        while len(self.home) > SAMPLE:
            self.home.popleft()
        return count

    def _part(self, now: int) -> float:
        over = passed_over(self.fetched + len(self.waiting) + len(self.unheard) + len(self.air))
        if len(self.waiting) <= over:
            return buys(0.0, None, retention_s=HOUR)
        age_s = float(now - self.waiting[over])
        counts = age_s >= LOOK_S and not self.by_age_alone
        return buys(age_s, self._backlog(now, over, age_s) if counts else None, retention_s=HOUR)

    def _backlog(self, now: int, over: int, age_s: float) -> Backlog:
        home_s, idle_s = 0.0, age_s
        if self.home:
            since = self.home[0][1] if len(self.home) == SAMPLE else self.home[0][0]
            home_s, idle_s = float(self.home[-1][1] - since), float(now - self.home[-1][1])
        return Backlog(len(self.waiting) - over, age_s, len(self.air), len(self.home), home_s, idle_s)


@given(st.floats(0, 10_000), st.floats(0, 10_000), st.floats(1, 10_000))
def test_older_is_never_faster(one: float, other: float, retention_s: float) -> None:
    """A part of the rate, and less of it the older what waits is."""
    young, old = sorted((one, other))
    assert 0.0 <= share(old, retention_s) <= share(young, retention_s) <= 1.0


@pytest.mark.parametrize(("age_s", "part"), [(0, 1.0), (900, 1.0), (1125, 0.75), (1350, 0.5), (1800, 0.0), (9999, 0.0)])
def test_between_a_quarter_and_a_half(age_s: float, part: float) -> None:
    """All of the rate up to a quarter of the hour, nothing from half of it, evenly less between."""
    assert share(age_s, HOUR) == pytest.approx(part)


def test_what_waits_counts_for_as_long_as_a_file_takes() -> None:
    """A hundred files at half a second each; what is in the air adds what downloads are slower than ends."""
    assert wait_s(Backlog(100, 50.0, 40, SAMPLE, SAMPLE * 0.5, 1.0)) == pytest.approx(50.0)
    assert wait_s(Backlog(100, 10.0, 40, SAMPLE, SAMPLE * 0.5, 1.0)) == pytest.approx(50.0 + 40 * 0.4)


def test_a_pause_is_no_pace() -> None:
    """Standing still for less than a minute changes nothing; for longer, each file takes the longer."""
    assert wait_s(Backlog(100, 50.0, 0, SAMPLE, 100.0, PAUSE_S)) == wait_s(Backlog(100, 50.0, 0, SAMPLE, 100.0, 0.0))
    assert wait_s(Backlog(100, 50.0, 0, SAMPLE, 100.0, PAUSE_S + 100)) == pytest.approx(100.0)


def test_nothing_ever_came_home() -> None:
    """Without a single file home nothing is held back for a minute; then it is, and soon all is."""
    assert buys(50.0, Backlog(30, 50.0, 10, 0, 0.0, 50.0), retention_s=HOUR) == 1.0
    assert buys(150.0, Backlog(30, 150.0, 10, 0, 0.0, 150.0), retention_s=HOUR) == 0.0


@pytest.mark.parametrize(("per_s", "slower", "latency_s", "in_flight"), [
    (10, 2, 5, 200), (10, 10, 5, 200), (10, 10, 60, 2000), (10, 4, 900, 100_000), (10, 2, 1800, 100_000), (10, 10, 600, 2000),
    (10, 50, 60, 2000), (10, 100, 10, 200)])
def test_slow_downloads(per_s: float, slower: float, latency_s: int, in_flight: int) -> None:
    """Downloads so much slower than buying: every file is fetched before its hour is over, downloads are never idle, and
    buying never stops for good."""
    line = Line(lambda _: per_s, lambda _: per_s / slower, latency_s, in_flight).run(5)
    assert line.oldest_s < HOUR - 300
    assert line.fetched > 0.85 * per_s / slower * (5 * HOUR - latency_s - HEARD_S)
    assert all(sum(line.bought[start:start + 3600]) for start in range(0, 4 * 3600, 900))


def test_age_alone_is_not_enough() -> None:
    """Why files are counted: held back by the age of the oldest alone, most files of a line ten times too slow expire."""
    line = Line(lambda _: 10, lambda _: 1.0, 5, 200, by_age_alone=True).run(4)
    assert line.oldest_s > 2 * HOUR


@pytest.mark.parametrize(("per_s", "spare", "latency_s"), [
    (10, 1.05, 5), (10, 1.05, 600), (10, 1.05, 1800), (10, 3, 1800), (100, 1.05, 60)])
def test_downloads_that_keep_pace(per_s: float, spare: float, latency_s: int) -> None:
    """Where files come home as fast as they are made, however long a prediction takes, buying is never held back."""
    line = Line(lambda _: per_s, lambda _: per_s * spare, latency_s, 100_000).run(1.5)
    assert min(line.parts) == 1.0


@pytest.mark.parametrize("latency_s", [60, 600, 1500])
def test_a_rate_that_rises(latency_s: int) -> None:
    """A batch that is bought ten times as fast from one moment on is not held back by the pace of what came home before."""
    line = Line(lambda now: 1 if now < 3600 else 10, lambda _: 10.5, latency_s, 100_000).run(2)
    assert min(line.parts) == 1.0


def test_a_line_that_becomes_slower() -> None:
    """From half the need to a quarter of it, when the queue is as long as it may be: still nothing expires."""
    line = Line(lambda _: 10, lambda now: 5.0 if now < 5400 else 2.5, 60, 2000).run(4)
    assert line.oldest_s < HOUR - 300


@pytest.mark.parametrize("lasts_s", [45, 600, 2700])
def test_an_outage_of_downloads(lasts_s: int) -> None:
    """A short one holds nothing back, a long one ends the buying before it is too late; afterwards the full rate is back."""
    line = Line(lambda _: 10, lambda now: 0.0 if 1800 < now <= 1800 + lasts_s else 20.0, 60, 2000).run(2)
    assert line.oldest_s < HOUR
    assert (min(line.parts) == 1.0) == (lasts_s < PAUSE_S)
    assert min(line.parts[1800 + lasts_s + 900:]) == 1.0


def test_a_queue_that_does_not_grow() -> None:
    """Three quarters of a minute of files wait for good, as downloads are no faster than ends; what is long in the air, as much
    as a quarter of an hour of it, comes no faster either and holds nothing back."""
    line = Line(lambda _: 10, lambda now: 0.0 if 3600 < now <= 3645 else 10.0, 1000, 100_000).run(2)
    assert line.waiting[0] < 2 * HOUR - 40
    assert min(line.parts[3645 + 60:]) == 1.0


def test_a_few_stubborn_files_slow_nothing() -> None:
    """Files that no host gives are a handful at first, and one in a hundred of many."""
    assert [passed_over(started) for started in (0, 99, 100, 100_000)] == [3, 3, 4, 1003]
