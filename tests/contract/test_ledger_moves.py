"""Facts change the ledger once, along the table of states, whatever their order, number and origin."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.cost import Price, Pricing, Rate, Tier
from orchestrator.core.errors import Unreachable
from orchestrator.core.lifecycle import AttemptState, Event, ItemState
from orchestrator.core.records import Change, Fact, Standing
from orchestrator.gateways.ledger import Database

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
HALF = 5 * 10**11  # units of 50 cents


async def _column(database: Database, column: str) -> list[Any]:
    async def read(connection: Any) -> list[Any]:
        return list((await connection.execute(text(f"SELECT {column} FROM attempts ORDER BY id"))).scalars())

    return await database.read(read)


async def test_whole_life(acts: Any) -> None:
    """A row goes from claim to collected, its attempt carrying what the provider said and its charge."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1, reserve_units=9 * HALF)
    assert await acts.states(batch) == ["claimed"]
    await acts.tell(acts.answered("a0", "p0"))
    assert await acts.states(batch) == ["running"]
    await acts.tell(acts.ended("p0", seconds=3))
    assert await acts.states(batch) == ["collecting"]
    changes = await acts.tell(acts.said(Event.COLLECTED, "a0"))
    assert [(c.event, c.item_to) for c in changes] == [(Event.COLLECTED, ItemState.SUCCEEDED)]
    (result,) = await acts.results(batch)
    assert (result.prediction_id, result.charge_units, result.seconds, result.attempts) == ("p0", 3 * HALF, 3.0, 1)
    assert (result.output_json, result.version, result.error) == ('"https://x/1.png"', "hidden", None)
    now = await acts.again(batch)
    assert (now.reserved_units, now.spent_units) == (0, 3 * HALF)


async def test_doubled_facts(acts: Any) -> None:
    """The same facts again, in one call and in another, change nothing and charge nothing."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1, reserve_units=9 * HALF)
    facts = [acts.answered("a0", "p0"), acts.answered("a0", "p0"), acts.ended("p0"), acts.ended("p0")]
    assert [c.event for c in await acts.tell(*facts)] == [Event.ANSWERED, Event.SUCCEEDED]
    assert await acts.tell(*facts) == []
    now = await acts.again(batch)
    assert (now.reserved_units, now.spent_units) == (0, 2 * HALF)


async def test_end_before_answer(acts: Any) -> None:
    """A webhook may come before the POST's answer is recorded: the row goes on, and the late answer changes nothing."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    assert len(await acts.tell(acts.ended("p0", attempt_id="a0"))) == 1
    assert await acts.tell(acts.answered("a0", "p0")) == []
    assert await acts.states(batch) == ["collecting"]


async def test_routed_by_prediction_first(acts: Any) -> None:
    """A prediction that belongs to one attempt stays with it, whatever attempt a fact names."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.answered("a0", "p0"))
    changes = await acts.tell(acts.ended("p0", attempt_id="a1"))
    assert [c.standing.attempt_id for c in changes] == ["a0"]
    assert await acts.states(batch) == ["collecting", "claimed"]


async def test_one_prediction_for_two_attempts(acts: Any) -> None:
    """Of two attempts claiming one prediction in one chunk the first gets it, and the rest of the chunk is written."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 3)
    changes = await acts.tell(acts.answered("a0", "p0"), acts.answered("a1", "p0"), acts.answered("a2", "p2"))
    assert [c.standing.attempt_id for c in changes] == ["a0", "a2"]
    assert await acts.states(batch) == ["running", "claimed", "running"]


async def test_one_attempt_for_two_predictions(acts: Any) -> None:
    """An attempt keeps its prediction: a genuine end of another one, sent to its address, changes nothing."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.answered("a0", "p0"))
    assert await acts.tell(acts.ended("stranger", attempt_id="a0")) == []
    assert await acts.states(batch) == ["running"]


async def test_foreign_facts(acts: Any) -> None:
    """Predictions and attempts that nobody here knows are passed over."""
    await acts.loaded(1)
    assert await acts.tell(acts.ended("stranger"), acts.said(Event.NOT_SENT, "nobody")) == []
    assert await acts.tell() == []


async def test_lost_answer_keeps_its_reservation(acts: Any) -> None:
    """What may have been bought stays reserved, also when it is given up: the cap is about real money."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2, reserve_units=HALF)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.said(Event.ANSWER_LOST, "a1"))
    await acts.tell(acts.said(Event.GIVEN_UP, "a0", error_class="unsure"), acts.said(Event.ABSENT, "a1"))
    assert await acts.states(batch) == ["failed", "pending"]
    assert (await acts.again(batch)).reserved_units == HALF
    assert (await acts.ledger.counts(batch.pk)).cost_unknown_items == 1


