"""One suite for every limiter: the double on a hand-set clock, and real Redis told the same time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestrator.core.permits import Budget
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
