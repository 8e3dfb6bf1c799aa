"""Outputs by the provider's clock, whatever this machine's says; and porters that come late, or meet what nobody foresaw."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.core.errors import OutputForbidden, OutputGone, Unreachable
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.ports import Decide, Fetched
from orchestrator.core.records import Batch, Change, Fact, OutputName, StoredOutput
from orchestrator.flow.collect import collect
from orchestrator.flow.control import retry
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.report import report
from orchestrator.flow.submit import submit
from orchestrator.flow.verify import verify_home
from orchestrator.gateways.clock import SystemClock
from tests.flow.conftest import Stage
from tests.flow.test_money import PICTURES, Outputs, completed
from tests.flow.test_races import again
from tests.flow.test_stations import Flaky, settle

FAST_S = 3700.0  # longer than the provider keeps outputs


@dataclass
class Wall:
    """How far this machine's clock is ahead of the true time, in seconds."""

    ahead_s: float = 0.0


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    """The wall clock, to be set by a test."""
    set_to = Wall()
    monkeypatch.setattr(SystemClock, "now", lambda _: datetime.now(UTC) + timedelta(seconds=set_to.ahead_s))
    return set_to


@asynccontextmanager
async def forbidden(_: str) -> AsyncIterator[Fetched]:
    """A download from a host that is not allowed."""
    raise OutputForbidden("not this host")
    yield  # type: ignore[unreachable]


async def test_a_failed_download_on_a_fast_clock(stage: Stage, wall: Wall):
    """The first download of each row fails, on a machine that is an hour fast: tried again, not given up and bought twice."""
    wall.ahead_s = FAST_S
    batch = await stage.load(4, model=PICTURES, more="retry: { attempts: 2, expired: buy }\n")
    stage.provider.put("faults", {"output_error": {"next": 4, "status": 500}})
    assert await settle(stage, batch, within_s=30) == {"succeeded": 4}
    assert len(stage.provider.purchases()) == 4


async def test_a_clock_that_jumps_while_rows_come_home(stage: Stage, wall: Wall):
    """It is set an hour ahead after the provider's last answer: the provider is asked before anything is given up."""
    batch = await completed(stage, 3)
    stage.provider.put("faults", {"output_error": {"next": 3, "status": 500}})
    wall.ahead_s = FAST_S
    await collect(stage.rooms, batch.id, 0)
    assert (await stage.states(batch)).get("failed") is None
    assert await settle(stage, batch) == {"succeeded": 3}


async def refused(stage: Stage, rows: int) -> Batch:
    """A batch of rows that were bought and not taken home, as their host was not allowed."""
    batch = await stage.load(rows, model=PICTURES)
    good = stage.rooms
    stage.rooms = replace(good, outputs=Flaky(good.outputs, fetch=forbidden))
    assert await settle(stage, batch) == {"failed": rows}
    stage.rooms = good
    return await again(stage, batch)


@pytest.mark.parametrize("has_heard", [True, False])
async def test_retry_on_a_fast_clock(stage: Stage, wall: Wall, has_heard: bool):
    """`retry` fetches what is kept, also as the first thing its process does: the hour is the provider's."""
    wall.ahead_s = FAST_S
    batch = await refused(stage, 2)
    if not has_heard:
        stage.rooms.predictions.offset_s = None  # type: ignore[misc]
    assert await retry(stage.rooms, batch, classes=frozenset()) == (2, 0)


async def test_what_verify_advises_on_a_fast_clock(stage: Stage, wall: Wall):
    """A file that is missing and still kept there can be fetched again, and `verify` says so."""
    wall.ahead_s = FAST_S
    batch = await stage.load(1, model=PICTURES)
    assert await settle(stage, batch) == {"succeeded": 1}
    (path,) = (stage.folder / "out" / "files").iterdir()
    path.unlink()
    (finding,) = (await verify_home(stage.rooms, await again(stage, batch))).findings.kept
    assert finding.remedy is not None and "--fetch" in finding.remedy


async def expires(stage: Stage, wall: Wall, batch: Batch) -> None:
    """The hour passes, and a porter finds nothing there."""
    wall.ahead_s, heard = FAST_S, stage.rooms.predictions.offset_s
    account = stage.rooms.predictions.account

    async def later() -> str:
        answer = await account()
        stage.rooms.predictions.offset_s = heard  # type: ignore[misc]
        return answer

    predictions = Flaky(stage.rooms.predictions, account=later, offset_s=heard)
    await collect(replace(stage.rooms, outputs=Flaky(stage.rooms.outputs, fetch=deleted), predictions=predictions), batch.id, 1)
    wall.ahead_s = 0.0