async def test_sent_until(acts: Any, database: Database) -> None:
    """A lost answer's request ended when that was noticed, and no later than its lease."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0", after_s=30), acts.said(Event.ANSWER_LOST, "a1", after_s=9999))
    doubtful = await acts.ledger.unsure("acme")
    noticed = acts.said(Event.ANSWER_LOST, "a0", after_s=30).at
    assert [a.sent_until_at for a in doubtful] == [noticed, noticed + timedelta(seconds=150)]


async def test_adopted_after_doubt(acts: Any) -> None:
    """An unsure row that turns out bought goes on as if nothing had been, its error forgotten."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0", error="lost", error_class="unsure"))
    await acts.ledger.checked(["a0"], next_check_at=acts.said(Event.ABSENT, "a0").at)
    await acts.tell(acts.answered("a0", "p0"))
    (result,) = await acts.results(batch)
    assert (result.state, result.error, result.error_class) == (ItemState.RUNNING, None, None)
    assert (await acts.ledger.open_window("acme")).oldest_created_at is not None


async def test_bought_again(acts: Any) -> None:
    """A failure worth repeating waits, counts, and its charge adds to the next attempt's."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    failed = acts.ended("p0", "failed", attempt_id="a0", output=None, error="CUDA error: no kernel; E8765")
    (change,) = await acts.tell(failed)
    assert (change.event, change.failures) == (Event.FAILED_AGAIN, 1)
    assert change.due_at is not None and change.due_at > failed.at
    assert await acts.claim(batch, 1, prefix="b", now=failed.at) == []
    assert len(await acts.claim(batch, 1, prefix="b", now=change.due_at)) == 1
    await acts.tell(acts.ended("p1", attempt_id="b0"), acts.said(Event.COLLECTED, "b0"))
    (result,) = await acts.results(batch)
    assert (result.attempts, result.prediction_id, result.charge_units) == (2, "p1", 2 * HALF)


async def test_late_fact_of_an_earlier_attempt(acts: Any) -> None:
    """What is learned about an attempt that is over leaves the row with its present attempt alone."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.NOT_SENT, "a0"))
    await acts.claim(batch, 1, prefix="b", now=acts.said(Event.NOT_SENT, "a0", after_s=60).at)
    assert await acts.tell(acts.said(Event.NOT_SENT, "a0"), acts.ended("p0", attempt_id="a0")) == []
    assert await acts.states(batch) == ["claimed"]


async def test_attempt_that_is_not_current(acts: Any, database: Database) -> None:
    """A move of an attempt that its row has left behind changes attempt and money, and not the row."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1, reserve_units=HALF)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"))
    await acts.tell(acts.said(Event.GIVEN_UP, "a0", error_class="unsure"))
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"unsure"}))
    await acts.claim(batch, 1, prefix="b")

    def surplus(standing: Standing, fact: Fact) -> Change:
        assert not standing.is_current
        return Change(standing, fact.event, AttemptState.SUCCEEDED, ItemState.COLLECTING, fact.at,
                      prediction=fact.prediction, charge_units=HALF, charge_basis="surplus", final_charge=True)

    assert len(await acts.ledger.move([acts.ended("p0", attempt_id="a0")], decide=surplus)) == 1
    assert await acts.states(batch) == ["claimed"]
    assert sorted(await _column(database, "state")) == ["open", "succeeded"]
    now = await acts.again(batch)
    assert (now.reserved_units, now.spent_units) == (0, HALF)


async def test_unknown_charge(acts: Any) -> None:
    """An end whose price nobody knows keeps its reservation, and is counted as unknown, never as zero."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1, reserve_units=HALF)
    acts.policy = acts.policy.__class__(3, 2.0, canceling=False, price=None, count_files=lambda _: 0)
    await acts.tell(acts.ended("p0", attempt_id="a0"))
    counts = await acts.ledger.counts(batch.pk)
    assert (counts.spent_usd, counts.reserved_usd, counts.cost_unknown_items) == (0, Decimal("0.5"), 1)
    assert (await acts.results(batch))[0].charge_units is None


