"""A provider that throttles what buys nothing: a pause for everybody who reads, nobody else's, and no storm."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from orchestrator import wiring
from orchestrator.core.errors import Throttled
from orchestrator.core.permits import Budget
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.verify import Document, Report
from orchestrator.flow.asking import BURST, CALLS, LONGEST_WAIT_S, NO_HINT_S, THROTTLED, paced
from orchestrator.flow.control import cancel, retry
from orchestrator.flow.ending import SIDE_BY_SIDE
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.submit import submit
from orchestrator.flow.verify_there import verify_there
from orchestrator.gateways.testing import HandClock, MemoryLimiter
from orchestrator.settings import read_settings
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.chaos.outages import long
from tests.e2e.desk import Provider
from tests.flow.conftest import Stage
from tests.flow.test_stations import Flaky

PICTURES = "black-forest-labs/flux-schnell"
TOKEN = {"authorization": "Bearer r8_simulator"}
LIST, GET = "list predictions", "get prediction"
THEIRS = 300  # reads per minute that the provider allows, where ours are three times as many


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A simulator whose predictions take some seconds."""
    config = SimulatorConfig(port=0, latency_s=4, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0, seed=3)
    with running(config) as url:
        yield Provider(url)


def drained(provider: Provider, path: str, *, calls: int) -> None:
    """Somebody else on the account has just used up what was saved of this kind of call."""
    with httpx.Client(base_url=provider.url, headers=TOKEN, verify=False, timeout=60) as client:
        for _ in range(calls):
            client.get(path)


def answered(provider: Provider, route: str = LIST) -> tuple[int, int]:
    """How many calls of this kind were answered well, and how many with a 429."""
    told = provider.admin("calls")["routes"].get(route, {})
    return told.get("200", 0), told.get("429", 0)


def refuse(stage: Stage, count: int | None = None, *, switch: str = "list_error") -> None:
    """The next so many calls (None: all) are answered with a 429 that gives no hint."""
    stage.provider.put("faults", {switch: {"status": 429} | ({"p": 1.0} if count is None else {"next": count})})


async def bought(stage: Stage, rows: int) -> Batch:
    """A batch with all its rows out at the provider, and there they stay."""
    stage.provider.put("faults", {"stuck": 1.0})
    batch = await stage.load(rows, model=PICTURES)
    await submit(stage.rooms, batch.id, 0)
    assert await stage.states(batch) == {"running": rows}
    return batch


def quick(stage: Stage, *, reads_per_minute: float = 3000.0) -> tuple[Rooms, HandClock]:
    """The same rooms by a clock on which nobody really waits, with Replicate's own budget for reads."""
    clock = HandClock(start_at=stage.rooms.clock.now())
    tempo = replace(stage.rooms.tempo, reads_per_minute=reads_per_minute)
    return replace(stage.rooms, clock=clock, limiter=MemoryLimiter(clock), tempo=tempo), clock


@long
async def test_a_budget_of_theirs_that_is_a_third_of_ours(stage: Stage):
    """Two workers look for what has ended, as fast as they may and three times as fast as the provider allows: two calls of three
    would be refused, for as long as anything is out."""
    batch = await stage.load(40, model=PICTURES)
    await submit(stage.rooms, batch.id, 0)
    stage.provider.put("limits", {"reads_per_minute": THEIRS})
    drained(stage.provider, "/v1/account", calls=THEIRS)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, reads_per_minute=3 * THEIRS))

    async def at_work(mine: Rooms) -> None:
        while "running" in await stage.states(batch):
            await sweep(mine, batch.account)
            await asyncio.sleep(0.01)

    async with wiring.rooms(read_settings(stage.folder / "home")) as second:
        others = replace(second, limiter=rooms.limiter, tempo=rooms.tempo)
        async with asyncio.timeout(60), asyncio.TaskGroup() as workers:
            for mine in [rooms, others] * 3:
                workers.create_task(at_work(mine))
            while not answered(stage.provider)[1]:
                await asyncio.sleep(0.05)
            await asyncio.sleep(1)  # what had its permit already is asked, and refused, within half a second
            at_first = answered(stage.provider)
    assert await stage.states(batch) == {"collecting": 40}
    read, refused = answered(stage.provider)
    assert at_first[1] <= 9
    assert read - at_first[0] >= 10
    assert refused - at_first[1] <= 6  # 18, where each asked again by itself


