"""Caps on money: kept over all batches that share one, at every committed instant; by day; and what happens where one is not."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.caps import Cap, Scope
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.ports import ClaimTerms
from orchestrator.core.records import Batch, Claim
from orchestrator.gateways.ledger import Database, money

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
NEXT_DAY = NOW + timedelta(days=1)
DOLLAR = 10**12
AGREE = "SELECT spent_units, reserved_units FROM {} ORDER BY batch_pk"


def under(acts: Any, *caps: Cap, now: datetime = NOW, reserve_units: int | None = DOLLAR) -> ClaimTerms:
    """Terms of a dollar a row, under these caps."""
    return replace(acts.terms(now=now, reserve_units=reserve_units or 0), reserve_units=reserve_units, caps=caps)


async def bought(acts: Any, batch: Batch, count: int, terms: ClaimTerms, *, prefix: str) -> list[Claim]:
    """So many rows claimed under these terms, if the caps bear them."""
    ids = [f"{prefix}{n}" for n in range(count)]
    claims: list[Claim] = await acts.ledger.claim(batch.pk, attempt_ids=ids, terms=terms)
    return claims


async def end(acts: Any, claims: Sequence[Claim], *, seconds: float = 2.0) -> None:
    """They succeed, at fifty cents a second: two cost what was reserved."""
    await acts.tell(*(acts.ended(f"p-{c.attempt_id}", attempt_id=c.attempt_id, seconds=seconds) for c in claims))


async def history(database: Database) -> None:
    """From now on the database itself notes what all batches have spent and reserve, whenever that changes."""
    note = "INSERT INTO money_seen SELECT SUM(spent_units + reserved_units) FROM batches"
    on = "AFTER UPDATE OF spent_units, reserved_units ON batches FOR EACH ROW"
    sqlite = [f"CREATE TRIGGER watch {on} BEGIN {note}; END"]
    postgresql = [f"CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {note}; RETURN NULL; END $$",
                  f"CREATE TRIGGER watch {on} EXECUTE FUNCTION watch()"]

    async def make(connection: Any) -> None:
        await connection.execute(text("CREATE TABLE money_seen (units BIGINT)"))
        for statement in sqlite if connection.dialect.name == "sqlite" else postgresql:
            await connection.execute(text(statement))

    await database.write(make)


async def asked(database: Database, query: str) -> list[tuple[Any, ...]]:
    """Rows of the ledger."""
    async def read(connection: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await connection.execute(text(query))]

    return await database.read(read)


@pytest.mark.parametrize("scopes", [(Scope.JOB,), (Scope.ACCOUNT_DAY,), (Scope.ACCOUNT, Scope.JOB_DAY)])
async def test_two_batches_share_a_cap(acts: Any, database: Database, scopes: tuple[Scope, ...]) -> None:
    """Eight lanes of two batches, claiming and ending at once: never more than the cap, and all of it is used; nor do the locks
    of several caps and of a model stand in each other's way."""
    pair = [await acts.loaded(60, name) for name in ("one", "two")]
    await history(database)
    terms = replace(under(acts, *(Cap(scope, (31 + n) * DOLLAR) for n, scope in enumerate(scopes))),
                    model_in_flight=99 if len(scopes) > 1 else None)

    async def lane(number: int) -> int:
        claimed = 0
        for turn in range(12):
            claims = await bought(acts, pair[number % 2], 1 + turn % 3, terms, prefix=f"l{number}-{turn}-")
            claimed += len(claims)
            back = [acts.said(Event.NOT_SENT, claim.attempt_id) for claim in claims[2:]]
            await acts.tell(*back)
            await end(acts, claims[:2])
            claimed -= len(back)
        return claimed

    total = sum(await asyncio.gather(*(lane(n) for n in range(8))))
    ((most, seen),) = await asked(database, "SELECT MAX(units), COUNT(*) FROM money_seen")
    assert (total, most) == (31, 31 * DOLLAR) and seen > 31
    assert [sum(row) for row in zip(*await asked(database, "SELECT spent_units, reserved_units FROM batches"), strict=True)] == [
        31 * DOLLAR, 0]


