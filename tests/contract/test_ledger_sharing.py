"""Rows of equal input: loaded as twins of the first, and told at every moment as that one stands."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.failing import Cause, Tally
from orchestrator.core.lifecycle import BatchState, Event, ItemState
from orchestrator.core.records import Batch, Counts, ItemResult, NewChunk, NewItem, OutputName, StoredOutput, Target
from orchestrator.gateways.ledger import CanceledView, Database
from orchestrator.gateways.ledger.sharing import ORIGINALS
from tests.contract.conftest import NOW, Acts

Told = list[tuple[int, str, str | None]]


def chunk(letters: str, first: int = 0) -> NewChunk:
    """A row for each letter: equal letters are equal inputs, `-` is a bad row."""
    rows = enumerate(letters, start=first)
    return NewChunk(first, [NewItem(i, f"r{i}", f'{{"text":"{x}"}}', f"hash-{x}", shares=True) if x != "-" else
                            NewItem(i, f"r{i}", None, None, "no text") for i, x in rows], b"blob")


async def loaded(acts: Acts, *parts: str, name: str = "b", start_limit: int | None = None) -> Batch:
    """A running batch of these chunks."""
    batch, _ = await acts.ledger.open_batch(acts.new(name))
    at = 0
    for letters in parts:
        await acts.ledger.add_chunk(batch.pk, chunk(letters, at))
        at += len(letters)
    if start_limit is not None:
        await acts.ledger.amend(batch.pk, in_flight=1000, max_attempts=3, cap_units=None, price_json="null",
                                start_limit=start_limit, job_json="{}")
    await acts.ledger.seal(batch.pk, total=at, source_schema_json="{}", now=NOW)
    return await acts.again(batch)


async def partners(acts: Acts, batch: Batch) -> list[int | None]:
    """Of each row the one that it shares."""
    return [view.shares_row for view in await acts.ledger.items(batch.pk)]


async def succeed(acts: Acts, attempt_id: str, *, item_pk: int, batch: Batch, row: int) -> None:
    """Bought, and its one file at home."""
    await acts.tell(acts.answered(attempt_id, f"p-{attempt_id}"), acts.ended(f"p-{attempt_id}"))
    (stem,) = await acts.ledger.grant_names([OutputName(item_pk, batch.pk, attempt_id, row, 0, f"r{row}-0")])
    await acts.ledger.store_outputs([
        StoredOutput(item_pk, 0, f"files/{stem}.png", 3, "ab" * 32, "image/png", "https://x/1.png", NOW, attempt_id)])
    await acts.tell(acts.said(Event.COLLECTED, attempt_id))


def told(counts: Counts) -> dict[str, int]:
    """By state, empty ones left out."""
    return {state.value: many for state, many in counts.by_state.items() if many}


async def test_twins_are_found(acts: Acts) -> None:
    """In one chunk and across chunks, each sharing with the first row of its input; bad rows share with nobody."""
    batch = await loaded(acts, "aab-", "b-cc", "ca")
    assert await partners(acts, batch) == [None, 0, None, None, 2, None, None, 6, 6, 0]
    counts = await acts.ledger.counts(batch.pk)
    assert (told(counts), counts.total) == ({"pending": 8, "failed": 2}, 10)
    assert counts.shared == {ItemState.PENDING: 5}
    assert (counts.own(ItemState.PENDING), counts.own(ItemState.FAILED)) == (3, 2)
    assert [claim.index for claim in await acts.claim(batch, 9)] == [0, 2, 6]


async def test_only_within_their_batch_and_where_asked(acts: Acts) -> None:
    """Another batch's rows, and those of a batch that buys each row, are nobody's twins."""
    await loaded(acts, "ab")
    other = await loaded(acts, "ab", name="other")
    assert await partners(acts, other) == [None, None]
    plain, _ = await acts.ledger.open_batch(acts.new("plain"))
    equal = [NewItem(n, f"r{n}", '{"text":"a"}', "hash-a") for n in range(3)]
    await acts.ledger.add_chunk(plain.pk, NewChunk(0, equal, b"blob"))
    assert await partners(acts, plain) == [None, None, None]


async def test_a_load_that_was_interrupted(acts: Acts) -> None:
    """Chunks added again change nothing; those taken out and loaded again leave every row with as many twins as it has."""
    batch, _ = await acts.ledger.open_batch(acts.new())
    await acts.ledger.add_chunk(batch.pk, chunk("aab"))
    for _ in range(2):
        await acts.ledger.add_chunk(batch.pk, chunk("ba", 3))
    await acts.ledger.add_chunk(batch.pk, chunk("aab"))
    assert (await acts.ledger.counts(batch.pk)).shared == {ItemState.PENDING: 3}


async def test_a_discard_that_was_interrupted(acts: Acts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a batch whose discard died half-way loads to the same as at first."""
    from orchestrator.gateways.ledger import loading

    batch, _ = await acts.ledger.open_batch(acts.new())
    await acts.ledger.add_chunk(batch.pk, chunk("aab"))
    await acts.ledger.add_chunk(batch.pk, chunk("baac", 3))
    assert await acts.ledger._db.write(loading.discard_last, batch.pk)  # one step of `discard`
    assert (await acts.ledger.loaded_rows(batch.pk), (await acts.ledger.counts(batch.pk)).shared) == (3, {ItemState.PENDING: 1})
    await acts.ledger.add_chunk(batch.pk, chunk("baac", 3))
    counts = await acts.ledger.counts(batch.pk)
    assert (counts.total, counts.shared) == (7, {ItemState.PENDING: 4})
    await acts.ledger.discard(batch.pk)
    assert await acts.ledger.batch("b") is None


