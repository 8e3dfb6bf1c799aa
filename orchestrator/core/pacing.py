"""Permit arithmetic: a leaky bucket (GCRA) per budget, several budgets at once, many permits in one step.

All times are whole microseconds on one clock. A bucket is one number, its *theoretical arrival time* (TAT): the moment
at which it will be full again. One permit moves it by one interval; a permit may be used as soon as it lies no further
than `burst` intervals ahead. `gateways/limiter/reserve.lua` computes the same with the same names; one contract suite
holds both to it.

What is kept, whatever is asked and in whatever order: no window of 60 s holds more than per_minute + burst permits.
A bucket that nobody remembers counts as emptied by permits reserved up to the horizon, so forgetting never grants more.
What the provider says (`core/heeding.py`) can only make a bucket slower. A bucket keeps its permits, not its time, when its
interval changes: a second user with another rate would otherwise take what the first has spent for rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.core.permits import Budget, Grant

MICROSECONDS = 1_000_000
MINUTE_US = 60 * MICROSECONDS
HORIZON_S = 0.5  # a permit reserved by a worker that dies is lost, so nobody reserves further ahead
LIMIT_REASON = "limit"
SLOWEST_PER_MINUTE = 1e-5  # one in ten weeks: whatever is slower is that, so that no number leaves what Lua can count
# Replicate docs, rate limits: 6 per minute and no burst while credit is low. Without a burst a request that travels faster
# than the one before is refused, hence half a second more than those ten.
LOW_CREDIT_US = 10_500_000
BREAKS_AFTER = 5  # purchases in a row without a word: a single lost answer is nothing, this is an outage
PROBED_FOR_S = 35.0  # for so long a probe is waited for: a little longer than its request can take
LONGEST_PAUSE_S = 86_400.0
PROVIDER_DOWN = "provider down"
# What the provider said longer ago tells nothing of now: credit, token or limit may be others. So whoever begins feels his way,
# purchase by purchase, until permits are known to be left, or two were answered: with answers that take half a second, a burst of
# ten was refused eight times in low credit, where the first purchase still is let in.
COLD_AFTER_US = 60 * MICROSECONDS
FEELS_FOR_US = 2 * MICROSECONDS  # then the next one goes, answered or not
FEEL_AGAIN_US = 100_000
ASK_AGAIN_US = 2 * MICROSECONDS  # a breaker closes, and low credit ends, at one answer: nobody may sleep through that for long


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is remembered of one budget. `tat_us` None: nothing; `until_us`: end of the last pause, 0: never paused."""

    tat_us: int | None = None
    until_us: int = 0
    reason: str = ""
    served: int = 0  # permits granted so far: the serial number of the last
    steered: int = 0  # permits up to this serial were granted before the provider's last word was heeded
    full: int = 0  # the most permits that the provider ever said were left
    slow_us: int = 0  # the interval that the provider's words brought about; 0: the budget's own
    low_until_us: int = 0  # low on credit until then, unless the provider says otherwise before
    missed: int = 0  # purchases in a row of which nothing was heard
    pace_us: int = 0  # the interval at which `tat_us` was reckoned, low credit apart; 0: unknown
    noted_us: int = 0  # when this was written: a clock before it was set back
    heard_us: int = 0  # when a purchase was last answered, since it is known how things are; 0: never
    felt_us: int = 0  # for when the last permit was given to feel the way; 0: it was answered
    felt: int = 0  # how many such were answered, and it is not known yet how things are


@dataclass(frozen=True, slots=True)
class Rate:
    """One budget in integers: a permit every `interval_us`, `burst` at once. Interval 0: no limit."""

    interval_us: int
    burst: int


def rate_of(budget: Budget) -> Rate:
    """The budget in whole microseconds; the interval is rounded up, so that the rate is never exceeded.

    `per_minute` not above zero, infinite or not a number means no limit; a burst below one is one."""
    per_minute = budget.per_minute
    if not (per_minute > 0 and math.isfinite(per_minute)):
        return Rate(0, 1)
    return Rate(max(1, math.ceil(MINUTE_US / max(per_minute, SLOWEST_PER_MINUTE))), max(1, budget.burst))


