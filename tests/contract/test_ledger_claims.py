"""Rows are claimed once, in order, and only as many as in-flight cap, start limit and budget allow."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import Target
from orchestrator.gateways.ledger import Database

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)

DOLLAR = 10**12
LATER = NOW + timedelta(hours=1)


async def test_in_row_order(acts: Any) -> None:
    """The first rows are claimed first, each with its input and an attempt of its own."""
    batch = await acts.loaded(6)
    claims = await acts.claim(batch, 4)
    assert [(c.attempt_id, c.index, c.row_id, c.input_json) for c in claims] == [
        (f"a{n}", n, f"sku-{n}", f'{{"seed":{n}}}') for n in range(4)]
    assert [c.index for c in await acts.claim(batch, 4, prefix="b")] == [4, 5]
    assert await acts.claim(batch, 4, prefix="c") == []


@pytest.mark.parametrize("state", [BatchState.PAUSED, BatchState.CANCELING, BatchState.FINISHED])
async def test_only_running_batches(acts: Any, state: BatchState) -> None:
    """Nothing is claimed from a batch that does not run."""
    batch = await acts.loaded(2)
    await acts.ledger.set_state(batch.pk, to=state, allowed=frozenset(BatchState), reason=None, now=NOW)
    assert (await acts.ledger.claimable(batch.pk, count=2, terms=acts.terms())).reason == "not running"
    assert await acts.claim(batch, 2) == []


async def test_not_while_loading(acts: Any) -> None:
    """A batch that is still being read buys nothing."""
    batch, _ = await acts.ledger.open_batch(acts.new())
    await acts.ledger.add_chunk(batch.pk, acts.chunk(4))
    assert await acts.claim(batch, 2) == []


async def test_in_flight(acts: Any) -> None:
    """Claimed, unsure and running rows count as in flight; ended ones make room."""
    batch = await acts.loaded(8, in_flight=3)
    assert len(await acts.claim(batch, 8)) == 3
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.answered("a1", "p1"))
    full = await acts.ledger.claimable(batch.pk, count=8, terms=acts.terms())
    assert (full.count, full.reason) == (0, "in flight")
    await acts.tell(acts.ended("p1"))
    assert (await acts.ledger.claimable(batch.pk, count=8, terms=acts.terms())).count == 1
    assert len(await acts.claim(batch, 8, prefix="b")) == 1


async def test_start_limit(acts: Any) -> None:
    """With a start limit only so many rows are ever begun; a row already begun is tried again beyond it."""
    batch = await acts.loaded(8, start_limit=2)
    assert [c.index for c in await acts.claim(batch, 8)] == [0, 1]
    held = await acts.ledger.claimable(batch.pk, count=8, terms=acts.terms())
    assert (held.count, held.reason) == (0, "start limit")
    await acts.tell(acts.said(Event.THROTTLED, "a1"))
    assert (await acts.ledger.claimable(batch.pk, count=8, terms=acts.terms())).count == 1
    assert [c.index for c in await acts.claim(batch, 8, prefix="b")] == [1]
    await acts.ledger.amend(batch.pk, in_flight=9, max_attempts=3, cap_units=None, price_json="null", start_limit=3,
                            job_json="{}")
    assert [c.index for c in await acts.claim(batch, 8, prefix="c")] == [2]


async def test_budget(acts: Any) -> None:
    """Under a cap only as many rows go as fit with their worst case; what they do not use is there for others."""
    batch = await acts.loaded(8, cap_units=5 * DOLLAR)
    assert len(await acts.claim(batch, 8, reserve_units=2 * DOLLAR)) == 2
    held = await acts.ledger.claimable(batch.pk, count=8, terms=acts.terms(reserve_units=2 * DOLLAR))
    assert (held.count, held.reason) == (0, "budget: waiting for running rows")
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=1), acts.ended("p1", attempt_id="a1", seconds=1))
    assert len(await acts.claim(batch, 8, prefix="b", reserve_units=2 * DOLLAR)) == 2
    await acts.tell(acts.ended("p2", attempt_id="b0", seconds=3), acts.ended("p3", attempt_id="b1", seconds=3))
    spent = await acts.ledger.claimable(batch.pk, count=8, terms=acts.terms(reserve_units=2 * DOLLAR))
    assert (spent.count, spent.reason) == (0, "budget")


async def test_charge_above_reservation(acts: Any) -> None:
    """A charge that breaks the cap is recorded as it is, and ends buying, also of rows that reserve nothing."""
    batch = await acts.loaded(4, cap_units=2 * DOLLAR)
    await acts.claim(batch, 1, reserve_units=DOLLAR)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=10))
    assert (await acts.again(batch)).spent_units == 5 * DOLLAR
    assert await acts.claim(batch, 3, prefix="b", reserve_units=0) == []


async def test_free_rows_under_a_cap(acts: Any) -> None:
    """Rows that can cost nothing are not held back by a cap of nothing."""
    batch = await acts.loaded(4, cap_units=0)
    assert len(await acts.claim(batch, 4)) == 4


async def test_a_cap_without_a_worst_case(acts: Any) -> None:
    """Where nobody knows what a row may cost, a cap lets none be bought."""
    batch = await acts.loaded(4, cap_units=100 * DOLLAR)
    unknown = replace(acts.terms(), reserve_units=None)
    assert await acts.ledger.claim(batch.pk, attempt_ids=["a0"], terms=unknown) == []
    assert (await acts.ledger.claimable(batch.pk, count=4, terms=unknown)).reason == "budget"


async def test_a_stop_for_the_budget_looks_again(acts: Any) -> None:
    """Money that was freed since somebody looked is there to be spent: no pause."""
    batch = await acts.loaded(4, cap_units=2 * DOLLAR)
    terms = acts.terms(reserve_units=2 * DOLLAR)
    await acts.claim(batch, 1, reserve_units=2 * DOLLAR)
    assert not await acts.ledger.pause_for_budget(batch.pk, terms=terms)  # the row that is out may free its money
    await acts.tell(acts.said(Event.NOT_SENT, "a0"))
    assert not await acts.ledger.pause_for_budget(batch.pk, terms=terms)
    await acts.claim(batch, 1, prefix="b", reserve_units=2 * DOLLAR)
    await acts.tell(acts.ended("p0", attempt_id="b0", seconds=3))
    assert await acts.ledger.pause_for_budget(batch.pk, terms=terms)
    paused = await acts.again(batch)
    assert paused.state is BatchState.PAUSED
    assert paused.reason == ("budget: $1.50 of $2.00 are spent, and the next row may need up to $2.00; raise budget.usd in the "
                             "job and run it again")


async def test_terms_out_of_date(acts: Any) -> None:
    """A job or a price amended meanwhile: what was reckoned from the old ones claims nothing."""
    batch = await acts.loaded(4)
    old = replace(acts.terms(), made_from=(batch.job_json, batch.price_json))
    assert len(await acts.ledger.claim(batch.pk, attempt_ids=["a0"], terms=old)) == 1
    await acts.ledger.amend(batch.pk, in_flight=9, max_attempts=3, cap_units=DOLLAR, price_json='"new"', start_limit=None,
                            job_json=batch.job_json)
    assert await acts.ledger.claim(batch.pk, attempt_ids=["b0"], terms=old) == []
    assert (await acts.ledger.claimable(batch.pk, count=4, terms=old)).reason == "amended"


async def test_all_bought_is_not_a_budget_stop(acts: Any) -> None:
    """With no row left the reason is that none is due, whatever is left of the budget."""
    batch = await acts.loaded(1, cap_units=DOLLAR)
    await acts.claim(batch, 1, reserve_units=DOLLAR)
    assert (await acts.ledger.claimable(batch.pk, count=4, terms=acts.terms(reserve_units=DOLLAR))).reason == "none due"


async def test_waiting_rows(acts: Any) -> None:
    """A row that waits is passed over until its time, and its time is told."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    (change,) = await acts.tell(acts.said(Event.NOT_SENT, "a0"))
    waits = await acts.ledger.claimable(batch.pk, count=4, terms=acts.terms())
    assert (waits.count, waits.reason, waits.next_due_at) == (0, "none due", change.due_at)
    assert await acts.claim(batch, 1, prefix="b") == []
    assert (await acts.ledger.claimable(batch.pk, count=4, terms=acts.terms(now=LATER))).count == 1
    assert len(await acts.claim(batch, 1, prefix="b", now=LATER)) == 1