async def test_whose_batches_share_it(acts: Any) -> None:
    """A job's cap counts its own batches on that account; an account's counts all that are bought on it, capped or not."""
    first, second = await acts.loaded(8, "first"), await acts.loaded(8, "second")
    other, elsewhere = await acts.loaded(8, "other", job="portraits"), await acts.loaded(8, "elsewhere", account="sun")
    assert len(await acts.claim(first, 2, reserve_units=DOLLAR)) == 2
    assert len(await acts.claim(other, 3, prefix="o", reserve_units=DOLLAR)) == 3
    of_job, of_account = under(acts, Cap(Scope.JOB, 4 * DOLLAR)), under(acts, Cap(Scope.ACCOUNT, 6 * DOLLAR))
    for batch, terms, left in ((second, of_job, 2), (other, of_job, 1), (second, of_account, 1), (elsewhere, of_job, 4),
                               (elsewhere, of_account, 6)):
        assert (await acts.ledger.claimable(batch.pk, count=8, terms=terms)).count == left, (batch.id, terms.caps)
    both = under(acts, *of_job.caps, *of_account.caps)
    assert len(await bought(acts, second, 8, both, prefix="s")) == 1
    assert await bought(acts, second, 8, both, prefix="t") == []


async def test_a_day(acts: Any, database: Database) -> None:
    """What is claimed on a day counts for it, whenever it ends; the next day there is room again, and what is out from the day
    before frees none of it."""
    batch = await acts.loaded(8)
    today, tomorrow = (under(acts, Cap(Scope.JOB_DAY, 2 * DOLLAR), now=at) for at in (NOW, NEXT_DAY))
    first = await bought(acts, batch, 8, today, prefix="a")
    assert len(first) == 2
    waits = await acts.ledger.claimable(batch.pk, count=8, terms=today)
    assert (waits.count, waits.reason) == (0, "budget: waiting for running rows of this job, under the day's cap")
    assert not await acts.ledger.pause_for_budget(batch.pk, terms=today)
    second = await bought(acts, batch, 8, tomorrow, prefix="b")
    await end(acts, second)
    assert (await acts.ledger.claimable(batch.pk, count=8, terms=tomorrow)).reason == "budget: job and day"
    await end(acts, first, seconds=1)
    assert await asked(database, "SELECT day, spent_units, reserved_units FROM batch_days ORDER BY day") == [
        ("2026-01-05", DOLLAR, 0), ("2026-01-06", 2 * DOLLAR, 0)]
    assert await acts.ledger.pause_for_budget(batch.pk, terms=tomorrow)
    assert (await acts.again(batch)).reason == (
        "budget: $2.00 of $2.00 are spent by this job on 2026-01-06 (UTC), and the next row may need up to $1.00; it goes on "
        "after 00:00 UTC: run it again then, or raise budget.job_per_day_usd in the job first")
    await acts.ledger.set_state(batch.pk, to=BatchState.RUNNING, allowed=frozenset(BatchState), reason=None, now=NEXT_DAY)
    assert len(await bought(acts, batch, 8, replace(tomorrow, now=NEXT_DAY + timedelta(days=1)), prefix="c")) == 2


async def test_the_day_is_utc(acts: Any, database: Database) -> None:
    """Whatever zone the clock's time is told in."""
    batch = await acts.loaded(1)
    late = datetime(2026, 1, 5, 20, 30, tzinfo=UTC).astimezone(datetime.fromisoformat("2026-01-06T00:00+09:00").tzinfo)
    claims = await bought(acts, batch, 1, under(acts, now=late), prefix="a")
    await end(acts, claims)
    assert await asked(database, "SELECT day, spent_units, reserved_units FROM batch_days") == [("2026-01-05", DOLLAR, 0)]


