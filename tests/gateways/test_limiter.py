import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator.core.errors import Unreachable
from orchestrator.core.permits import Budget, Flow, Heard
from orchestrator.core.ports import Limiter
from orchestrator.gateways.limiter import RedisLimiter, redis_client, redis_place
from orchestrator.gateways.local import private_redis
from orchestrator.gateways.testing import HandClock, MemoryLimiter


@pytest.fixture
async def redis_url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a Redis of this test's own."""
    async with private_redis(tmp_path) as redis:
        yield redis.url


@pytest.mark.parametrize("seed", range(12))
async def test_script_and_model_agree(redis_url: str, seed: int) -> None:
    """Scripts and model give the same answer to every question, over random rates, waits, pauses, flushes, turns, and
    whatever the provider says."""
    dice, clock = random.Random(seed), HandClock()
    clock.advance(1_700_000_000)  # as large as a real clock's number
    model, real = MemoryLimiter(clock), RedisLimiter(redis_url, clock_us=clock.boottime_us)
    client = redis_client(redis_url)
    budgets = [Budget("a", dice.choice([6, 7, 600, 971.3, 30_000]), dice.randint(1, 12)),
               Budget("b", dice.choice([600, 3000, 7001]), dice.randint(1, 40)), Budget("c", dice.choice([0, 1e-9]), 1),
               Budget("a", dice.choice([300, 1200]), dice.randint(1, 12))]  # another opinion of the first
    newest: dict[str, int] = {}
    for _ in range(500):
        clock.advance(dice.choice([dice.uniform(0, 0.3), dice.uniform(0, 20), 0.0, dice.choice([0.0, -1.0, -40.0, 90.0])]))
        if dice.random() < 0.02:
            model.flush()
            await client.flushall()
        about = dice.choice(budgets)
        tell = _something(dice, newest.get(about.key, 0))
        await asyncio.gather(tell(model, about), tell(real, about))
        asked, count = dice.sample(budgets[dice.choice([0, 1]):], dice.randint(1, 3)), dice.randint(0, 60)
        if len({budget.key for budget in asked}) < len(asked):
            asked = asked[:1]
        flow = dice.choice([None, Flow(dice.choice("xyz"), dice.choice([1, 50, 90]), dice.random() < 0.5, dice.random() < 0.5)])
        grant = await real.reserve(asked, count=count, flow=flow)
        assert grant == await model.reserve(asked, count=count, flow=flow)
        newest[asked[0].key] = grant.serial
        assert await real.paused(about.key) == await model.paused(about.key)
    await asyncio.gather(real.aclose(), client.aclose())


def _something(dice: random.Random, newest: int) -> Callable[[Limiter, Budget], Awaitable[None]]:
    """A word of the provider, or none."""
    serial, seconds, reason = newest + dice.choice([-9, -1, 0, 0, 0, 1]), dice.uniform(0, 4), f"é{dice.random()}"
    told = Heard(serial, answered=dice.random() < 0.6, remaining=dice.choice([None, 0, 1, 4, 9, 599]),
                 missed=dice.choice([0, 0, 1, 3, 7]), trouble=reason)
    is_low, which = dice.random() < 0.2, dice.random()

    async def tell(limiter: Limiter, about: Budget) -> None:
        if which < 0.05:
            await limiter.pause(about.key, seconds=seconds, reason=reason)
        elif which < 0.15:
            await limiter.throttle(about, serial=serial, seconds=seconds, reason=reason, is_low_credit=is_low)
        elif which < 0.7:
            await limiter.hear(about, told)

    return tell


async def test_every_key_ends(redis_url: str) -> None:
    """Whatever was called last, each key has an end, later than what it has to remember; asking for a pause makes none."""
    clock = HandClock()
    clock.advance(1_700_000_000)
    limiter, client = RedisLimiter(redis_url, clock_us=clock.boottime_us), redis_client(redis_url)
    budget, slow, flow = Budget("a", 600, 3), Budget("slow", 0.01, 1), Flow("x", 50)

    async def ends() -> dict[str, int]:
        return {key.rsplit(":", 1)[-1]: await client.ttl(key) for key in await client.keys("*")}

    await limiter.paused("nobody")
    assert await ends() == {}
    for call in (lambda: limiter.reserve([slow], count=1), lambda: limiter.reserve([slow], count=1),
                 lambda: limiter.reserve([budget, slow], count=4, flow=flow), lambda: limiter.hear(budget, Heard(1, missed=1)),
                 lambda: limiter.throttle(budget, serial=1, seconds=9000, reason="429", is_low_credit=True),
                 lambda: limiter.reserve([budget], count=4, flow=flow), lambda: limiter.pause("b", seconds=5, reason="x")):
        await call()
        clock.advance(1)
        found = await ends()
        assert all(3500 <= left <= 30_000 for left in found.values())
        assert found.get("slow", 9000) >= 9000
    assert (await ends())["a"] >= 9000
    await asyncio.gather(limiter.aclose(), client.aclose())


