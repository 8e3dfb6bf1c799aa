"""A simulator and a user's folder for every test."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import QUICK, Desk, Provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A stand-in for Replicate with quick predictions and no limit of its own."""
    config = SimulatorConfig(port=0, latency_s=0.4, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0, seed=7)
    with running(config) as url:
        yield Provider(url)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A way to find a port that nobody listens on."""
    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return int(listener.getsockname()[1])

    return find


@pytest.fixture
def desk(tmp_path: Path, provider: Provider) -> Iterator[Desk]:
    """A user's folder, set up for the stand-in."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    env = keep | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "REPLICATE_API_TOKEN": "r8_simulator",
        "REPLICATE_BASE_URL": provider.url,
        "ORCHESTRATOR_OUTPUT_HOSTS": provider.url.removeprefix("http://"),
    }
    env |= {f"ORCHESTRATOR_TEMPO__{name}": value for name, value in QUICK.items()}
    with Desk(tmp_path, provider, env) as one:
        yield one