def after_set_back(bucket: Bucket, *, now_us: int) -> Bucket:
    """The bucket on a clock that was set back since it was written: as long to go as at that time, and not longer."""
    back_us = bucket.noted_us - now_us
    if back_us <= 0:
        return bucket
    tat_us = None if bucket.tat_us is None else max(0, bucket.tat_us - back_us)
    return replace(bucket, tat_us=tat_us, until_us=max(0, bucket.until_us - back_us),
                   low_until_us=max(0, bucket.low_until_us - back_us), heard_us=min(bucket.heard_us, now_us),
                   felt_us=min(bucket.felt_us, now_us), noted_us=now_us)


def at_pace(bucket: Bucket, rate: Rate, *, now_us: int, horizon_us: int) -> Bucket:
    """The bucket with as many permits outstanding at the interval of now as at the one it was reckoned at.

    A shorter interval begins where nothing is reserved yet, at the horizon: drawn together from now on, the schedules already
    given out would count as paid before their time."""
    pace_us = max(rate.interval_us, bucket.slow_us)
    tat_us, from_us = bucket.tat_us, now_us + (horizon_us if pace_us < bucket.pace_us else 0)
    if bucket.pace_us and pace_us != bucket.pace_us and tat_us is not None and tat_us > from_us:
        tat_us = from_us + math.ceil((tat_us - from_us) * (pace_us / bucket.pace_us))
    return replace(bucket, tat_us=tat_us, pace_us=pace_us)


def effective(rate: Rate, bucket: Bucket, *, now_us: int) -> Rate:
    """The rate at which a bucket is spent now: its own, or the slower one that the provider's words brought about."""
    if bucket.low_until_us > now_us:
        return Rate(max(rate.interval_us, LOW_CREDIT_US), 1)
    return Rate(max(rate.interval_us, bucket.slow_us), rate.burst)


