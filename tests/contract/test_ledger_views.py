"""Pages and commands get the answers they ask for, and results come in input order, chunk by chunk."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.failing import Cause
from orchestrator.core.lifecycle import Event, ItemState
from orchestrator.gateways.ledger import LatencyView, WaitingView

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


async def test_results_by_chunk(acts: Any) -> None:
    """Each chunk of the source comes with its rows, in order, whatever became of them."""
    batch, _ = await acts.ledger.open_batch(acts.new())
    for first in (0, 4, 8):
        await acts.ledger.add_chunk(batch.pk, acts.chunk(4 if first < 8 else 1, first))
    chunks = [(blob, [r.index for r in rows]) async for blob, rows in acts.ledger.results(batch.pk)]
    assert chunks == [(b"blob-0", [0, 1, 2, 3]), (b"blob-4", [4, 5, 6, 7]), (b"blob-8", [8])]


async def test_result_of_an_untouched_row(acts: Any) -> None:
    """A row never tried has no cost, not a cost of zero."""
    batch = await acts.loaded(1)
    (result,) = await acts.results(batch)
    assert (result.charge_units, result.seconds, result.attempts, result.prediction_id) == (None, None, 0, None)


async def test_result_of_a_refused_row(acts: Any) -> None:
    """A refusal is known to have cost nothing."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.REFUSED, "a0", error="no such field", error_class="refused"))
    (result,) = await acts.results(batch)
    assert (result.state, result.error, result.charge_units, result.attempts) == (ItemState.FAILED, "no such field", 0, 1)


async def test_result_of_a_running_row(acts: Any) -> None:
    """While a prediction runs, its cost is not known. An attempt that reached nobody, as in a deploy, is not counted."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.NOT_SENT, "a0"))
    await acts.claim(batch, 1, prefix="b", now=NOW + timedelta(minutes=1))
    await acts.tell(acts.answered("b0", "p0"))
    (result,) = await acts.results(batch)
    assert (result.charge_units, result.attempts, result.prediction_id) == (None, 1, "p0")


async def test_counts(acts: Any) -> None:
    """Rows by state, money spent and reserved, as exact decimals."""
    batch = await acts.loaded(5)
    await acts.claim(batch, 3, reserve_units=12 * 10**11)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p1", attempt_id="a1", seconds=0.2))
    counts = await acts.ledger.counts(batch.pk)
    assert counts.by_state == {ItemState.PENDING: 2, ItemState.CLAIMED: 1, ItemState.RUNNING: 1, ItemState.COLLECTING: 1}
    assert (counts.spent_usd, counts.reserved_usd, counts.cost_unknown_items) == (Decimal("0.1"), Decimal("2.4"), 0)


async def test_large_money(acts: Any) -> None:
    """A hundred thousand dollars and a millionth of a cent add up exactly."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=200_000), acts.ended("p1", attempt_id="a1", seconds=2e-8))
    assert (await acts.ledger.counts(batch.pk)).spent_usd == Decimal("100000.00000001")


async def test_items(acts: Any) -> None:
    """Rows are listed page by page, all or those in one state, with what their present attempt gave."""
    batch = await acts.loaded(6)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.said(Event.NOT_SENT, "a1"))
    page = await acts.ledger.items(batch.pk, after_idx=-1, limit=2)
    assert [(v.index, v.row_id, v.state, v.prediction_id, v.charge_units) for v in page] == [
        (0, "sku-0", ItemState.COLLECTING, "p0", 10**12), (1, "sku-1", ItemState.PENDING, None, 0)]
    assert [v.due_at is None for v in page] == [True, False]
    pending = await acts.ledger.items(batch.pk, state=ItemState.PENDING, after_idx=1, limit=3)
    assert [v.index for v in pending] == [2, 3, 4]


async def test_find(acts: Any) -> None:
    """A batch is found by id, by a beginning that is its alone, and by its job: then the latest."""
    for name, job in (("shots-1a", "shots"), ("shots-2b", "shots"), ("50%_x", "odd")):
        await acts.ledger.open_batch(acts.new(name, job=job))
    assert [(await acts.ledger.find(name)).id for name in ("shots-1a", "shots-2", "shots", "50%", "odd")] == [
        "shots-1a", "shots-2b", "shots-2b", "50%_x", "50%_x"]


@pytest.mark.parametrize(("name", "message"), [
    ("shots-", "'shots-' begins several batches: shots-2b, shots-1a; type more of the id"),
    ("shoots", "there is no batch or job 'shoots' in this ledger; the nearest: shots"),
    ("", "there is no batch or job '' in this ledger; the nearest: shots-2b"),
    ("%", "there is no batch or job '%'")])
async def test_find_nothing(acts: Any, name: str, message: str) -> None:
    """A name that means no batch, or several, is answered with what would be right."""
    for batch_id in ("shots-1a", "shots-2b"):
        await acts.ledger.open_batch(acts.new(batch_id))
    with pytest.raises(BadInput) as caught:
        await acts.ledger.find(name)
    assert message in str(caught.value)


async def test_find_in_empty_ledger(acts: Any) -> None:
    """An empty ledger says that it is empty."""
    with pytest.raises(BadInput, match="this ledger is empty"):
        await acts.ledger.find("x")


async def test_batches(acts: Any) -> None:
    """The newest batches come first."""
    for n in range(3):
        await acts.ledger.open_batch(acts.new(f"b{n}"))
    assert [b.id for b in await acts.ledger.batches(limit=2)] == ["b2", "b1"]


async def test_failures(acts: Any) -> None:
    """Failed rows are grouped by class, the most frequent first, with a sample."""
    batch = await acts.loaded(5)
    await acts.claim(batch, 5)
    await acts.tell(*(acts.said(Event.REFUSED, f"a{n}", error=f"no {n}", error_class="refused") for n in (3, 1)),
                    acts.said(Event.REFUSED, "a2", error="gone", error_class="expired"))
    assert await acts.ledger.failures(batch.pk) == (Cause("refused", 2, "no 1", differs=True), Cause("expired", 1, "gone"))


async def test_rate_and_latency(acts: Any) -> None:
    """Creations since a moment, and how long ended predictions took."""
    batch = await acts.loaded(12)
    assert await acts.ledger.latencies(batch.pk) is None
    await acts.claim(batch, 12)
    await acts.tell(*(acts.answered(f"a{n}", f"p{n}", after_s=n) for n in range(12)))
    assert await acts.ledger.recent_rate(batch.pk, since=NOW + timedelta(seconds=8)) == 3
    await acts.tell(acts.ended("p0", seconds=4))
    assert await acts.ledger.latencies(batch.pk) == LatencyView(1, 4.0, 4.0)
    await acts.tell(*(acts.ended(f"p{n}", seconds=n) for n in range(1, 11)))
    assert await acts.ledger.latencies(batch.pk) == LatencyView(11, 5.0, 9.0)


async def test_waiting(acts: Any) -> None:
    """Rows that wait are told apart by whether their time has come."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 1)
    (change,) = await acts.tell(acts.said(Event.NOT_SENT, "a0"))
    assert await acts.ledger.waiting(batch.pk, now=NOW) == WaitingView(2, 1, change.due_at)
    assert await acts.ledger.waiting(batch.pk, now=change.due_at) == WaitingView(3, 0, None)
