"""Stations on real parts: SQLite, the API client, files and the simulator; only the limiter is a double."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator import wiring
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.tempo import Tempo
from orchestrator.flow.ingest import Order, load, prepare
from orchestrator.gateways.testing import MemoryLimiter
from orchestrator.settings import read_settings
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import Provider

QUICK = Tempo(
    creates_per_minute=0, reads_per_minute=0, slice_s=1.0, request_timeout_s=3, lease_margin_s=1, record_every_s=0.05,
    sweep_min_s=0.05, idle_s=0.05, unsure_margin_s=0.2, unsure_confirm_s=0.1, unsure_no_canary_s=0.3, unsure_give_up_s=2,
    submit_chunk=20, retry_first_s=0.05)


@dataclass
class Stage:
    """Rooms, the provider behind them, and a way to load a batch."""

    rooms: Rooms
    provider: Provider
    folder: Path
    limiter: MemoryLimiter

    async def load(self, rows: int, *, model: str = "simulator/echo", more: str = "") -> Batch:
        """A batch of so many rows, loaded and not yet begun."""
        (self.folder / "rows.csv").write_text("text\n" + "".join(f"sentence {n}\n" for n in range(rows)))
        field = "text" if model == "simulator/echo" else "prompt"
        (self.folder / "job.yaml").write_text(
            f"model: {model}\nsource: {{ path: rows.csv }}\ninput: {{ {field}: \"{{{{ text }}}}\" }}\n{more}")
        loaded = wiring.load_job(self.folder / "job.yaml", changes={})
        order = Order(job=loaded.job, name="job", folder=str(self.folder), output_to="out", output_base=str(self.folder))
        batch, _ = await load(self.rooms, await prepare(self.rooms, order, book=None))
        return batch

    async def states(self, batch: Batch) -> dict[str, int]:
        """Items by state, empty states left out."""
        counts = await self.rooms.ledger.counts(batch.pk)
        return {state.value: count for state, count in counts.by_state.items() if count}


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A simulator that answers at once and finishes soon."""
    config = SimulatorConfig(port=0, latency_s=0.1, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0, seed=3)
    with running(config) as url:
        yield Provider(url)


@pytest.fixture
async def stage(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """Everything a station needs, in a folder of its own."""
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_simulator")
    monkeypatch.setenv("REPLICATE_BASE_URL", provider.url)
    monkeypatch.setenv("ORCHESTRATOR_OUTPUT_HOSTS", provider.url.removeprefix("http://"))
    settings = read_settings(tmp_path / "home").model_copy(update={"tempo": QUICK})
    limiter = MemoryLimiter(wiring.clock())
    async with wiring.rooms(settings) as rooms:
        yield Stage(replace(rooms, limiter=limiter), provider, tmp_path, limiter)
