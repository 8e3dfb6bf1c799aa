import math
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.pacing import MICROSECONDS, MINUTE_US, Bucket, Rate, longer_pause, rate_of, reserve
from orchestrator.core.permits import Budget

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
    now, come_back = 0, 0
    buckets = [Bucket(), Bucket()]
    spent: tuple[list[int], list[int]] = ([], [])
    for passed, wanted, verb in script:
        now += come_back if verb == "come back" else passed
        if verb == "flush":
            buckets = [Bucket(), Bucket()]
        elif verb == "pause":
            buckets[0] = longer_pause(buckets[0], now_us=now, for_us=passed, reason="429")
        users = [0] if verb == "one" else [0, 1]
        answer = reserve([pair[i] for i in users], [buckets[i] for i in users], count=wanted, now_us=now)
        times = [now + answer.first_in_us + i * answer.every_us for i in range(answer.count)]
        come_back = 0 if times else answer.first_in_us
        assert answer.count <= wanted
        assert all(time <= now + HORIZON for time in times)
        for i, bucket in zip(users, answer.buckets, strict=True):
            buckets[i] = bucket
            spent[i].extend(times)
    for rate, times in zip(pair, spent, strict=True):
        assert most_in_a_minute(times) <= MINUTE_US // rate.interval_us + rate.burst


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
