"""Whose turn it is: batches that wait for the same budget share it by weight, whoever asks more often.

Each flow has spent so much: its permits, divided by its weight. Of those that wait, the one that has spent least goes next,
for no more than its share of what can be given by the horizon, so that a change of weights shows in the next permit.
Waiting is who got less than wanted, or has more rows than it asked for, and is expected back; who got all, or has gone, holds
nobody up, and who waits only while nothing of the rate is lost by it. Who comes, or comes back, starts where
the others are: neither rest nor feast of the past counts. The Lua script does the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.pacing import (
    MICROSECONDS,
    Bucket,
    Rate,
    Reservation,
    after_set_back,
    at_pace,
    credit,
    effective,
    most,
    reserve,
    standing_tat,
)
from orchestrator.core.permits import Flow

UNIT = 25_200  # what one permit costs at a weight of one; divisible by every weight that a priority gives
GRACE_US = 400_000  # for so long who is late keeps its place
AFTER_US = 20_000  # who is not next comes back so long after who is
BEFORE_US = 80_000  # who has more comes back so long before its last permit, or a little earlier
KEPT_US = 60 * MICROSECONDS  # a flow not seen for so long is forgotten: batches come and go, an account stays


@dataclass(frozen=True, slots=True)
class Turn:
    """What is remembered of one flow. It may have several lanes: the first of those that wait is expected at `back_us`, the
    last at `last_us`; 0: it waits for nothing. `seen_us`: when it last asked."""

    spent: int
    back_us: int
    last_us: int
    weight: int
    seen_us: int


@dataclass(frozen=True, slots=True)
class Shared:
    """A reservation, and what is to be remembered of all flows after it."""

    reservation: Reservation
    turns: dict[str, Turn]


def reserve_in_turn(rates: Sequence[Rate], buckets: Sequence[Bucket], turns: Mapping[str, Turn], flow: Flow, *, count: int,
                    now_us: int, horizon_us: int) -> Shared:
    """As `reserve`, of a first budget that is shared with other flows; `turns`: what is remembered of all of them."""
    buckets = [after_set_back(bucket, now_us=now_us) for bucket in buckets]
    turns = {key: turn for key, turn in turns.items()
             if turn.seen_us <= now_us <= max(turn.seen_us, turn.last_us) + KEPT_US}  # nor who was seen later than now
    waiting = [turn for key, turn in turns.items() if key != flow.key and _is_waiting(turn, now_us)]
    shared = at_pace(buckets[0], rates[0], now_us=now_us, horizon_us=horizon_us)
    rate = effective(rates[0], shared, now_us=now_us)
    ahead = horizon_us // rate.interval_us + 1 if rate.interval_us else count
    mine = _entering(turns.get(flow.key), flow, waiting, most_ahead=ahead, now_us=now_us)
    if not waiting or not rate.interval_us or count < 1 or any(bucket.until_us > now_us for bucket in buckets):
        own = most(rates[1:], buckets[1:], now_us=now_us, horizon_us=horizon_us)
        wanted = count if own is None else min(count, own)
        # whom a second budget gives nothing comes back for one: who gathers there is always too late beside who does not
        answer = reserve(rates, buckets, count=count if wanted else min(count, 1), now_us=now_us, horizon_us=horizon_us,
                         feels=flow.feels)
        return _remembered(turns, mine, flow, replace(answer, is_shared=bool(waiting)), count=count, wanted=wanted)
    tat_us = standing_tat(shared, rate, now_us=now_us, horizon_us=horizon_us)
    at_us = max(now_us, tat_us - (rate.burst - 1) * rate.interval_us)
    own, late_us = credit(rates[1:], buckets[1:], at_us=at_us, now_us=now_us, horizon_us=horizon_us)
    wanted = count if own is None else min(count, own)  # no schedule at its own slower pace: what lies between would be lost
    before = [turn for turn in waiting if turn.spent < mine.spent and tat_us > max(now_us, _soonest(turn, now_us)) + AFTER_US]
    if wanted < 1 or before:
        wait_us = late_us if wanted < 1 else AFTER_US + max(0, _soonest(min(before, key=_place(now_us)), now_us) - now_us)
        answer = replace(reserve(rates, buckets, count=0, now_us=now_us, horizon_us=horizon_us), first_in_us=wait_us,
                         is_shared=True)
        return _remembered(turns, mine, flow, answer, count=count, wanted=wanted)
    share = max(1, ahead * flow.weight // (flow.weight + sum(turn.weight for turn in waiting)))
    answer = reserve(rates, buckets, count=min(wanted, share), now_us=now_us, horizon_us=horizon_us, feels=flow.feels)
    return _remembered(turns, mine, flow, replace(answer, is_shared=True), count=count, wanted=wanted)


def _remembered(turns: Mapping[str, Turn], mine: Turn, flow: Flow, answer: Reservation, *, count: int, wanted: int) -> Shared:
    """Who got less than wanted, or has more, is expected; who is held to less than asked by a budget of its own is not."""
    after = replace(mine, spent=mine.spent + answer.count * UNIT // flow.weight)
    last_us = answer.first_in_us + max(0, answer.count - 1) * answer.every_us
    if answer.count < wanted:
        after = _expected(after, last_us)
    elif answer.count == count and count and flow.has_more:
        after = _expected(after, max(0, last_us - BEFORE_US))
    return Shared(answer, {**turns, flow.key: after})


def _place(now_us: int) -> Callable[[Turn], tuple[int, int]]:
    return lambda turn: (turn.spent, _soonest(turn, now_us))


def _is_waiting(turn: Turn, now_us: int) -> bool:
    return turn.last_us > 0 and turn.last_us + GRACE_US >= now_us


def _soonest(turn: Turn, now_us: int) -> int:
    """When the next of its lanes is expected, or was."""
    return turn.back_us if turn.back_us > now_us else turn.last_us


def _entering(turn: Turn | None, flow: Flow, waiting: Sequence[Turn], *, most_ahead: int, now_us: int) -> Turn:
    """How a flow stands that asks now: if it was not waiting, it has spent about as much as the one that is next."""
    known = turn or Turn(0, 0, 0, flow.weight, now_us)
    spent = known.spent
    if waiting and not _is_waiting(known, now_us):
        next_spent = min(one.spent for one in waiting)
        latest = next_spent + most_ahead * UNIT // flow.weight
        spent = min(max(known.spent, next_spent), latest) if turn else next_spent
    back_us, last_us = ((_soonest(known, now_us), known.last_us) if known.last_us > now_us else (0, 0))  # its other lanes
    return Turn(spent, back_us, last_us, flow.weight, now_us)


def _expected(turn: Turn, in_us: int) -> Turn:
    """The lane that asks now is to come back after so long."""
    at_us = turn.seen_us + in_us
    return replace(turn, back_us=min(turn.back_us or at_us, at_us), last_us=max(turn.last_us, at_us))