async def test_chunks_of_two_loaders(acts: Acts) -> None:
    """Whoever comes first: each input has one row that is bought."""
    batch, _ = await acts.ledger.open_batch(acts.new())

    async def load() -> None:
        for first in (0, 4, 8):
            await acts.ledger.add_chunk(batch.pk, chunk("abca", first))

    await asyncio.gather(*(load() for _ in range(3)))
    await acts.ledger.seal(batch.pk, total=12, source_schema_json="{}", now=NOW)
    assert (await acts.ledger.counts(batch.pk)).shared == {ItemState.PENDING: 9}
    assert len(await acts.claim(batch, 12)) == 3


async def test_a_twin_is_what_its_original_is(acts: Acts) -> None:
    """Pending, out, failed, opened again, succeeded: counts, rows and results tell both alike; only the original costs."""
    batch = await loaded(acts, "ab", "aa")

    async def rows() -> Told:
        results = await acts.results(batch)
        views = await acts.ledger.items(batch.pk)
        assert [(r.state, r.prediction_id, r.error) for r in results] == [(v.state, v.prediction_id, v.error) for v in views]
        assert [r.charge_units for r in results] == [v.charge_units for v in views]
        return [(r.index, r.state.value, r.prediction_id) for r in results if r.index != 1]

    assert await rows() == [(0, "pending", None), (2, "pending", None), (3, "pending", None)]
    (first, _) = await acts.claim(batch, 9)
    assert {state for _, state, _ in await rows()} == {"claimed"}
    await acts.tell(acts.answered("a0", "p0"))
    assert await rows() == [(n, "running", "p0") for n in (0, 2, 3)]
    await acts.tell(acts.ended("p0", "failed", output=None, error="broken"))
    assert await rows() == [(n, "failed", "p0") for n in (0, 2, 3)]
    assert await acts.ledger.failures(batch.pk) == (Cause("model", 3, "broken"),)
    assert told(await acts.ledger.counts(batch.pk)) == {"failed": 3, "claimed": 1}
    failed = await acts.ledger.items(batch.pk, state=ItemState.FAILED)
    assert [(view.index, view.shares_row, view.attempts) for view in failed] == [(0, None, 1), (2, 0, 0), (3, 0, 0)]
    assert [view.charge_units for view in failed][1:] == [0, 0]
    assert await acts.ledger.reopen_failed(batch.pk, classes=frozenset()) == 1
    assert await rows() == [(0, "pending", "p0"), (2, "pending", "p0"), (3, "pending", "p0")]
    await acts.claim(batch, 1, prefix="b", now=NOW + timedelta(hours=1))
    await succeed(acts, "b0", item_pk=first.item_pk, batch=batch, row=0)
    one, _, two, three = await acts.results(batch)
    assert [same(one), same(two), same(three)] == [same(one)] * 3
    assert (one.prediction_id, one.files, one.seconds) == ("p-b0", ("files/r0-0.png",), 2.0)
    assert (one.attempts, two.attempts, two.charge_units, three.charge_units) == (2, 0, 0, 0)
    assert [view.index for view in await acts.ledger.items(batch.pk, state=ItemState.SHARED)] == [2, 3]
    assert (await acts.ledger.counts(batch.pk)).spent_usd == Decimal(one.charge_units or 0) / 10**12 > 0


def same(result: ItemResult) -> tuple[object, ...]:
    """What a row and its twins have in common."""
    return (result.prediction_id, result.state, result.output_json, result.files, result.error, result.error_class,
            result.seconds, result.version)


