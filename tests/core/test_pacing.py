import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.heeding import SLOWEST, heard
from orchestrator.core.pacing import HORIZON_S, MICROSECONDS, MINUTE_US, Bucket, Rate, longer_pause, pause_us, rate_of, reserve
from orchestrator.core.permits import Budget, Flow, Heard
from orchestrator.gateways.testing import HandClock, MemoryLimiter
from tests.core.market import now

SECOND = MICROSECONDS
TEN_A_SECOND = Rate(100_000, 10)
HORIZON = SECOND // 2


def most_in_a_minute(times: list[int]) -> int:
    """The largest number of permits in any 60 s, both ends counted."""
    times = sorted(times)
    most = first = 0
    for last, time in enumerate(times):
        while times[first] < time - MINUTE_US:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_unknown_bucket_is_empty() -> None:
    """A bucket nobody remembers gives its first permit one interval after the horizon."""
    answer = reserve([TEN_A_SECOND], [Bucket()], count=5, now_us=0)
    assert (answer.count, answer.first_in_us, answer.reason) == (0, 350_000, "limit")
    later = reserve([TEN_A_SECOND], answer.buckets, count=5, now_us=100_000)
    assert (later.count, later.first_in_us) == (1, 500_000)


def test_come_back_for_several() -> None:
    """Who is refused comes back when half a horizon of permits waits, or when there are as many as wanted."""
    empty = reserve([TEN_A_SECOND], [Bucket()], count=1, now_us=0)
    assert empty.first_in_us == 100_000
    assert reserve([TEN_A_SECOND], empty.buckets, count=2, now_us=0).first_in_us == 200_000
    at_us = reserve([TEN_A_SECOND], empty.buckets, count=90, now_us=0).first_in_us
    later = reserve([TEN_A_SECOND], empty.buckets, count=90, now_us=at_us)
    assert (at_us, later.count, later.first_in_us) == (350_000, 3, 250_000)


def test_burst_after_idling() -> None:
    """After a long rest exactly `burst` permits are usable at once, and further ones wait."""
    answer = reserve([TEN_A_SECOND], [Bucket(0)], count=10, now_us=60 * SECOND)
    assert (answer.count, answer.first_in_us, answer.every_us) == (10, 0, 0)
    more = reserve([TEN_A_SECOND], answer.buckets, count=10, now_us=60 * SECOND)
    assert (more.count, more.first_in_us, more.every_us) == (5, 100_000, 100_000)


def test_more_than_the_burst_is_spread_to_the_horizon() -> None:
    """A greedy call gets burst and horizon in one even schedule that ends less than an interval before the horizon."""
    answer = reserve([TEN_A_SECOND], [Bucket(0)], count=1000, now_us=60 * SECOND)
    assert answer.count > 10
    assert HORIZON - 100_000 < (answer.count - 1) * answer.every_us <= HORIZON


def test_the_tightest_budget_decides() -> None:
    """Two budgets at once grant what both allow, and both are charged for it."""
    slow = Rate(200_000, 1)
    answer = reserve([TEN_A_SECOND, slow], [Bucket(0), Bucket(0)], count=100, now_us=60 * SECOND)
    assert (answer.count, answer.every_us) == (3, 200_000)
    assert [bucket.tat_us for bucket in answer.buckets] == [60 * SECOND + 500_000, 60 * SECOND + 600_000]


def test_no_limit() -> None:
    """A rate of zero, below zero or infinite grants all at once and remembers no time."""
    for per_minute in (0, -1, math.inf, math.nan):
        rate = rate_of(Budget("x", per_minute, 1))
        answer = reserve([rate], [Bucket()], count=777, now_us=5)
        assert (answer.count, answer.first_in_us, answer.every_us) == (777, 0, 0)
        assert answer.buckets == (Bucket(served=777, noted_us=5),)


def test_interval_is_rounded_up() -> None:
    """A rate that does not divide the minute is kept from below, and a burst below one counts as one."""
    assert rate_of(Budget("x", 7000, 0)) == Rate(8572, 1)


