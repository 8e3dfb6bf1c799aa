"""What the provider says of its own limits, and what that does to the bucket it speaks of. Only ever slower than the budget.

Its answers say how many permits it has left (`ratelimit-remaining`). While that is more than a few, all is well. Below,
somebody else spends from the same account, or its limit is not what we were told: the bucket is emptied by what is
missing, and its interval grows by up to a quarter; above, the rate rises again in even steps, back to the budget's own.
A 429 is a pause for everybody, and half as much again between two permits. Whoever begins, and knows nothing yet, feels his
way. Each of these once for a round: permits that were granted before the last word was heeded tell of the time before it.
`gateways/limiter/heed.lua` computes the same.
"""

import math
from dataclasses import replace

from orchestrator.core.pacing import (
    BREAKS_AFTER,
    MICROSECONDS,
    PROVIDER_DOWN,
    Bucket,
    Rate,
    after_set_back,
    at_pace,
    is_cold,
    longer_pause,
)
from orchestrator.core.permits import Heard

DOCUMENTED_US = 100_000  # Replicate docs, rate limits: 600 creates per minute; from where a budget without a rate slows down
SLOWEST = 20  # times the budget's own interval
DOUBTED = 4  # so many times, and still short of permits: the provider may have fewer than it ever said
KEPT_S = 1.0  # so much of the rate is left with the provider where its bucket is large enough, for others and for delays
STEPS_SEEN, STEPS_UNSEEN = 16, 64  # rounds from nothing back to the full rate: with permits known to be left, and blindly
THROTTLED_BY = 1.5
LOW_CREDIT_FOR_US = 1800 * MICROSECONDS  # after that the full rate is tried again, if no answer said it sooner
FEELS = 2  # answers after which nobody feels his way, if none tells how many permits are left
BREAK_US = 5 * MICROSECONDS  # the first pause of a breaker; doubles with each probe that is not heard
LONGEST_BREAK_US = 60 * MICROSECONDS


def heard(bucket: Bucket, rate: Rate, told: Heard, *, now_us: int, horizon_us: int) -> Bucket:
    """The bucket after some answers, or after purchases that nobody answered."""
    bucket = _breaker(_looked_at(bucket, rate, now_us=now_us, horizon_us=horizon_us), told, now_us=now_us)
    bucket = _warmed(bucket, told, now_us=now_us) if told.answered else bucket
    if not told.answered or not _is_news(bucket, told.serial):
        return bucket
    if told.remaining is not None:
        is_low = told.remaining == 0 and bucket.low_until_us > now_us  # low credit has no burst: nothing is ever left
        bucket = replace(bucket, full=max(bucket.full, told.remaining), low_until_us=now_us + LOW_CREDIT_FOR_US if is_low else 0)
    if bucket.low_until_us > now_us:
        return replace(bucket, steered=bucket.served)
    bucket = _steered(bucket, rate, told.remaining, now_us=now_us)
    return at_pace(bucket, rate, now_us=now_us, horizon_us=horizon_us)


def throttled(bucket: Bucket, rate: Rate, *, serial: int, for_us: int, reason: str, is_low_credit: bool, now_us: int,
              horizon_us: int) -> Bucket:
    """The bucket after a 429: a pause, and slower from then on; or the low-credit mode."""
    bucket = _breaker(_looked_at(bucket, rate, now_us=now_us, horizon_us=horizon_us), Heard(serial), now_us=now_us)
    paused = longer_pause(replace(bucket, heard_us=now_us, felt_us=0, felt=0), now_us=now_us, for_us=for_us, reason=reason)
    if is_low_credit:
        paused = replace(paused, low_until_us=now_us + LOW_CREDIT_FOR_US, slow_us=0, full=0, steered=bucket.served)
    elif _is_news(bucket, serial):
        paused = _slowed(paused, rate, by=THROTTLED_BY)
    return at_pace(paused, rate, now_us=now_us, horizon_us=horizon_us)


def _looked_at(bucket: Bucket, rate: Rate, *, now_us: int, horizon_us: int) -> Bucket:
    bucket = after_set_back(bucket, now_us=now_us)
    return replace(at_pace(bucket, rate, now_us=now_us, horizon_us=horizon_us), noted_us=now_us)


