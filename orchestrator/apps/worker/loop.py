"""The one long-lived event loop of a worker process, and the rooms that live on it."""

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version

from orchestrator import wiring
from orchestrator.core.errors import OrchestratorError, Unreachable
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Wake
from orchestrator.core.waiting import is_outage
from orchestrator.flow.collect import collect
from orchestrator.flow.presence import at_work
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.report import LONGEST_S, report
from orchestrator.flow.submit import submit
from orchestrator.wiring import Settings

Station = Callable[[Rooms, str, int], Awaitable[list[Wake]]]
STATIONS: dict[str, Station] = {"submit": submit, "sweep": sweep, "collect": collect, "report": report}
AFTER_ERROR_S = 5.0
OPEN_AGAIN_S = 2.0
OPEN_WITHIN_S = 300.0  # longer than a Keeper's STEADY_S: an outage does not count as dying again and again
log = logging.getLogger("orchestrator.worker")


def leave() -> None:
    """End this process at once: without the loop nothing can be finished in order, not even a shutdown."""
    os._exit(1)


class StationLoop:
    """Runs stations, called from Celery's threads, on a loop of its own."""

    def __init__(self, settings: Settings, *, redis_url: str, lost: Callable[[], object] = leave) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._lost = lost  # called when the rooms' thread ends by itself
        self._loop = wiring.loop_factory()()
        self._opened: Future[Rooms] = Future()
        self._end = asyncio.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._live, name="stations", daemon=True)

    def start(self) -> None:
        """Begin to live; back when the rooms are open. Raises BadInput, or Unreachable when the ledger was away for minutes.

        Who consumed messages before could only fail them. An outage is waited for here: ending at once would use up a Keeper's
        restarts within seconds. It does end at last, so that whoever looks after the process sees more than a log. (Redis is
        not asked here: it answered a moment ago, and Celery waits for it by itself.)"""
        self._thread.start()
        self._opened.result()

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._hold_rooms())
        except BaseException as error:
            if self._opened.done():
                log.critical("the rooms of this worker are gone", exc_info=True)
            else:
                self._opened.set_exception(error)
        finally:
            if self._opened.done() and self._opened.exception() is None and not self._end.is_set():
                self._lost()
            self._loop.close()

    async def _hold_rooms(self) -> None:
        until = self._loop.time() + OPEN_WITHIN_S
        is_said = False
        while not self._end.is_set():
            try:
                await self._hold_once()
            except Unreachable as error:
                if self._opened.done() or self._loop.time() >= until:
                    raise
                if not is_said:
                    log.warning("%s; this worker waits for it", error)
                is_said = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(OPEN_AGAIN_S):
                        await self._end.wait()

    async def _hold_once(self) -> None:
        async with wiring.rooms(self._settings, redis_url=self._redis_url, stopping=lambda: self._stopping) as rooms:
            async with at_work(rooms, role="worker", version=version("replicate-orchestrator")):
                self._opened.set_result(rooms)
                await self._end.wait()

    def wind_down(self) -> None:
        """Start nothing new: stations hand back what they hold and end."""
        self._stopping = True

    def stop(self) -> None:
        """Close the rooms, once the stations have ended."""
        self._stopping = True
        with suppress(RuntimeError):  # the loop is closed: the rooms never opened
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=10)

    def run(self, station: str, key: str, lane: int) -> None:
        """One task: the station's coroutine on the loop, its wakes into the ledger. Blocks Celery's thread meanwhile."""
        asyncio.run_coroutine_threadsafe(self._run(station, key, lane), self._loop).result()

    async def _run(self, station: str, key: str, lane: int) -> None:
        rooms = self._opened.result()
        if self._stopping:
            return
        try:
            usual_s = rooms.tempo.slice_s + rooms.tempo.request_timeout_s + 60
            async with asyncio.timeout(LONGEST_S if station in ("collect", "report") else usual_s):
                wakes = await STATIONS[station](rooms, key, lane)
        except Exception as error:  # a defect too: its wake is held back, that of a report for half an hour
            log.warning("station %s of %s: %s", station, key, error, exc_info=not isinstance(error, OrchestratorError))
            wakes = [Wake(station, key, lane, rooms.clock.now() + timedelta(seconds=AFTER_ERROR_S))]
            if isinstance(error, Unreachable) and station in ("submit", "collect"):
                await say_why(rooms, key, error)
        await self._schedule(rooms, Wake(station, key, lane), wakes)

    async def _schedule(self, rooms: Rooms, ran: Wake, wakes: Sequence[Wake]) -> None:
        """Wakes into the ledger; while it is away, tried again until the message that `ran` counts as lost anyway."""
        own = [wake for wake in wakes if (wake.station, wake.key, wake.lane) == (ran.station, ran.key, ran.lane)]
        until = rooms.clock.boottime() + rooms.tempo.hold_s
        while True:
            try:
                await rooms.ledger.schedule([wake for wake in wakes if wake not in own], now=rooms.clock.now())
                return await rooms.ledger.schedule(own[-1:], now=rooms.clock.now(), force=True)
            except Unreachable as error:
                if self._stopping or rooms.clock.boottime() >= until:
                    return log.warning("what comes after station %s of %s could not be noted: %s", ran.station, ran.key, error)
                await rooms.clock.sleep(AFTER_ERROR_S)


async def say_why(rooms: Rooms, batch_id: str, error: Unreachable) -> None:
    """Where every command can read it: a disk that is full still takes this much. The next purchase takes the word back."""
    with suppress(Unreachable):
        batch = await rooms.ledger.batch(batch_id)
        if batch is not None and batch.state is BatchState.RUNNING and not is_outage(batch.reason or ""):
            await rooms.ledger.note_reason(batch.pk, f"cannot go on: {error}")