async def test_what_verify_asks(acts: Acts) -> None:
    """A file is in the manifest once, at home once, and known by its name; costs know only the row that was bought."""
    batch = await loaded(acts, "aab")
    first, _ = await acts.claim(batch, 9)
    await succeed(acts, "a0", item_pk=first.item_pk, batch=batch, row=0)
    assert [line["id"] async for line in acts.ledger.manifest(batch.pk)] == ["r0"]
    home = [row async for rows in acts.ledger.home(batch.pk) for row in rows]
    assert [(row.row, [file.path for file in row.files]) for row in home] == [(0, ["files/r0-0.png"])]
    assert await acts.ledger.known_paths(batch.pk, ["files/r0-0.png", "files/r1-0.png"]) == {"files/r0-0.png"}
    assert await acts.ledger.rows_of_inputs(batch.pk, ["hash-a"]) == {"hash-a": (0, "r0")}
    spent = [row async for _, _, rows in acts.ledger.spent_by_row(batch.pk) for row in rows]
    assert sorted(spent) == [0, 2]


async def test_expired_rows_and_their_twins(acts: Acts) -> None:
    """All that lost something are counted, and bought again once."""
    batch = await loaded(acts, "aab")
    await acts.claim(batch, 1)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0"))
    await acts.tell(acts.said(Event.UNCOLLECTABLE, "a0", error="deleted", error_class="expired"))
    assert await acts.ledger.expired(batch.pk) == 2
    assert await acts.ledger.reopen_expired(batch.pk) == 1
    assert told(await acts.ledger.counts(batch.pk)) == {"pending": 3}


async def test_canceled_and_resumed(acts: Acts) -> None:
    """Withdrawn and waiting again, whole families of rows; the batch is over with its originals."""
    batch = await loaded(acts, "aab")
    await acts.claim(batch, 1)
    every = frozenset(BatchState)
    await acts.ledger.set_state(batch.pk, to=BatchState.CANCELING, allowed=every, reason=None, now=NOW)
    assert await acts.ledger.cancel_pending(batch.pk) == 1
    await acts.tell(acts.said(Event.NOT_SENT, "a0"))
    assert await acts.ledger.unsettled(batch.pk) is False
    await acts.ledger.cancel_pending(batch.pk)
    counts = await acts.ledger.counts(batch.pk)
    assert (told(counts), await acts.ledger.canceled(batch.pk)) == ({"canceled": 3}, CanceledView(3, 0, 0, Decimal(0), 0))
    to, of = BatchState.CANCELED, BatchState.CANCELING
    assert await acts.ledger.end_batch(batch.pk, to=to, of=of, reason=None, told=counts, now=NOW)
    assert await acts.ledger.reopen_canceled(batch.pk) == 2
    assert told(await acts.ledger.counts(batch.pk)) == {"pending": 3}


async def test_a_start_limit_counts_what_is_bought(acts: Acts) -> None:
    """Two started are two purchases, however many rows share them; what is left are the families not started."""
    batch = await loaded(acts, "aaabcc", start_limit=2)
    assert [claim.index for claim in await acts.claim(batch, 9)] == [0, 3]
    assert told(await acts.ledger.counts(batch.pk)) == {"claimed": 4, "pending": 2}


async def test_failures_are_told_in_rows_and_judged_by_tries(acts: Acts) -> None:
    """The tolerance is of rows; twenty twins of one bad input are one try of the model."""
    batch = await loaded(acts, "aaab")
    await acts.claim(batch, 2)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0", "failed", output=None, error="broken"))
    await acts.tell(acts.said(Event.REFUSED, "a1", error="no such ratio", error_class="invalid_input"))
    assert await acts.ledger.tally(batch.pk, most=20) == Tally(worked=0, failed=3, refused=1, shared=2)
    await acts.ledger.know_failures(batch.pk)
    assert await acts.ledger.tally(batch.pk, most=20) == Tally(0, 3, 1, known_failed=3, known_refused=1, shared=2, known_shared=2)
    asked: list[Tally] = []
    await acts.ledger.pause_for_failures(batch.pk, most=20, decide=lambda _, tally: asked.append(tally), now=NOW)
    assert [(cause.error_class, cause.count) for cause in asked[0].causes] == [("model", 3), ("invalid_input", 1)]


async def test_what_earlier_batches_bought(acts: Acts) -> None:
    """What succeeded in an earlier batch of the same account and target that shares, and its files as they came home."""
    first, second = await loaded(acts, "abc", name="one"), await loaded(acts, "cd", name="two")
    for batch, prefix, rows in ((first, "a", 3), (second, "b", 1)):
        for claim in await acts.claim(batch, rows, prefix=prefix):
            if claim.input_json != '{"text":"b"}':
                await succeed(acts, claim.attempt_id, item_pk=claim.item_pk, batch=batch, row=claim.index)
    plain, _ = await acts.ledger.open_batch(acts.new("plain"))
    await acts.ledger.add_chunk(plain.pk, NewChunk(0, [NewItem(0, "r0", '{"text":"e"}', "hash-e")], b"blob"))
    later, _ = await acts.ledger.open_batch(acts.new("later"))
    wanted = [f"hash-{letter}" for letter in "abcdef"]
    found = await acts.ledger.bought_before(later.pk, wanted)
    assert {key: (one.batch_id, one.row) for key, one in found.items()} == {"hash-a": ("one", 0), "hash-c": ("two", 0)}
    assert {(one.folder, one.files) for one in found.values()} == {("/out", (("files/r0-0.png", 3, "ab" * 32),))}
    assert await acts.ledger.bought_before(first.pk, wanted) == {}
    for name, other in (("account", {"account": "else"}), ("target", {"target": Target("models", "acme/paint", None)}),
                        ("version", {"target": Target("models", "acme/draw", "f" * 64)})):
        batch, _ = await acts.ledger.open_batch(acts.new(name, **other))
        assert await acts.ledger.bought_before(batch.pk, wanted) == {}