async def test_money_of_others_may_come_back(acts: Any) -> None:
    """Where a row of another batch is out that shares the cap the batch waits; with nothing out it is paused, and is told why."""
    one, two = await acts.loaded(4, "one"), await acts.loaded(4, "two")
    terms = under(acts, Cap(Scope.ACCOUNT, 2 * DOLLAR))
    claims = await bought(acts, one, 2, terms, prefix="a")
    waits = await acts.ledger.claimable(two.pk, count=1, terms=terms)
    assert waits.reason == "budget: waiting for running rows of this account"
    assert not await acts.ledger.pause_for_budget(two.pk, terms=terms)
    await end(acts, claims[:1])
    await acts.tell(acts.said(Event.ANSWER_LOST, "a1"))
    assert not await acts.ledger.pause_for_budget(two.pk, terms=terms)
    await acts.tell(acts.said(Event.GIVEN_UP, "a1", error_class="unsure"))
    assert await acts.ledger.pause_for_budget(two.pk, terms=terms)
    assert (await acts.again(two)).reason == (
        "budget: $1.00 of $2.00 are spent by all batches of this account and $1.00 are held for rows whose cost is not known, "
        "and the next row may need up to $1.00; raise account_usd under [budget] in the settings and run it again")
    assert await acts.ledger.claim(two.pk, attempt_ids=["b0"], terms=terms) == []
    assert (await acts.again(one)).state is BatchState.RUNNING


async def test_what_is_out_elsewhere_frees_nothing(acts: Any) -> None:
    """A row that is out of another job, or of another account, is no reason to wait for a job's own money."""
    batch, other = await acts.loaded(4, "one"), await acts.loaded(4, "two", job="portraits")
    await acts.claim(other, 1, prefix="o", reserve_units=DOLLAR)
    await end(acts, await bought(acts, batch, 1, under(acts), prefix="a"))
    for scope, dollars, reason in ((Scope.JOB, 1, "budget: job"), (Scope.JOB_DAY, 1, "budget: job and day"),
                                   (Scope.ACCOUNT, 1, "budget: account"),
                                   (Scope.ACCOUNT, 2, "budget: waiting for running rows of this account")):
        room = await acts.ledger.claimable(batch.pk, count=1, terms=under(acts, Cap(scope, dollars * DOLLAR)))
        assert room.reason == reason


@pytest.mark.parametrize("scope", [Scope.BATCH, Scope.JOB, Scope.ACCOUNT, Scope.ACCOUNT_DAY])
@pytest.mark.parametrize("cents", [0, 1])
async def test_what_is_out_may_free_too_little(acts: Any, scope: Scope, cents: int) -> None:
    """Rows that reserve nothing, or a cent, go out and end for ever: a dearer row that no cap could bear even if all of them cost
    nothing is no reason to wait, and the batch is paused, with what is out told apart from what is held."""
    other = await acts.loaded(40, "other", cap_units=3 * DOLLAR)
    dear = other if scope is Scope.BATCH else await acts.loaded(4, "dear")
    caps = () if scope is Scope.BATCH else (Cap(scope, 3 * DOLLAR),)
    await bought(acts, other, 10, under(acts, *caps, reserve_units=cents * DOLLAR // 100), prefix="c")
    for dollars, waits in ((3, cents > 0), (5, False)):
        terms = under(acts, *caps, reserve_units=dollars * DOLLAR)
        room = await acts.ledger.claimable(dear.pk, count=1, terms=terms)
        assert (room.count, (room.reason or "").startswith("budget: waiting")) == (int(dollars == 3 and not cents), waits)
    assert await acts.ledger.pause_for_budget(dear.pk, terms=terms)
    out = " and $0.10 are reserved for rows that are out" if cents else ""
    assert f"{out}, and the next row may need up to $5.00" in ((await acts.again(dear)).reason or "")


async def test_what_is_out_is_looked_for_by_its_index(acts: Any, database: Database) -> None:
    """Of twenty thousand attempts those that are alive are read, whatever the scope of the cap."""
    batch = await acts.loaded(4, cap_units=DOLLAR)
    await acts.claim(batch, 2, reserve_units=DOLLAR)
    caps = [Cap(scope, DOLLAR) for scope in Scope]
    dead = ("INSERT INTO attempts (id, item_pk, batch_pk, account, n, state, owner, lease_until, target_key, input_hash, "
            "created_at, post_by_at, answered_at, reserved_units, charge_units) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL "
            "SELECT i + 1 FROM n WHERE i < 20000) SELECT 'x' || i, 1, batch_pk, account, i, 'succeeded', owner, lease_until, "
            "target_key, input_hash, created_at, post_by_at, created_at, 0, 0 FROM n, attempts WHERE id = 'a0'")

    async def plans(connection: Any) -> list[str]:
        explain = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        row = (await connection.execute(text("SELECT * FROM batches"))).one()
        asking = [money._sums(row, caps[1:], now=NOW, asks_out=True), *(money._out(row, cap, now=NOW) for cap in caps)]
        written = [query.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True}) for query in asking]
        return [str((await connection.execute(text(f"{explain} {query}"))).all()) for query in written]

    async def insert(connection: Any) -> None:
        await connection.execute(text(dead))

    await database.write(insert)
    for told in await database.read(plans):
        assert "ix_attempts_alive" in told and "ix_attempts_answered" not in told, told
        assert "SCAN attempts" not in told and "Seq Scan on attempts" not in told, told


