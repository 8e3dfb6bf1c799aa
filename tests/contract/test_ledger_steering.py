"""An operator's verbs, the question whether a batch still moves, and wakes."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import BatchState, Event, ItemState
from orchestrator.core.records import REWRITE_LANE, Batch, Fact, Wake
from orchestrator.gateways.ledger import Database, moves, steering

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
FINISH = {"to": BatchState.FINISHED, "of": BatchState.RUNNING, "reason": None, "now": NOW}


def at(seconds: float) -> datetime:
    """So long after noon."""
    return NOW + timedelta(seconds=seconds)


async def _to(acts: Any, batch: Batch, state: BatchState) -> None:
    await acts.ledger.set_state(batch.pk, to=state, allowed=frozenset(BatchState), reason=None, now=NOW)


async def test_cancel_and_reopen(acts: Any) -> None:
    """Canceling takes only rows that wait; reopening gives them back, never-started ones as such."""
    batch = await acts.loaded(4, start_limit=3)
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.THROTTLED, "a1"))
    assert await acts.ledger.cancel_pending(batch.pk) == 0  # nobody has canceled the batch, or somebody has resumed it
    await _to(acts, batch, BatchState.CANCELING)
    assert await acts.ledger.cancel_pending(batch.pk) == 3
    assert await acts.states(batch) == ["claimed", "canceled", "canceled", "canceled"]
    await _to(acts, batch, BatchState.RUNNING)
    assert await acts.ledger.reopen_canceled(batch.pk) == 3
    assert [c.index for c in await acts.claim(batch, 9, prefix="b")] == [1, 2]


async def _failed(acts: Any) -> Batch:
    batch: Batch = await acts.loaded(4)
    await acts.claim(batch, 4)
    await acts.tell(*(acts.said(Event.ANSWER_LOST, f"a{n}") for n in (1, 2)))
    await acts.tell(acts.said(Event.REFUSED, "a0", error="no", error_class="refused"),
                    acts.said(Event.GIVEN_UP, "a1", error="?", error_class="unsure"),
                    acts.ended("p2", "failed", attempt_id="a2", output=None, error="NSFW content detected"))
    return batch


@pytest.mark.parametrize(("classes", "reopened"), [
    (frozenset(), [0, 2]), (frozenset({"unsure"}), [1]), (frozenset({"refused", "unsure"}), [0, 1]),
    (frozenset({"nonsense"}), [])])
async def test_retry(acts: Any, classes: frozenset[str], reopened: list[int]) -> None:
    """`retry` opens the classes named; without names, all but what cannot be bought and what may have been already."""
    batch = await _failed(acts)
    assert await acts.ledger.reopen_failed(batch.pk, classes=classes) == len(reopened)
    results = await acts.results(batch)
    assert [r.index for r in results if r.state is ItemState.PENDING] == reopened
    assert {(r.error, r.error_class) for r in results if r.index in reopened} <= {(None, None)}


async def test_refetch(acts: Any) -> None:
    """What was bought and is still kept is fetched again, not bought; what is not kept any more is left to `retry`."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 3)
    for n in range(3):
        await acts.tell(acts.ended(f"p{n}", attempt_id=f"a{n}"))
    for n, error_class in enumerate(("output_forbidden", "output_forbidden", "expired")):
        await acts.tell(acts.said(Event.UNCOLLECTABLE, f"a{n}", error="not fetched", error_class=error_class))
    assert await acts.states(batch) == ["failed"] * 3
    assert await acts.ledger.refetch(batch.pk, classes=frozenset({"output_forbidden"}), after=at(3600)) == 0
    assert await acts.ledger.refetch(batch.pk, classes=frozenset({"output_forbidden"}), after=at(-3600)) == 2
    assert await acts.states(batch) == ["collecting", "collecting", "failed"]
    assert [r.error for r in await acts.results(batch)] == [None, None, "not fetched"]