async def test_flows_of_old_are_dropped(redis_url: str) -> None:
    """A thousand batches, one after the other: what is remembered of whose turn it is stays small."""
    clock = HandClock()
    clock.advance(1_700_000_000)
    limiter, client = RedisLimiter(redis_url, clock_us=clock.boottime_us), redis_client(redis_url)
    for n in range(1000):
        await limiter.reserve([Budget("a", 600, 3)], count=3, flow=Flow(f"batch {n}", 50))
        clock.advance(1)
    assert await client.hlen("orchestrator:limit:turns:a") <= 65
    await asyncio.gather(limiter.aclose(), client.aclose())


async def test_no_minute_above_the_allowance(redis_url: str) -> None:
    """On real Redis, four workers and a flush get no more than rate and burst in any minute, and nearly all of it."""
    clock, dice, times = HandClock(), random.Random(1), []
    limiter, client = RedisLimiter(redis_url, clock_us=clock.boottime_us), redis_client(redis_url)
    for step in range(1500):
        clock.advance(dice.uniform(0.01, 0.2))
        grant = await limiter.reserve([Budget("a", 600, 10)], count=dice.randint(1, 20))
        times += [clock.boottime() + grant.first_in_s + i * grant.every_s for i in range(grant.count)]
        if step == 700:
            await client.flushall()
    most = max(sum(start <= time <= start + 60 for time in times) for start in times)
    assert 600 <= most <= 610
    assert len(times) >= 0.99 * 10 * clock.boottime()
    await asyncio.gather(limiter.aclose(), client.aclose())


async def test_redis_clock(redis_url: str) -> None:
    """Without a clock of its own the limiter goes by Redis's, and two limiters share one bucket."""
    one, two = RedisLimiter(redis_url), RedisLimiter(redis_url)
    budget = [Budget("a", 60_000, 1)]
    assert (await one.reserve(budget, count=1)).count == 0
    await asyncio.sleep(0.01)
    granted = [await limiter.reserve(budget, count=10_000) for limiter in (one, two, one)]
    assert sum(grant.count for grant in granted) <= 520
    assert all(grant.first_in_s <= 0.5 for grant in granted if grant.count)
    await asyncio.gather(one.aclose(), two.aclose())


async def test_survives_a_forgotten_script(redis_url: str) -> None:
    """A Redis that lost its scripts is given them again."""
    limiter, client = RedisLimiter(redis_url), redis_client(redis_url)
    await limiter.reserve([Budget("a", 600, 1)], count=1)
    await client.script_flush()
    assert (await limiter.reserve([Budget("b", 0, 1)], count=3)).count == 3
    await asyncio.gather(limiter.aclose(), client.aclose())


async def test_away_means_unreachable(tmp_path: Path) -> None:
    """Every call without Redis raises Unreachable, naming the place and not the password."""
    limiter = RedisLimiter("redis://user:hunter2@127.0.0.1:1/0")
    for call in (limiter.reserve([Budget("a", 1, 1)], count=1), limiter.pause("a", seconds=1, reason="x"),
                 limiter.paused("a"), limiter.hear(Budget("a", 1, 1), Heard(1)),
                 limiter.throttle(Budget("a", 1, 1), serial=1, seconds=1, reason="x", is_low_credit=False)):
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 ") as caught:
            await call
        assert "hunter2" not in str(caught.value)
    await limiter.aclose()


async def test_broken_answer_means_unreachable(redis_url: str) -> None:
    """A Redis that answers with an error grants nothing either."""
    limiter, client = RedisLimiter(redis_url, prefix="p:"), redis_client(redis_url)
    await client.set("p:a", "not a bucket")
    with pytest.raises(Unreachable, match="ResponseError"):
        await limiter.reserve([Budget("a", 1, 1)], count=1)
    await asyncio.gather(limiter.aclose(), client.aclose())


def test_places() -> None:
    """Messages name a socket by its path, a host by name and port, and nothing secret."""
    assert redis_place("redis+socket:///tmp/r.sock") == "socket /tmp/r.sock"
    assert redis_place("rediss://:secret@cache.example:6380/2") == "cache.example:6380"
