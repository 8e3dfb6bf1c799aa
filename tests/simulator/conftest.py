"""A really listening simulator per module, made anew for each test."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from orchestrator.simulator.serve import SimulatorConfig, running

TOKEN = "r8_simulator"


class Rig:
    """A client of one running simulator, with the levers tests pull."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=10)

    def put(self, lever: str, **settings: Any) -> None:
        self.http.put(f"/_admin/{lever}", json=settings).raise_for_status()

    def advance(self, seconds: float) -> None:
        self.http.post("/_admin/advance", json={"seconds": seconds}).raise_for_status()

    def buy(self, version: str = "simulator/echo", *, headers: Any = None, **given: Any) -> httpx.Response:
        body = {"version": version, "input": given or {"text": "hello"}}
        return self.http.post("/v1/predictions", json=body, headers=headers)

    def see(self, prediction_id: str) -> dict[str, Any]:
        return self.http.get(f"/v1/predictions/{prediction_id}").raise_for_status().json()

    def ledger(self) -> dict[str, Any]:
        return self.http.get("/_admin/ledger").json()


@pytest.fixture(scope="session")
def simulator_url() -> Iterator[str]:
    """One server for all tests; each begins with an empty world."""
    with running(SimulatorConfig(port=0, seed=11, latency_s=20, tokens=("r8_simulator", "r8_other=rival"))) as url:
        yield url


@pytest.fixture
def rig(simulator_url: str) -> Iterator[Rig]:
    """A simulator with an empty world: 600 creates a minute, images after about 20 seconds of its own time."""
    rig = Rig(simulator_url)
    try:
        rig.http.post("/_admin/reset").raise_for_status()
        yield rig
    finally:
        rig.http.close()
