"""Outputs by the provider's clock, whatever this machine's says; and porters that come late, or meet what nobody foresaw."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.core.errors import OutputForbidden
from orchestrator.core.ports import Fetched
from orchestrator.core.records import Batch
from orchestrator.flow.collect import collect
from orchestrator.flow.control import retry
from orchestrator.flow.verify import verify_home
from orchestrator.gateways.clock import SystemClock
from tests.flow.conftest import Stage
from tests.flow.test_money import PICTURES, completed
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