async def test_what_databases_refuse(acts: Any) -> None:
    """NUL and half a surrogate pair in logs, errors and outputs are stored as something legal, and block nothing."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.ended("p0", "failed", attempt_id="a0", output="a\0b\ud800", error="x\0y\udfff"))
    (result,) = await acts.results(batch)
    assert (result.output_json, result.error) == ('"a\\u0000b\\ud800"', "x\ufffdy\\udfff")


async def test_all_or_nothing(acts: Any) -> None:
    """A chunk whose decision fails in the middle leaves no trace."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2, reserve_units=HALF)

    def fails_at_second(standing: Standing, fact: Fact) -> Change | None:
        if standing.attempt_id == "a1":
            raise Unreachable("in the middle")
        return acts.decide(standing, fact)

    with pytest.raises(Unreachable, match="in the middle"):
        await acts.ledger.move([acts.said(Event.NOT_SENT, "a0"), acts.said(Event.NOT_SENT, "a1")], decide=fails_at_second)
    assert await acts.states(batch) == ["claimed", "claimed"]
    assert (await acts.again(batch)).reserved_units == 2 * HALF


async def test_same_facts_from_many_sides_at_once(acts: Any) -> None:
    """POST answer, webhook and sweep racing in different orders: one change each, one charge each."""
    batch = await acts.loaded(40)
    await acts.claim(batch, 40, reserve_units=2 * HALF)
    answers = [acts.answered(f"a{n}", f"p{n}") for n in range(40)]
    ends = [acts.ended(f"p{n}", attempt_id=f"a{n}") for n in range(40)]
    rounds = [answers, ends, answers[::-1], ends[::-1], ends[20:] + ends[:20], answers[10:] + ends[:10]]
    changed = await asyncio.gather(*(acts.tell(*facts) for facts in rounds))
    events = [change.event for changes in changed for change in changes]
    assert events.count(Event.SUCCEEDED) == 40
    now = await acts.again(batch)
    assert (now.reserved_units, now.spent_units) == (0, 40 * 2 * HALF)


async def test_two_attempts_race_for_one_prediction(acts: Any) -> None:
    """Two calls at once giving one prediction to different attempts: one wins, the other changes nothing, none fails."""
    batch = await acts.loaded(20)
    await acts.claim(batch, 20)
    calls = [acts.tell(acts.answered(f"a{n}", "same"), acts.answered(f"a{n + 10}", f"p{n}")) for n in range(10)]
    changed = await asyncio.gather(*calls)
    winners = [c for changes in changed for c in changes if c.prediction is not None and c.prediction.id == "same"]
    assert len(winners) == 1
    assert (await acts.states(batch)).count("running") == 11


async def _bound(database: Database) -> list[tuple[Any, ...]]:
    async def read(connection: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await connection.execute(
            text("SELECT id, state, prediction_id, bound_by FROM attempts ORDER BY id"))]

    return await database.read(read)


async def test_better_evidence_evicts(acts: Any, database: Database) -> None:
    """Two equal rows, one answer lost and the other in the air: what the first was given for its input is the second's, as its
    answer says; the first is in doubt again, and takes its own when that is seen."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"))
    await acts.tell(acts.answered("a0", "p1")._replace(bound_by="input"))
    assert await acts.states(batch) == ["running", "claimed"]
    changes = await acts.tell(acts.answered("a1", "p1")._replace(bound_by="post"))
    assert [(c.event, c.standing.attempt_id) for c in changes] == [(Event.EVICTED, "a0"), (Event.ANSWERED, "a1")]
    assert await acts.states(batch) == ["unsure", "running"]
    assert await _bound(database) == [("a0", "unsure", None, None), ("a1", "running", "p1", "post")]
    await acts.tell(acts.answered("a0", "p0")._replace(bound_by="url"))
    assert await _bound(database) == [("a0", "running", "p0", "url"), ("a1", "running", "p1", "post")]


async def test_evicted_and_found_in_one_call(acts: Any, database: Database) -> None:
    """Both facts in one transaction, in either order: a prediction has one attempt at every moment."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.answered("a0", "p1")._replace(bound_by="input"))
    await acts.tell(acts.answered("a1", "p1")._replace(bound_by="post"), acts.answered("a0", "p0")._replace(bound_by="input"))
    assert await _bound(database) == [("a0", "running", "p0", "input"), ("a1", "running", "p1", "post")]