async def test_an_end_looks_again(acts: Any) -> None:
    """Rows reopened while the results are written keep their batch from ending; so does a verb that steers it."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.REFUSED, "a0", error="no", error_class="refused"))
    finish = FINISH | {"told": await acts.ledger.counts(batch.pk)}
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset())
    assert not await acts.ledger.end_batch(batch.pk, **finish)
    await acts.claim(batch, 1, prefix="b")
    assert not await acts.ledger.end_batch(batch.pk, **finish)
    await acts.tell(acts.said(Event.REFUSED, "b0", error="no", error_class="refused"))
    await _to(acts, batch, BatchState.PAUSED)
    assert not await acts.ledger.end_batch(batch.pk, **finish)
    await _to(acts, batch, BatchState.RUNNING)
    assert await acts.ledger.end_batch(batch.pk, **finish)
    assert (await acts.again(batch)).state is BatchState.FINISHED


async def _given_up(acts: Any) -> Batch:
    """A row whose only purchase was given up."""
    batch: Batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.said(Event.GIVEN_UP, "a0", error="?", error_class="unsure"))
    return batch


async def test_an_end_tells_what_is(acts: Any) -> None:
    """A purchase that turned up while the results were written keeps its batch from ending with wrong ones."""
    batch = await _given_up(acts)
    told = await acts.ledger.counts(batch.pk)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.said(Event.COLLECTED, "a0"))
    assert not await acts.ledger.end_batch(batch.pk, told=told, **FINISH)
    assert await acts.ledger.end_batch(batch.pk, told=await acts.ledger.counts(batch.pk), **FINISH)


async def test_surplus_is_waited_for(acts: Any) -> None:
    """What was bought beyond need is paid for while it runs: until it has ended, its batch has not."""
    batch = await _given_up(acts)
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"unsure"}))
    await acts.claim(batch, 1, prefix="b", now=at(60))
    await acts.tell(acts.ended("p1", attempt_id="b0"), acts.said(Event.COLLECTED, "b0"), acts.answered("a0", "p0"))
    assert await acts.ledger.unsettled(batch.pk)
    await acts.tell(acts.ended("p0", "canceled", output=None))
    assert not await acts.ledger.unsettled(batch.pk)


async def test_what_is_learned_after_the_end(acts: Any) -> None:
    """A fact of an ended batch asks for its documents to be written again; done is that only if they tell what is."""
    batch = await _given_up(acts)
    await _to(acts, batch, BatchState.FINISHED)
    before = await acts.ledger.counts(batch.pk)
    acts.policy = replace(acts.policy, is_live=False)
    await acts.tell(acts.ended("p0", attempt_id="a0"))
    wake = Wake("report", "b", REWRITE_LANE)
    assert [replace(w, due_at=None) for w in await acts.ledger.take_due(now=at(60), hold_s=40)] == [wake]
    assert not await acts.ledger.dismiss(wake, batch.pk, told=before)
    assert await acts.ledger.hold(wake, until=at(70))
    assert await acts.ledger.dismiss(wake, batch.pk, told=await acts.ledger.counts(batch.pk))
    assert not await acts.ledger.hold(wake, until=at(80))


async def test_a_purchase_turns_up_while_its_batch_ends(acts: Any, database: Database, ledger_url: str) -> None:
    """Found and not yet committed as somebody ends the batch: the row would be left running in a finished one, paid and never
    fetched."""
    if ledger_url.startswith("sqlite"):
        pytest.skip("SQLite writes one at a time")
    batch = await _given_up(acts)
    told = await acts.ledger.counts(batch.pk)
    found, committed = asyncio.Event(), asyncio.Event()

    async def slowly(connection: AsyncConnection) -> None:
        await moves.move(connection, [acts.answered("a0", "p0")], decide=acts.decide)
        found.set()
        await committed.wait()

    finding = asyncio.create_task(database.write(slowly))
    await found.wait()
    ending = asyncio.create_task(acts.ledger.end_batch(batch.pk, told=told, **FINISH))
    await asyncio.wait({ending}, timeout=0.5)
    committed.set()
    await finding
    assert not await ending
    assert await acts.states(batch) == ["running"]


async def test_a_fact_beside_a_dismissal(acts: Any, ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fact that comes between the count and the end of its wake finds the message out, or wakes anew: either way somebody will
    write the documents again."""
    if ledger_url.startswith("sqlite"):
        pytest.skip("SQLite writes one at a time")
    batch = await _given_up(acts)
    await _to(acts, batch, BatchState.FINISHED)
    wake = Wake("report", "b", REWRITE_LANE)
    await acts.ledger.schedule([wake], now=NOW)
    await acts.ledger.take_due(now=NOW, hold_s=40)
    told, count, acts.policy = await acts.ledger.counts(batch.pk), steering.counts, replace(acts.policy, is_live=False)
    telling: list[asyncio.Task[Any]] = []

    async def counts(connection: AsyncConnection, batch_pk: int) -> Any:
        counted = await count(connection, batch_pk)
        telling.append(asyncio.create_task(acts.tell(acts.ended("p0", attempt_id="a0"))))
        await asyncio.wait(telling, timeout=0.5)
        return counted

    monkeypatch.setattr(steering, "counts", counts)
    await acts.ledger.dismiss(wake, batch.pk, told=told)
    await asyncio.gather(*telling)
    assert await acts.ledger.counts(batch.pk) != told
    assert await acts.ledger.hold(wake, until=at(99))