def test_pause_holds_without_limit_too() -> None:
    """The longest pause over all budgets answers with its reason and its time, even where no limit is set."""
    buckets = [Bucket(0, 4 * SECOND, "short"), Bucket(0, 9 * SECOND, "long")]
    answer = reserve([TEN_A_SECOND, Rate(0, 1)], buckets, count=1, now_us=SECOND)
    assert (answer.count, answer.first_in_us, answer.reason) == (0, 8 * SECOND, "long")


def test_pause_empties_the_bucket() -> None:
    """What follows a pause begins with one permit at its end, not with a burst."""
    answer = reserve([TEN_A_SECOND], [Bucket(0, 9 * SECOND, "429")], count=3, now_us=9 * SECOND)
    assert (answer.count, answer.first_in_us, answer.every_us) == (3, 0, 100_000)


def test_longer_pause_stands() -> None:
    """A shorter pause changes nothing, a longer one replaces time and reason."""
    bucket = longer_pause(Bucket(), now_us=0, for_us=10, reason="a")
    assert longer_pause(bucket, now_us=4, for_us=6, reason="b") is bucket
    assert longer_pause(bucket, now_us=4, for_us=7, reason="b") == Bucket(None, 11, "b", noted_us=4)


def test_clock_set_back_heals() -> None:
    """A bucket from a far future counts as empty, so a clock set back costs half a second and not an hour."""
    answer = reserve([TEN_A_SECOND], [Bucket(3600 * SECOND)], count=1, now_us=0)
    assert answer.first_in_us == 100_000


rates = st.builds(Rate, st.sampled_from([20_000, 61_728, 100_000, 1_000_000, 10_000_000]), st.integers(1, 15))
steps = st.lists(
    st.tuples(
        st.one_of(st.integers(0, SECOND), st.integers(0, 40 * SECOND)),  # time that passes
        st.integers(1, 300),  # permits wanted
        st.sampled_from(["reserve", "reserve", "reserve", "reserve", "come back", "flush", "pause", "one"]),
    ),
    min_size=1, max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(st.tuples(rates, rates), steps)
def test_no_window_exceeds_rate_and_burst(pair: tuple[Rate, Rate], script: list[tuple[int, int, str]]) -> None:
    """Whatever is asked, forgotten or paused, no 60 s hold more than per_minute + burst, and nothing lies too far."""
    now_us, come_back = 0, 0
    buckets = [Bucket(), Bucket()]
    spent: tuple[list[int], list[int]] = ([], [])
    for passed, wanted, verb in script:
        now_us += come_back if verb == "come back" else passed
        if verb == "flush":
            buckets = [Bucket(), Bucket()]
        elif verb == "pause":
            buckets[0] = longer_pause(buckets[0], now_us=now_us, for_us=passed, reason="429")
        users = [0] if verb == "one" else [0, 1]
        answer = reserve([pair[i] for i in users], [buckets[i] for i in users], count=wanted, now_us=now_us)
        times = [now_us + answer.first_in_us + i * answer.every_us for i in range(answer.count)]
        come_back = 0 if times else answer.first_in_us
        assert answer.count <= wanted
        assert all(time <= now_us + HORIZON for time in times)
        for i, bucket in zip(users, answer.buckets, strict=True):
            buckets[i] = bucket
            spent[i].extend(times)
    for rate, times in zip(pair, spent, strict=True):
        assert most_in_a_minute(times) <= MINUTE_US // rate.interval_us + rate.burst


FLOWS = [None, Flow("x", 50), Flow("y", 90, has_more=True), Flow("z", 1)]
SHARED, OWN, FREE = Budget("creates", 600, 10), Budget("batch", 300, 3), Budget("free", 0, 1)
passing = st.one_of(st.just(0.0), st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0, 15), st.floats(0, 90))
reserving = st.tuples(st.just("reserve"), st.integers(0, 3), st.sampled_from([1, 3, 40, 300]), st.booleans())
hearing = st.tuples(st.just("hear"), st.sampled_from([None, 0, 1, 5, 12, 599]), st.integers(-12, 3), st.integers(0, 6))
throttling = st.tuples(st.just("throttle"), st.floats(0, 5), st.integers(-12, 3), st.booleans())
acts = st.lists(st.tuples(passing, st.one_of(
    reserving, reserving, reserving, hearing, hearing, throttling,
    st.tuples(st.just("pause"), st.floats(0, 30)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("set back"), st.sampled_from([0.05, 3.0, 400.0, 90_000.0])),
    st.tuples(st.just("full use"), st.floats(0.5, 70)),
)), min_size=1, max_size=60)