@asynccontextmanager
async def deleted(_: str) -> AsyncIterator[Fetched]:
    """A download of what is no longer there."""
    raise OutputGone("404: deleted")
    yield  # type: ignore[unreachable]


class Frozen:
    """A worker that is stopped with one picture in its hand, renews nothing, and goes on when a test wants it."""

    def __init__(self, stage: Stage) -> None:
        self.stopped, self.go_on = asyncio.Event(), asyncio.Event()
        self._real = stage.rooms.outputs.fetch
        ledger = Flaky(stage.rooms.ledger, hold=self.nothing, lease_collect=self._renewed)
        self._renew = stage.rooms.ledger.lease_collect
        self.rooms = replace(stage.rooms, outputs=Flaky(stage.rooms.outputs, fetch=self._fetch), ledger=ledger)

    @asynccontextmanager
    async def _fetch(self, url: str) -> AsyncIterator[Fetched]:
        async with self._real(url) as fetched:
            blob = b"".join([chunk async for chunk in fetched.chunks])
            self.stopped.set()
            await self.go_on.wait()

            async def chunks() -> AsyncIterator[bytes]:
                yield b"OLD" + blob

            yield replace(fetched, chunks=chunks(), length=None)

    @staticmethod
    async def nothing(*_: object, **__: object) -> bool:
        """Of a process that is stopped no word comes."""
        return True

    async def _renewed(self, leases: dict[int, datetime], *, until: datetime) -> set[int]:
        return await self._renew(leases, until=until) if self.go_on.is_set() else set(leases)


async def completed_again(stage: Stage) -> Batch:
    """A row whose output lies with the provider; where that expires, it is bought again."""
    batch = await stage.load(1, model=PICTURES, more="retry: { attempts: 2, expired: buy }\n")
    await submit(stage.rooms, batch.id, 0)
    while (await stage.states(batch)).get("collecting") != 1:
        await sweep(stage.rooms, batch.account)
        await asyncio.sleep(0.05)
    return batch


async def test_a_late_porter_and_a_newer_purchase(stage: Stage, wall: Wall):
    """One that is stopped for an hour brings home what its row has long been bought again for: the newer picture stays under its
    name and hash, and of the older one nothing is left."""
    batch = await completed_again(stage)
    frozen = Frozen(stage)
    first = asyncio.create_task(collect(frozen.rooms, batch.id, 0))
    await frozen.stopped.wait()
    await expires(stage, wall, batch)
    assert await settle(stage, batch) == {"succeeded": 1}
    (path,) = (stage.folder / "out" / "files").iterdir()
    picture = path.read_bytes()
    frozen.go_on.set()
    await first
    assert list((stage.folder / "out" / "files").iterdir()) == [path]
    assert path.read_bytes() == picture
    await report(stage.rooms, batch.id)
    found = await verify_home(stage.rooms, await again(stage, batch))
    assert (found.findings.total, found.strangers) == (0, 0)
    assert len(stage.provider.purchases()) == 2


async def test_a_late_porter_that_had_no_name_yet(stage: Stage, wall: Wall):
    """One that is stopped before it asks for names gets none when its row was bought again meanwhile: it fetches nothing."""
    batch = await completed_again(stage)
    asked, go_on, real = asyncio.Event(), asyncio.Event(), stage.rooms.ledger.grant_names

    async def grant_names(names: list[OutputName]) -> list[str | None]:
        asked.set()
        await go_on.wait()
        return await real(names)

    fetched: list[str] = []
    late = replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, grant_names=grant_names, hold=Frozen.nothing),
                   outputs=Flaky(stage.rooms.outputs, fetch=fetched.append))
    first = asyncio.create_task(collect(late, batch.id, 0))
    await asked.wait()
    await expires(stage, wall, batch)
    assert await settle(stage, batch) == {"succeeded": 1}
    before = [line async for line in stage.rooms.ledger.manifest(batch.pk)]
    go_on.set()
    await first
    assert ([line async for line in stage.rooms.ledger.manifest(batch.pk)], fetched) == (before, [])


async def test_what_a_late_porter_says_of_an_item_that_another_holds(stage: Stage, wall: Wall):
    """Its lease is over and somebody else fetches: what went wrong on its own way neither ends nor delays nor frees the item."""
    batch = await completed(stage, 1)
    stopped, go_on = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def fetch(_: str) -> AsyncIterator[Fetched]:
        stopped.set()
        await go_on.wait()
        raise OutputForbidden("not this host")
        yield  # type: ignore[unreachable]

    late = replace(stage.rooms, outputs=Flaky(stage.rooms.outputs, fetch=fetch))
    first = asyncio.create_task(collect(late, batch.id, 0))
    await stopped.wait()
    wall.ahead_s = 200.0
    now = stage.rooms.clock.now()
    assert len(await stage.rooms.ledger.to_collect(batch.pk, count=9, now=now, lease_until=now + timedelta(minutes=3))) == 1
    go_on.set()
    await first
    assert await stage.states(batch) == {"collecting": 1}
    assert await stage.rooms.ledger.to_collect(batch.pk, count=9, now=now, lease_until=now) == []
    found = await again(stage, batch)
    assert found.state is BatchState.RUNNING


