"""Both engines for the contract of the ledger: SQLite in a file, and a real PostgreSQL that pip brought."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.cost import Price
from orchestrator.core.lifecycle import Event
from orchestrator.core.ports import ClaimTerms
from orchestrator.core.records import (
    Batch,
    Change,
    Claim,
    Fact,
    ItemResult,
    NewBatch,
    NewChunk,
    NewItem,
    Prediction,
    Standing,
    Target,
)
from orchestrator.core.retry import Policy, decide
from orchestrator.gateways.ledger import Database, SqlLedger
from tests.conftest import administer

TEMPLATE = "template_ledger"


@pytest.fixture(scope="session")
def postgresql_template(postgresql_url: Callable[[str], str]) -> Callable[[str], str]:
    """A database with all tables, made by migration once; the others are copies of it."""
    administer(postgresql_url, f"CREATE DATABASE {TEMPLATE}")

    async def migrate() -> None:
        async with Database.open(postgresql_url(TEMPLATE)):
            pass

    asyncio.run(migrate())
    return postgresql_url


_numbers = count(1)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh ledger: a new file, or a copy of the template."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    url: Callable[[str], str] = request.getfixturevalue("postgresql_template")
    name = f"ledger_{next(_numbers)}"
    administer(url, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield url(name)
    administer(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(ledger_url: str) -> AsyncIterator[Database]:
    """An open database."""
    async with Database.open(ledger_url) as opened:
        yield opened


@pytest.fixture
def ledger(database: Database) -> SqlLedger:
    """The ledger on it."""
    return SqlLedger(database)


NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
TARGET = Target("models", "acme/draw", None)
USD = 10**12


class Acts:
    """What a batch goes through, in one line each."""

    def __init__(self, ledger: SqlLedger) -> None:
        self.ledger = ledger
        self.policy = Policy(3, 2.0, canceling=False, price=Price("test", "second", Decimal("0.5")), count_files=lambda _: 0)

    def decide(self, standing: Standing, fact: Fact) -> Change | None:
        """The real rules, with 50 cents a second and no chance in them."""
        return decide(standing, fact, policy=self.policy, jitter=0.5)

    def new(self, name: str = "b", **values: Any) -> NewBatch:
        """A batch to be opened, its run key the same as its id."""
        settings: dict[str, Any] = {
            "id": name, "job": "shots", "run_key": name, "account": "acme", "created_at": NOW, "target": TARGET,
            "job_json": "{}", "schema_json": "{}", "source_json": "[]", "price_json": "null", "output_to": "/out",
            "in_flight": 1000, "max_attempts": 3}
        return NewBatch(**settings | values)

    def chunk(self, rows: int, first: int = 0) -> NewChunk:
        """Good rows, each with an input of its own."""
        items = [NewItem(i, f"sku-{i}", f'{{"seed":{i}}}', f"hash-{i}") for i in range(first, first + rows)]
        return NewChunk(first, items, b"blob-%d" % first)

    async def loaded(self, rows: int, name: str = "b", *, start_limit: int | None = None, **values: Any) -> Batch:
        """A running batch with so many rows, in chunks of four."""
        new = self.new(name, **values)
        batch, _ = await self.ledger.open_batch(new)
        for first in range(0, rows, 4):
            await self.ledger.add_chunk(batch.pk, self.chunk(min(4, rows - first), first))
        await self.ledger.amend(batch.pk, in_flight=new.in_flight, max_attempts=3, cap_units=new.cap_units,
                                price_json=new.price_json, start_limit=start_limit, job_json="{}")
        await self.ledger.seal(batch.pk, total=rows, source_schema_json="{}", now=NOW)
        return await self.again(batch)

    async def again(self, batch: Batch) -> Batch:
        """The batch as it stands now."""
        found = await self.ledger.batch(batch.id)
        assert found is not None
        return found

    def terms(self, *, now: datetime = NOW, reserve_units: int = 0, owner: str = "w1") -> ClaimTerms:
        """Terms with a lease of three minutes."""
        return ClaimTerms(now, now + timedelta(seconds=180), now + timedelta(seconds=1), owner, reserve_units)

    async def claim(self, batch: Batch, count: int, *, prefix: str = "a", **terms: Any) -> list[Claim]:
        """A claim of up to `count` rows; the attempts are named `a0`, `a1` and so on."""
        ids = [f"{prefix}{n}" for n in range(count)]
        return await self.ledger.claim(batch.pk, attempt_ids=ids, terms=self.terms(**terms))

    async def tell(self, *facts: Fact) -> list[Change]:
        """Facts through the door, judged by the real rules."""
        return await self.ledger.move(facts, decide=self.decide)

    def answered(self, attempt_id: str | None, prediction_id: str, *, after_s: float = 1.0, **values: Any) -> Fact:
        """The provider took it."""
        prediction = Prediction(prediction_id, "starting", model="acme/draw", created_at=NOW, **values)
        return Fact(Event.ANSWERED, NOW + timedelta(seconds=after_s), attempt_id, prediction)

    def ended(self, prediction_id: str, status: str = "succeeded", *, attempt_id: str | None = None, seconds: float = 2.0,
              output: Any = "https://x/1.png", error: str | None = None) -> Fact:
        """The provider is done with it, so many seconds after it was created."""
        done = NOW + timedelta(seconds=seconds)
        prediction = Prediction(prediction_id, status, model="acme/draw", version="hidden", output=output, error=error,
                                metrics={"predict_time": seconds}, created_at=NOW, completed_at=done)
        event = {"succeeded": Event.SUCCEEDED, "failed": Event.FAILED}.get(status, Event.CANCELED)
        return Fact(event, done, attempt_id, prediction)

    def said(self, event: Event, attempt_id: str, *, error: str | None = None, error_class: str | None = None,
             after_s: float = 1.0) -> Fact:
        """A fact without a prediction."""
        return Fact(event, NOW + timedelta(seconds=after_s), attempt_id, error=error, error_class=error_class)

    async def states(self, batch: Batch) -> list[str]:
        """The states of all rows, in order."""
        return [item.state.value for item in await self.results(batch)]

    async def results(self, batch: Batch) -> list[ItemResult]:
        """All results, in order."""
        return [item async for _, items in self.ledger.results(batch.pk) for item in items]


@pytest.fixture
def acts(ledger: SqlLedger) -> Acts:
    """The ledger, and what is done with it."""
    return Acts(ledger)


@pytest.fixture
def acts_of() -> type[Acts]:
    """The same, for a ledger the test opened itself."""
    return Acts


@pytest.fixture
def empty_postgresql(postgresql_url: Callable[[str], str]) -> Iterator[str]:
    """The URL of a database without any table."""
    name = f"empty_{next(_numbers)}"
    administer(postgresql_url, f"CREATE DATABASE {name}")
    yield postgresql_url(name)
    administer(postgresql_url, f"DROP DATABASE {name} WITH (FORCE)")