async def test_a_429_on_one_get_is_everybodys_pause(stage: Stage):
    """One worker is refused a single GET: the other's sweep waits as well, for what it asks; purchases go on meanwhile."""
    first = await bought(stage, 2)
    ((_, out),) = await stage.rooms.ledger.in_air(first.pk, count=1)
    stage.provider.put("limits", {"polls_per_minute": 20})
    drained(stage.provider, f"/v1/predictions/{out}", calls=20)
    asking = asyncio.create_task(paced(stage.rooms, first.account, stage.rooms.predictions.get, out))
    async with asyncio.timeout(30):
        while (pause := await stage.rooms.limiter.paused(f"reads:{first.account}")) is None:
            await asyncio.sleep(0.01)
    looks, made = answered(stage.provider)[0], len(stage.provider.purchases())
    assert pause[0] > 2 and pause[1] == THROTTLED  # 20 in a minute: one in three seconds
    looking = asyncio.create_task(sweep(stage.rooms, first.account))
    await submit(stage.rooms, (await stage.load(3, model=PICTURES)).id, 0)
    assert len(stage.provider.purchases()) == made + 3
    assert await stage.rooms.limiter.paused(f"creates:{first.account}") is None
    assert await stage.rooms.limiter.paused(f"reads:{first.account}") is not None, "too slow a machine to see anything"
    assert answered(stage.provider)[0] == looks
    assert (await asking).id == out
    await looking
    assert answered(stage.provider)[0] > looks


async def test_a_429_on_a_purchase_pauses_no_reads(stage: Stage):
    """The provider keeps separate budgets: what is out must be heard of while nothing can be bought."""
    batch = await bought(stage, 2)
    stage.provider.put("faults", {"storm_429": {"next": 1, "seconds": 30}})
    await submit(stage.rooms, (await stage.load(1, model=PICTURES)).id, 0)
    assert await stage.rooms.limiter.paused(f"creates:{batch.account}") is not None
    looks = answered(stage.provider)[0]
    await sweep(stage.rooms, batch.account)
    assert answered(stage.provider) == (looks + 1, 0)


async def test_without_a_hint(stage: Stage):
    """A 429 that does not say how long: two seconds and a jitter, and then the same call again."""
    batch = await bought(stage, 1)
    rooms, clock = quick(stage)
    refuse(stage, 1)
    began_s = clock.boottime()
    page = await paced(rooms, batch.account, rooms.predictions.list_page)
    assert len(page.predictions) == 1
    assert NO_HINT_S + clock.jitter() <= clock.boottime() - began_s <= NO_HINT_S + clock.jitter() + 1
    assert answered(stage.provider) == (1, 1)


@pytest.mark.parametrize("account", ["simulator", None])
async def test_refused_again_and_again(stage: Stage, account: str | None):
    """A question is not asked for ever: whoever asked hears of it, and goes on with something else."""
    rooms, clock = quick(stage)
    refuse(stage)
    with pytest.raises(Throttled):
        await paced(rooms, account, rooms.predictions.list_page)
    assert answered(stage.provider) == (0, CALLS)
    assert (CALLS - 1) * NO_HINT_S < clock.boottime() < LONGEST_WAIT_S


