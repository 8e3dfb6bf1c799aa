"""One suite for every limiter: the double on a hand-set clock, and real Redis told the same time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator.core.permits import Budget, Flow, Grant, Heard
from orchestrator.core.ports import Limiter
from orchestrator.gateways.limiter import RedisLimiter, redis_client
from orchestrator.gateways.local import private_redis
from orchestrator.gateways.testing import HandClock, MemoryLimiter

TEN = Budget("ten", 600, 10)
SLOW = Budget("slow", 6, 1)


class Schedule(NamedTuple):
    """When permits may be used: what of a grant these tests are about."""

    count: int
    first_in_s: float
    every_s: float
    reason: str | None


@dataclass
class Bench:
    limiter: Limiter
    clock: HandClock
    flush: Callable[[], Awaitable[object]]

    async def take(self, *budgets: Budget, count: int = 1) -> Schedule:
        grant = await self.limiter.reserve(budgets, count=count)
        return Schedule(grant.count, grant.first_in_s, grant.every_s, grant.reason)

    async def ask(self, budget: Budget, *, count: int = 1, flow: Flow | None = None) -> Grant:
        """The whole grant."""
        return await self.limiter.reserve([budget], count=count, flow=flow)

    async def full(self, budget: Budget, **told: int) -> Grant:
        """All that a bucket gives after a rest, and then the provider's word about the last of them."""
        await self.fill(budget)
        grant = await self.ask(budget, count=100)
        await self.limiter.hear(budget, Heard(grant.serial, **told))
        return grant

    async def in_a_minute(self, budget: Budget, *, flow: Flow | None = None) -> int:
        """How many permits one greedy user is granted in a minute."""
        granted, passed = 0, 0.0
        while passed < 60:
            grant = await self.ask(budget, count=100, flow=flow)
            granted += grant.count
            step_s = max(0.05, grant.first_in_s + max(0, grant.count - 1) * grant.every_s)
            self.clock.advance(step_s)
            passed += step_s
        return granted

    async def fill(self, *budgets: Budget) -> None:
        """Make the buckets known, and let them fill."""
        await self.take(*budgets)
        self.clock.advance(120)


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """One limiter, its clock, and a way to make it forget."""
    clock = HandClock()
    clock.advance(1_000_000)
    if request.param == "memory":
        memory = MemoryLimiter(clock)

        async def forget() -> None:
            memory.flush()

        yield Bench(memory, clock, forget)
        return
    async with private_redis(tmp_path) as redis:
        limiter, client = RedisLimiter(redis.url, clock_us=clock.boottime_us), redis_client(redis.url)
        yield Bench(limiter, clock, client.flushall)
        await limiter.aclose()
        await client.aclose()


async def test_begins_empty(bench: Bench) -> None:
    """A budget never seen gives nothing at once, and says when to come back."""
    assert await bench.take(TEN, count=5) == Schedule(0, 0.35, 0.0, "limit")
    bench.clock.advance(0.35)
    assert await bench.take(TEN, count=5) == Schedule(3, 0.25, 0.1, None)


async def test_burst_then_rate(bench: Bench) -> None:
    """After idling `burst` permits are usable at once, then one per interval, none beyond half a second."""
    await bench.fill(TEN)
    assert await bench.take(TEN, count=10) == Schedule(10, 0.0, 0.0, None)
    assert await bench.take(TEN, count=10) == Schedule(5, 0.1, 0.1, None)
    assert await bench.take(TEN, count=10) == Schedule(0, 0.35, 0.0, "limit")


async def test_budgets_together(bench: Bench) -> None:
    """What one budget refuses is not taken from the other."""
    await bench.fill(TEN, SLOW)
    assert (await bench.take(TEN, SLOW, count=10)).count == 1
    assert (await bench.take(TEN, SLOW, count=10)) == Schedule(0, 9.75, 0.0, "limit")
    assert (await bench.take(TEN, count=9)) == Schedule(9, 0.0, 0.0, None)


async def test_budgets_are_apart(bench: Bench) -> None:
    """One key's permits cost another key nothing."""
    await bench.fill(TEN, SLOW)
    assert (await bench.take(TEN, count=10)).count == 10
    assert (await bench.take(SLOW)).count == 1


async def test_no_limit_still_pauses(bench: Bench) -> None:
    """Without a limit all is granted at once, except during a pause."""
    free = Budget("free", 0, 1)
    assert await bench.take(free, count=5000) == Schedule(5000, 0.0, 0.0, None)
    await bench.limiter.pause("free", seconds=3, reason="outage")
    assert await bench.take(free) == Schedule(0, 3.0, 0.0, "outage")


async def test_pause_is_for_everybody_and_ends(bench: Bench) -> None:
    """A pause answers reason and time left, to `reserve` and to `paused`, and ends by itself without a burst."""
    await bench.fill(TEN)
    await bench.limiter.pause("ten", seconds=5, reason="429")
    bench.clock.advance(2)
    assert await bench.take(SLOW, TEN) == Schedule(0, 3.0, 0.0, "429")
    assert await bench.limiter.paused("ten") == (3.0, "429")
    assert await bench.limiter.paused("slow") is None
    bench.clock.advance(3)
    assert await bench.limiter.paused("ten") is None
    assert await bench.take(TEN, count=2) == Schedule(2, 0.0, 0.1, None)


