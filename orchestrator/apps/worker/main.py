"""`orchestrator worker`: a Celery worker whose tasks are the stations. Messages carry ids and may be lost or doubled."""

from typing import Any

from celery import Celery
from celery.signals import worker_shutting_down

from orchestrator.apps.worker.loop import STATIONS, StationLoop
from orchestrator.core.errors import BadInput
from orchestrator.gateways.queue import celery_app
from orchestrator.settings import Settings

THREADS = 12  # stations at once: submit and collect lanes of several batches, sweep, report


def work(settings: Settings) -> None:
    """Work until told to stop."""
    if settings.redis_url is None:
        raise BadInput("a worker needs ORCHESTRATOR_REDIS_URL: the Redis that all roles share. On one machine, "
                       "`orchestrator run` starts everything by itself.")
    redis_url = settings.redis_url.get_secret_value()
    app = celery_app(redis_url)
    stations = StationLoop(settings, redis_url=redis_url)
    for name in STATIONS:
        _task(app, name, stations)

    @worker_shutting_down.connect(weak=False)
    def _wind_down(**_: Any) -> None:
        stations.wind_down()

    stations.start()
    try:
        app.worker_main(["worker", "--pool=threads", f"--concurrency={THREADS}", "--without-gossip", "--without-mingle",
                         "--without-heartbeat", f"--loglevel={settings.log_level}"])
    finally:
        stations.stop()


def _task(app: Celery, name: str, stations: StationLoop) -> None:
    @app.task(name=f"orchestrator.{name}")  # type: ignore[untyped-decorator]
    def station(key: str, lane: int = 0) -> None:
        stations.run(name, key, lane)
