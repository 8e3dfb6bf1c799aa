"""The read-only API: what it tells, and whom."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from orchestrator.apps.web.api import create_api
from orchestrator.gateways.ledger import Database, SqlLedger
from orchestrator.gateways.testing import HandClock
from tests.contract.conftest import Acts


class State:
    """A web part that fares as it is told to."""

    trouble_now: str | None = None

    def trouble(self) -> str | None:
        return self.trouble_now

    def webhooks(self) -> dict[str, int]:
        return {"recorded": 7}


@pytest.fixture
async def acts(tmp_path: Path) -> AsyncIterator[Acts]:
    """A ledger with a batch of three rows, one of them out."""
    async with Database.open(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        acts = Acts(SqlLedger(database))
        batch = await acts.loaded(3, "night-1")
        await acts.claim(batch, 1)
        await acts.tell(acts.answered("a0", "p0"))
        yield acts


def client(acts: Acts, *, token: str | None = None, peer: str = "127.0.0.1", base: str = "http://127.0.0.1:8000",
           state: State | None = None) -> httpx.AsyncClient:
    api = create_api(acts.ledger, token=token, state=state or State(), clock=HandClock())
    return httpx.AsyncClient(transport=httpx.ASGITransport(api, client=(peer, 5)), base_url=base)


async def test_what_it_tells(acts: Acts):
    """Batches, one batch, its rows by state and page; the web part's own counts."""
    async with client(acts) as http:
        (batch,) = (await http.get("/api/batches")).json()
        assert (batch["batch"], batch["items"]["pending"], batch["model"]) == ("night-1", 3, "acme/draw")
        one = (await http.get("/api/batches/night")).json()
        assert one["ended_via"] == {}
        assert one["estimate"] is one["projected_usd"] is one["usd_per_minute"] is batch["projected_usd"] is None
        rows = (await http.get("/api/batches/night-1/items", params={"state": "running"})).json()
        assert [(row["index"], row["prediction_id"]) for row in rows] == [(0, "p0")]
        assert [r["index"] for r in (await http.get("/api/batches/night-1/items?after=0&limit=1")).json()] == [1]
        assert (await http.get("/api/state")).json() == {"trouble": None, "webhooks": {"recorded": 7}}


async def test_the_address_itself(acts: Acts):
    """`/` says what this is and names the paths, each of which answers; it is as shy as they are."""
    async with client(acts) as http:
        told = (await http.get("/")).json()
        assert "orchestrator" in told["what"]
        assert set(told["paths"]) == {
            "/healthz", "/api/state", "/api/batches", "/api/batches/{name}", "/api/batches/{name}/items"}
        for path, words in told["paths"].items():
            assert (await http.get(path.replace("{name}", "night-1"))).status_code == 200, path
            assert words, path
    async with client(acts, peer="10.0.0.7") as http:
        assert (await http.get("/")).status_code == 404


async def test_questions_without_an_answer(acts: Acts):
    """An unknown batch is 404 with a sentence, a state that is none 422."""
    async with client(acts) as http:
        unknown = await http.get("/api/batches/nope")
        assert unknown.status_code == 404
        assert "nope" in unknown.json()["detail"]
        assert (await http.get("/api/batches/night-1/items?state=lost")).status_code == 422


@pytest.mark.parametrize(("peer", "base", "headers", "status"), [
    ("127.0.0.1", "http://127.0.0.1:8000", {}, 200),
    ("127.0.0.1", "http://localhost:8000", {}, 200),
    ("10.0.0.7", "http://127.0.0.1:8000", {}, 404),
    ("127.0.0.1", "http://evil.example", {}, 404),
    ("127.0.0.1", "http://127.0.0.1:8000", {"x-forwarded-for": "203.0.113.9"}, 404),
    ("127.0.0.1", "http://me.example", {"authorization": "Bearer opensesame"}, 200),
    ("10.0.0.7", "http://me.example", {"authorization": "bearer opensesame"}, 200),
    ("127.0.0.1", "http://127.0.0.1:8000", {"authorization": "Bearer wrong"}, 404),
])
async def test_whom_it_tells(acts: Acts, peer: str, base: str, headers: dict[str, str], status: int):
    """This machine by its own name, or who has the token; a tunnel to the webhook opens nothing else."""
    async with client(acts, token="opensesame", peer=peer, base=base) as http:
        assert (await http.get("/api/batches", headers=headers)).status_code == status
        assert (await http.get("/healthz", headers=headers)).status_code == 200


async def test_without_a_token_no_token_opens(acts: Acts):
    """An empty setting is no password."""
    async with client(acts, peer="10.0.0.7") as http:
        for offered in ("Bearer ", "Bearer None", "Bearer"):
            assert (await http.get("/api/batches", headers={"authorization": offered})).status_code == 404


async def test_health(acts: Acts):
    """Healthy is who can take in webhooks; why not is for those who may look."""
    state = State()
    state.trouble_now = "the token is refused"
    async with client(acts, state=state) as http:
        health = await http.get("/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "waiting"})
        assert (await http.get("/api/state")).json()["trouble"] == "the token is refused"
