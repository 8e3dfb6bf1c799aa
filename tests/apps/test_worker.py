"""The worker's loop and its rooms: opened before anything is consumed, and no error of a station is a long silence."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.apps.worker import loop
from orchestrator.apps.worker.loop import StationLoop
from orchestrator.core.errors import BadInput, Unreachable
from orchestrator.core.records import Wake
from orchestrator.core.tempo import Tempo
from orchestrator.settings import read_settings


@dataclass
class Stand:
    """Rooms that raise what they are told to when they are opened, and a ledger that notes wakes."""

    loop: StationLoop
    lost: threading.Event
    troubles: list[BaseException] = field(default_factory=list)
    closing: BaseException | None = None
    opened: int = 0
    wakes: list[Wake] = field(default_factory=list)
    ledger_troubles: list[Exception] = field(default_factory=list)

    async def schedule(self, wakes: Sequence[Wake], **_: Any) -> None:
        """As the ledger does it, unless it is away."""
        if self.ledger_troubles:
            raise self.ledger_troubles.pop(0)
        self.wakes += wakes

    @asynccontextmanager
    async def rooms(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        """What a worker holds."""
        self.opened += 1
        if self.troubles:
            raise self.troubles.pop(0)
        yield SimpleNamespace(ledger=self, clock=wiring.clock(), tempo=Tempo(beat_s=0.02), owner="here:1")

    async def beat(self, _: Any) -> None:
        """Somebody is at work."""

    async def depart(self, *_: Any, **__: Any) -> None:
        """Somebody is not any more."""


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A worker's loop whose rooms are doubles, in a hurry."""
    monkeypatch.setattr(loop, "OPEN_AGAIN_S", 0.02)
    monkeypatch.setattr(loop, "AFTER_ERROR_S", 0.05)
    lost = threading.Event()
    settings = read_settings(tmp_path, api_token=None)
    one = Stand(StationLoop(settings, redis_url="redis://none", lost=lost.set), lost=lost)
    monkeypatch.setattr(wiring, "rooms", one.rooms)
    yield one
    one.loop.stop()


def station(monkeypatch: pytest.MonkeyPatch, name: str, does: Callable[[], list[Wake]]) -> None:
    async def act(*_: Any) -> list[Wake]:
        return does()

    monkeypatch.setitem(loop.STATIONS, name, act)


def failing(error: Exception) -> Callable[[], list[Wake]]:
    def fail() -> list[Wake]:
        raise error

    return fail


def test_an_outage_at_the_start_is_waited_for(stand: Stand, caplog: pytest.LogCaptureFixture) -> None:
    """With the ledger away the rooms are tried again until it is back, and the reason is said, once."""
    stand.troubles += [Unreachable("no ledger")] * 3
    stand.loop.start()
    assert stand.opened == 4
    assert [record.message for record in caplog.records] == ["no ledger; this worker waits for it"]


def test_an_outage_for_too_long_ends_the_worker(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that stays away is the caller's error in the end: exit code 4, for whoever starts workers."""
    monkeypatch.setattr(loop, "OPEN_WITHIN_S", 0.1)
    stand.troubles += [Unreachable("no ledger")] * 1000
    with pytest.raises(Unreachable, match="no ledger"):
        stand.loop.start()
    assert not stand.lost.is_set()


@pytest.mark.parametrize("error", [BadInput("no token"), RuntimeError("a defect")])
def test_what_waiting_cannot_mend_is_raised_at_once(stand: Stand, error: Exception) -> None:
    """Bad input and defects come out of the start as they are."""
    stand.troubles = [error]
    with pytest.raises(type(error), match=str(error)):
        stand.loop.start()
    assert stand.opened == 1


def test_rooms_that_end_by_themselves_end_the_worker(stand: Stand, monkeypatch: pytest.MonkeyPatch,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    """A worker without rooms could only fail what it takes; an end in order, though, is no loss."""
    @asynccontextmanager
    async def breaking(*_: Any, **__: Any) -> AsyncIterator[None]:
        asyncio.get_running_loop().call_later(0.05, asyncio.current_task().cancel)  # type: ignore[union-attr]
        yield

    monkeypatch.setattr(loop, "at_work", breaking)
    stand.loop.start()
    assert stand.lost.wait(10)
    assert caplog.records[-1].levelno == logging.CRITICAL


def test_an_end_in_order_is_no_loss(stand: Stand) -> None:
    """Stopped by its owner, the thread just ends."""
    stand.loop.start()
    stand.loop.stop()
    assert not stand.lost.is_set()


@pytest.mark.parametrize("error", [OSError(28, "disk full"), ValueError("a defect"), TimeoutError("slow")])
def test_any_error_of_a_station_is_logged_and_tried_again(stand: Stand, monkeypatch: pytest.MonkeyPatch, error: Exception,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    """A full disk, a defect: told with its traceback, and the station is woken in seconds, not when its hold is over."""
    station(monkeypatch, "report", failing(error))
    stand.loop.start()
    before = wiring.clock().now()
    stand.loop.run("report", "b", 0)
    (wake,) = stand.wakes
    assert (wake.station, wake.key, wake.lane) == ("report", "b", 0)
    assert wake.due_at is not None and wake.due_at - before < timedelta(seconds=5)
    (record,) = caplog.records
    assert record.exc_info is not None and record.exc_info[1] is error


def test_wakes_outlast_an_outage(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is away when a station has ended gets its wakes when it is back."""
    station(monkeypatch, "submit", lambda: [Wake("report", "b"), Wake("submit", "b", 1)])
    stand.loop.start()
    stand.ledger_troubles = [Unreachable("no ledger")] * 2
    stand.loop.run("submit", "b", 1)
    assert [wake.station for wake in stand.wakes] == ["report", "submit"]