def _warmed(bucket: Bucket, told: Heard, *, now_us: int) -> Bucket:
    """An answer. Of one who feels his way it ends that if it shows permits that are left, or is the second."""
    if is_cold(bucket, now_us=now_us) and not told.remaining and bucket.felt + 1 < FEELS:
        return replace(bucket, felt_us=0, felt=bucket.felt + 1)
    return replace(bucket, heard_us=now_us, felt_us=0, felt=0)


def _is_news(bucket: Bucket, serial: int) -> bool:
    """Whether this permit was granted after the last word was heeded; one beyond the last is of a bucket long forgotten."""
    return bucket.steered < serial <= bucket.served


def keeps(bucket: Bucket, rate: Rate) -> int:
    """How many permits are to be left with the provider: two thirds of what it can have, and no more than for a second."""
    return min(bucket.full * 2 // 3, _of_a_second(rate))


def _of_a_second(rate: Rate) -> int:
    """How many permits a second gives; a few at least."""
    return max(4, math.ceil(KEPT_S * MICROSECONDS / _base_us(rate)))


def _base_us(rate: Rate) -> int:
    """The interval from which a budget slows down: its own, or the documented one where it has none."""
    return rate.interval_us or DOCUMENTED_US


def _doubted(bucket: Bucket, rate: Rate, remaining: int) -> Bucket:
    """Its bucket may have shrunk: kept at a share of what it never has again, our rate would sink for good."""
    if bucket.slow_us < DOUBTED * _base_us(rate):
        return bucket
    return replace(bucket, full=max(remaining, min(bucket.full, _of_a_second(rate) * 3 // 2) * 3 // 4))


def _breaker(bucket: Bucket, told: Heard, *, now_us: int) -> Bucket:
    """Purchases in a row without an answer open it, an answer closes it; while it is open `reserve` gives single permits.

    The pause of a breaker gives way to the next of its own, and ends when it closes; other pauses stand."""
    is_open, is_ours = bucket.missed >= BREAKS_AFTER, bucket.reason.startswith(PROVIDER_DOWN)
    if told.answered:
        until_us = min(bucket.until_us, now_us) if is_open and is_ours else bucket.until_us
        bucket, is_open = replace(bucket, missed=0, until_us=until_us), False
    if not told.missed or (is_open and not _is_news(bucket, told.serial)):  # it was out before the breaker opened
        return bucket
    missed = bucket.missed + told.missed
    if missed < BREAKS_AFTER:
        return replace(bucket, missed=missed)
    missed = bucket.missed + 1 if is_open else BREAKS_AFTER
    opened = replace(bucket, missed=missed, steered=bucket.served, until_us=0 if is_open and is_ours else bucket.until_us)
    pause_us = min(LONGEST_BREAK_US, BREAK_US * 2**min(10, missed - BREAKS_AFTER))
    return longer_pause(opened, now_us=now_us, for_us=pause_us, reason=f"{PROVIDER_DOWN}: {told.trouble}")


def _steered(bucket: Bucket, rate: Rate, remaining: int | None, *, now_us: int) -> Bucket:
    keep = keeps(bucket, rate)
    if remaining is None or not keep:
        return _faster(bucket, rate, steps=STEPS_UNSEEN)
    if remaining > keep:
        return _faster(bucket, rate, steps=STEPS_SEEN)
    short = keep - remaining
    slowed = _slowed(_doubted(bucket, rate, remaining), rate, by=1 + short / (4 * keep))
    interval_us = max(rate.interval_us, bucket.slow_us)
    if slowed.tat_us is None or not interval_us:
        return slowed
    return replace(slowed, tat_us=max(slowed.tat_us, now_us) + short * interval_us)


def _slowed(bucket: Bucket, rate: Rate, *, by: float) -> Bucket:
    base_us = _base_us(rate)
    slow_us = min(math.floor(max(base_us, bucket.slow_us) * by), SLOWEST * base_us)
    return replace(bucket, slow_us=slow_us if by > 1 else bucket.slow_us, steered=bucket.served)


def _faster(bucket: Bucket, rate: Rate, *, steps: int) -> Bucket:
    """One step of the rate, of `steps` from nothing to the budget's own."""
    base_us = _base_us(rate)
    slow_us = math.floor(bucket.slow_us / (1 + bucket.slow_us / (steps * base_us)))
    return replace(bucket, slow_us=slow_us if slow_us > base_us else 0, steered=bucket.served)
