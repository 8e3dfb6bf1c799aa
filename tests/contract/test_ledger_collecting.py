"""Outputs are handed out oldest first, under names no two rows share, and are noted once they are home."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.core.lifecycle import Event
from orchestrator.core.records import Batch, OutputName, StoredOutput

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
SOON, LATER = NOW + timedelta(minutes=3), NOW + timedelta(hours=1)


async def _done(acts: Any, seconds: list[float]) -> Batch:
    """A batch whose rows are succeeded at the provider, after so many seconds each."""
    batch: Batch = await acts.loaded(len(seconds))
    await acts.claim(batch, len(seconds))
    await acts.tell(*(acts.ended(f"p{n}", attempt_id=f"a{n}", seconds=s) for n, s in enumerate(seconds)))
    return batch


def _name(batch: Batch, pk: int, stem: str, *, row: int = 0, index: int = 0, attempt: str = "a0") -> OutputName:
    return OutputName(pk, batch.pk, attempt, row, index, stem)


def _stored(pk: int, path: str, index: int = 0, **values: Any) -> StoredOutput:
    settings = {"bytes": 3, "sha256": "ff", "media_type": "image/png", "source_url": "https://x/1.png", "stored_at": NOW,
                "attempt_id": "a0"}
    return StoredOutput(item_pk=pk, index=index, path=path, **settings | values)


async def test_oldest_first(acts: Any) -> None:
    """What was completed first is deleted first, and so fetched first; what is leased is not handed out again."""
    batch = await _done(acts, [30, 10, 20])
    first = await acts.ledger.to_collect(batch.pk, count=2, now=NOW, lease_until=SOON)
    assert [(c.attempt_id, c.index, c.row_id, c.prediction_id) for c in first] == [
        ("a1", 1, "sku-1", "p1"), ("a2", 2, "sku-2", "p2")]
    assert (first[0].completed_at, first[0].output_json) == (NOW + timedelta(seconds=10), '"https://x/1.png"')
    rest = await acts.ledger.to_collect(batch.pk, count=9, now=NOW, lease_until=SOON)
    assert [c.index for c in rest] == [0]
    assert await acts.ledger.to_collect(batch.pk, count=9, now=NOW, lease_until=SOON) == []
    assert len(await acts.ledger.to_collect(batch.pk, count=9, now=SOON, lease_until=LATER)) == 3


async def test_delayed(acts: Any) -> None:
    """A failed try is counted, said, and repeated at its time."""
    batch = await _done(acts, [1])
    (item,) = await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=SOON)
    assert item.tries == 0
    await acts.ledger.delay_collect({item.item_pk: SOON}, due_at=LATER, error="connection reset")
    assert (await acts.results(batch))[0].error == "connection reset"
    assert await acts.ledger.to_collect(batch.pk, count=1, now=SOON, lease_until=LATER) == []
    (again,) = await acts.ledger.to_collect(batch.pk, count=1, now=LATER, lease_until=LATER)
    assert again.tries == 1


async def test_collected_at_once_by_two(acts: Any) -> None:
    """Two lanes never hold the same output."""
    batch = await _done(acts, [1.0] * 12)
    lanes = await asyncio.gather(*(acts.ledger.to_collect(batch.pk, count=4, now=NOW, lease_until=SOON) for _ in range(5)))
    got = [c.item_pk for lane in lanes for c in lane]
    assert len(got) == len(set(got)) == 12


async def test_released(acts: Any) -> None:
    """When their holder has died, leased outputs are handed out at once."""
    batch = await _done(acts, [1])
    await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=LATER)
    await acts.ledger.release_holds(now=NOW)
    assert len(await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=LATER)) == 1


async def test_names(acts: Any) -> None:
    """A name belongs to the row that asked first; others get their row behind it; asking again answers the same."""
    batch = await acts.loaded(1)
    asked = [_name(batch, 1, "dog", row=0), _name(batch, 2, "Dog", row=1), _name(batch, 2, "dog", row=1, index=1),
             _name(batch, 3, "cat", row=2)]
    granted = await acts.ledger.grant_names(asked)
    assert granted == ["dog", "Dog~1", "dog~1-1", "cat"]
    assert await acts.ledger.grant_names(asked[::-1]) == granted[::-1]
    assert await acts.ledger.grant_names([]) == []


async def test_names_that_look_like_marks(acts: Any) -> None:
    """Rows that spell the marks themselves still get a name each, however sly they are."""
    batch = await acts.loaded(1)
    stems = ["dog~7", "dog~7-0", "dog~7-0-2", "dog", "dog"]
    granted = await acts.ledger.grant_names([_name(batch, n, s, row=n) for n, s in enumerate(stems[:4])])
    granted += await acts.ledger.grant_names([_name(batch, 7, "dog", row=7)])
    assert granted == ["dog~7", "dog~7-0", "dog~7-0-2", "dog", "dog~7-0-3"]


async def test_names_of_other_batches(acts: Any) -> None:
    """Two batches may use the same names: each has a folder of its own."""
    one, two = await acts.loaded(1, "one"), await acts.loaded(1, "two")
    assert await acts.ledger.grant_names([_name(one, 1, "dog")]) == ["dog"]
    assert await acts.ledger.grant_names([_name(two, 2, "dog")]) == ["dog"]


async def test_names_at_once(acts: Any) -> None:
    """Lanes asking for one name at the same time all get different ones."""
    batch = await acts.loaded(1)
    granted = await asyncio.gather(
        *(acts.ledger.grant_names([_name(batch, n, "dog", row=n), _name(batch, n, "dog", row=n, index=1)]) for n in range(8)))
    keys = [stem.casefold() for some in granted for stem in some]
    assert len(keys) == len(set(keys)) == 16


async def test_stored(acts: Any) -> None:
    """Files at home stand in results and manifest, by output index; a file not yet home does not."""
    batch = await _done(acts, [1, 1])
    pks = {c.index: c.item_pk for c in await acts.ledger.to_collect(batch.pk, count=2, now=NOW, lease_until=SOON)}
    await acts.ledger.grant_names([_name(batch, pks[0], "dog"), _name(batch, pks[0], "dog", index=1),
                                   _name(batch, pks[1], "cat", attempt="a1", row=1)])
    await acts.ledger.store_outputs([_stored(pks[0], "files/dog~0.png", 1), _stored(pks[0], "files/dog.png")])
    await acts.tell(acts.said(Event.COLLECTED, "a0"))
    assert [r.files for r in await acts.results(batch)] == [("files/dog.png", "files/dog~0.png"), ()]
    lines = [line async for line in acts.ledger.manifest(batch.pk)]
    assert lines[0] == {"path": "files/dog.png", "id": "sku-0", "index": 0, "bytes": 3, "sha256": "ff",
                        "media_type": "image/png", "prediction_id": "p0", "source_url": "https://x/1.png"}
    assert [line["path"] for line in lines] == ["files/dog.png", "files/dog~0.png"]


async def test_long_urls(acts: Any) -> None:
    """A source URL is kept to a length; the rest of a signed one is of no use to anybody."""
    batch = await _done(acts, [1])
    (item,) = await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=SOON)
    await acts.ledger.grant_names([_name(batch, item.item_pk, "dog")])
    await acts.ledger.store_outputs([_stored(item.item_pk, "files/dog.png", source_url="https://x/" + "a" * 5000)])
    (line,) = [line async for line in acts.ledger.manifest(batch.pk)]
    assert len(line["source_url"]) == 2000


@pytest.mark.parametrize("outputs_again", [1, 2])
async def test_bought_again_after_loss(acts: Any, outputs_again: int) -> None:
    """Files of an attempt whose outputs could not all be saved count no longer once the row is bought again."""
    batch = await _done(acts, [1])
    (item,) = await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=SOON)
    await acts.ledger.grant_names([_name(batch, item.item_pk, "dog"), _name(batch, item.item_pk, "dog", index=1)])
    await acts.ledger.store_outputs([_stored(item.item_pk, "files/dog.png"), _stored(item.item_pk, "files/dog~0.png", 1)])
    await acts.tell(acts.said(Event.UNCOLLECTABLE, "a0", error="gone", error_class="expired"))
    assert await acts.ledger.reopen_failed(batch.pk, classes=frozenset()) == 0  # paid once: only by its name
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"expired"}))
    await acts.claim(batch, 1, prefix="b")
    await acts.tell(acts.ended("q0", attempt_id="b0"))
    assert (await acts.results(batch))[0].files == ()
    names = [_name(batch, item.item_pk, "dog", attempt="b0", index=n) for n in range(outputs_again)]
    assert await acts.ledger.grant_names(names) == ["dog~0-0", "dog~0-1"][:outputs_again]
    await acts.ledger.store_outputs([_stored(item.item_pk, "files/dog~0-0.jpg", attempt_id="b0")])
    assert (await acts.results(batch))[0].files == ("files/dog~0-0.jpg",)
    left = sorted((file.path, file.bytes, file.sha256) for file in await acts.ledger.superseded([item.item_pk]))
    assert left == [("files/dog.png", 3, "ff"), ("files/dog~0.png", 3, "ff")]


async def _bought(acts: Any, batch: Batch, prefix: str) -> None:
    """The first row bought once more, after what it bought before could not be fetched."""
    before = chr(ord(prefix) - 1)
    await acts.tell(acts.said(Event.UNCOLLECTABLE, f"{before}0", error="gone", error_class="expired"))
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"expired"}))
    await acts.claim(batch, 1, prefix=prefix)
    await acts.tell(acts.ended(f"{prefix}-there", attempt_id=f"{prefix}0"))


async def test_each_purchase_its_names(acts: Any) -> None:
    """However often a row is bought, no purchase gets a name that another one had, nor does another row. The latest one may ask
    again; an earlier one gets nothing any more."""
    batch = await _done(acts, [1])
    (item,) = await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=SOON)
    stems = list(await acts.ledger.grant_names([_name(batch, item.item_pk, "dog")]))
    for prefix in "bcdefgh":
        await _bought(acts, batch, prefix)
        for _ in range(2):
            (stem,) = await acts.ledger.grant_names([_name(batch, item.item_pk, "dog", attempt=f"{prefix}0")])
        stems.append(stem)
        assert await acts.ledger.grant_names([_name(batch, item.item_pk, "dog")]) == [None]
    assert stems[:3] == ["dog", "dog~0", "dog~0-0"]
    assert len(set(stems)) == 8
    assert await acts.ledger.grant_names([_name(batch, 99, "dog", row=99)]) == ["dog~99"]


async def test_a_late_file_is_not_noted(acts: Any) -> None:
    """What an earlier purchase brings home after the row was bought again changes nothing, before and after the names are given,
    and is told back, to be removed."""
    batch = await _done(acts, [1])
    (item,) = await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=SOON)
    await acts.ledger.grant_names([_name(batch, item.item_pk, "dog")])
    await _bought(acts, batch, "b")
    late, own = _stored(item.item_pk, "files/dog.png"), _stored(item.item_pk, "files/dog~0.png", attempt_id="b0", sha256="ee")
    assert await acts.ledger.store_outputs([late]) == [late]
    await acts.ledger.grant_names([_name(batch, item.item_pk, "dog", attempt="b0")])
    assert await acts.ledger.store_outputs([late, own]) == [late]
    assert [(line["path"], line["sha256"]) async for line in acts.ledger.manifest(batch.pk)] == [("files/dog~0.png", "ee")]


async def test_a_lease_that_lapsed_and_is_somebody_else_s(acts: Any) -> None:
    """Its first holder can neither keep, free nor delay the item; the second one can."""
    batch = await _done(acts, [1])
    (item,) = await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=SOON)
    assert len(await acts.ledger.to_collect(batch.pk, count=1, now=SOON, lease_until=LATER)) == 1
    lapsed, held = {item.item_pk: SOON}, {item.item_pk: LATER}
    assert await acts.ledger.lease_collect(lapsed, until=NOW) == set()
    await acts.ledger.hand_back(lapsed, now=NOW)
    await acts.ledger.delay_collect(lapsed, due_at=NOW, error="late")
    assert await acts.ledger.to_collect(batch.pk, count=1, now=SOON, lease_until=LATER) == []
    assert await acts.ledger.lease_collect(held, until=SOON) == {item.item_pk}
    await acts.ledger.hand_back({item.item_pk: SOON}, now=NOW)
    assert len(await acts.ledger.to_collect(batch.pk, count=1, now=NOW, lease_until=LATER)) == 1