async def test_longer_pause_stands(bench: Bench) -> None:
    """A shorter pause changes neither time nor reason; a longer one changes both."""
    await bench.limiter.pause("ten", seconds=5, reason="first")
    await bench.limiter.pause("ten", seconds=4, reason="shorter")
    assert await bench.limiter.paused("ten") == (5.0, "first")
    await bench.limiter.pause("ten", seconds=6, reason="longer")
    assert await bench.limiter.paused("ten") == (6.0, "longer")


async def test_flush_grants_no_second_burst(bench: Bench) -> None:
    """After a flush the next permit lies behind everything that was reserved before it."""
    await bench.fill(TEN)
    assert (await bench.take(TEN, count=10)).count == 10
    ahead = await bench.take(TEN, count=5)
    await bench.flush()
    assert (await bench.take(TEN, count=10)).count == 0
    bench.clock.advance(0.1)
    after = await bench.take(TEN, count=10)
    assert 0.1 + after.first_in_s >= ahead.first_in_s + 4 * ahead.every_s + 0.1


async def test_nothing_wanted(bench: Bench) -> None:
    """Asking for no permits grants none and takes none."""
    await bench.fill(TEN)
    assert (await bench.take(TEN, count=0)).count == 0
    assert (await bench.take(TEN, count=10)).count == 10


async def test_serials_count_permits(bench: Bench) -> None:
    """Each grant names the number of its last permit; a refusal names the last that was granted."""
    await bench.fill(TEN)
    assert [(await bench.ask(TEN, count=n)).serial for n in (3, 4, 0)] == [3, 7, 7]
    assert (await bench.ask(TEN)).per_minute == 600


async def test_enough_left_changes_nothing(bench: Bench) -> None:
    """As long as the provider says that plenty is left, the rate is the budget's own."""
    await bench.full(TEN, remaining=599)
    assert (await bench.ask(TEN)).per_minute == 600
    assert await bench.in_a_minute(TEN) >= 590


async def test_little_left_slows_down(bench: Bench) -> None:
    """Who once had many and now has few is slowed, at once and for everybody, and told so; the same word twice counts once."""
    grant = await bench.full(TEN, remaining=599)
    bench.clock.advance(5)
    more = await bench.ask(TEN, count=5)
    assert more.serial > grant.serial
    for _ in range(3):
        await bench.limiter.hear(TEN, Heard(more.serial, remaining=0))
    assert (await bench.ask(TEN)).per_minute == 480
    assert await bench.in_a_minute(TEN) <= 480


async def test_the_rate_comes_back(bench: Bench) -> None:
    """Slowed by 429s, it is back at the budget's own after some rounds of answers that show plenty."""
    grant = await bench.full(TEN, remaining=599)
    for _ in range(4):
        bench.clock.advance(5)
        grant = await bench.ask(TEN, count=2)
        await bench.limiter.throttle(TEN, serial=grant.serial, seconds=1, reason="429", is_low_credit=False)
    assert (await bench.ask(TEN)).per_minute == pytest.approx(600 / 1.5**4, rel=0.001)
    for _ in range(16):
        bench.clock.advance(5)
        grant = await bench.ask(TEN, count=2)
        await bench.limiter.hear(TEN, Heard(grant.serial, remaining=599))
    assert (await bench.ask(TEN)).per_minute == 600


async def test_a_429_is_a_pause_for_everybody(bench: Bench) -> None:
    """Throttled: nobody gets a permit for so long, with the reason; then slower; older 429s only lengthen the pause."""
    grant = await bench.full(TEN)
    for serial in (grant.serial, grant.serial - 1, 1):
        await bench.limiter.throttle(TEN, serial=serial, seconds=3, reason="429", is_low_credit=False)
    assert await bench.take(TEN) == Schedule(0, 3.0, 0.0, "429")
    bench.clock.advance(3)
    assert (await bench.ask(TEN, count=9)).every_s == 0.1


async def test_a_429_of_news_slows_down(bench: Bench) -> None:
    """A 429 for a permit granted since the last word was heeded makes two permits half as far apart again."""
    await bench.full(TEN)
    bench.clock.advance(5)
    grant = await bench.ask(TEN, count=3)
    await bench.limiter.throttle(TEN, serial=grant.serial, seconds=3, reason="429", is_low_credit=False)
    bench.clock.advance(3)
    assert (await bench.ask(TEN, count=9)).every_s == 0.15


async def test_low_credit(bench: Bench) -> None:
    """Six a minute and no burst from the word on, said in each grant, until an answer shows that something is left."""
    grant = await bench.full(TEN)
    await bench.limiter.throttle(TEN, serial=grant.serial, seconds=5, reason="low", is_low_credit=True)
    bench.clock.advance(60)
    low = await bench.ask(TEN, count=9)
    assert (low.count, low.is_low_credit, round(low.per_minute, 2)) == (1, True, 5.71)
    await bench.limiter.hear(TEN, Heard(low.serial, remaining=0))
    assert await bench.in_a_minute(TEN) <= 7
    low = await bench.ask(TEN, count=9)
    await bench.limiter.hear(TEN, Heard(low.serial, remaining=5))
    assert await bench.in_a_minute(TEN) >= 580
    assert not (await bench.ask(TEN)).is_low_credit


