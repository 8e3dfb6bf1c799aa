"""Everything on this machine, for one command: a worker process beside it, and the tick that wakes stations."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from orchestrator import wiring
from orchestrator.core.errors import OrchestratorError, Unreachable
from orchestrator.core.ports import Queue, Rooms
from orchestrator.flow.tick import tick
from orchestrator.wiring import Settings

STOP_GRACE_S = 20.0
RESTARTS = 5
log = logging.getLogger("orchestrator.machine")


@dataclass(slots=True)
class Machine:
    """A worker child under supervision, and the tick."""

    rooms: Rooms
    queue: Queue
    role: wiring.Role
    trouble: str | None = None  # why nothing moves, for people
    _child: Any | None = None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _leaving: bool = False

    async def start(self) -> None:
        """Start the worker and the tick."""
        self._child = await wiring.start(self.role)
        self._tasks = [asyncio.create_task(self._supervise()), asyncio.create_task(self._tick())]

    async def _supervise(self) -> None:
        """A worker that dies is started again, and everything it held comes due at once."""
        for again in range(RESTARTS + 1):
            assert self._child is not None
            code = await self._child.wait()
            if self._leaving:
                return
            if again == RESTARTS:
                break
            log.warning("the worker ended with code %s; starting another", code)
            await asyncio.sleep(min(5.0, 0.2 * 2**again))
            await self.rooms.ledger.release_holds(now=self.rooms.clock.now())
            self._child = await wiring.start(self.role)
        self.trouble = f"the worker ended {RESTARTS + 1} times; its log is {self.role.log_path}"

    async def _tick(self) -> None:
        tempo = self.rooms.tempo
        while not self._leaving:
            try:
                await tick(self.rooms.ledger, self.queue, clock=self.rooms.clock, tempo=tempo)
                self.trouble = None
            except Unreachable as error:
                self.trouble = str(error)
            except OrchestratorError as error:
                log.warning("tick: %s", error)
            await asyncio.sleep(tempo.tick_s)

    async def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Let the worker finish what is in the air, then take everything down."""
        self._leaving = True
        if self._child is not None:
            await self._child.terminate(grace_s=grace_s)
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def machine(settings: Settings, rooms: Rooms, *, hold: wiring.Hold) -> AsyncIterator[Machine]:
    """A worker and a tick while the block runs."""
    one = Machine(rooms, wiring.queue(hold.redis_url), wiring.worker_role(settings, hold))
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
