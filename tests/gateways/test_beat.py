"""Celery beat as a metronome: it calls, keeps its intervals apart, and talks to no broker."""

import threading
import time

from orchestrator.gateways.beat import Beat


def test_each_call_at_its_own_interval():
    """The quick one comes several times before the slow one comes once, all from one thread that ends with the block."""
    calls: list[str] = []
    enough = threading.Event()

    def slow() -> None:
        calls.append("slow")
        enough.set()

    before = threading.active_count()
    with Beat({"quick": (0.05, lambda: calls.append("quick")), "slow": (0.5, slow)}):
        assert enough.wait(10)
    assert calls.index("slow") >= 4
    assert threading.active_count() == before


def test_leaving_is_quick():
    """A metronome with nothing due for an hour does not hold up the end."""
    began = time.monotonic()
    with Beat({"seldom": (3600.0, lambda: None)}):
        pass
    assert time.monotonic() - began < 3
