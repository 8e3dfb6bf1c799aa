"""The tick and its metronome: due wakes become messages, four times a second."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from orchestrator import wiring
from orchestrator.core.errors import OrchestratorError, Unreachable
from orchestrator.core.ports import Queue, Rooms
from orchestrator.core.retry import LONGEST_BACKOFF_S
from orchestrator.flow.tick import say_away, tick

# Beat counts in wall-clock time: set back by an hour, it would be silent for an hour.
LONGEST_SILENCE = 4
log = logging.getLogger("orchestrator.tick")
Chore = Callable[[], Awaitable[object]]


@asynccontextmanager
async def regularly(chores: Mapping[str, tuple[float, Chore]], *,
                    heard: Callable[[str | None], object] = lambda _: None) -> AsyncIterator[None]:
    """While the block runs, each chore (by name: seconds between, what to do) is done at the metronome's beat.

    A chore that takes longer than its interval is not begun twice. `heard`: told of an outage, and None when it is over."""
    loop = asyncio.get_running_loop()
    beats = {name: asyncio.Event() for name in chores}
    calls = {name: (every_s, partial(loop.call_soon_threadsafe, beats[name].set)) for name, (every_s, _) in chores.items()}
    doing = [asyncio.create_task(_do(name, chore, beats[name], every_s, heard)) for name, (every_s, chore) in chores.items()]
    try:
        with wiring.beat(calls):
            yield
    finally:
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)


async def _do(name: str, chore: Chore, beat: asyncio.Event, every_s: float, heard: Callable[[str | None], object]) -> None:
    while True:
        try:
            async with asyncio.timeout(LONGEST_SILENCE * every_s):  # wait_for swallows a cancellation that meets the beat
                await beat.wait()
        except TimeoutError:
            log.debug("no beat for %s", name)
        beat.clear()
        try:
            await chore()
            heard(None)
        except Unreachable as error:
            heard(str(error))
        except OrchestratorError as error:
            log.warning("%s: %s", name, error)
        except Exception:  # a defect in one look must not end all looking
            log.exception("%s", name)


def tick_chore(rooms: Rooms, queue: Queue) -> tuple[float, Chore]:
    """The tick as a chore."""
    is_away, ahead_s = False, _ahead_s(rooms)

    async def once() -> None:
        nonlocal is_away, ahead_s
        try:
            if ahead_s - _ahead_s(rooms) > SET_BACK_S:
                await set_back(rooms, ahead_s - _ahead_s(rooms))
            ahead_s = _ahead_s(rooms)
            sent = await tick(rooms.ledger, queue, clock=rooms.clock, tempo=rooms.tempo)
        except Unreachable:
            is_away = True
            raise
        if is_away and sent:
            await say_away(rooms.ledger, None)
            is_away = False

    return rooms.tempo.tick_s, once


SET_BACK_S = 5.0


def _ahead_s(rooms: Rooms) -> float:
    return rooms.clock.now().timestamp() - rooms.clock.boottime()


async def set_back(rooms: Rooms, by_s: float) -> None:
    """The wall clock was set back: what was to be looked at in a moment would wait so much longer, and outputs that are kept for
    an hour would be looked for when they are gone."""
    log.warning("this machine's clock was set back by %.0f s: everything is looked at now", by_s)
    now = rooms.clock.now()
    await rooms.ledger.hasten(now=now, latest=now + timedelta(seconds=LONGEST_BACKOFF_S))
