"""A batch is opened once, filled in whole chunks, and only then runs."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.core.errors import Discarded, NameTaken
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.records import NewChunk, NewItem, Target
from orchestrator.gateways.ledger import Database, loading

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


async def test_opened_once(acts: Any) -> None:
    """The same run key answers the same batch, with everything as it was first given."""
    target = Target("predictions", "acme/draw", "a" * 64)
    first, is_new = await acts.ledger.open_batch(acts.new("one", run_key="key", target=target, cap_units=25 * 10**12))
    second, is_new_again = await acts.ledger.open_batch(acts.new("two", run_key="key"))
    assert (is_new, is_new_again) == (True, False)
    assert second == first
    assert (first.target, first.cap_units, first.state) == (target, 25 * 10**12, BatchState.LOADING)
    assert (first.created_at, first.finished_at, first.total, first.spent_units) == (NOW, None, None, 0)
    assert await acts.ledger.known("key")
    assert not await acts.ledger.known("another")


async def test_opened_by_many_at_once(acts: Any) -> None:
    """Of many who open one run key at once, exactly one is told that it is new."""
    opened = await asyncio.gather(*(acts.ledger.open_batch(acts.new(f"b{n}", run_key="key")) for n in range(8)))
    assert sum(is_new for _, is_new in opened) == 1
    assert len({batch.pk for batch, _ in opened}) == 1


async def test_chunk_again(acts: Any) -> None:
    """A chunk added again, as after an interrupted load, changes nothing."""
    batch, _ = await acts.ledger.open_batch(acts.new())
    await acts.ledger.add_chunk(batch.pk, acts.chunk(4))
    await acts.ledger.add_chunk(batch.pk, acts.chunk(3, 4))
    await acts.ledger.add_chunk(batch.pk, acts.chunk(4))
    assert await acts.ledger.loaded_rows(batch.pk) == 7
    assert (await acts.ledger.counts(batch.pk)).by_state == {ItemState.PENDING: 7}


async def test_chunk_by_two_at_once(acts: Any) -> None:
    """Two loaders of one batch leave every row once."""
    batch, _ = await acts.ledger.open_batch(acts.new())
    await asyncio.gather(*(acts.ledger.add_chunk(batch.pk, acts.chunk(4, first)) for first in (0, 4, 8) for _ in range(3)))
    assert (await acts.ledger.counts(batch.pk)).total == 12


async def test_bad_rows(acts: Any) -> None:
    """A row that cannot be bought enters as failed with its reason, and is not opened again by `retry`."""
    batch, _ = await acts.ledger.open_batch(acts.new())
    bad = NewItem(0, "sku\0", None, None, "seed: not an integer")
    await acts.ledger.add_chunk(batch.pk, NewChunk(0, [bad, NewItem(1, "b", '{"a":"\ud800"}', "h")], b""))
    await acts.ledger.seal(batch.pk, total=2, source_schema_json="{}", now=NOW)
    first, second = await acts.results(batch)
    assert (first.state, first.error, first.error_class) == (ItemState.FAILED, "seed: not an integer", "invalid_input")
    assert (first.attempts, first.charge_units, second.state) == (0, None, ItemState.PENDING)
    assert await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"invalid_input"})) == 0
    assert [c.input_json for c in await acts.claim(batch, 2)] == ['{"a":"\\ud800"}']


async def test_sealed(acts: Any) -> None:
    """Sealing makes the batch run, with its number of rows; a second time is harmless."""
    batch = await acts.loaded(6)
    assert (batch.state, batch.total, batch.source_schema_json) == (BatchState.RUNNING, 6, "{}")
    await acts.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset(BatchState), reason="why", now=NOW)
    await acts.ledger.seal(batch.pk, total=6, source_schema_json="{}", now=NOW)
    assert (await acts.again(batch)).state is BatchState.PAUSED


async def test_discarded(acts: Any) -> None:
    """A batch that is still loading is forgotten, rows and all, and its neighbour is not."""
    other = await acts.loaded(4, "other")
    batch, _ = await acts.ledger.open_batch(acts.new("mine"))
    for first in (0, 4, 8):
        await acts.ledger.add_chunk(batch.pk, acts.chunk(4, first))
    await acts.ledger.discard(batch.pk)
    assert await acts.ledger.batch("mine") is None
    assert (await acts.ledger.counts(other.pk)).total == 4
    reopened, is_new = await acts.ledger.open_batch(acts.new("mine"))
    assert is_new
    assert await acts.ledger.loaded_rows(reopened.pk) == 0


async def test_running_batch_is_not_discarded(acts: Any) -> None:
    """What may have bought something is never forgotten."""
    batch = await acts.loaded(4)
    await acts.ledger.discard(batch.pk)
    assert (await acts.ledger.counts((await acts.again(batch)).pk)).total == 4


async def test_amended(acts: Any) -> None:
    """Limits, budget and job text may change between two runs, to nothing as well."""
    batch = await acts.loaded(1, cap_units=7)
    await acts.ledger.amend(batch.pk, in_flight=5, max_attempts=9, cap_units=None, price_json='null', start_limit=1,
                            job_json='{"x":1}')
    now = await acts.again(batch)
    assert (now.in_flight, now.max_attempts, now.cap_units, now.start_limit, now.job_json) == (5, 9, None, 1, '{"x":1}')


async def test_a_start_limit_is_lifted(acts: Any) -> None:
    """Only the one that was read, and nothing else of the batch is touched."""
    batch = await acts.loaded(4, cap_units=7, start_limit=2)
    await acts.ledger.lift_limit(batch.pk, start_limit=3)
    assert await acts.again(batch) == batch
    await acts.ledger.lift_limit(batch.pk, start_limit=2)
    assert await acts.again(batch) == replace(batch, start_limit=None)


@pytest.mark.parametrize("end", [BatchState.FINISHED, BatchState.CANCELED])
async def test_states(acts: Any, end: BatchState) -> None:
    """A batch moves only from an allowed state, knows when it ended, and that it has not once it goes on."""
    batch = await acts.loaded(1)
    running = frozenset({BatchState.RUNNING})
    assert await acts.ledger.set_state(batch.pk, to=end, allowed=running, reason="r", now=NOW)
    assert not await acts.ledger.set_state(batch.pk, to=end, allowed=running, reason="late", now=NOW)
    now = await acts.again(batch)
    assert (now.state, now.reason, now.finished_at) == (end, "r", NOW)
    assert await acts.ledger.live_batches() == []
    assert await acts.ledger.set_state(batch.pk, to=BatchState.RUNNING, allowed=frozenset({end}), reason=None, now=NOW)
    assert [b.finished_at for b in await acts.ledger.live_batches()] == [None]


async def test_reason(acts: Any) -> None:
    """Why a batch waits can be said and unsaid."""
    batch = await acts.loaded(1)
    await acts.ledger.note_reason(batch.pk, "in flight")
    assert (await acts.again(batch)).reason == "in flight"
    await acts.ledger.note_reason(batch.pk, None)
    assert (await acts.again(batch)).reason is None


async def test_unknown_batch(acts: Any) -> None:
    """An id that is not there is None, not an error."""
    assert await acts.ledger.batch("nobody") is None


async def test_an_id_that_another_batch_has(acts: Any) -> None:
    """Two batches of one job and day can draw the same four characters: the second is told, and neither is touched."""
    first, _ = await acts.ledger.open_batch(acts.new("one", run_key="first"))
    with pytest.raises(NameTaken):
        await acts.ledger.open_batch(acts.new("one", run_key="second"))
    assert await acts.ledger.batch("one") == first
    assert not await acts.ledger.known("second")


async def test_a_chunk_for_a_batch_that_was_taken_out(acts: Any) -> None:
    """Two runs load one batch, and one of them finds its file wrong: what the other still brings is a row of no batch, and no
    later batch gets its number."""
    batch, _ = await acts.ledger.open_batch(acts.new("one"))
    await acts.ledger.add_chunk(batch.pk, acts.chunk(4, 0))
    await acts.ledger.discard(batch.pk)
    await acts.ledger.amend(batch.pk, in_flight=9, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json="{}", reserve_units=7)
    with pytest.raises(Discarded):
        await acts.ledger.add_chunk(batch.pk, acts.chunk(4, 4))
    with pytest.raises(Discarded):
        await acts.ledger.seal(batch.pk, total=4, source_schema_json="{}", now=NOW)
    again, _ = await acts.ledger.open_batch(acts.new("two"))
    assert again.pk != batch.pk and await acts.ledger.loaded_rows(again.pk) == 0


async def test_a_batch_with_a_hole_never_runs(acts: Any, database: Database) -> None:
    """One run takes chunks out from the end while another one adds: what lies behind those is not taken, nor is it sealed."""
    batch, _ = await acts.ledger.open_batch(acts.new("one"))
    for first in (0, 4, 8):
        await acts.ledger.add_chunk(batch.pk, acts.chunk(4, first))
    await database.write(loading.discard_last, batch.pk)
    with pytest.raises(Discarded):
        await acts.ledger.add_chunk(batch.pk, acts.chunk(4, 12))
    with pytest.raises(Discarded):
        await acts.ledger.seal(batch.pk, total=16, source_schema_json="{}", now=NOW)
    await acts.ledger.add_chunk(batch.pk, acts.chunk(4, 8))
    await acts.ledger.add_chunk(batch.pk, acts.chunk(4, 4))  # again: it is there
    await acts.ledger.seal(batch.pk, total=12, source_schema_json="{}", now=NOW)
    await acts.ledger.add_chunk(batch.pk, acts.chunk(4, 8))  # and of a batch that is loaded
    await acts.ledger.seal(batch.pk, total=12, source_schema_json="{}", now=NOW)
    now = await acts.again(batch)
    assert now.state is BatchState.RUNNING and (await acts.ledger.counts(batch.pk)).total == 12