async def test_a_clock_set_back(acts: Any) -> None:
    """Wakes are due at once, and so are rows that would wait for longer than any of them should."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2, now=at(3600))
    await acts.tell(*(replace_at(acts.said(Event.NOT_SENT, f"a{n}"), at(3600)) for n in (0, 1)))
    await acts.ledger.schedule([Wake("sweep", "acme", 0, at(3602))], now=at(3600))
    assert await acts.claim(batch, 2, prefix="b", now=NOW) == []
    await acts.ledger.hasten(now=NOW, latest=at(600))
    assert [w.station for w in await acts.ledger.take_due(now=NOW, hold_s=40)] == ["sweep"]
    assert len(await acts.claim(batch, 2, prefix="c", now=NOW)) == 2


def replace_at(fact: Fact, moment: datetime) -> Fact:
    """The same, at another time."""
    return fact._replace(at=moment)


async def test_wakes_of_what_is_over(acts: Any) -> None:
    """What an ended batch left to be looked at is not looked at for ever; what others left stays."""
    over, live = await acts.loaded(1, "over"), await acts.loaded(1, "live")
    await acts.ledger.schedule([Wake("submit", key, lane) for key in (over.id, live.id, "acme") for lane in (0, 1)], now=NOW)
    await _to(acts, over, BatchState.FINISHED)
    assert {w.key for w in await acts.ledger.take_due(now=NOW, hold_s=40)} == {"live", "acme"}
    await _to(acts, over, BatchState.RUNNING)
    assert {w.key for w in await acts.ledger.take_due(now=at(99), hold_s=40)} == {"live", "acme"}


async def test_a_verb_beside_a_tick(acts: Any, database: Database, ledger_url: str) -> None:
    """A tick sweeps up after a batch that had ended, as somebody sets it going: it waits for the wakes, and must not take the new
    ones for the old."""
    if ledger_url.startswith("sqlite"):
        pytest.skip("SQLite writes one at a time")
    batch = await acts.loaded(1)
    wake = Wake("submit", batch.id)
    await acts.ledger.schedule([wake], now=NOW)
    await _to(acts, batch, BatchState.FINISHED)
    set_going, committed = asyncio.Event(), asyncio.Event()

    async def slowly(connection: AsyncConnection) -> None:
        await steering.steer(connection, batch.pk, to=BatchState.RUNNING, allowed=frozenset(BatchState), reason=None, now=at(1),
                             wakes=[wake])
        set_going.set()
        await committed.wait()

    going = asyncio.create_task(database.write(slowly))
    await set_going.wait()
    ticking = asyncio.create_task(acts.ledger.take_due(now=at(2), hold_s=40))
    await asyncio.wait({ticking}, timeout=0.5)
    committed.set()
    await going
    taken = await ticking
    assert taken or await acts.ledger.take_due(now=at(3), hold_s=40)


async def test_a_pause_keeps_its_reason(acts: Any) -> None:
    """A worker that notes why it waits does not talk over the reason of a pause."""
    batch = await acts.loaded(1)
    await acts.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset(BatchState), reason="an operator", now=NOW)
    await acts.ledger.note_reason(batch.pk, "in flight")
    assert (await acts.again(batch)).reason == "an operator"


async def test_many_rows(acts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs on more rows than one transaction takes reach them all, and other batches not at all."""
    monkeypatch.setattr("orchestrator.gateways.ledger.steering.STEP_ROWS", 3)
    batch, other = await acts.loaded(10), await acts.loaded(2, "other")
    await _to(acts, batch, BatchState.CANCELING)
    assert await acts.ledger.cancel_pending(batch.pk) == 10
    assert await acts.states(other) == ["pending"] * 2
    assert await acts.ledger.reopen_canceled(batch.pk) == 10
    assert await acts.states(batch) == ["pending"] * 10


async def test_retry_counts_from_zero(acts: Any) -> None:
    """A row tried again by an operator has all its attempts before it again."""
    batch = await acts.loaded(1)
    for n, prefix in enumerate("abc"):
        await acts.claim(batch, 1, prefix=prefix, now=at(10_000 * n))
        await acts.tell(acts.ended(f"p{n}", "failed", attempt_id=f"{prefix}0", output=None, error="CUDA error; E8765"))
    assert await acts.states(batch) == ["failed"]
    assert await acts.ledger.reopen_failed(batch.pk, classes=frozenset()) == 1
    await acts.claim(batch, 1, prefix="d")
    (change,) = await acts.tell(acts.ended("p9", "failed", attempt_id="d0", output=None, error="CUDA error; E8765"))
    assert (change.event, change.failures) == (Event.FAILED_AGAIN, 1)


