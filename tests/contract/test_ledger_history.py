"""What rows of a target came to before, as both engines tell it: the newest of its own, and read by an index."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.history import PastAttempt
from orchestrator.core.lifecycle import Event
from orchestrator.core.records import OutputName, StoredOutput, Target
from orchestrator.gateways.ledger import Database, SqlLedger, history
from tests.contract.conftest import NOW, TARGET, Acts


async def bought(acts: Acts, count: int, name: str = "b", **values: Any):
    """A batch whose rows ended one after the other, after 2, 3, … seconds."""
    batch = await acts.loaded(count, name, **values)
    await acts.claim(batch, count, prefix=name)
    for n in range(count):
        await acts.tell(acts.answered(f"{name}{n}", f"{name}-p{n}", after_s=n), acts.ended(f"{name}-p{n}", seconds=2.0 + n))
    return batch


async def test_what_ended_newest_first(acts: Acts):
    """Of the target's batches, whoever else bought since: units and seconds; nothing of other targets and accounts."""
    await bought(acts, 3)
    await bought(acts, 1, "later")
    await bought(acts, 2, "other", target=Target("predictions", "acme/draw", "f" * 64))
    await bought(acts, 2, "foreign", account="somebody")
    found = await acts.ledger.past("acme", TARGET)
    assert [(one.unit, one.quantity, one.seconds, one.took_s) for one in found] == [
        ("second", Decimal("2.0"), Decimal("2.0"), 2.0),
        *(("second", Decimal(f"{2 + n}.0"), Decimal(f"{2 + n}.0"), 2.0 + n) for n in (2, 1, 0))]
    assert {one.status for one in found} == {"succeeded"} and len({one.item for one in found}) == 4
    versioned = await acts.ledger.past("acme", Target("predictions", "acme/draw", "f" * 64))
    assert len(versioned) == 2
    assert await acts.ledger.past("acme", Target("models", "acme/paint", None)) == []


async def test_what_tells_nothing_is_left_out(acts: Acts):
    """Canceled by an operator, bought beyond need, still out, refused: none of them says what a row costs. One that failed does,
    and one that its deadline ended."""
    batch = await acts.loaded(6)
    await acts.claim(batch, 6)
    acts.policy = replace(acts.policy, canceling=True)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0", "canceled", output=None))
    acts.policy = replace(acts.policy, canceling=False)
    await acts.tell(acts.answered("a1", "p1"), acts.ended("p1", "failed", output=None, error="broken"))
    await acts.tell(acts.answered("a2", "p2"))
    await acts.tell(acts.said(Event.REFUSED, "a3", error="no", error_class="invalid_input"))
    await acts.tell(acts.answered("a5", "p6"), acts.ended("p6", "canceled", output=None))
    await acts.tell(acts.said(Event.ANSWER_LOST, "a4"))
    await acts.tell(acts.said(Event.ABSENT, "a4"))
    await acts.claim(batch, 1, prefix="c", now=NOW + timedelta(seconds=60))
    await acts.tell(acts.answered("c0", "p5"), acts.ended("p5", seconds=3.0))
    await acts.tell(acts.answered("a4", "p4"))
    await acts.tell(acts.ended("p4", "succeeded", seconds=9.0))
    found = await acts.ledger.past("acme", TARGET)
    assert sorted((one.status, one.seconds) for one in found) == [
        ("canceled", Decimal("2.0")), ("failed", Decimal("2.0")), ("succeeded", Decimal("3.0"))]


async def test_files_at_home(acts: Acts):
    """How many an attempt brought, and their bytes: not known of one whose files are not home yet, or could not be fetched."""
    batch = await bought(acts, 3)
    (item, *_) = await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=NOW + timedelta(seconds=60))
    for n, size in enumerate((1000, 24)):
        await acts.ledger.grant_names([OutputName(item.item_pk, batch.pk, item.attempt_id, 0, n, f"f{n}")])
        await acts.ledger.store_outputs([StoredOutput(item.item_pk, n, f"f{n}.png", size, "0" * 64, "image/png", "https://x", NOW,
                                                      item.attempt_id)])
    found = {one.item: (one.files, one.bytes) for one in await acts.ledger.past("acme", TARGET)}
    assert found.pop(item.item_pk) == (2, 1024)
    assert list(found.values()) == [(0, None), (0, None)]
    late = NOW + timedelta(seconds=90)
    for claim, event in zip(await acts.ledger.to_collect(batch.pk, count=3, now=late, lease_until=late),
                            (Event.COLLECTED, Event.COLLECTED, Event.UNCOLLECTABLE), strict=True):
        await acts.tell(acts.said(event, claim.attempt_id))
    assert sorted((one.files, one.bytes) for one in await acts.ledger.past("acme", TARGET) if one.bytes is not None) == [
        (0, 0), (2, 1024)]