def standing_tat(bucket: Bucket, rate: Rate, *, now_us: int, horizon_us: int) -> int:
    """The bucket's TAT as it counts now: unknown is empty, a pause empties, and nothing lies beyond empty.

    The last rule heals a clock set back and a rate that was raised: no honest bucket is emptier than empty."""
    emptiest = now_us + horizon_us + rate.burst * rate.interval_us
    if bucket.tat_us is None:
        return emptiest
    after_pause = bucket.until_us + (rate.burst - 1) * rate.interval_us
    return min(max(bucket.tat_us, after_pause), emptiest)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A grant in microseconds, and the buckets as they must be remembered, in the order given."""

    count: int
    first_in_us: int
    every_us: int
    reason: str | None
    buckets: tuple[Bucket, ...]
    shared_us: int = 0  # the interval at which the first bucket is spent; 0: without a limit
    is_low_credit: bool = False
    is_probe: bool = False
    pause_us: int = 0
    is_shared: bool = False

    def grant(self) -> Grant:
        """The same in seconds, as the port says it."""
        return Grant(self.count, self.first_in_us / MICROSECONDS, self.every_us / MICROSECONDS, self.reason,
                     self.buckets[0].served, MINUTE_US / self.shared_us if self.shared_us else 0.0, self.is_low_credit,
                     self.is_probe, self.pause_us / MICROSECONDS, self.is_shared)


def is_cold(bucket: Bucket, *, now_us: int) -> bool:
    """Whether it is not known, or not any more, how things are at the provider."""
    return not bucket.heard_us or bucket.heard_us + COLD_AFTER_US <= now_us


def reserve(rates: Sequence[Rate], buckets: Sequence[Bucket], *, count: int, now_us: int,
            horizon_us: int = int(HORIZON_S * MICROSECONDS), feels: bool = False) -> Reservation:
    """Up to `count` permits that every budget allows, evenly spaced, none beyond the horizon.

    Count 0: come back in `first_in_us`. That is the end of the longest pause, or the moment when what was asked for, or
    half a horizon of it, is within the horizon: several permits for one call, and none of them due already. With low credit,
    or a breaker open, it is never long: both may be over at any answer.
    Where purchases of the first budget were not heard of, one permit is given, and then a pause until it was. `feels`: likewise
    where nothing was heard for long, but nobody waits longer than FEELS_FOR_US for that."""
    buckets = [after_set_back(bucket, now_us=now_us) for bucket in buckets]
    kept = tuple(buckets)
    buckets = [at_pace(bucket, rate, now_us=now_us, horizon_us=horizon_us) for rate, bucket in zip(rates, buckets, strict=True)]
    rates = [effective(rate, bucket, now_us=now_us) for rate, bucket in zip(rates, buckets, strict=True)]
    shared_us, is_low, is_probe = rates[0].interval_us, buckets[0].low_until_us > now_us, buckets[0].missed >= BREAKS_AFTER
    paused = max(buckets, key=lambda bucket: bucket.until_us)
    if paused.until_us > now_us:
        left_us = paused.until_us - now_us
        wait_us = min(left_us, ASK_AGAIN_US) if is_probe and paused is buckets[0] else left_us
        return Reservation(0, wait_us, 0, paused.reason, kept, shared_us, is_low, pause_us=left_us)
    feels = feels and rates[0].interval_us > 0 and is_cold(buckets[0], now_us=now_us)
    if feels and buckets[0].felt_us and buckets[0].felt_us + FEELS_FOR_US > now_us:
        return Reservation(0, FEEL_AGAIN_US, 0, LIMIT_REASON, kept, shared_us, is_low)
    limited = [(rate, standing_tat(bucket, rate, now_us=now_us, horizon_us=horizon_us))
               for rate, bucket in zip(rates, buckets, strict=True) if rate.interval_us]
    first_us = max([now_us, *(tat - (rate.burst - 1) * rate.interval_us for rate, tat in limited)])
    room_us, wanted = now_us + horizon_us - first_us, min(count, 1) if is_probe or feels else count
    granted, every_us = (0, 0) if room_us < 0 or wanted < 1 else _spread(limited, wanted, first_us, room_us)
    tats = [_advance(rate, tat, granted, first_us, every_us) for rate, tat in limited]
    remembered = _remember(rates, buckets, tats, granted=granted, kept=kept, now_us=now_us)
    if granted:
        if feels:
            remembered = (replace(remembered[0], felt_us=first_us), *remembered[1:])
        if is_probe:
            remembered = (_probing(remembered[0], first_us=first_us), *remembered[1:])
        return Reservation(granted, first_us - now_us, every_us, None, remembered, shared_us, is_low, is_probe)
    gather_us = min(horizon_us // 2, max(0, wanted - 1) * max((rate.interval_us for rate, _ in limited), default=0))
    wait_us = max(0, gather_us - room_us)
    return Reservation(0, min(wait_us, ASK_AGAIN_US) if is_low else wait_us, 0, LIMIT_REASON, remembered, shared_us, is_low)


def most(rates: Sequence[Rate], buckets: Sequence[Bucket], *, now_us: int, horizon_us: int) -> int | None:
    """How many permits all of these would give by the horizon, if they were the only ones; None: as many as wanted."""
    least: int | None = None
    for bucket, own in zip(buckets, rates, strict=True):
        bucket = at_pace(bucket, own, now_us=now_us, horizon_us=horizon_us)
        rate = effective(own, bucket, now_us=now_us)
        if bucket.until_us > now_us:
            return 0
        if rate.interval_us:
            tat = standing_tat(bucket, rate, now_us=now_us, horizon_us=horizon_us)
            room_us = now_us + horizon_us - (max(tat, now_us) - (rate.burst - 1) * rate.interval_us)
            few = max(0, 1 + room_us // rate.interval_us)
            least = few if least is None else min(least, few)
    return least


def credit(rates: Sequence[Rate], buckets: Sequence[Bucket], *, at_us: int, now_us: int,
           horizon_us: int) -> tuple[int | None, int]:
    """How many permits all of these allow at one moment (None: as many as wanted), and how long until they allow one."""
    least: int | None = None
    late_us = 0
    for bucket, own in zip(buckets, rates, strict=True):
        bucket = at_pace(bucket, own, now_us=now_us, horizon_us=horizon_us)
        rate = effective(own, bucket, now_us=now_us)
        if rate.interval_us:
            tat_us = standing_tat(bucket, rate, now_us=now_us, horizon_us=horizon_us)
            few = max(0, 1 + ((rate.burst - 1) * rate.interval_us - max(0, tat_us - at_us)) // rate.interval_us)
            least = few if least is None else min(least, few)
            late_us = max(late_us, tat_us - at_us - (rate.burst - 1) * rate.interval_us)
    return least, late_us


def _spread(limited: Sequence[tuple[Rate, int]], count: int, first_us: int, room_us: int) -> tuple[int, int]:
    """How many permits from `first_us` on, and how far apart, so that permit i is due to every bucket at its time.

    `slack` is how much sooner than `first_us` the bucket would have allowed the first: what is left of its burst."""
    slacks = [(rate, first_us - (max(tat, first_us) - (rate.burst - 1) * rate.interval_us)) for rate, tat in limited]
    granted = min([count, *(1 + (room_us + slack) // rate.interval_us for rate, slack in slacks)])
    gaps = max(1, granted - 1)
    every_us = max([0, *(-((slack - gaps * rate.interval_us) // gaps) for rate, slack in slacks)])
    if granted == 1:
        return 1, 0
    return (min(granted, 1 + room_us // every_us) if every_us else granted), every_us


def _advance(rate: Rate, tat: int, granted: int, first_us: int, every_us: int) -> int:
    if not granted:
        return tat
    last_us = first_us + (granted - 1) * every_us
    return max(max(tat, first_us) + granted * rate.interval_us, last_us + rate.interval_us)


def _remember(rates: Sequence[Rate], buckets: Sequence[Bucket], tats: Sequence[int], *, granted: int,
              kept: Sequence[Bucket], now_us: int) -> tuple[Bucket, ...]:
    """What is new is remembered at once, or its wait would never end; else only what was given. `kept`: as it was before."""
    moved = iter(tats)
    after = [next(moved) if rate.interval_us else bucket.tat_us for rate, bucket in zip(rates, buckets, strict=True)]
    return tuple(replace(bucket, tat_us=tat, served=bucket.served + granted, noted_us=now_us)
                 if granted or (bucket.tat_us is None and tat is not None) else before
                 for bucket, tat, before in zip(buckets, after, kept, strict=True))


def _probing(bucket: Bucket, *, first_us: int) -> Bucket:
    """Nobody else until the probe was heard, or can be heard no more."""
    reason = bucket.reason if bucket.reason.startswith(PROVIDER_DOWN) else PROVIDER_DOWN
    return replace(bucket, until_us=first_us + int(PROBED_FOR_S * MICROSECONDS), reason=reason)


def longer_pause(bucket: Bucket, *, now_us: int, for_us: int, reason: str) -> Bucket:
    """The bucket, paused for so long from now on; a pause that already lasts longer stands, reason and all."""
    if now_us + for_us <= bucket.until_us:
        return bucket
    return replace(bucket, until_us=now_us + for_us, reason=reason, noted_us=now_us)


def pause_us(seconds: float) -> int:
    """A pause in whole microseconds: a day at most, whatever the provider asks for, and nothing below none."""
    return round(max(0.0, min(seconds, LONGEST_PAUSE_S)) * MICROSECONDS)
