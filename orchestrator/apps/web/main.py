"""`orchestrator web`: one process that takes in webhooks and answers the small API."""

import asyncio
import gc
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import uvicorn

from orchestrator import wiring
from orchestrator.apps.cli.speech import say
from orchestrator.apps.signals import until_told_to_stop
from orchestrator.apps.web.api import create_api
from orchestrator.apps.web.bodies import Receive, Scope, Send
from orchestrator.apps.web.hook import Hook
from orchestrator.apps.web.intake import Intake
from orchestrator.apps.web.keys import SigningKeys
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Delivery, Receipt, Wake
from orchestrator.flow.presence import at_work
from orchestrator.flow.record import receive
from orchestrator.wiring import Settings

WAKE_EVERY_S = 0.25
LEARN_S = 5.0  # between two tries to fetch the signing secret, as long as there is none
RELEARN_S = 600.0
CUT_EVERY_S = 5.0
STOP_GRACE_S = 5
AFTER_DEFECT_S = 1.0
log = logging.getLogger("orchestrator.web")


def web() -> None:
    """Serve until told to stop. Raises BadInput where the address is taken."""
    settings = wiring.own_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    gc.freeze()  # what is there now stays: looking through it again and again found nothing to collect
    gc.set_threshold(20_000, 50, 50)
    sys.setswitchinterval(0.02)
    with wiring.listening(settings) as listener, asyncio.Runner(loop_factory=wiring.loop_factory()) as runner:
        runner.run(serve(settings, listener))


async def serve(settings: Settings, listener: socket.socket) -> None:
    """The web part on an open socket, until a signal."""
    async with wiring.rooms(settings) as rooms:
        house = WebHouse(rooms, SigningKeys(rooms.predictions.webhook_secret, boottime=rooms.clock.boottime))
        token = settings.web_token.get_secret_value() if settings.web_token else None
        hook = Hook(keys=house.keys, intake=Intake(house.take), clock=rooms.clock)
        house.hook = hook
        api = create_api(wiring.views(rooms), token=token, state=house, clock=rooms.clock)

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            await (hook if Hook.is_for(scope) else api)(scope, receive, send)

        place = f"{settings.web_address[0]}:{listener.getsockname()[1]}"
        chores = [asyncio.create_task(_for_ever(chore)) for chore in (
            house.keep_keys, house.send_wakes, house.cut_slow)]
        try:
            async with at_work(rooms, role="web", version=version("replicate-orchestrator"), place=place):
                public = settings.public_url or "none come without ORCHESTRATOR_PUBLIC_URL"
                say(f"web listens on http://{place}; webhooks: {public}; Ctrl-C ends it")
                await _until_stopped(route, listener)
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)


async def _for_ever(chore: Callable[[], Awaitable[None]]) -> None:
    """A chore that fails in a way nobody foresaw is begun again, and the failure is told."""
    while True:
        try:
            await chore()
        except Exception:
            log.exception("%s", getattr(chore, "__name__", chore))
            await asyncio.sleep(AFTER_DEFECT_S)


class _Server(uvicorn.Server):
    """uvicorn's own handling of signals would end the process before the rooms are closed."""

    def capture_signals(self) -> Any:
        """Signals are heard by `until_told_to_stop`."""
        return nullcontext()


async def _until_stopped(route: Any, listener: socket.socket) -> None:
    server = _Server(uvicorn.Config(route, http="httptools", loop="none", lifespan="off", access_log=False, log_config=None,
                                    server_header=False, date_header=False, proxy_headers=False, timeout_keep_alive=30,
                                    timeout_graceful_shutdown=STOP_GRACE_S))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with until_told_to_stop() as told:
        waiting = asyncio.create_task(told.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    server.should_exit = True
    await serving


@dataclass(slots=True)
class WebHouse:
    """What the routes share: rooms, keys, and the wakes that follow from webhooks."""

    rooms: Rooms
    keys: SigningKeys
    hook: Hook | None = None
    _wakes: set[Wake] | None = None

    def trouble(self) -> str | None:
        """Why webhooks cannot be taken in now."""
        return None if self.keys.live() else self.keys.trouble

    def webhooks(self) -> dict[str, int]:
        """By what became of them."""
        return dict(self.hook.counts) if self.hook is not None else {}

    async def take(self, deliveries: Sequence[Delivery]) -> list[Receipt]:
        """One group, through the one door."""
        receipts, wakes = await receive(self.rooms, deliveries)
        self._wakes = (self._wakes or set()) | {Wake(w.station, w.key, w.lane, w.due_at) for w in wakes}
        return receipts

    async def send_wakes(self) -> None:
        """The stations hear of what came in, four times a second at most; lost, they look by themselves."""
        while True:
            await self.rooms.clock.sleep(WAKE_EVERY_S)
            wakes, self._wakes = self._wakes, None
            if wakes:
                with suppress(OrchestratorError):
                    await self.rooms.ledger.schedule(list(wakes), now=self.rooms.clock.now())

    async def cut_slow(self) -> None:
        """Nobody holds a request open for ever."""
        while True:
            await self.rooms.clock.sleep(CUT_EVERY_S)
            if self.hook is not None:
                self.hook.bodies.cut_slow()

    async def keep_keys(self) -> None:
        """Have a signing secret, and notice in time when it was changed."""
        while True:
            await self.keys.learn()
            if self.keys.trouble:
                log.warning("webhooks wait for the signing secret: %s", self.keys.trouble)
            await self.rooms.clock.sleep(RELEARN_S if self.keys.live() else LEARN_S)