async def test_it_stays_small(acts: Acts, monkeypatch: pytest.MonkeyPatch):
    """So many attempts at most, of so many batches; the newest."""
    for number in range(4):
        await bought(acts, 3, f"n{number}")
    monkeypatch.setattr(history, "MOST", 5)
    assert [one.seconds for one in await acts.ledger.past("acme", TARGET)] == [
        Decimal(seconds) for seconds in ("4.0", "3.0", "2.0", "4.0", "3.0")]
    monkeypatch.setattr(history, "MOST_BATCHES", 1)
    assert len(await acts.ledger.past("acme", TARGET)) == 3


async def test_a_ledger_that_is_not_there_tells_nothing(ledger_url: str, acts: Acts):
    """Nor does one of another version: `plan` looks at what it finds, and migrates nothing."""
    await bought(acts, 1)
    as_it_is = Database(ledger_url)
    try:
        assert await SqlLedger(as_it_is).past("acme", TARGET) != []
        await as_it_is.write(_older)
        assert await SqlLedger(as_it_is).past("acme", TARGET) == []
    finally:
        await as_it_is.close()


async def _older(connection: Any) -> None:
    await connection.execute(text("UPDATE alembic_version SET version_num = '0009'"))


async def test_both_reads_are_of_an_index(acts: Acts, database: Database):
    """The newest of a batch without sorting all of it; what ended just now by the index of ends."""
    batch = await bought(acts, 8)

    async def plan(connection: Any, query: Any) -> str:
        shown = query.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
            return str((await connection.execute(text(f"EXPLAIN {shown}"))).all())
        return str((await connection.execute(text(f"EXPLAIN QUERY PLAN {shown}"))).all())

    told = await database.read(plan, history.last(batch.pk, 1000))
    assert "ix_attempts_answered" in told and "Sort" not in told and "TEMP B-TREE" not in told, told
    told = await database.read(plan, history.just_ended("acme", batch.pk, NOW))
    assert "ix_attempts_completed" in told, told


async def test_what_was_spent_since(acts: Acts):
    """Of this batch, by when its predictions ended."""
    batch, other = await bought(acts, 3), await bought(acts, 2, "other")
    since = NOW + timedelta(seconds=2.5)
    assert await acts.ledger.spent_since("acme", batch.pk, since=since) == Decimal("3.5")  # 3 s and 4 s at 50 cents
    assert await acts.ledger.spent_since("acme", other.pk, since=since) == Decimal("1.5")
    assert await acts.ledger.spent_since("acme", batch.pk, since=since + timedelta(hours=1)) == 0


async def test_an_estimate_stays_with_its_batch(acts: Acts):
    """Written as loading ends; `amend` leaves it alone, unless it has another."""
    batch, _ = await acts.ledger.open_batch(acts.new("e"))
    await acts.ledger.seal(batch.pk, total=0, source_schema_json="{}", now=NOW, estimate_json='{"rows": 0}')
    amended: dict[str, Any] = {"in_flight": 1, "max_attempts": 1, "cap_units": None, "price_json": "null", "start_limit": None,
                               "job_json": "{}"}
    await acts.ledger.amend(batch.pk, **amended)
    assert (await acts.again(batch)).estimate_json == '{"rows": 0}'
    await acts.ledger.amend(batch.pk, **amended, estimate_json="{}")
    assert await acts.again(batch) == replace(await acts.again(batch), estimate_json="{}")


def test_a_past_attempt_is_small():
    """A thousand of them are held at once: no output, no log, no input."""
    assert set(PastAttempt._fields).isdisjoint({"output_json", "logs_tail", "input_json"})