async def test_low_credit_is_not_ended_by_older_answers(bench: Bench) -> None:
    """Answers to purchases from before the word, with plenty left, arrive after it: they change nothing."""
    grant = await bench.full(TEN)
    await bench.limiter.throttle(TEN, serial=grant.serial, seconds=5, reason="low", is_low_credit=True)
    await bench.limiter.hear(TEN, Heard(grant.serial, remaining=300))
    bench.clock.advance(60)
    assert (await bench.ask(TEN, count=9)).is_low_credit


async def test_breaker(bench: Bench) -> None:
    """Five without an answer: a pause with its reason, then one probe at a time, until one is answered."""
    grant = await bench.full(TEN)
    await bench.limiter.hear(TEN, Heard(grant.serial, answered=False, missed=5, trouble="timeout"))
    assert await bench.limiter.paused("ten") == (5.0, "provider down: timeout")
    assert await bench.take(TEN, count=9) == Schedule(0, 2.0, 0.0, "provider down: timeout")
    bench.clock.advance(5)
    probe = await bench.ask(TEN, count=9)
    assert (probe.count, probe.is_probe) == (1, True)
    bench.clock.advance(30)
    assert (await bench.ask(TEN, count=9)).count == 0
    await bench.limiter.hear(TEN, Heard(probe.serial, answered=False, missed=1, trouble="refused"))
    assert await bench.limiter.paused("ten") == (10.0, "provider down: refused")
    bench.clock.advance(10)
    probe = await bench.ask(TEN, count=9)
    await bench.limiter.hear(TEN, Heard(probe.serial))
    bench.clock.advance(1)
    after = await bench.ask(TEN, count=9)
    assert (after.count > 1, after.is_probe) == (True, False)


async def test_a_breaker_leaves_longer_pauses_alone(bench: Bench) -> None:
    """A pause that the provider asked for is not cut short by purchases that it does not answer."""
    grant = await bench.full(TEN)
    await bench.limiter.pause("ten", seconds=60, reason="429")
    await bench.limiter.hear(TEN, Heard(grant.serial, answered=False, missed=5, trouble="timeout"))
    assert await bench.limiter.paused("ten") == (60.0, "429")


async def test_flows_take_turns(bench: Bench) -> None:
    """Two that always want get permits by weight, whoever asks first and more often."""
    got, back_s = {"a": 0, "b": 0}, {"a": 0.0, "b": 0.0}
    flows, start_s = {"a": Flow("a", 60), "b": Flow("b", 30)}, bench.clock.boottime()
    while bench.clock.boottime() < start_s + 60:
        key = min(back_s, key=lambda key: back_s[key])
        bench.clock.advance(max(0.001, back_s[key] - (bench.clock.boottime() - start_s)))
        grant = await bench.ask(TEN, count=100, flow=flows[key])
        got[key] += grant.count
        back_s[key] = bench.clock.boottime() - start_s + grant.first_in_s + max(0, grant.count - 1) * grant.every_s
    assert sum(got.values()) >= 0.98 * 600
    assert got["a"] / sum(got.values()) == pytest.approx(2 / 3, rel=0.03)


async def test_a_flow_alone_is_not_held_back(bench: Bench) -> None:
    """One that has nobody beside it, or only who has gone, gets the whole rate."""
    await bench.ask(TEN, count=100, flow=Flow("gone", 90))
    bench.clock.advance(2)
    assert await bench.in_a_minute(TEN, flow=Flow("a", 1)) >= 590


async def test_clock_set_back(bench: Bench) -> None:
    """A clock that is set back an hour prolongs neither a pause nor a turn, and grants nothing twice."""
    await bench.fill(TEN)
    assert (await bench.ask(TEN, count=10, flow=Flow("a", 50))).count == 10
    await bench.ask(TEN, count=100, flow=Flow("b", 50))
    await bench.limiter.pause("ten", seconds=4, reason="429")
    bench.clock.advance(-3600)
    assert await bench.limiter.paused("ten") == (4.0, "429")
    assert (await bench.ask(TEN, count=10)).first_in_s == 4.0
    bench.clock.advance(4)
    assert await bench.take(TEN, count=2) == Schedule(2, 0.0, 0.1, None)
    assert (await bench.ask(TEN, count=9, flow=Flow("a", 50))).first_in_s <= 1.0


async def test_two_opinions_of_a_rate(bench: Bench) -> None:
    """Two users of one budget with different rates get no more together than the higher."""
    await bench.fill(TEN)
    granted = 0
    for _ in range(600):
        for budget in (TEN, Budget("ten", 60, 10)):
            granted += (await bench.ask(budget, count=100)).count
        bench.clock.advance(0.1)
    assert 590 <= granted <= 620