@pytest.mark.parametrize("account", ["simulator", None])
async def test_a_pause_too_long_to_be_waited_for(stage: Stage, account: str | None):
    """A minute is nothing to sleep through for a worker that is to be steered; and nobody else of the account asks meanwhile."""
    rooms, clock = quick(stage)
    stage.provider.put("limits", {"reads_per_minute": 1})
    drained(stage.provider, "/v1/account", calls=1)
    for _ in range(3):
        with pytest.raises(Throttled) as raised:
            await paced(rooms, account, rooms.predictions.list_page)
        assert raised.value.retry_after_s is not None and raised.value.retry_after_s > LONGEST_WAIT_S
    assert clock.boottime() < LONGEST_WAIT_S
    assert answered(stage.provider) == (0, 1 if account else 3)


async def test_a_long_pause_ends_no_sweep(stage: Stage):
    """While the provider cannot be asked, leases still lapse, and the sweep comes again by itself: without its wake nobody would
    ever look again."""
    batch = await bought(stage, 2)
    rooms, clock = quick(stage)
    await rooms.limiter.pause(f"reads:{batch.account}", seconds=600, reason=THROTTLED)
    looks = answered(stage.provider)
    for lane in (0, 1):
        wakes = await sweep(rooms, batch.account, lane)
        assert [(wake.station, wake.lane) for wake in wakes] == [("sweep", lane)]
    assert answered(stage.provider) == looks
    assert clock.boottime() < LONGEST_WAIT_S


async def test_nobody_waits_in_a_process_that_stops(stage: Stage):
    """A pause of many seconds would hold up the stop, until the worker is killed in the middle of something."""
    rooms, clock = quick(stage)
    await rooms.limiter.pause("reads:simulator", seconds=10, reason=THROTTLED)
    with pytest.raises(Throttled):
        await paced(replace(rooms, stopping=lambda: clock.boottime() > 2), "simulator", rooms.predictions.list_page)
    assert 2 < clock.boottime() < 5


@pytest.mark.parametrize("reads_per_minute", [3000.0, 0.0])
async def test_the_full_rate_comes_back(stage: Stage, reads_per_minute: float):
    """Slower after a 429, and for good if nobody heard that all is well again: whatever the budget, also none."""
    batch = await bought(stage, 1)
    rooms, _ = quick(stage, reads_per_minute=reads_per_minute)
    budget = Budget(f"reads:{batch.account}", reads_per_minute, BURST)
    refuse(stage, 1)
    await paced(rooms, batch.account, rooms.predictions.list_page)
    slowed = (await rooms.limiter.reserve([budget], count=0)).per_minute
    assert 0 < slowed < (reads_per_minute or 1000)
    for _ in range(80):
        await paced(rooms, batch.account, rooms.predictions.list_page)
    assert (await rooms.limiter.reserve([budget], count=0)).per_minute == reads_per_minute


async def test_the_limiter_is_not_told_of_every_read(stage: Stage):
    """One call to Redis for each read is enough, as long as all is well."""
    batch = await bought(stage, 1)
    stage.provider.put("limits", {"reads_per_minute": 3000})
    rooms, _ = quick(stage)
    heard: list[Any] = []

    class Listening(MemoryLimiter):
        async def hear(self, budget: Any, told: Any) -> None:
            heard.append(told)
            await super().hear(budget, told)

    rooms = replace(rooms, limiter=Listening(rooms.clock))
    for _ in range(30):
        await paced(rooms, batch.account, rooms.predictions.list_page)
    assert heard == []
    stage.provider.put("limits", {"reads_per_minute": 40})
    await paced(rooms, batch.account, rooms.predictions.list_page)
    assert [told.remaining for told in heard] == [39]


async def test_verify_waits_its_turn(stage: Stage):
    """`verify` is refused the list twice: it waits as everybody does, and says in the end that all is well."""
    batch = await bought(stage, 3)
    rooms, clock = quick(stage)
    refuse(stage, 2)
    report = Report(Document("manifest.jsonl"), Document("results.csv"))
    await verify_there(rooms, batch, report)
    assert (report.there.why_not, report.there.ours, report.findings.total) == (None, 3, 0)
    assert answered(stage.provider)[1] == 2
    assert clock.boottime() > 2 * NO_HINT_S