async def test_the_cap_that_outlasts_the_day_is_told(acts: Any) -> None:
    """Where several bind, the one that a new day does not lift; of two that leave something, the tighter one."""
    batch = await acts.loaded(8, cap_units=4 * DOLLAR)
    caps = Cap(Scope.JOB, 2 * DOLLAR), Cap(Scope.JOB_DAY, 2 * DOLLAR)  # in the order of `caps_of`
    await end(acts, await bought(acts, batch, 8, under(acts, *caps), prefix="a"))
    assert (await acts.ledger.claimable(batch.pk, count=8, terms=under(acts, *caps))).reason == "budget: job"
    room = await acts.ledger.claimable(batch.pk, count=8, terms=under(acts, Cap(Scope.JOB, 3 * DOLLAR)))
    assert (room.count, room.reason) == (1, "budget: job")
    room = await acts.ledger.claimable(batch.pk, count=8, terms=under(acts, Cap(Scope.JOB, 9 * DOLLAR)))
    assert (room.count, room.reason) == (2, "budget")


async def test_a_shared_cap_without_a_worst_case(acts: Any) -> None:
    """A cap that comes with the settings while a batch runs of whose rows nobody knows the worst case: nothing more is bought."""
    batch = await acts.loaded(2)
    terms = under(acts, Cap(Scope.ACCOUNT, 9 * DOLLAR), reserve_units=None)
    assert await bought(acts, batch, 2, terms, prefix="a") == []
    assert await acts.ledger.pause_for_budget(batch.pk, terms=terms)
    assert "what one row may cost at worst is not known, so account_usd" in (await acts.again(batch)).reason


async def test_rows_of_unknown_cost_hold_their_reservation(acts: Any, database: Database) -> None:
    """A cap for twenty rows buys twenty of forty, though not one tells what it cost."""
    batch = await acts.loaded(40, cap_units=20 * DOLLAR)
    acts.policy = replace(acts.policy, price=None)
    total = 0
    for turn in range(10):
        claims = await bought(acts, batch, 4, under(acts), prefix=f"t{turn}-")
        total += len(claims)
        await end(acts, claims)
    assert total == 20
    now = await acts.again(batch)
    assert (now.spent_units, now.reserved_units) == (0, 20 * DOLLAR)
    assert await asked(database, "SELECT SUM(reserved_units), COUNT(charge_units) FROM attempts") == [(20 * DOLLAR, 0)]
    assert await asked(database, "SELECT spent_units, reserved_units FROM batch_days") == [(0, 20 * DOLLAR)]
    assert await acts.ledger.pause_for_budget(batch.pk, terms=under(acts))
    assert "$0.00 of $20.00 are spent and $20.00 are held for rows whose cost is not known" in (await acts.again(batch)).reason