async def test_files_of_an_earlier_purchase_go(stage: Stage, wall: Wall):
    """A file that came home before its row had to be bought again, and counts no longer, does not stay behind for ever."""
    batch = await completed_again(stage)
    real = stage.rooms.ledger.move

    async def move(facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
        return await real([fact for fact in facts if fact.event is not Event.COLLECTED], decide=decide)

    await collect(replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, move=move)), batch.id, 0)
    (old,) = (stage.folder / "out" / "files").iterdir()
    await expires(stage, wall, batch)
    assert await settle(stage, batch) == {"succeeded": 1}
    (new,) = (stage.folder / "out" / "files").iterdir()
    assert (old.name, new.name) == ("0-0.webp", "0-0~0.webp")


async def test_a_slow_download_keeps_nothing_in_hand(stage: Stage):
    """When the slice is over, what nobody has begun to fetch is anybody's, however long a neighbour's download takes."""
    batch = await completed(stage, 12)
    slow, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: str) -> None:
        if slow.is_set():
            await asyncio.sleep(0.3)
        else:
            slow.set()
            await go_on.wait()

    rooms = replace(stage.rooms, outputs=Outputs(stage.rooms.outputs, wait),
                    tempo=replace(stage.rooms.tempo, slice_s=0.5, collect_concurrency=2))
    first = asyncio.create_task(collect(rooms, batch.id, 0))
    await slow.wait()
    try:
        assert await comes_true(lambda: collected(stage, batch, 11))
        assert not first.done()
    finally:
        go_on.set()
        await first
    assert await settle(stage, batch) == {"succeeded": 12}


async def collected(stage: Stage, batch: Batch, rows: int) -> bool:
    """Whether another task brings home so many rows."""
    await collect(stage.rooms, batch.id, 1)
    return (await stage.states(batch)).get("succeeded") == rows


async def comes_true(asked: Callable[[], Awaitable[bool]], *, within_s: float = 10.0) -> bool:
    """Whether it is so within this time."""
    until = asyncio.get_running_loop().time() + within_s
    while not await asked():
        if asyncio.get_running_loop().time() > until:
            return False
        await asyncio.sleep(0.05)
    return True


@pytest.mark.parametrize("goes_on", [False, True], ids=["once", "for-one-row"])
async def test_a_strange_error_while_files_are_noted(stage: Stage, goes_on: bool):
    """What the database has against one row's file costs at most that row another try: its neighbours are home at once."""
    batch = await completed(stage, 12)
    real, refusals = stage.rooms.ledger.store_outputs, 0

    async def store(outputs: Sequence[StoredOutput]) -> list[StoredOutput]:
        nonlocal refusals
        if (goes_on or not refusals) and any(output.path == "files/3-0.webp" for output in outputs):
            refusals += 1
            raise RuntimeError("an odd answer")
        return await real(outputs)

    rooms = replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, store_outputs=store))
    await collect(rooms, batch.id, 0)
    assert refusals == 1 + goes_on
    assert await stage.states(batch) == ({"collecting": 1, "succeeded": 11} if goes_on else {"succeeded": 12})
    (row,) = [item async for _, some in stage.rooms.ledger.results(batch.pk) for item in some if item.index == 3]
    assert row.error == ("could not be noted: an odd answer" if goes_on else None)
    assert await settle(stage, batch) == {"succeeded": 12}


async def test_an_outage_while_rows_are_noted_one_by_one(stage: Stage):
    """Away in the middle of it: the rest is kept, and noted when the ledger is back."""
    batch = await completed(stage, 6)
    real, errors = stage.rooms.ledger.store_outputs, iter([RuntimeError("odd"), None, Unreachable("away")])

    async def store(outputs: Sequence[StoredOutput]) -> list[StoredOutput]:
        if (error := next(errors, None)) is not None:
            raise error
        return await real(outputs)

    outputs = Outputs(stage.rooms.outputs, lambda _: asyncio.sleep(0))
    tempo = replace(stage.rooms.tempo, record_every_s=0.5)
    await collect(replace(stage.rooms, outputs=outputs, tempo=tempo, ledger=Flaky(stage.rooms.ledger, store_outputs=store)),
                  batch.id, 0)
    assert await stage.states(batch) == {"succeeded": 6}
    assert len(outputs.fetched) == 6
