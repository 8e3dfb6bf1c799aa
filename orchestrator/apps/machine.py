"""Processes of this machine under supervision: what `up` is made of, and what `run` starts for itself."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.ending import Exit
from orchestrator.apps.ticking import regularly, tick_chore
from orchestrator.core.errors import Unreachable
from orchestrator.core.ports import Rooms
from orchestrator.flow.presence import present
from orchestrator.wiring import Settings

STOP_GRACE_S = 20.0
RESTARTS = 5
STEADY_S = 60.0  # a process that lived so long may die again without its deaths being added up
AGAIN_S = 5.0  # between two tries to start one that cannot be started
DOUBTS = 2  # looks after an outage that prove nothing: whoever lives could not say so either
log = logging.getLogger("orchestrator.machine")


@dataclass(slots=True)
class Keeper:
    """Children that are started again when they die; too many deaths are said, not hidden."""

    rooms: Rooms
    on_death: Callable[[str], Awaitable[None]] | None = None
    _troubles: dict[int, str] = field(default_factory=dict)  # by place among the children
    _children: list[Any] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _leaving: bool = False
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def trouble(self) -> str | None:
        """Why nothing moves, for people."""
        return next(iter(self._troubles.values()), None)

    async def start(self, roles: Sequence[wiring.Role]) -> None:
        """Start these, and keep them. Raises OSError where one cannot be started."""
        for role in roles:
            self._children.append(await wiring.start(role))
            self._tasks.append(asyncio.create_task(self._keep(role, len(self._children) - 1)))

    async def _keep(self, role: wiring.Role, place: int) -> None:
        deaths = 0
        while True:
            began = self.rooms.clock.boottime()
            code = await self._children[place].wait()
            if self._leaving:
                return
            if code != Exit.UNREACHABLE:  # what is away comes back, however often it takes
                deaths = 1 if self.rooms.clock.boottime() - began > STEADY_S else deaths + 1
            if deaths > RESTARTS:
                break
            log.warning("%s ended with code %s; starting another", role.name, code)
            await asyncio.sleep(AGAIN_S if code == Exit.UNREACHABLE else min(5.0, 0.2 * 2**deaths))
            await self._replace(role, place)
        self._troubles[place] = f"{role.name} ended {deaths} times in a row; its log is {role.log_path}"
        log.error("%s", self._troubles[place])

    async def _replace(self, role: wiring.Role, place: int) -> None:
        """Another child in this place, as soon as it can be had: an outage, or a full disk, is no end of keeping."""
        while not self._leaving:
            try:
                if self.on_death is not None:
                    await self.on_death(role.name)
                await self._start_again(role, place)
                self._troubles.pop(place, None)
                return
            except Exception as error:
                log.warning("cannot start another %s: %s", role.name, error, exc_info=not isinstance(error, Unreachable))
                self._troubles[place] = f"cannot start another {role.name}, trying again: {error}"
            await asyncio.sleep(AGAIN_S)

    async def _start_again(self, role: wiring.Role, place: int) -> None:
        async with self._starting:
            if not self._leaving:
                self._children[place] = await wiring.start(role)

    async def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Let them finish what is in the air, then take them down."""
        self._leaving = True
        async with self._starting:  # one whose start had begun is taken down with the others
            pass
        await asyncio.gather(*(child.terminate(grace_s=grace_s) for child in self._children))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(slots=True)
class Machine:
    """What one `run` needs around it: a worker, the tick, a web part with a public URL; or the roles that are there already.

    Should those vanish, the machine stands in for them."""

    rooms: Rooms
    settings: Settings
    hold: wiring.Hold
    outage: str | None = None
    keeper: Keeper | None = None
    _standby: asyncio.Task[None] | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def trouble(self) -> str | None:
        """Why nothing moves, for people."""
        return (self.keeper.trouble if self.keeper else None) or self.outage

    async def start(self, *, served: bool) -> None:
        """`served`: worker and scheduler are at work elsewhere for this ledger."""
        if served:
            self._standby = asyncio.create_task(self._stand_by())
        else:
            await self._start_own()

    async def _stand_by(self) -> None:
        doubts = 0
        while True:
            await asyncio.sleep(self.rooms.tempo.beat_s)
            try:
                is_left = not await is_served(self.rooms)
                self.outage = None
                if is_left and not doubts:
                    log.warning("nobody is at work for this ledger any more; this command goes on by itself")
                    await self._free_its_work("worker")  # a look that died with its worker is made again only after two minutes
                    return await self._start_own()
                doubts = max(0, doubts - 1)
            except Unreachable as error:
                doubts, self.outage = DOUBTS, str(error)
            except Exception as error:
                log.exception("this command cannot go on by itself yet")
                self.outage = f"cannot go on by itself yet: {error}"
                await self._stop_own(grace_s=0.0)  # what was started of it

    async def _start_own(self) -> None:
        roles = [wiring.worker_role(self.settings, self.hold)]
        if self.settings.public_url is not None and not await is_present(self.rooms, "web"):
            roles.append(wiring.web_role(self.settings, self.hold))
        self.keeper = Keeper(self.rooms, on_death=self._free_its_work)
        await self.keeper.start(roles)
        tick = tick_chore(self.rooms, wiring.queue(self.hold.redis_url))
        await self._stack.enter_async_context(regularly({"tick": tick}, heard=self._heard))

    async def _free_its_work(self, name: str) -> None:
        """The only worker died: what it held comes due at once. Beside another command's worker leases lapse as they do: freed,
        what that one was fetching was begun again, and at the third time set aside as poison."""
        workers = [role for role in await present(self.rooms) if role.role == "worker" and not wiring.is_gone(role.id)]
        if name == "worker" and not workers:
            await self.rooms.ledger.release_holds(now=self.rooms.clock.now())

    def _heard(self, outage: str | None) -> None:
        self.outage = outage

    async def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Let the worker finish what is in the air, then take everything down."""
        if self._standby is not None:
            self._standby.cancel()
            await asyncio.gather(self._standby, return_exceptions=True)
        await self._stop_own(grace_s=grace_s)
        await self._stack.aclose()

    async def _stop_own(self, *, grace_s: float) -> None:
        if self.keeper is not None:
            await self.keeper.stop(grace_s=grace_s)


async def is_present(rooms: Rooms, *roles: str) -> bool:
    """Whether all of these roles are at work for this ledger."""
    there = {role.role for role in await present(rooms)}
    return there.issuperset(roles)


async def anybody_lives(rooms: Rooms) -> bool:
    """Whether a role is at work for this ledger, as far as can be seen: one that was killed is remembered for some seconds."""
    return any(not wiring.is_gone(role.id) for role in await present(rooms))


async def is_served(rooms: Rooms) -> bool:
    """Whether batches of this ledger move without this command."""
    return await is_present(rooms, "worker", "scheduler")


@asynccontextmanager
async def machine(settings: Settings, rooms: Rooms, *, hold: wiring.Hold, served: bool) -> AsyncIterator[Machine]:
    """What a batch needs to move, while the block runs."""
    one = Machine(rooms, settings, hold)
    try:
        await one.start(served=served)
        yield one
    finally:
        await one.stop()