@pytest.mark.parametrize("event", [None, Event.ANSWER_LOST, Event.ANSWERED, Event.SUCCEEDED])
async def test_on_its_way_is_unsettled(acts: Any, event: Event | None) -> None:
    """As long as a row is in the air or coming home, its batch is not settled, in whichever state it is."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    if event is Event.ANSWER_LOST:
        await acts.tell(acts.said(event, "a0"))
    elif event is not None:
        await acts.tell(acts.answered("a0", "p0") if event is Event.ANSWERED else acts.ended("p0", attempt_id="a0"))
    for state in (BatchState.RUNNING, BatchState.CANCELING, BatchState.PAUSED):
        await _to(acts, batch, state)
        assert await acts.ledger.unsettled(batch.pk)


async def test_settled(acts: Any) -> None:
    """With every row final nothing moves."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.said(Event.COLLECTED, "a0"))
    assert not await acts.ledger.unsettled(batch.pk)


async def test_waiting_rows_move_in_running_batches(acts: Any) -> None:
    """Rows that wait will move in a running batch, or one still loading; in a paused or canceling one they will not."""
    batch = await acts.loaded(1)
    for state in BatchState:
        await _to(acts, batch, state)
        assert await acts.ledger.unsettled(batch.pk) is (state in (BatchState.RUNNING, BatchState.LOADING))


async def test_start_limit_settles(acts: Any) -> None:
    """With the start limit reached, rows never started do not move; a started one that waits does."""
    batch = await acts.loaded(4, start_limit=2)
    assert await acts.ledger.unsettled(batch.pk)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.said(Event.COLLECTED, "a0"), acts.said(Event.NOT_SENT, "a1"))
    assert await acts.ledger.unsettled(batch.pk)
    await acts.claim(batch, 2, prefix="b", now=at(60))
    await acts.tell(acts.ended("p1", attempt_id="b0"), acts.said(Event.COLLECTED, "b0"))
    assert not await acts.ledger.unsettled(batch.pk)


async def test_wakes(acts: Any) -> None:
    """A wake comes when it is due, once; held back, it comes again, for a message may be lost."""
    await acts.ledger.schedule([Wake("submit", "b", 1, at(5)), Wake("sweep", "acme")], now=NOW)
    assert await acts.ledger.take_due(now=NOW, hold_s=40) == [Wake("sweep", "acme", 0, NOW)]
    assert await acts.ledger.take_due(now=NOW, hold_s=40) == []
    assert [w.station for w in await acts.ledger.take_due(now=at(5), hold_s=40)] == ["submit"]
    assert [w.station for w in await acts.ledger.take_due(now=at(40), hold_s=40)] == ["sweep"]


@pytest.mark.parametrize(("first", "second", "now", "due"), [
    (10, 5, 0, 5), (5, 10, 0, 5), (5, 10, 6, 10), (5, 10, 5, 10), (5, 3, 6, 3)])
async def test_sooner_wins(acts: Any, first: int, second: int, now: int, due: int) -> None:
    """Of two due times the sooner counts; a later one only replaces a time that has passed."""
    await acts.ledger.schedule([Wake("submit", "b", 0, at(first))], now=NOW)
    await acts.ledger.schedule([Wake("submit", "b", 0, at(second))], now=at(now))
    assert await acts.ledger.take_due(now=at(due - 1), hold_s=40) == []
    assert [w.due_at for w in await acts.ledger.take_due(now=at(due), hold_s=40)] == [at(due)]


async def test_many_wakes_in_one_call(acts: Any) -> None:
    """Of several wakes for one thing in one call the soonest counts, whatever their order; none at all is fine."""
    await acts.ledger.schedule([Wake("submit", "b", 0, at(n)) for n in (3, 1, 2)], now=NOW)
    assert [w.due_at for w in await acts.ledger.take_due(now=at(9), hold_s=40)] == [at(1)]
    await acts.ledger.schedule([], now=NOW)


async def test_two_tickers(acts: Any) -> None:
    """Ticks at the same moment share the wakes between them: none is taken twice."""
    await acts.ledger.schedule([Wake("submit", f"b{n}") for n in range(20)], now=NOW)
    taken = await asyncio.gather(*(acts.ledger.take_due(now=NOW, hold_s=40) for _ in range(6)))
    keys = [wake.key for some in taken for wake in some]
    assert sorted(keys) == sorted(f"b{n}" for n in range(20))


async def test_released_holds(acts: Any) -> None:
    """When the receiver has died, what it was sent is due now."""
    await acts.ledger.schedule([Wake("submit", "b")], now=NOW)
    await acts.ledger.take_due(now=NOW, hold_s=40)
    await acts.ledger.release_holds(now=at(1))
    assert [w.key for w in await acts.ledger.take_due(now=at(1), hold_s=40)] == ["b"]
