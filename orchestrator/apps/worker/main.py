"""`orchestrator worker`: a Celery worker whose tasks are the stations. Messages carry ids and may be lost or doubled."""

import asyncio
import gc
import logging
import sys
import warnings
from typing import Any

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import worker_shutting_down

from orchestrator import wiring
from orchestrator.apps.cli.speech import say
from orchestrator.apps.worker.loop import STATIONS, StationLoop

THREADS = 100  # stations at once: lanes of many batches, sweep, report; a thread only waits for its coroutine


def work() -> None:
    """Work until told to stop. Raises BadInput, or Unreachable, where it cannot begin (`StationLoop.start`)."""
    settings = wiring.own_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    redis_url = asyncio.run(wiring.ready_redis(settings))
    app = wiring.celery(redis_url)
    stations = StationLoop(settings, redis_url=redis_url)
    for name in STATIONS:
        _task(app, name, stations)

    @worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def _wind_down(**_: Any) -> None:
        stations.wind_down()

    gc.freeze()  # what is there now stays: looking through it again and again found nothing to collect
    gc.set_threshold(20_000, 50, 50)
    sys.setswitchinterval(0.02)  # loop, ledger and files take turns less often: a fifth less time in the kernel
    try:
        stations.start()
        say(f"worker at work for {settings.ledger_shown}; Ctrl-C ends it")
        warnings.filterwarnings("ignore", category=SecurityWarning)  # to root it recommends --uid, an option of celery's command
        app.worker_main(["--quiet", "worker", "--pool=threads", f"--concurrency={THREADS}", *wiring.WORKER_OPTIONS,
                         f"--loglevel={settings.log_level}"])
    finally:
        stations.stop()


def _task(app: Celery, name: str, stations: StationLoop) -> None:
    @app.task(name=f"orchestrator.{name}")  # type: ignore[untyped-decorator]
    def station(key: str, lane: int = 0) -> None:
        stations.run(name, key, lane)
