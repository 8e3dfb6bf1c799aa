"""A worst case that is known later, or was too low: what was bought before it reserves it too, and every book says so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import Batch
from orchestrator.gateways.ledger import Database, SqlLedger, claims, money, moves
from tests.conftest import administer
from tests.contract.conftest import TEMPLATE
from tests.contract.test_ledger_caps import asked

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
NEXT_DAY = NOW + timedelta(days=1)
DOLLAR = 10**12


async def amend(acts: Any, batch: Batch, *, reserve_units: int | None, cap_units: int | None = None, **values: Any) -> None:
    """The same job, with so much at worst for a row."""
    await acts.ledger.amend(batch.pk, **{"in_flight": 1000, "max_attempts": 3, "cap_units": cap_units, "price_json": "null",
                                         "start_limit": None, "job_json": "{}", "output_to": "/out",
                                         "reserve_units": reserve_units} | values)


async def reserved(database: Database, batch: Batch) -> dict[str, float]:
    """What each attempt of a batch reserves, in dollars; the batch and its days agree with their sum, day by day."""
    rows = await asked(database, f"SELECT id, SUBSTR(CAST(created_at AS TEXT), 1, 10), reserved_units, COALESCE(charge_units, 0) "
                                 f"FROM attempts WHERE batch_pk = {batch.pk} ORDER BY id")
    by_day: dict[str, tuple[int, int]] = {}
    for _, day, held, charged in rows:
        before = by_day.get(day, (0, 0))
        by_day[day] = before[0] + charged, before[1] + held
    days = await asked(database, f"SELECT day, spent_units, reserved_units FROM batch_days WHERE batch_pk = {batch.pk}")
    assert {day: (spent, held) for day, spent, held in days} == by_day
    total = await asked(database, f"SELECT spent_units, reserved_units FROM batches WHERE pk = {batch.pk}")
    assert total == [tuple(map(sum, zip(*by_day.values(), strict=True)))]
    return {name: held / DOLLAR for name, _, held, _ in rows}


async def test_what_was_bought_before(acts: Any, database: Database) -> None:
    """Alive, in doubt, lost, surplus, or ended at a cost nobody knows: each reserves the worst case from now on, on its own day.
    What is known, never bought, dearer already, or another batch's stays as it is; and so does all of it the second time."""
    batch, other = await acts.loaded(12), await acts.loaded(1, "other")
    await acts.claim(other, 1, prefix="o")
    await acts.claim(batch, 8)
    await acts.claim(batch, 1, prefix="dear", reserve_units=3 * DOLLAR)
    await acts.tell(acts.answered("a1", "p1"), *(acts.said(Event.ANSWER_LOST, name) for name in ("a2", "a3", "a6", "a7")),
                    acts.said(Event.GIVEN_UP, "a3", error_class="unsure"), acts.ended("p5", attempt_id="a5"),
                    acts.said(Event.ABSENT, "a6"), acts.said(Event.ABSENT, "a7"))
    await acts.claim(batch, 2, prefix="b", now=NEXT_DAY)
    await acts.tell(acts.answered("a7", "p7")._replace(bound_by="url"))
    acts.policy = replace(acts.policy, price=None)
    await acts.tell(acts.ended("p4", attempt_id="a4"))
    before = await reserved(database, batch)
    assert before == dict.fromkeys([*(f"a{n}" for n in range(8)), "b0", "b1"], 0.0) | {"dear0": 3.0}
    for units in (None, 0):
        await amend(acts, batch, reserve_units=units)
        assert await reserved(database, batch) == before
    for units in (DOLLAR, DOLLAR, DOLLAR // 2, None):
        await amend(acts, batch, reserve_units=units, cap_units=11 * DOLLAR)
        assert await reserved(database, batch) == dict.fromkeys(before, 1.0) | {"a5": 0.0, "a6": 0.0, "dear0": 3.0}
    assert await reserved(database, other) == {"o0": 0.0}
    room = await acts.ledger.claimable(batch.pk, count=3, terms=acts.terms(reserve_units=DOLLAR))  # of 11, 11 are reserved and
    assert (room.count, room.reason) == (0, "budget: waiting for running rows")                     # 1 is spent


async def test_the_alarm_has_something_to_compare_with(acts: Any) -> None:
    """A row that costs more than is reserved for it by now pauses its batch; one that costs as much does not."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await amend(acts, batch, reserve_units=DOLLAR, cap_units=9 * DOLLAR)
    acts.policy = replace(acts.policy, is_capped=True)
    await acts.tell(acts.ended("p0", attempt_id="a0"))
    now = await acts.again(batch)
    assert (now.state, now.spent_units, now.reserved_units) == (BatchState.RUNNING, DOLLAR, DOLLAR)
    await acts.tell(acts.ended("p1", attempt_id="a1", seconds=3))
    assert "row 1 cost $1.50, and only $1.00 were reserved for it" in ((await acts.again(batch)).reason or "")


async def unpriced(acts: Any, rows: int, **values: Any) -> Batch:
    """A batch whose rows have all ended at a cost that nobody knows."""
    batch: Batch = await acts.loaded(rows, **values)
    await acts.claim(batch, rows)
    acts.policy = replace(acts.policy, price=None)
    await acts.tell(*(acts.ended(f"p{n}", attempt_id=f"a{n}") for n in range(rows)))
    return batch


async def test_many_rows_are_reserved_for_in_steps(acts: Any, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the batch gets it in between. One that dies between two steps leaves books that agree, and the next goes
    on where it was."""
    monkeypatch.setattr(money, "_NEXT", {dialect: query.limit(4) for dialect, query in money._NEXT.items()})
    monkeypatch.setattr(money, "AT_ONCE", 4)
    batch = await unpriced(acts, 10)
    write, steps = database.write, [0]

    async def dies(step: Any, *args: Any, **values: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            raise SystemError
        return await write(step, *args, **values)

    monkeypatch.setattr(database, "write", dies)
    with pytest.raises(SystemError):
        await amend(acts, batch, reserve_units=DOLLAR, cap_units=11 * DOLLAR)
    assert sorted((await reserved(database, batch)).values()) == [0.0] * 2 + [1.0] * 8
    assert (await acts.again(batch)).cap_units is None
    steps[0] = 10
    await amend(acts, batch, reserve_units=DOLLAR, cap_units=11 * DOLLAR)
    assert set((await reserved(database, batch)).values()) == {1.0} and steps == [12]  # a step and the amendment
    assert (await acts.again(batch)).cap_units == 11 * DOLLAR


async def test_the_cap_that_still_holds_is_kept_at_every_step(acts: Any, database: Database,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """A worst case that rises together with its cap: before the amendment no more is reserved than the old one bears."""
    batch = await unpriced(acts, 6, cap_units=2 * DOLLAR)
    write, seen = database.write, []

    async def looked_at(step: Any, *args: Any, **values: Any) -> Any:
        done = await write(step, *args, **values)
        seen.append(sum((await reserved(database, batch)).values()))
        return done

    monkeypatch.setattr(database, "write", looked_at)
    await amend(acts, batch, reserve_units=DOLLAR, cap_units=9 * DOLLAR)
    assert seen == [2.0, 6.0]


async def test_looked_for_by_its_indexes(acts: Any, database: Database) -> None:
    """A batch of a million rows with nothing to reserve for is not walked."""
    batch = await acts.loaded(1)

    async def plan(connection: Any, statements: Any) -> str:
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
        explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        compiled = statements[connection.dialect.name].params(short_of=batch.pk, units=DOLLAR, after=0).compile(
            dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        return str((await connection.execute(text(f"{explain} {compiled}"))).all())

    told = await database.write(plan, money._SHORT)
    assert "ix_attempts_alive" in told and "ix_attempts_unpriced" in told, told
    assert "ix_attempts_unpriced" in await database.write(plan, money._NEXT)


@pytest.fixture
async def postgresql(postgresql_template: Callable[[str], str]) -> AsyncIterator[Database]:
    """A ledger on PostgreSQL; no two of its transactions were ever in a deadlock, though the ledger would have repeated one."""
    administer(postgresql_template, f"CREATE DATABASE amending TEMPLATE {TEMPLATE}")
    async with Database.open(postgresql_template("amending")) as opened:
        yield opened
    async with Database.open(postgresql_template("amending")) as again:
        deadlocks = await asked(again, "SELECT deadlocks FROM pg_stat_database WHERE datname = 'amending'")
    administer(postgresql_template, "DROP DATABASE amending WITH (FORCE)")
    assert deadlocks == [(0,)]


async def while_it_waits(database: Database, first: Callable[[Any], Awaitable[Any]], then: Callable[[Any], Awaitable[Any]],
                         waiting: Awaitable[None]) -> None:
    """One transaction does its `first`, `waiting` begins and waits for it, and then it does the rest."""
    begun = asyncio.Event()

    async def step(connection: Any) -> None:
        await first(connection)
        begun.set()
        while not (await connection.execute(text("SELECT COUNT(*) FROM pg_locks WHERE NOT granted"))).scalar():
            await asyncio.sleep(0.01)
        await then(connection)

    async def waits() -> None:
        await begun.wait()
        await waiting

    async with asyncio.timeout(10):
        await asyncio.gather(database.write(step), waits())


async def test_a_fact_with_its_attempt_in_hand(postgresql: Database, acts_of: Any) -> None:
    """It is about to write its batch's money: it is waited for, and does not wait."""
    acts = acts_of(SqlLedger(postgresql))
    batch = await acts.loaded(3)
    await acts.claim(batch, 3)
    told = [acts.ended("p1", attempt_id="a1")]

    async def look(connection: Any) -> None:
        await moves.scene_of(connection, told)

    async def play(connection: Any) -> None:
        await moves.move(connection, told, decide=acts.decide)

    await while_it_waits(postgresql, look, play, amend(acts, batch, reserve_units=DOLLAR))
    assert await reserved(postgresql, batch) == {"a0": 1.0, "a1": 0.0, "a2": 1.0}


async def test_a_claim_that_is_not_committed_yet(postgresql: Database, acts_of: Any) -> None:
    """On the old terms: it is waited for, and its rows are not forgotten; after it the old terms claim nothing."""
    acts = acts_of(SqlLedger(postgresql))
    batch = await acts.loaded(4)
    old = replace(acts.terms(), made_from=("{}", "null"))

    async def claim(connection: Any) -> None:
        assert len(await claims.claim(connection, batch.pk, attempt_ids=["a0", "a1"], terms=old)) == 2

    async def nothing(connection: Any) -> None:
        """It commits."""

    await while_it_waits(postgresql, claim, nothing, amend(acts, batch, reserve_units=DOLLAR, job_json="new"))
    assert await reserved(postgresql, batch) == {"a0": 1.0, "a1": 1.0}
    assert await acts.ledger.claim(batch.pk, attempt_ids=["b0"], terms=old) == []


async def test_amended_while_rows_are_bought(postgresql: Database, acts_of: Any) -> None:
    """Lanes claim, hear and end rows, in any order, while the worst case rises ten times: nobody is in anybody's way, the books
    agree, and nothing that may cost something reserves less than the last worst case."""
    acts = acts_of(SqlLedger(postgresql))
    batch = await acts.loaded(200)
    acts.policy = replace(acts.policy, price=None)
    worst = 0

    async def lane(number: int) -> None:
        for turn in range(12):
            names = [f"l{number}-{turn}-{n}" for n in range(4)]
            terms = replace(acts.terms(reserve_units=worst * DOLLAR), made_from=(str(worst), "null"))
            got = [c.attempt_id for c in await acts.ledger.claim(batch.pk, attempt_ids=names, terms=terms)]
            await acts.tell(*(acts.answered(name, f"p-{name}") for name in reversed(got)))
            await acts.tell(*(acts.ended(f"p-{name}", "canceled" if name[-1] == "1" else "succeeded") for name in got[:3]))

    async def rising() -> None:
        nonlocal worst
        for units in range(1, 11):
            await amend(acts, batch, reserve_units=units * DOLLAR, job_json=str(units))
            worst = units
            await asyncio.sleep(0.02)

    await amend(acts, batch, reserve_units=None, job_json="0")
    async with asyncio.timeout(20):
        await asyncio.gather(rising(), *(lane(n) for n in range(4)))
    held = await reserved(postgresql, batch)
    assert len(held) > 40 and set(held.values()) == {10.0}