class Play:
    """One limiter, whoever asks it, and the moments of all permits on a clock that nobody sets. A worker that dies uses no
    permit, so all permits that were ever granted are the worst case."""

    def __init__(self, shared: Budget) -> None:
        self.clock, self.real_s, self.serial = HandClock(), 0.0, 0
        self.clock.advance(1_000_000)
        self.limiter, self.shared = MemoryLimiter(self.clock), shared
        self.used: dict[str, list[int]] = {shared.key: [], OWN.key: []}
        self.granted_us: list[int] = []

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.real_s += seconds

    def reserve(self, which: int = 0, count: int = 300, has_own: bool = False) -> float:
        budgets = [self.shared, OWN] if has_own else [self.shared]
        grant = now(self.limiter.reserve(budgets, count=count, flow=FLOWS[which]))
        times = [round((self.real_s + grant.first_in_s + n * grant.every_s) * MICROSECONDS) for n in range(grant.count)]
        assert grant.count <= count
        assert not times or times[-1] <= (self.real_s + HORIZON_S) * MICROSECONDS + 1
        for budget in budgets:
            self.used[budget.key] += times
        self.granted_us += times
        self.serial = grant.serial
        return grant.first_in_s + max(0, grant.count - 1) * grant.every_s

    def do(self, verb: str, *told: Any) -> None:
        """One act of the script."""
        if verb == "reserve":
            self.reserve(*told)
        elif verb == "hear":
            remaining, newer, missed = told
            heard = Heard(self.serial + newer, answered=missed < 4, remaining=remaining, missed=missed, trouble="timeout")
            now(self.limiter.hear(self.shared, heard))
        elif verb == "throttle":
            seconds, newer, is_low = told
            now(self.limiter.throttle(self.shared, serial=self.serial + newer, seconds=seconds, reason="429",
                                      is_low_credit=is_low))
        elif verb == "pause":
            now(self.limiter.pause(self.shared.key, seconds=told[0], reason="outage"))
        elif verb == "flush":
            self.limiter.flush()
        elif verb == "set back":
            self.clock.advance(-told[0])
        else:
            self.use(told[0])

    def use(self, seconds: float) -> None:
        """One greedy worker for so long."""
        until_s = self.real_s + seconds
        while self.real_s < until_s:
            self.wait(min(max(0.05, self.reserve()), until_s - self.real_s + 0.001))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([(600, 10), (600, 1), (60, 3), (7, 1), (30_000, 50)]), acts)
def test_whatever_is_said_no_window_exceeds_rate_and_burst(terms: tuple[int, int], script: list[tuple[float, Any]]) -> None:
    """Any interleaving of askers, answers, 429s, low credit, pauses, breakers, flushes, deaths, clocks set back: no 60 s hold
    more than the budget's rate and burst, of the shared budget and of a flow's own."""
    play = Play(Budget("creates", *terms))
    for passed, (verb, *told) in script:
        play.wait(passed)
        play.do(verb, *told)
    for budget in (play.shared, OWN):
        rate = rate_of(budget)
        assert most_in_a_minute(play.used[budget.key]) <= MINUTE_US // rate.interval_us + rate.burst


quiet = st.lists(st.tuples(passing, st.one_of(
    reserving, reserving, throttling, st.tuples(st.just("pause"), st.floats(0, 30)),
    st.tuples(st.just("hear"), st.sampled_from([None, 0]), st.integers(-12, 3), st.integers(0, 6)),
    st.tuples(st.just("full use"), st.floats(5, 70)),
)), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([SHARED, FREE, Budget("creates", 30_000, 50)]), acts, quiet)
def test_low_credit_is_six_a_minute(shared: Budget, before: list[tuple[float, Any]], after: list[tuple[float, Any]]) -> None:
    """From the word on, whatever was before: of the permits granted then no 60 s hold more than seven, as long as no answer
    shows that something is left; and what had been granted lies within half a second."""
    play = Play(shared)
    for passed, (verb, *told) in before:
        if verb != "full use" or shared is not FREE:
            play.wait(min(passed, 5.0))
            play.do(verb, *told)
    play.do("throttle", 1.0, 0, True)
    start_s, given = play.real_s, len(play.granted_us)
    for passed, (verb, *told) in after:
        if play.real_s - start_s > 1500:
            break
        play.wait(passed)
        play.do(verb, *told)
    assert most_in_a_minute(play.granted_us[given:]) <= 7
    assert all(time <= (start_s + HORIZON_S) * MICROSECONDS + 1 for time in play.granted_us[:given])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(passing, st.sampled_from([60, 300, 600, 6000]), st.sampled_from([1, 40, 300])), min_size=1,
                max_size=80))