async def test_tried_rows_go_first(acts: Any) -> None:
    """A row whose waiting is over does not queue behind all those that never went."""
    batch = await acts.loaded(8)
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.NOT_SENT, "a1"))
    assert [c.index for c in await acts.claim(batch, 2, prefix="b", now=LATER)] == [1, 2]


async def test_claimable_foretells_claim(acts: Any) -> None:
    """What is promised is what a claim then gives, and promising it changes nothing."""
    batch = await acts.loaded(8, in_flight=6, start_limit=5)
    promised = await acts.ledger.claimable(batch.pk, count=100, terms=acts.terms())
    assert (promised.count, promised.reason) == (5, "start limit")
    assert len(await acts.claim(batch, 100)) == promised.count


async def test_leases(acts: Any) -> None:
    """An open attempt is given up on when its lease is over, or at once when its owner is known to be dead."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 1, owner="dead")
    await acts.claim(batch, 2, prefix="b", owner="me")
    await acts.tell(acts.answered("b1", "p1"))
    assert await acts.ledger.expire_leases(now=NOW, offset_s=0.0, owner_not=None) == []
    assert await acts.ledger.expire_leases(now=NOW, offset_s=0.0, owner_not="me") == ["a0"]
    assert sorted(await acts.ledger.expire_leases(now=LATER, offset_s=0.0, owner_not=None)) == ["a0", "b0"]


@pytest.mark.parametrize(("offset_s", "fast_s", "over"), [
    (0.0, 0, False), (0.0, 300, True), (-300.0, 300, False), (3600.0, -3600, False), (3600.0, -3300, True), (None, 300, True)])
async def test_leases_of_another_clock(acts: Any, offset_s: float | None, fast_s: int, over: bool) -> None:
    """A machine that is five minutes fast, or was set right by an hour, does not end what another one is sending just now."""
    batch = await acts.loaded(1)
    terms = replace(acts.terms(), offset_s=0.0)
    await acts.ledger.claim(batch.pk, attempt_ids=["a0"], terms=terms)
    there = NOW + timedelta(seconds=fast_s)
    assert bool(await acts.ledger.expire_leases(now=there, offset_s=offset_s, owner_not=None)) is over


async def _instant(database: Database) -> tuple[int, bool, int]:
    """What one committed instant shows: spent and reserved, whether batch, days and attempts tell the same of each, rows in
    flight."""
    async def read(connection: Any) -> tuple[int, bool, int]:
        money = [tuple(map(int, (await connection.execute(text(query))).one())) for query in (
            "SELECT spent_units, reserved_units FROM batches",
            "SELECT COALESCE(SUM(spent_units), 0), COALESCE(SUM(reserved_units), 0) FROM batch_days",
            "SELECT COALESCE(SUM(charge_units), 0), COALESCE(SUM(reserved_units), 0) FROM attempts")]
        alive = "SELECT COUNT(*) FROM items WHERE state IN ('claimed', 'unsure', 'running')"
        return sum(money[0]), len(set(money)) == 1, int((await connection.execute(text(alive))).scalar_one())

    return await database.read(read)


async def test_in_flight_is_shared(acts: Any) -> None:
    """Twelve claims at once for more than may fly get exactly as many together as one alone would."""
    batch = await acts.loaded(60, in_flight=15)
    claims = await asyncio.gather(*(acts.claim(batch, 3, prefix=f"l{n}-") for n in range(12)))
    assert sorted(c.index for some in claims for c in some) == list(range(15))


async def test_claim_against_cancel(acts: Any) -> None:
    """Rows claimed while an operator cancels are either sent or canceled, never both."""
    for n in range(10):
        batch = await acts.loaded(12, f"b{n}")
        async def cancel(pk: int = batch.pk) -> int:
            await acts.ledger.set_state(pk, to=BatchState.CANCELING, allowed=frozenset(BatchState), reason=None, now=NOW)
            return await acts.ledger.cancel_pending(pk)

        claims, canceled = await asyncio.gather(acts.claim(batch, 6, prefix=f"{n}-"), cancel())
        states = await acts.states(batch)
        assert (states.count("claimed"), states.count("canceled")) == (len(claims), canceled)
        assert len(claims) + canceled == 12


async def test_many_claim_at_once(acts: Any, database: Database) -> None:
    """Twelve lanes claiming and ending at once: no row twice, cap and in-flight kept at every instant, sums agree."""
    batch = await acts.loaded(60, cap_units=20 * DOLLAR, in_flight=15)
    claimed: list[int] = []
    seen: list[tuple[int, bool, int]] = []

    async def lane(name: str) -> None:
        for turn in range(4):
            claims = await acts.claim(batch, 3, prefix=f"{name}-{turn}-", reserve_units=DOLLAR)
            claimed.extend(c.index for c in claims)
            seen.append(await _instant(database))
            facts = [acts.ended(f"p-{c.attempt_id}", attempt_id=c.attempt_id, seconds=1) for c in claims]
            await acts.tell(*facts)

    await asyncio.gather(*(lane(f"l{n}") for n in range(12)))
    assert len(claimed) == len(set(claimed))
    assert max(total for total, _, _ in seen) <= 20 * DOLLAR
    assert all(agree for _, agree, _ in seen)
    assert max(alive for _, _, alive in seen) <= 15
    assert (await acts.again(batch)).spent_units == len(claimed) * DOLLAR // 2


async def _alive(acts: Any, database: Database) -> int:
    """Attempts alive, as one committed instant shows them."""
    async def read(connection: Any) -> int:
        query = "SELECT COUNT(*) FROM attempts WHERE state IN ('open', 'unsure', 'running')"
        return int((await connection.execute(text(query))).scalar_one())

    return await database.read(read)


async def test_in_flight_of_a_model(acts: Any) -> None:
    """All batches of a model on an account share its cap; what is in doubt counts, what has ended does not; nobody else does."""
    one, two = await acts.loaded(8, "one"), await acts.loaded(8, "two")
    capped = replace(acts.terms(), model_in_flight=3)
    assert len(await acts.claim(one, 2)) == 2
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.answered("a1", "p1"))
    assert len(await acts.ledger.claim(two.pk, attempt_ids=["b0", "b1"], terms=capped)) == 1
    for batch in (one, two):
        full = await acts.ledger.claimable(batch.pk, count=8, terms=capped)
        assert (full.count, full.reason) == (0, "in flight: this model")
        assert await acts.ledger.claim(batch.pk, attempt_ids=["c0"], terms=capped) == []
    other = await acts.loaded(4, "other", target=Target("models", "acme/write", None))
    elsewhere = await acts.loaded(4, "elsewhere", account="sun")
    for batch in (other, elsewhere):
        assert (await acts.ledger.claimable(batch.pk, count=3, terms=capped)).reason is None
    await acts.tell(acts.ended("p1"))
    assert (await acts.ledger.claimable(two.pk, count=8, terms=capped)).count == 1
    assert len(await acts.ledger.claim(two.pk, attempt_ids=["d0", "d1"], terms=capped)) == 1


async def test_the_versions_of_a_model_are_one_model(acts: Any) -> None:
    """A pinned version is bought of the same model, and counts with it."""
    pinned = await acts.loaded(4, "pinned", target=Target("predictions", "acme/draw", "0" * 64))
    latest = await acts.loaded(4, "latest")
    capped = replace(acts.terms(), model_in_flight=2)
    assert len(await acts.claim(pinned, 2)) == 2
    assert (await acts.ledger.claimable(latest.pk, count=1, terms=capped)).reason == "in flight: this model"


async def test_what_was_bought_beyond_need_is_in_flight(acts: Any) -> None:
    """A surplus prediction lives at the provider until it has ended, whatever its row does."""
    batch = await acts.loaded(8)
    capped = replace(acts.terms(), model_in_flight=2)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"))
    await acts.tell(acts.said(Event.ABSENT, "a0"))
    assert (await acts.ledger.claimable(batch.pk, count=2, terms=capped)).reason is None
    await acts.claim(batch, 1, prefix="b", now=LATER)
    await acts.tell(acts.answered("b0", "p1"))
    assert [c.event for c in await acts.tell(acts.answered("a0", "p0")._replace(bound_by="url"))] == [Event.SURPLUS]
    assert (await acts.ledger.claimable(batch.pk, count=2, terms=capped)).reason == "in flight: this model"
    await acts.tell(acts.ended("p0", "canceled"))
    assert (await acts.ledger.claimable(batch.pk, count=2, terms=capped)).count == 1


async def test_the_tightest_in_flight_is_named(acts: Any) -> None:
    """Of two caps that bind the one that leaves less is the reason."""
    batch = await acts.loaded(8, in_flight=3)
    for cap, told in ((2, (2, "in flight: this model")), (4, (3, "in flight"))):
        room = await acts.ledger.claimable(batch.pk, count=8, terms=replace(acts.terms(), model_in_flight=cap))
        assert (room.count, room.reason) == told


async def test_a_cap_that_was_lowered(acts: Any) -> None:
    """More alive than a new cap allows: nothing is claimed until enough have ended."""
    batch = await acts.loaded(8)
    await acts.claim(batch, 4)
    room = await acts.ledger.claimable(batch.pk, count=8, terms=replace(acts.terms(), model_in_flight=2))
    assert (room.count, room.reason) == (0, "in flight: this model")


async def test_a_model_is_shared_by_batches_that_claim_at_once(acts: Any, database: Database) -> None:
    """Four lanes of two batches, claiming and ending at once: at no instant more alive than the cap, and all of it is used."""
    pair = [await acts.loaded(60, name) for name in ("one", "two")]
    seen: list[int] = []
    capped = replace(acts.terms(), model_in_flight=7)

    async def lane(number: int) -> int:
        claimed = 0
        for turn in range(6):
            ids = [f"l{number}-{turn}-{n}" for n in range(4)]
            claims = await acts.ledger.claim(pair[number % 2].pk, attempt_ids=ids, terms=capped)
            seen.append(await _alive(acts, database))
            claimed += len(claims)
            await acts.tell(*(acts.ended(f"p-{c.attempt_id}", attempt_id=c.attempt_id) for c in claims))
        return claimed

    total = sum(await asyncio.gather(*(lane(n) for n in range(4))))
    assert max(seen) <= 7
    assert total >= 12
    held = await asyncio.gather(*(acts.ledger.claim(pair[n % 2].pk, attempt_ids=[f"h{n}-{m}" for m in range(4)], terms=capped)
                                  for n in range(4)))
    assert sum(len(claims) for claims in held) == 7


async def test_rows_that_wait_for_another_try_are_counted(acts: Any) -> None:
    """Thrown back, not sent, or failed and worth another attempt; what was never tried, is out or has ended is not."""
    batch = await acts.loaded(8)
    await acts.claim(batch, 6)
    await acts.tell(acts.said(Event.THROTTLED, "a0"), acts.said(Event.NOT_SENT, "a1"), acts.answered("a2", "p2"),
                    acts.ended("p3", attempt_id="a3"), acts.said(Event.REFUSED, "a4"))
    counts = await acts.ledger.counts(batch.pk)
    assert (counts.started, counts.tried_before) == (6, 2)
