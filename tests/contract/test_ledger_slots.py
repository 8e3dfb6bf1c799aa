"""Slots as rows, on both engines: noted once, started by one, taken over from the dead."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import BatchState
from orchestrator.core.schedule import NewSlot, SlotState
from orchestrator.gateways.ledger import Database, SqlLedger
from orchestrator.gateways.ledger.tables import schedules

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
JOB = "jobs/night.yaml"


def at(seconds: float) -> datetime:
    """So long after noon."""
    return NOW + timedelta(seconds=seconds)


async def noted(ledger: SqlLedger, *states: str, job: str = JOB) -> None:
    """Slots a minute apart, from noon on, in these states."""
    new = [NewSlot(at(60 * n), SlotState(state), "missed" if state == "skipped" else None) for n, state in enumerate(states)]
    await ledger.note_slots(job, new, now=NOW)


async def claim(ledger: SqlLedger, *, owner: str = "s1", slot_at: datetime = NOW, now: datetime = NOW,
                lease_s: float = 60) -> bool:
    return await ledger.claim_slot(JOB, slot_at=slot_at, owner=owner, now=now, lease_until=now + timedelta(seconds=lease_s))


async def states(ledger: SqlLedger) -> list[str]:
    return [slot.state.value for slot in reversed(await ledger.slots_of(JOB, limit=50))]


async def test_a_rule_is_known_since_its_first_look(ledger: SqlLedger) -> None:
    """The first look at a rule is remembered, and a later one does not change it; other jobs have rules of their own."""
    assert (await ledger.slots_standing(JOB, rule="0 2 * * * UTC")).known_at is None
    await ledger.know_schedule(JOB, rule="0 2 * * * UTC", now=NOW)
    await ledger.know_schedule(JOB, rule="0 2 * * * UTC", now=at(60))
    await ledger.know_schedule("jobs/third.yaml", rule="0 3 * * * UTC", now=at(120))
    standing = await ledger.slots_standing(JOB, rule="0 2 * * * UTC")
    assert (standing.known_at, standing.last_slot_at, standing.open) == (NOW, None, [])
    assert (await ledger.slots_standing("jobs/other.yaml", rule="0 2 * * * UTC")).known_at is None


async def test_one_rule_is_in_force(ledger: SqlLedger) -> None:
    """Another rule replaces the one before; that one taken back is new, since the moment of its return."""
    for seconds, rule in ((0, "a"), (60, "b"), (120, "b")):
        await ledger.know_schedule(JOB, rule=rule, now=at(seconds))
    assert (await ledger.slots_standing(JOB, rule="a")).known_at is None
    assert (await ledger.slots_standing(JOB, rule="b")).known_at == at(60)
    await ledger.know_schedule(JOB, rule="a", now=at(180))
    assert (await ledger.slots_standing(JOB, rule="a")).known_at == at(180)
    assert (await ledger.slots_standing(JOB, rule="b")).known_at is None


async def test_rules_that_an_older_version_left(ledger: SqlLedger, database: Database) -> None:
    """It kept every rule of a job: only the newest counts, and an older one taken back counts from then on."""
    async def left(connection: AsyncConnection) -> None:
        await connection.execute(insert(schedules), [{"job": JOB, "rule": rule, "known_at": at(seconds)}
                                                     for rule, seconds in (("a", 0), ("b", 60))])

    await database.write(left)
    assert (await ledger.slots_standing(JOB, rule="b")).known_at == at(60)
    assert (await ledger.slots_standing(JOB, rule="a")).known_at is None
    await ledger.know_schedule(JOB, rule="a", now=at(120))
    assert (await ledger.slots_standing(JOB, rule="a")).known_at == at(120)


async def test_two_schedulers_meet_a_new_rule(ledger_url: str) -> None:
    """At the same moment: one of them says since when, whatever was known before."""
    async with Database.open(ledger_url) as one, Database.open(ledger_url) as two:
        ledgers = [SqlLedger(one), SqlLedger(two)]
        for n, rule in enumerate("abcabc"):
            times = [at(60 * n), at(60 * n + 1)]
            await asyncio.gather(*(ledger.know_schedule(JOB, rule=rule, now=now)
                                   for ledger, now in zip(ledgers, times, strict=True)))
            assert (await ledgers[0].slots_standing(JOB, rule=rule)).known_at in times


async def test_noted_slots(ledger: SqlLedger) -> None:
    """What stands open is told oldest first, the last slot whatever its state, the latest newest first."""
    await noted(ledger, "due", "due", "skipped")
    await noted(ledger, "due", job="jobs/other.yaml")
    standing = await ledger.slots_standing(JOB, rule="r")
    assert [slot.slot_at for slot in standing.open] == [at(0), at(60)]
    assert standing.last_slot_at == at(120)
    latest = await ledger.slots_of(JOB, limit=2)
    assert [(slot.slot_at, slot.state, slot.reason) for slot in latest] == [
        (at(120), SlotState.SKIPPED, "missed"), (at(60), SlotState.DUE, None)]


async def test_noted_again(ledger: SqlLedger) -> None:
    """Noting a slot again starts nothing again: only one that is still due may yet be skipped."""
    await noted(ledger, "due", "due", "skipped", "due")
    assert await claim(ledger)
    await noted(ledger, "skipped", "skipped", "due", "due")
    assert await states(ledger) == ["running", "skipped", "skipped", "due"]


async def test_two_claimants(ledger_url: str) -> None:
    """Two schedulers that claim a slot at the same moment: one gets it, however often they try."""
    async with Database.open(ledger_url) as one, Database.open(ledger_url) as two:
        ledgers = [SqlLedger(one), SqlLedger(two)]
        await noted(ledgers[0], *["due"] * 10)
        for n in range(10):
            answers = await asyncio.gather(*(
                claim(ledger, owner=f"s{i}", slot_at=at(60 * n)) for i, ledger in enumerate([*ledgers, *ledgers])))
            assert sum(answers) == 1
        owners = {slot.claimed_by for slot in await ledgers[0].slots_of(JOB, limit=10)}
        assert owners <= {"s0", "s1", "s2", "s3"}


async def test_two_notes_at_once(ledger_url: str) -> None:
    """Two schedulers that note the same slots at the same moment make one row of each."""
    async with Database.open(ledger_url) as one, Database.open(ledger_url) as two:
        await asyncio.gather(*(noted(SqlLedger(database), *["due"] * 20) for database in (one, two, one, two)))
        assert await states(SqlLedger(one)) == ["due"] * 20


async def test_taken_over_from_the_dead(ledger: SqlLedger) -> None:
    """A claim holds for its lease, which its owner can make longer; once it is over, another scheduler has the slot."""
    await noted(ledger, "due")
    assert await claim(ledger, lease_s=60)
    assert not await claim(ledger, owner="s2", now=at(59))
    assert await ledger.hold_slot(JOB, slot_at=NOW, owner="s1", lease_until=at(120))
    assert not await claim(ledger, owner="s2", now=at(119))
    assert await claim(ledger, owner="s2", now=at(120))
    assert not await ledger.hold_slot(JOB, slot_at=NOW, owner="s1", lease_until=at(999))
    assert not await ledger.finish_slot(JOB, slot_at=NOW, owner="s1", state=SlotState.FAILED, reason="too late")
    assert await ledger.finish_slot(JOB, slot_at=NOW, owner="s2", state=SlotState.RUNNING, batch_id="b2")
    assert [slot.batch_id for slot in await ledger.slots_of(JOB, limit=1)] == ["b2"]


async def test_a_slot_with_a_batch_is_nobody_s_to_start(ledger: SqlLedger) -> None:
    """Once its batch is written down, no lease that is over brings a slot back, and nothing moves a slot that has ended."""
    await noted(ledger, "due", "skipped")
    assert await claim(ledger)
    assert await ledger.finish_slot(JOB, slot_at=NOW, owner="s1", state=SlotState.RUNNING, batch_id="b")
    assert not await claim(ledger, owner="s2", now=at(10_000))
    assert await ledger.finish_slot(JOB, slot_at=NOW, owner="s1", state=SlotState.DONE)
    assert not await ledger.finish_slot(JOB, slot_at=NOW, owner="s1", state=SlotState.FAILED)
    assert not await claim(ledger, slot_at=at(60), now=at(10_000))
    (skipped, done) = await ledger.slots_of(JOB, limit=5)
    assert (done.state, done.batch_id, skipped.state) == (SlotState.DONE, "b", SlotState.SKIPPED)


async def test_handed_back(ledger: SqlLedger) -> None:
    """A slot handed back is due again, not before its time, with the reason why it waits."""
    await noted(ledger, "due")
    await claim(ledger)
    assert await ledger.finish_slot(JOB, slot_at=NOW, owner="s1", state=SlotState.DUE, reason="waiting: away\0",
                                    lease_until=at(30))
    (waiting,) = (await ledger.slots_standing(JOB, rule="r")).open
    assert (waiting.state, waiting.reason, waiting.lease_until) == (SlotState.DUE, "waiting: away\ufffd", at(30))
    assert not await claim(ledger, owner="s2", now=at(29))
    assert await claim(ledger, owner="s2", now=at(30))


@pytest.mark.parametrize("to", [BatchState.FINISHED, BatchState.PAUSED])
async def test_the_batch_s_state_comes_along(acts: Any, to: BatchState) -> None:
    """A slot knows whether its batch has ended; a paused one has not."""
    batch = await acts.loaded(1)
    await noted(acts.ledger, "due")
    await claim(acts.ledger)
    await acts.ledger.finish_slot(JOB, slot_at=NOW, owner="s1", state=SlotState.RUNNING, batch_id=batch.id)
    await acts.ledger.set_state(batch.pk, to=to, allowed=frozenset(BatchState), reason=None, now=NOW)
    (slot,) = (await acts.ledger.slots_standing(JOB, rule="r")).open
    assert (slot.batch_id, slot.batch_state, slot.has_ended) == (batch.id, to, to is BatchState.FINISHED)
