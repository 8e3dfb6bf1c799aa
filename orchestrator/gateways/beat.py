"""Celery beat as a metronome: it calls us, and sends nothing.

Beat's own messages would pile up in Redis while no worker runs, four a second, and its cron has no memory of what it
missed. So beat keeps time, and everything that is due is a row in the ledger."""

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from celery import Celery
from celery.beat import Scheduler, Service

STOP_S = 5.0


class _Metronome(Scheduler):  # type: ignore[misc]
    """A beat scheduler whose entries are calls in this process."""

    producer = None  # beat would connect to a broker for it

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **_: Any) -> None:
        """Call what the entry names; it must not raise and must not block."""
        entry.kwargs["call"]()


class Beat:
    """Calls each of `calls` (by name: seconds between, what to call) from a thread of its own, until stopped."""

    def __init__(self, calls: Mapping[str, tuple[float, Callable[[], object]]]) -> None:
        app = Celery("beat", broker="memory://", set_as_current=False)
        app.conf.beat_schedule = {
            name: {"task": name, "schedule": timedelta(seconds=every_s), "kwargs": {"call": call}}
            for name, (every_s, call) in calls.items()}
        self._service = Service(app, max_interval=1.0, scheduler_cls=_Metronome)
        self._thread = threading.Thread(target=self._service.start, name="beat", daemon=True)

    def __enter__(self) -> "Beat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._service.stop(wait=False)
        self._thread.join(STOP_S)
