"""The one long-lived event loop of a worker process, and the rooms that live on it."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from importlib.metadata import version

from orchestrator import wiring
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Wake
from orchestrator.flow.collect import collect
from orchestrator.flow.presence import at_work
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.report import LONGEST_S, report
from orchestrator.flow.submit import submit
from orchestrator.wiring import Settings

Station = Callable[[Rooms, str, int], Awaitable[list[Wake]]]
STATIONS: dict[str, Station] = {"submit": submit, "sweep": sweep, "collect": collect, "report": report}
AFTER_ERROR_S = 5.0
log = logging.getLogger("orchestrator.worker")


class StationLoop:
    """Runs stations, called from Celery's threads, on a loop of its own."""

    def __init__(self, settings: Settings, *, redis_url: str) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._loop = wiring.loop_factory()()
        self._ready: asyncio.Future[Rooms] | None = None
        self._end = asyncio.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._live, name="stations", daemon=True)

    def start(self) -> None:
        """Begin to live."""
        self._ready = self._loop.create_future()
        self._thread.start()

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._hold_rooms())
        finally:
            self._loop.close()

    async def _hold_rooms(self) -> None:
        assert self._ready is not None
        try:
            async with wiring.rooms(self._settings, redis_url=self._redis_url, stopping=lambda: self._stopping) as rooms:
                async with at_work(rooms, role="worker", version=version("replicate-orchestrator")):
                    self._ready.set_result(rooms)
                    await self._end.wait()
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    def wind_down(self) -> None:
        """Start nothing new: stations hand back what they hold and end."""
        self._stopping = True

    def stop(self) -> None:
        """Close the rooms, once the stations have ended."""
        self._stopping = True
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=10)

    def run(self, station: str, key: str, lane: int) -> None:
        """One task: the station's coroutine on the loop, its wakes into the ledger. Blocks Celery's thread meanwhile."""
        asyncio.run_coroutine_threadsafe(self._run(station, key, lane), self._loop).result()

    async def _run(self, station: str, key: str, lane: int) -> None:
        assert self._ready is not None
        rooms = await asyncio.shield(self._ready)
        if self._stopping:
            return
        try:
            usual_s = rooms.tempo.slice_s + rooms.tempo.request_timeout_s + 60
            async with asyncio.timeout(LONGEST_S if station in ("collect", "report") else usual_s):
                wakes = await STATIONS[station](rooms, key, lane)
        except (OrchestratorError, TimeoutError, ExceptionGroup) as error:
            log.warning("station %s of %s: %s", station, key, error, exc_info=not isinstance(error, OrchestratorError))
            wakes = [Wake(station, key, lane, rooms.clock.now() + timedelta(seconds=AFTER_ERROR_S))]
        own = [wake for wake in wakes if (wake.station, wake.key, wake.lane) == (station, key, lane)]
        await rooms.ledger.schedule([wake for wake in wakes if wake not in own], now=rooms.clock.now())
        await rooms.ledger.schedule(own[-1:], now=rooms.clock.now(), force=True)