def test_two_opinions_of_a_rate(script: list[tuple[float, int, int]]) -> None:
    """Users of one budget who do not agree on its rate get no more together than the highest of them and the burst."""
    play = Play(SHARED)
    for passed, per_minute, count in script:
        play.wait(passed)
        play.shared = Budget("creates", per_minute, 10)
        play.reserve(count=count)
    assert most_in_a_minute(play.used["creates"]) <= max(per_minute for _, per_minute, _ in script) + 10


def test_a_lower_rate_does_not_lend_itself_to_a_higher_one() -> None:
    """Two machines with 600 and 60 for one account, each asking all the time, get 600: each sees what the other spent."""
    play = Play(SHARED)
    for _ in range(1200):
        play.shared = SHARED
        play.reserve()
        play.shared = Budget("creates", 60, 10)
        play.reserve()
        play.wait(0.1)
    assert 590 <= most_in_a_minute(play.used["creates"]) <= 610


def test_raising_the_rate_again_counts_what_is_already_given_out() -> None:
    """Permits half a second ahead, given at a slower pace, are not counted as paid when the pace rises."""
    rate = Rate(100_000, 1)
    slow = reserve([rate], [Bucket(0, slow_us=200_000, served=5, pace_us=200_000)], count=9, now_us=SECOND)
    assert (slow.count, slow.every_us) == (3, 200_000)
    fast = heard(slow.buckets[0], rate, Heard(8, remaining=None), now_us=SECOND, horizon_us=HORIZON)
    assert fast.slow_us < 200_000
    times = [SECOND + n * 200_000 for n in range(3)]
    later = reserve([rate], [replace(fast, slow_us=0)], count=9, now_us=SECOND + 300_000)
    assert later.first_in_us + 300_000 + SECOND >= times[-1] + rate.interval_us


def test_clock_set_back_ends_a_pause_in_its_time() -> None:
    """A pause of five seconds on a clock that is then set back an hour lasts five seconds, and one that was over stays so."""
    play = Play(SHARED)
    play.do("pause", 5.0)
    play.clock.advance(-3600)
    assert now(play.limiter.paused("creates")) == (5.0, "outage")
    play.reserve()
    play.wait(5)
    play.use(2)
    assert len(play.used["creates"]) >= 15
    play.clock.advance(-3600)
    assert now(play.limiter.paused("creates")) is None


def test_numbers_stay_countable() -> None:
    """The slowest rate, the longest pause: nothing beyond what a double counts exactly, whatever was asked for."""
    assert rate_of(Budget("x", 1e-300, 1)).interval_us * SLOWEST * 10 < 2**53
    assert pause_us(math.inf) == pause_us(1e300) == 86_400 * MICROSECONDS
    assert pause_us(-1) == 0


@settings(max_examples=100, deadline=None)
@given(rates, st.integers(1, 300))
def test_coming_back_is_never_in_vain(rate: Rate, wanted: int) -> None:
    """Whoever comes back when told gets a permit, and following the answers uses the whole rate."""
    now, bucket, times = 0, Bucket(), []
    while len(times) < 400:
        answer = reserve([rate], [bucket], count=wanted, now_us=now)
        (bucket,) = answer.buckets
        times += [now + answer.first_in_us + i * answer.every_us for i in range(answer.count)]
        now += answer.first_in_us if not answer.count else 0
        if not answer.count:
            assert reserve([rate], [bucket], count=1, now_us=now).count == 1
    assert all(later - sooner == rate.interval_us for sooner, later in pairwise(times))
