"""The outsiders, ready to be asked, and a simulator for each test."""

import json
import os
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import Provider
from tests.outsiders.environments import IndexAway, environment
from tests.outsiders.receiver import Receiver, receiving

SIMULATOR = SimulatorConfig(port=0, latency_s=0.2, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0, seed=7)
ON_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


@dataclass
class Outsider:
    """A Python of others, which runs short programs that leave what they saw in `answer`."""

    python: Path
    env: dict[str, str]
    prelude: str = ""

    def __call__(self, program: str, **given: Any) -> Any:
        """Run a program in a process of its own, `given` as its variables; returns its `answer`, by way of JSON."""
        script = "\n".join(["import json, sys", f"globals().update(json.loads({json.dumps(given)!r}))", self.prelude,
                            textwrap.dedent(program), "sys.stdout.write(json.dumps(answer))"])
        env = {"PATH": os.environ["PATH"]} | self.env
        done = subprocess.run([self.python, "-I", "-c", script], env=env, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def python_of(name: str, *, on_ci: bool = ON_CI, **more: Any) -> Path:
    """The Python of an outsider; without an index to build it from the test is skipped, but never on CI."""
    try:
        return environment(name, **more)
    except IndexAway as error:
        if on_ci:
            raise
        pytest.skip(str(error))


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A simulator of its own for every test: quick predictions, no limits, nothing bought yet."""
    with running(SIMULATOR) as url:
        yield Provider(url)


@pytest.fixture
def replicate1(provider: Provider) -> Outsider:
    """The official client 1.0.7, set up by its documented environment variables."""
    env = {"REPLICATE_API_TOKEN": "r8_simulator", "REPLICATE_BASE_URL": provider.url, "REPLICATE_POLL_INTERVAL": "0.05"}
    return Outsider(python_of("replicate1"), env, "import replicate\nclient = replicate.Client()")


@pytest.fixture
def replicate2(provider: Provider) -> Outsider:
    """The official client 2.0.0b4, whose base URL ends in /v1. As `strict` it holds every answer against its types, which
    were generated from Replicate's OpenAPI document."""
    url = f"{provider.url}/v1"
    prelude = "\n".join([
        "import replicate, replicate.exceptions",
        f"client = replicate.Replicate(base_url={url!r}, bearer_token='r8_simulator')",
        f"strict = replicate.Replicate(base_url={url!r}, bearer_token='r8_simulator', _strict_response_validation=True)"])
    return Outsider(python_of("replicate2"), {"REPLICATE_POLL_INTERVAL": "0.05"}, prelude)


@pytest.fixture
def standard() -> Outsider:
    """The Standard Webhooks project's own library."""
    return Outsider(python_of("webhooks"), {}, "from standardwebhooks import Webhook, WebhookVerificationError")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A listener that keeps what is posted to it."""
    with receiving() as listening:
        yield listening