async def test_rows_that_share_with_an_earlier_batch(acts: Acts) -> None:
    """They have succeeded from the beginning, cost nothing, and name files where these lie; nothing of theirs is claimed, at home
    or in the manifest here, and equal rows of their own batch have nothing to do with them."""
    first = await loaded(acts, "ab", name="one")
    claim, _ = await acts.claim(first, 2)
    await succeed(acts, claim.attempt_id, item_pk=claim.item_pk, batch=first, row=0)
    later, _ = await acts.ledger.open_batch(acts.new("later", output_to="/elsewhere"))
    told_of = chunk("aab-cc")
    items = [replace(item, twin_of=claim.item_pk) if item.index in (0, 1) else item for item in told_of.items]
    await acts.ledger.add_chunk(later.pk, replace(told_of, items=items))
    await acts.ledger.add_chunk(later.pk, chunk("ac", 6))  # its file was gone when this chunk was read
    await acts.ledger.seal(later.pk, total=8, source_schema_json="{}", now=NOW)
    counts = await acts.ledger.counts(later.pk)
    assert told(counts) == {"succeeded": 2, "failed": 1, "pending": 5}
    assert (counts.shared, counts.earlier) == ({ItemState.SUCCEEDED: 2, ItemState.PENDING: 2}, 2)
    assert [claim.index for claim in await acts.claim(later, 9, prefix="l")] == [2, 4, 6]
    shared = (await acts.results(later))[:2]
    assert [(r.state, r.prediction_id, r.files, r.charge_units, r.attempts) for r in shared] == [
        (ItemState.SUCCEEDED, "p-a0", ("/out/files/r0-0.png",), 0, 0)] * 2
    views = await acts.ledger.items(later.pk, state=ItemState.SHARED)
    assert [(v.index, v.shares_row, v.shares_batch) for v in views] == [(0, 0, "one"), (1, 0, "one"), (5, 4, None), (7, 4, None)]
    assert [v.index for v in await acts.ledger.items(later.pk, state=ItemState.SUCCEEDED)] == [0, 1]
    assert await acts.ledger.shared_with(later.pk) == {"one": 2}
    assert [row async for rows in acts.ledger.home(later.pk) for row in rows] == []
    assert [line async for line in acts.ledger.manifest(later.pk)] == []
    assert (await acts.ledger.counts(first.pk)).earlier == 0


async def test_the_look_for_an_original_is_of_its_index(acts: Acts, database: Database) -> None:
    """Batch and key are both looked up, for each row of a chunk: to walk the batch's rows would be quadratic."""
    batch = await loaded(acts, "aab")

    async def plan(connection: Any) -> str:
        query = ORIGINALS[connection.dialect.name].compile(dialect=connection.dialect)
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            keys: dict[str, Any] = {"b_batch": batch.pk, "b_keys": ["hash-a"]}
            return str((await connection.exec_driver_sql(f"EXPLAIN {query}", keys)).all())
        return str((await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", (batch.pk, '["hash-a"]'))).all())

    told = await database.read(plan)
    assert "uq_items_share_key" in told
    assert "share_key=?" in told or "share_key)::text = " in told


async def test_a_refused_load_takes_nothing_from_an_earlier_batch(acts: Acts) -> None:
    """Rows that shared with another batch are forgotten again: that one never counted them."""
    one = await loaded(acts, "aaab", name="one")
    before = await acts.ledger.counts(one.pk)
    (bought, *_) = await acts.ledger.items(one.pk)
    two, _ = await acts.ledger.open_batch(acts.new("two"))
    many = [NewItem(i, f"r{i}", '{"text":"a"}', "hash-a", shares=True, twin_of=1) for i in range(5)]
    await acts.ledger.add_chunk(two.pk, NewChunk(0, many, b"blob"))
    await acts.ledger.discard(two.pk)
    assert (bought.index, await acts.ledger.counts(one.pk)) == (0, before)
    assert before.shared == {ItemState.PENDING: 2}
