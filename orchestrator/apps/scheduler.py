"""`orchestrator scheduler`: wakes what is due, and starts the runs whose slot has come. Two of them do no harm."""

import asyncio
import logging
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from orchestrator import wiring
from orchestrator.apps.cli.speech import say
from orchestrator.apps.orders import check_folder, order_of_slot, scheduled_jobs
from orchestrator.apps.signals import until_told_to_stop
from orchestrator.apps.ticking import regularly, tick_chore
from orchestrator.core.ports import Rooms
from orchestrator.core.schedule import SlotRun
from orchestrator.flow import control, schedule
from orchestrator.flow.ingest import load, prepare
from orchestrator.flow.presence import at_work
from orchestrator.wiring import LoadedJob, Settings

log = logging.getLogger("orchestrator.scheduler")


def scheduler() -> None:
    """Keep time until told to stop. Raises BadInput without a Redis to send to, Unreachable where it does not answer."""
    settings = wiring.own_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_keep_time(settings))


async def _keep_time(settings: Settings) -> None:
    redis_url = await wiring.ready_redis(settings)
    async with wiring.rooms(settings, redis_url=redis_url) as rooms, until_told_to_stop() as told:
        slots = Slots(rooms, settings, Path.cwd())
        chores = {"tick": tick_chore(rooms, wiring.queue(redis_url)), "slots": (rooms.tempo.slots_s, slots.look)}
        async with at_work(rooms, role="scheduler", version=version("replicate-orchestrator")):
            say(f"scheduler at work for {settings.ledger_shown}; job files in {Path.cwd() / 'jobs'}; Ctrl-C ends it")
            async with regularly(chores, heard=_note):
                await told.wait()
            await slots.hand_back()


def _note(outage: str | None) -> None:
    if outage is not None:
        log.warning("%s", outage)


@dataclass(slots=True)
class Slots:
    """The job files of a folder, read anew for every look, and the runs that are being started."""

    rooms: Rooms
    settings: Settings
    cwd: Path
    _starting: set[asyncio.Task[None]] = field(default_factory=set)
    _said: list[str] = field(default_factory=list)

    async def look(self) -> None:
        """One look. A start may take minutes, and does not hold up the slots of other jobs."""
        jobs, loaded, wrong = await asyncio.to_thread(scheduled_jobs, self.settings, self.cwd)
        if wrong != self._said:
            self._said = wrong
            for sentence in wrong:
                log.warning("not scheduled: %s", sentence)
        found = await schedule.look(self.rooms, jobs)
        for fired in found.settled:
            _tell(fired)
        for run in found.claimed:
            task = asyncio.create_task(self._begin(run, loaded[run.key]))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _begin(self, run: SlotRun, loaded: LoadedJob) -> None:
        async def start(run: SlotRun) -> str:
            prepared = await prepare(self.rooms, order_of_slot(loaded, run), book=wiring.price_book(self.settings))
            await check_folder(self.rooms, prepared)
            batch, _ = await load(self.rooms, prepared)
            wiring.claim_folder(batch, self.settings)
            await control.wake_all(self.rooms, batch)
            return batch.id

        try:
            _tell(await schedule.begin(self.rooms, run, start=start))
        except Exception:  # its lease lapses, and the slot is tried again
            log.exception("the slot %s of %s could not be started", run.slot_at, run.key)

    async def hand_back(self) -> None:
        """Starts that are under way are interrupted; their slots are due again, for the next scheduler."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)


def _tell(fired: schedule.Fired) -> None:
    is_trouble = fired.state.value in ("failed", "skipped") or fired.reason is not None
    log.log(logging.WARNING if is_trouble else logging.INFO, "%s at %s: %s %s", fired.key, fired.slot_at, fired.state.value,
            fired.reason or fired.batch_id or "")
