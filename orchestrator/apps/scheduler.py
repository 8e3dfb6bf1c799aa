"""`orchestrator scheduler`: wakes what is due, and starts the runs whose slot has come. Two of them do no harm."""

import asyncio
import logging
from importlib.metadata import version

from orchestrator import wiring
from orchestrator.apps.signals import until_told_to_stop
from orchestrator.apps.ticking import regularly, tick_chore
from orchestrator.flow.presence import at_work
from orchestrator.wiring import Settings

log = logging.getLogger("orchestrator.scheduler")


def scheduler() -> None:
    """Keep time until told to stop. Raises BadInput without a Redis to send to."""
    settings = wiring.own_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_keep_time(settings, redis_url=wiring.shared_redis(settings)))


async def _keep_time(settings: Settings, *, redis_url: str) -> None:
    async with wiring.rooms(settings, redis_url=redis_url) as rooms, until_told_to_stop() as told:
        chores = {"tick": tick_chore(rooms, wiring.queue(redis_url))}
        async with at_work(rooms, role="scheduler", version=version("replicate-orchestrator")):
            async with regularly(chores, heard=_note):
                await told.wait()


def _note(outage: str | None) -> None:
    if outage is not None:
        log.warning("%s", outage)
