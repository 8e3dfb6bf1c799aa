"""The only sender: a wake becomes a Celery message, and the settings under which messages travel.

A message is a nudge: a station's task name, a key and a lane. It carries no due time (due times are rows) and no truth:
lost, doubled or late, the ledger decides what there is to do.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from orchestrator.core.errors import Unreachable
from orchestrator.core.records import Wake
from orchestrator.gateways.limiter import redis_place

STATIONS = ("submit", "sweep", "collect", "report")
QUEUE_NAME = "orchestrator"
KEY_PREFIX = "orchestrator:celery:"
# Gossip and mingle make workers talk to each other at start and ever after; ours have nothing to say. These two are
# options of the worker command only, not settings.
WORKER_OPTIONS = ("--without-gossip", "--without-mingle")
# One publish is tried twice in well under a second: the tick sends again what could not be sent.
PUBLISH_RETRY = {"max_retries": 1, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.2}


def task_name(station: str) -> str:
    """The Celery task of a station."""
    return f"orchestrator.{station}"


def broker_url(redis_url: str) -> str:
    """The address as Celery spells it: a socket is redis+socket://, elsewhere unix://."""
    return redis_url.replace("unix://", "redis+socket://", 1) if redis_url.startswith("unix://") else redis_url


def celery_app(redis_url: str, *, soft_shutdown_s: float = 10.0) -> Celery:
    """The Celery app of worker and senders, on redis://, rediss:// or unix:// (Celery docs: configuration).

    Connects to nothing. Has no result backend, and knows no tasks: `apps/worker` adds them by `task_name`."""
    app = Celery("orchestrator", broker=broker_url(redis_url), set_as_current=False)
    app.conf.update(_settings(soft_shutdown_s))
    return app


def _settings(soft_shutdown_s: float) -> dict[str, Any]:
    return {
        "task_default_queue": QUEUE_NAME,
        "task_serializer": "json", "accept_content": ["json"], "enable_utc": True, "timezone": "UTC",
        "result_backend": None, "task_ignore_result": True, "task_store_errors_even_if_ignored": False,
        # Early: a message acknowledged late is delivered again after the visibility timeout or a lost connection, into
        # a second run beside the first. A nudge lost with its worker is sent again by the tick, from the row.
        "task_acks_late": False, "worker_cancel_long_running_tasks_on_connection_loss": False,
        # One message ahead per process: a worker that hoards nudges starves its neighbours.
        "worker_prefetch_multiplier": 1,
        "broker_connection_timeout": 1.0, "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True, "broker_connection_max_retries": None,
        "broker_transport_options": {
            # Only messages taken and not yet begun are ever unacknowledged, so a short timeout repeats no work.
            "visibility_timeout": 300, "global_keyprefix": KEY_PREFIX,
            # Above Celery's one-second blocking pop, or every idle second would count as a lost connection.
            "socket_connect_timeout": 1.0, "socket_timeout": 5.0, "socket_keepalive": True,
        },
        "task_publish_retry": True, "task_publish_retry_policy": PUBLISH_RETRY,
        "worker_hijack_root_logger": False, "worker_redirect_stdouts": False,
        "worker_send_task_events": False, "task_send_sent_event": False, "worker_enable_remote_control": False,
        "worker_soft_shutdown_timeout": soft_shutdown_s,
    }


class CeleryQueue:
    """`core.ports.Queue` on a Celery app."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    async def send(self, wakes: Sequence[Wake]) -> None:
        """Publish the wakes over one connection, in a thread, in order; the due time is not sent.

        Raises Unreachable when the broker is away, within about a second; some may have been sent by then. Raises
        ValueError for a station nobody listens to."""
        unknown = {wake.station for wake in wakes} - set(STATIONS)
        if unknown:
            raise ValueError(f"no such station: {', '.join(sorted(unknown))}")
        if wakes:
            await asyncio.to_thread(self._publish, wakes)

    async def aclose(self) -> None:
        """Close the pooled connections."""
        await asyncio.to_thread(self._app.close)

    def _publish(self, wakes: Sequence[Wake]) -> None:
        try:
            with self._app.producer_pool.acquire(block=True, timeout=1.0) as producer:
                for wake in wakes:
                    self._app.send_task(task_name(wake.station), args=(wake.key, wake.lane), producer=producer,
                                        ignore_result=True)
        except (OperationalError, RedisError, OSError) as error:
            raise Unreachable(f"the message broker at {redis_place(self._app.conf.broker_url)} cannot be reached "
                              f"({type(error).__name__}); nothing is lost, what is due is sent again later") from error
