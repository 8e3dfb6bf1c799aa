"""`orchestrator up`: worker, scheduler and web on this machine, kept alive until told to stop."""

import asyncio
import logging
import sys
from pathlib import Path

from orchestrator import wiring
from orchestrator.apps.machine import Keeper
from orchestrator.apps.signals import until_told_to_stop
from orchestrator.core.errors import BadInput
from orchestrator.flow.asking import paced
from orchestrator.flow.presence import present
from orchestrator.wiring import Settings


def up(*, workers: int) -> None:
    """Keep everything up. Raises BadInput where the web part cannot listen, or everything is up already."""
    settings = wiring.own_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_up(settings, workers=workers))


async def _up(settings: Settings, *, workers: int) -> None:
    async with wiring.redis(settings) as hold, wiring.rooms(settings, redis_url=hold.redis_url) as rooms:
        there = [] if hold.alone else await present(rooms)
        if any(role.role == "scheduler" and role.id.split("@")[1].split(":")[0] == rooms.owner.split(":")[0] for role in there):
            raise BadInput("a scheduler is at work for this ledger on this machine already: is another `orchestrator up` "
                           "running?")
        wiring.listening(settings).close()
        account = await paced(rooms, None, rooms.predictions.account)
        keeper = Keeper(rooms)
        roles = [wiring.worker_role(settings, hold, number=n) for n in range(1, workers + 1)]
        try:
            await keeper.start([*roles, wiring.scheduler_role(settings, hold), wiring.web_role(settings, hold)])
            _say(settings, account=account, workers=workers)
            async with until_told_to_stop() as told:
                await told.wait()
            print("stopping: nothing new is bought; requests and downloads under way are finished",  # noqa: T201
                  file=sys.stderr, flush=True)
        finally:
            await keeper.stop()


def _say(settings: Settings, *, account: str, workers: int) -> None:
    public = settings.public_url or "no public URL: completions are found by polling the list"
    for line in (
            f"ledger    {settings.ledger_shown}",
            f"account   {account}",
            f"worker    {workers}",
            f"scheduler job files in {Path.cwd() / 'jobs'}",
            f"web       http://{settings.web_bind}  (webhooks: {public})",
            f"logs      {settings.home / 'logs'}",
            "up; Ctrl-C ends it. In another terminal: orchestrator run JOB, or orchestrator run JOB --detach"):
        print(line, file=sys.stderr, flush=True)  # noqa: T201