async def test_places_changed(acts: Any, database: Database) -> None:
    """Where the first has ended already, the two change places: the second looks for the other prediction."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.answered("a0", "p1")._replace(bound_by="input"), acts.ended("p1"))
    await acts.tell(acts.answered("a1", "p1")._replace(bound_by="post"))
    assert await acts.states(batch) == ["collecting", "unsure"]
    await acts.tell(acts.answered("a1", "p0")._replace(bound_by="input"))
    assert await _bound(database) == [("a0", "succeeded", "p1", "input"), ("a1", "running", "p0", "input")]


async def test_surplus(acts: Any, database: Database) -> None:
    """Found absent, bought again, and there after all: the second stays the row's; the first is listed as surplus until it ends,
    and what it cost is part of what was spent."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1, reserve_units=9 * HALF)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"))
    assert [a.attempt_id for a in await acts.ledger.gone("acme", since=NOW - timedelta(hours=1), now=NOW)] == []
    await acts.tell(acts.said(Event.ABSENT, "a0"))
    assert [a.attempt_id for a in await acts.ledger.gone("acme", since=NOW - timedelta(hours=1), now=NOW)] == ["a0"]
    await acts.ledger.checked(["a0"], next_check_at=NOW + timedelta(seconds=60))
    assert await acts.ledger.gone("acme", since=NOW - timedelta(hours=1), now=NOW + timedelta(seconds=59)) == []
    assert len(await acts.ledger.gone("acme", since=NOW - timedelta(hours=1), now=NOW + timedelta(seconds=60))) == 1
    assert await acts.ledger.gone("acme", since=NOW, now=NOW + timedelta(seconds=60)) == []
    await acts.claim(batch, 1, prefix="b", reserve_units=9 * HALF, now=NOW + timedelta(seconds=60))
    await acts.tell(acts.answered("b0", "p1"))
    changes = await acts.tell(acts.answered("a0", "p0")._replace(bound_by="url"))
    assert [(c.event, c.item_to) for c in changes] == [(Event.SURPLUS, ItemState.RUNNING)]
    assert await acts.ledger.surplus("acme") == [("a0", "p0")]
    assert await acts.ledger.surplus("other") == []
    await acts.tell(acts.ended("p0", "canceled", seconds=1))
    assert await acts.ledger.surplus("acme") == []
    assert await acts.states(batch) == ["running"]
    await acts.tell(acts.ended("p1", seconds=3))
    now = await acts.again(batch)
    assert (now.reserved_units, now.spent_units) == (0, 4 * HALF)
    assert [row[:3] for row in await _bound(database)] == [("a0", "canceled", "p0"), ("b0", "succeeded", "p1")]


async def test_given_up_and_there_after_the_end(acts: Any) -> None:
    """Its row stays failed when the batch has ended; `retry` waits for it while it runs, and fetches it when it has ended."""
    unsure = frozenset({"unsure"})
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    for name in ("a0", "a1"):
        await acts.tell(acts.said(Event.ANSWER_LOST, name), acts.said(Event.GIVEN_UP, name, error="?", error_class="unsure"))
    acts.policy = replace(acts.policy, is_live=False)
    for told in (acts.answered("a0", "p0"), acts.ended("p1", attempt_id="a1")):
        await acts.tell(told._replace(bound_by="url"))
    assert await acts.states(batch) == ["failed", "failed"]
    assert await acts.ledger.refetch(batch.pk, classes=frozenset(), after=NOW + timedelta(hours=1)) == 0
    assert await acts.ledger.refetch(batch.pk, classes=frozenset(), after=NOW) == 1
    assert await acts.ledger.rejoin(batch.pk, classes=unsure) == 1
    assert await acts.ledger.reopen_failed(batch.pk, classes=unsure) == 0
    assert await acts.states(batch) == ["running", "collecting"]
    (todo,) = await acts.ledger.to_collect(batch.pk, count=9, now=NOW, lease_until=NOW)
    assert (todo.attempt_id, todo.completed_at) == ("a1", NOW + timedelta(seconds=2))