async def test_a_charge_above_its_reservation(acts: Any) -> None:
    """It is recorded as it is and pauses its batch in the same breath; what is out is recorded as usual, and the first reason
    stands; set going again, the next such charge pauses it anew."""
    batch = await acts.loaded(8, cap_units=100 * DOLLAR)
    acts.policy = replace(acts.policy, is_capped=True)
    claims = await bought(acts, batch, 3, under(acts), prefix="a")
    await end(acts, claims[:1])
    assert (await acts.again(batch)).state is BatchState.RUNNING
    await end(acts, claims[1:2], seconds=3)
    paused = await acts.again(batch)
    assert (paused.state, paused.spent_units, paused.reserved_units) == (BatchState.PAUSED, 5 * DOLLAR // 2, DOLLAR)
    assert paused.reason == (
        "budget: row 1 cost $1.50, and only $1.00 were reserved for it, so the cap may not hold; raise budget.per_row_usd, "
        "correct the price or look at the model, and run it again")
    assert await bought(acts, batch, 3, under(acts), prefix="b") == []
    await end(acts, claims[2:], seconds=4)
    now = await acts.again(batch)
    assert (now.spent_units, now.reserved_units, now.reason) == (9 * DOLLAR // 2, 0, paused.reason)
    await acts.ledger.set_state(batch.pk, to=BatchState.RUNNING, allowed=frozenset(BatchState), reason=None, now=NOW)
    await end(acts, await bought(acts, batch, 1, under(acts), prefix="c"), seconds=3)
    assert "row 3 cost $1.50" in ((await acts.again(batch)).reason or "")


async def test_an_alarm_of_a_batch_that_is_paused_already(acts: Any) -> None:
    """Whoever resumes it reads why he should not: it takes the place of another reason, but not of the alarm before it. A batch
    that is being canceled stays so."""
    batch = await acts.loaded(8, cap_units=100 * DOLLAR)
    acts.policy = replace(acts.policy, is_capped=True)
    claims = await bought(acts, batch, 3, under(acts), prefix="a")

    async def state(to: BatchState, reason: str) -> None:
        await acts.ledger.set_state(batch.pk, to=to, allowed=frozenset(BatchState), reason=reason, now=NOW)

    await state(BatchState.PAUSED, "paused by an operator")
    for claim in claims[:2]:
        await end(acts, [claim], seconds=3)
        now = await acts.again(batch)
        assert now.state is BatchState.PAUSED and now.reason.startswith("budget: row 0 cost $1.50, and only $1.00 were reserved")
    await state(BatchState.CANCELING, "canceled by an operator")
    await end(acts, claims[2:], seconds=3)
    assert (await acts.again(batch)).state is BatchState.CANCELING


@pytest.mark.parametrize("is_capped,state", [(False, BatchState.RUNNING), (True, BatchState.PAUSED)])
async def test_charges_that_nobody_believes(acts: Any, database: Database, is_capped: bool, state: BatchState) -> None:
    """Seconds in the wrong unit, or more than a float can hold: each fact is recorded, its cost unknown and still reserved, the
    sums hold; and under a cap it pauses the batch."""
    batch = await acts.loaded(8)
    acts.policy = replace(acts.policy, is_capped=is_capped)
    claims = await bought(acts, batch, 4, under(acts), prefix="a")
    seconds = {"a0": 1e7, "a1": 1e308, "a2": 10**400, "a3": 2.0}
    done = [acts.ended(f"p-{claim.attempt_id}", attempt_id=claim.attempt_id) for claim in claims]
    facts = [fact._replace(prediction=fact.prediction._replace(metrics={"predict_time": seconds[fact.attempt_id]}))
             for fact in done]
    changes = [change for fact in facts[:2] for change in await acts.tell(fact)] + await acts.tell(*facts[2:])
    assert [change.is_absurd for change in changes] == [True, True, True, False]
    now = await acts.again(batch)
    assert (now.state, now.spent_units, now.reserved_units) == (state, DOLLAR, 3 * DOLLAR)
    assert ("row 0 cost more than $1,000,000.00, and only $1.00 were reserved" in (now.reason or "")) is is_capped
    assert await asked(database, "SELECT state, charge_units, seconds FROM attempts ORDER BY id") == [
        ("succeeded", None, 1e7), ("succeeded", None, 1e308), ("succeeded", None, None), ("succeeded", DOLLAR, 2.0)]


@pytest.mark.parametrize("is_capped,reserve_units", [(False, DOLLAR), (True, 0)])
async def test_no_alarm(acts: Any, is_capped: bool, reserve_units: int) -> None:
    """Without a cap nobody promised anything; and of what has no reservation nothing can be above it."""
    batch = await acts.loaded(2)
    acts.policy = replace(acts.policy, is_capped=is_capped)
    await end(acts, await bought(acts, batch, 1, under(acts, reserve_units=reserve_units), prefix="a"), seconds=9)
    assert (await acts.again(batch)).state is BatchState.RUNNING