async def test_retry_of_unsure_rows_waits_its_turn(stage: Stage):
    """`retry --class unsure` is refused the list and a GET: had it given up there, the row would stay failed, and what it bought
    would be deleted unfetched."""
    stage.provider.put("faults", {"lost_answer": {"next": 1}})
    batch = await stage.load(1, model=PICTURES)
    await submit(stage.rooms, batch.id, 0)
    assert await stage.states(batch) == {"unsure": 1}
    rooms, clock = quick(stage)
    refuse(stage, 1)
    refuse(stage, 1, switch="get_error")
    await retry(rooms, batch, classes=frozenset({"unsure"}))
    assert await stage.states(batch) in ({"running": 1}, {"collecting": 1})
    assert (answered(stage.provider)[1], answered(stage.provider, GET)[1]) == (1, 1)
    assert clock.boottime() > 2 * NO_HINT_S
    assert len(stage.provider.purchases()) == 1


async def test_an_end_within_the_budget(stage: Stage):
    """`cancel` of a large batch would be a storm of its own: each of its calls has its permit."""
    batch = await bought(stage, 30)
    rooms, clock = quick(stage, reads_per_minute=600)
    await cancel(rooms, batch)
    assert await stage.states(batch) == {"canceled": 30}
    assert clock.boottime() >= 29 / 10  # an unknown bucket is an empty one


@long
async def test_an_end_that_is_throttled(stage: Stage):
    """Twenty cancels side by side on an account whose reads somebody else uses up: each asking again by itself would be refused
    again and again."""
    batch = await bought(stage, 160)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, reads_per_minute=12 * THEIRS))
    stage.provider.put("limits", {"reads_per_minute": 4 * THEIRS})
    drained(stage.provider, "/v1/account", calls=4 * THEIRS)
    async with asyncio.timeout(60):
        await cancel(rooms, batch)
    assert await stage.states(batch) == {"canceled": 160}
    ended, refused = answered(stage.provider, "cancel prediction")
    assert ended == 160
    assert 0 < refused <= SIDE_BY_SIDE + 2  # those that were out together, and hardly one afterwards


async def test_an_end_that_has_to_wait(stage: Stage):
    """Paused for long, a round of a thousand would ask the limiter a thousand times in vain: it stops, and the sweep goes on."""
    batch = await bought(stage, 45)
    rooms, clock = quick(stage)
    await rooms.limiter.pause(f"reads:{batch.account}", seconds=60, reason=THROTTLED)
    asked = 0

    async def reserve(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        return await rooms.limiter.reserve(*args, **kwargs)

    await cancel(replace(rooms, limiter=Flaky(rooms.limiter, reserve=reserve)), batch)
    assert asked == SIDE_BY_SIDE
    assert await stage.states(batch) == {"running": 45}
    clock.advance(60)
    await sweep(rooms, batch.account)
    assert await stage.states(batch) == {"canceled": 45}


async def test_an_end_without_a_limiter(stage: Stage):
    """Redis is away: nothing is bought, but what is out costs money by the second, and is ended all the same."""
    batch = await bought(stage, 3)
    stage.limiter.away = True
    await cancel(stage.rooms, batch)
    assert await stage.states(batch) == {"canceled": 3}


async def test_a_start_that_is_throttled(stage: Stage):
    """The first question of a run, before its account is known, meets a 429: a moment's wait, not the end of the run."""
    stage.provider.put("limits", {"reads_per_minute": 120})
    drained(stage.provider, "/v1/account", calls=120)
    batch = await stage.load(1, model=PICTURES)
    assert batch.account == "simulator"
    assert answered(stage.provider, "get account")[1] >= 1
