"""Whose turn it is: batches that wait for the same budget share it by weight, whoever asks more often.

Each flow has spent so much: its permits, divided by its weight. Of those that wait, the one that has spent least goes next,
for no more than its share of what can be given by the horizon, so that a change of weights shows in the next permit.
Waiting is who got less than wanted and is expected back; who got all, or has gone, holds nobody up. Who comes, or comes
back, starts where the others are: neither rest nor feast of the past counts. The Lua script does the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.core.pacing import LIMIT_REASON, Bucket, Rate, Reservation, effective, most, reserve
from orchestrator.core.permits import Flow

UNIT = 25_200  # what one permit costs at a weight of one; divisible by every weight that a priority gives
GRACE_US = 400_000  # for so long one is waited for who is late: what is not given meanwhile is what a burst makes good
AFTER_US = 20_000  # who is not next comes back so long after who is


@dataclass(frozen=True, slots=True)
class Turn:
    """What is remembered of one flow. `back_us`: when it is expected back; 0: it waits for nothing."""

    spent: int
    back_us: int
    weight: int


@dataclass(frozen=True, slots=True)
class Shared:
    """A reservation, and where the flow stands after it."""

    reservation: Reservation
    turn: Turn


def reserve_in_turn(rates: Sequence[Rate], buckets: Sequence[Bucket], turns: Mapping[str, Turn], flow: Flow, *, count: int,
                    now_us: int, horizon_us: int) -> Shared:
    """As `reserve`, of a first budget that is shared with other flows; `turns`: what is remembered of all of them."""
    own = most(rates[1:], buckets[1:], now_us=now_us, horizon_us=horizon_us)
    wanted = count if own is None else min(count, own)
    waiting = {key: turn for key, turn in turns.items()
               if key != flow.key and turn.back_us and turn.back_us + GRACE_US >= now_us}
    rate = effective(rates[0], buckets[0], now_us=now_us)
    if not waiting or not rate.interval_us or wanted < 1 or buckets[0].until_us > now_us:
        answer = reserve(rates, buckets, count=count, now_us=now_us, horizon_us=horizon_us)
        return Shared(answer, _after(turns.get(flow.key), flow, answer, wanted=wanted, now_us=now_us))
    next_spent = min(turn.spent for turn in waiting.values())
    ahead = horizon_us // rate.interval_us + 1
    spent = _entering(turns.get(flow.key), flow, next_spent, most_ahead=ahead, now_us=now_us)
    mine = Turn(spent, 0, flow.weight)
    if spent > next_spent:
        back_us = min(turn.back_us for turn in waiting.values() if turn.spent == next_spent)
        answer = Reservation(0, max(0, back_us - now_us) + AFTER_US, 0, LIMIT_REASON, tuple(buckets), rate.interval_us,
                             buckets[0].low_until_us > now_us)
        return Shared(answer, replace(mine, back_us=now_us + answer.first_in_us))
    share = max(1, ahead * flow.weight // (flow.weight + sum(turn.weight for turn in waiting.values())))
    answer = reserve(rates, buckets, count=min(count, share), now_us=now_us, horizon_us=horizon_us)
    return Shared(answer, _after(mine, flow, answer, wanted=wanted, now_us=now_us))


def _entering(turn: Turn | None, flow: Flow, next_spent: int, *, most_ahead: int, now_us: int) -> int:
    """What a flow has spent as it counts now: if it was not waiting, about as much as the one that is next."""
    if turn is None:
        return next_spent
    if turn.back_us and turn.back_us + GRACE_US >= now_us:
        return turn.spent
    return min(max(turn.spent, next_spent), next_spent + most_ahead * UNIT // flow.weight)


def _after(turn: Turn | None, flow: Flow, answer: Reservation, *, wanted: int, now_us: int) -> Turn:
    spent = (turn.spent if turn else 0) + answer.count * UNIT // flow.weight
    last_us = answer.first_in_us + max(0, answer.count - 1) * answer.every_us
    return Turn(spent, now_us + last_us if answer.count < wanted else 0, flow.weight)