async def test_rows_out_are_not_reopened(acts: Any) -> None:
    """Even alone, `retry` does not buy what is out at the provider."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.said(Event.GIVEN_UP, "a0", error="?", error_class="unsure"))
    acts.policy = replace(acts.policy, is_live=False)
    await acts.tell(acts.answered("a0", "p0")._replace(bound_by="url"))
    assert await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"unsure"})) == 0


CHARGED = ("charge_unit", "charge_quantity", "charge_quantity_out", "charge_price", "charge_price_out", "charge_price_id",
           "charge_basis")


async def _charged(database: Database) -> list[tuple[Any, ...]]:
    async def read(connection: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await connection.execute(text(f"SELECT {', '.join(CHARGED)} FROM attempts ORDER BY id"))]

    return await database.read(read)


async def test_what_a_charge_was_reckoned_from(acts: Any, database: Database) -> None:
    """Unit, quantity, price and its id are kept with the charge, digit for digit; what has no price keeps none."""
    batch = await acts.loaded(5)
    await acts.claim(batch, 5)
    for n in range(4):
        await acts.tell(acts.answered(f"a{n}", f"p{n}"))
    await acts.tell(acts.ended("p0", seconds=0.000001), acts.ended("p1", "canceled", seconds=1234.5), acts.ended(
        "p2", "failed", error="no", seconds=3), acts.ended("p3", "aborted"), acts.said(Event.NOT_SENT, "a4"))
    nothing = (None,) * 6
    assert await _charged(database) == [
        ("second", "0.000001", None, "0.5", None, "test", "metrics"), ("second", "1234.5", None, "0.5", None, "test", "metrics"),
        (*nothing, "free"), (*nothing, "free"), (*nothing, "not bought")]


async def test_tokens_read_and_written(acts: Any, database: Database) -> None:
    """Both counts and both prices are kept."""
    batch = await acts.loaded(1)
    acts.policy = replace(acts.policy, price=Price("llm", "token", Decimal("0.00000005"), Decimal("0.00000025")))
    await acts.claim(batch, 1)
    fact = acts.ended("p0", attempt_id="a0")
    told = fact.prediction._replace(metrics={"token_input_count": 8, "token_output_count": 43})
    await acts.tell(fact._replace(prediction=told))
    assert await _charged(database) == [("token", "8", "43", "0.00000005", "0.00000025", "llm", "metrics")]


async def test_a_tier_is_found_by_the_rows_own_input(acts: Any, database: Database) -> None:
    """Not by what the provider shows of it, which it deletes; and read only where the batch's price asks for it."""
    tier = Tier((("seed", ("1",)),), Rate(Decimal(7)))
    tiered = Price("t", "run", Decimal(2), tiers=(tier,))
    acts.policy = replace(acts.policy, price=tiered)
    batch = await acts.loaded(3, price_json=Pricing(tiered, 1).to_json())
    plain = await acts.loaded(2, "plain")
    await acts.claim(batch, 3)
    await acts.claim(plain, 2, prefix="b")
    given: list[str | None] = []

    def decide(standing: Standing, fact: Fact) -> Change | None:
        given.append(standing.input_json)
        return acts.decide(standing, fact)  # type: ignore[no-any-return]

    await acts.ledger.move([acts.ended(f"p{i}", attempt_id=i) for i in ("a0", "a1", "a2", "b0")], decide=decide)
    assert given == ['{"seed":0}', '{"seed":1}', '{"seed":2}', None]
    assert [row[3] for row in await _charged(database)] == ["2", "7", "2", None, None]


async def test_never_bought_and_there_after_all(acts: Any) -> None:
    """What was found absent cost nothing; once it has turned up its cost is not known until it is told, or for good."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1, reserve_units=HALF)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), acts.said(Event.ABSENT, "a0"))
    await acts.tell(acts.answered("a0", "p0", after_s=5)._replace(bound_by="url"))
    (row,) = await acts.results(batch)
    assert row.charge_units is None
    await acts.tell(acts.said(Event.VANISHED, "a0", error="gone", error_class="vanished"))
    (row,) = await acts.results(batch)
    assert (row.charge_units, (await acts.ledger.counts(batch.pk)).cost_unknown_items) == (None, 1)
