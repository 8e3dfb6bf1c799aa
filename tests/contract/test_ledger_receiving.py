"""Webhooks into the ledger: bound to their attempt, once, and with their effect in one transaction."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from orchestrator.core.lifecycle import Event
from orchestrator.core.prediction import parse
from orchestrator.core.records import Delivery, Prediction, Role
from orchestrator.gateways.ledger import Database
from tests.contract.conftest import NOW


def hook(message: str, attempt_id: str, prediction_id: str, *, status: str = "succeeded", after_s: float = 2.0) -> Delivery:
    prediction = Prediction(prediction_id, status, model="acme/draw", output=["https://x/1.png"], logs_tail="done\n",
                            metrics={"predict_time": 2.0}, created_at=NOW, completed_at=NOW + timedelta(seconds=2))
    return Delivery(message, attempt_id, prediction, NOW + timedelta(seconds=after_s))


async def take(acts: Any, *deliveries: Delivery) -> list[str]:
    receipts, _ = await acts.ledger.receive(deliveries, decide=acts.decide)
    return [receipt.value for receipt in receipts]


async def rows(database: Database, query: str) -> list[Any]:
    async def read(connection: Any) -> list[Any]:
        return [tuple(row) for row in await connection.execute(text(query))]

    return await database.read(read)


async def test_a_completion_moves_its_row(acts: Any, database: Database) -> None:
    """One delivery: row collecting, charge booked, and from where it was learned."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.answered("a0", "p0"))
    assert await take(acts, hook("m1", "a0", "p0")) == ["recorded"]
    assert await acts.states(batch) == ["collecting"]
    assert await rows(database, "SELECT ended_via, logs_tail, charge_units FROM attempts") == [("webhook", "done\n", 10**12)]
    assert await acts.ledger.endings(batch.pk) == {"webhook": 1}


async def test_the_same_message_twice(acts: Any) -> None:
    """In one call, in another, or under another id: told again, nothing changes and nothing is charged twice."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.answered("a0", "p0"))
    assert await take(acts, hook("m1", "a0", "p0"), hook("m1", "a0", "p0")) == ["recorded", "recorded"]
    assert await take(acts, hook("m1", "a0", "p0"), hook("m2", "a0", "p0")) == ["recorded", "recorded"]
    assert await acts.states(batch) == ["collecting"]
    assert (await acts.again(batch)).spent_units == 10**12


async def test_a_body_replayed_for_another_attempt(acts: Any, database: Database) -> None:
    """The signature does not cover the URL: a genuine body about p0 changes nothing of a1, which has p1."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.answered("a0", "p0"), acts.answered("a1", "p1"))
    assert await take(acts, hook("m1", "a1", "p0"), hook("m1", "nobody", "p0")) == ["misaddressed", "unknown"]
    assert await acts.states(batch) == ["running", "running"]
    assert await rows(database, "SELECT id FROM deliveries") == []
    assert await take(acts, hook("m1", "a0", "p0")) == ["recorded"]  # and its own attempt still hears of it


async def test_early_and_kept(acts: Any, database: Database) -> None:
    """Before the POST's answer is recorded a delivery waits, and is applied in the transaction that records the answer."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    assert await take(acts, hook("m1", "a0", "p0")) == ["kept"]
    assert await acts.states(batch) == ["claimed"]
    changes = await acts.tell(acts.answered("a0", "p0"))
    assert [change.event for change in changes] == [Event.ANSWERED, Event.SUCCEEDED]
    assert await acts.states(batch) == ["collecting"]
    assert await rows(database, "SELECT ended_via, seconds, logs_tail FROM attempts") == [("webhook", 2.0, "done\n")]
    assert await rows(database, "SELECT id FROM deliveries") == []
    assert await take(acts, hook("m1", "a0", "p0")) == ["recorded"]
    assert (await acts.again(batch)).spent_units == 10**12


async def test_early_and_not_its_own(acts: Any, database: Database) -> None:
    """Kept under the wrong attempt: when the answer names another prediction, what was kept is dropped."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    assert await take(acts, hook("m1", "a0", "p-foreign")) == ["kept"]
    changes = await acts.tell(acts.answered("a0", "p0"))
    assert [change.event for change in changes] == [Event.ANSWERED]
    assert await acts.states(batch) == ["running"]
    assert await rows(database, "SELECT id FROM deliveries") == []


async def test_kept_for_too_long(acts: Any, database: Database) -> None:
    """What waits longer than it should is found, by account, and can be dropped; a doubt is kept apart from it."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0", error_class="unsure"))
    await take(acts, hook("m1", "a0", "p0", after_s=1), hook("m2", "a1", "p1", after_s=8))
    (kept,) = await acts.ledger.kept("acme", before=NOW + timedelta(seconds=5))
    assert (kept.message_id, kept.attempt_id, kept.prediction_id) == ("m1", "a0", "p0")
    assert await acts.ledger.kept("somebody else", before=NOW + timedelta(seconds=99)) == []
    (attempt,) = await acts.ledger.attempts_of(["a0"])
    assert (attempt.attempt_id, attempt.state) == ("a0", "unsure")
    await acts.ledger.drop_kept(["m1"])
    assert await acts.ledger.kept("acme", before=NOW + timedelta(seconds=5)) == []


async def test_what_is_kept_reads_as_it_was(acts: Any, database: Database) -> None:
    """A kept payload is read by the same parser as a webhook's body."""
    await acts.claim(await acts.loaded(1), 1)
    given = hook("m1", "a0", "p0")
    await take(acts, given)
    ((payload,),) = await rows(database, "SELECT payload_json FROM deliveries")
    assert parse(json.loads(payload)) == given.prediction


async def test_late_and_out_of_order(acts: Any) -> None:
    """After the end nothing a webhook says moves the row: an old `processing`, another end."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0"))
    assert await take(acts, hook("m1", "a0", "p0", status="processing"), hook("m2", "a0", "p0", status="failed")) == [
        "recorded", "recorded"]
    assert await acts.states(batch) == ["collecting"]


async def test_many_at_once_from_two_sides(acts: Any) -> None:
    """Two web parts and the door for answers, all at once: every row ends once, whichever came first."""
    batch = await acts.loaded(40)
    await acts.claim(batch, 40)
    ids = range(40)
    await asyncio.gather(
        acts.tell(*(acts.answered(f"a{n}", f"p{n}") for n in ids)),
        *(take(acts, *(hook(f"m{n}", f"a{n}", f"p{n}") for n in ids if n % 4 == part)) for part in range(4)),
        *(take(acts, *(hook(f"m{n}", f"a{n}", f"p{n}") for n in reversed(ids) if n % 2 == part)) for part in range(2)))
    assert await acts.states(batch) == ["collecting"] * 40
    assert (await acts.again(batch)).spent_units == 40 * 10**12


async def test_kept_twice(acts: Any, database: Database) -> None:
    """What waits already is not kept a second time, from whichever web part it comes."""
    await acts.claim(await acts.loaded(1), 1)
    assert await take(acts, hook("m1", "a0", "p0"), hook("m1", "a0", "p0")) == ["kept", "kept"]
    assert await take(acts, hook("m1", "a0", "p0")) == ["kept"]
    assert await rows(database, "SELECT id FROM deliveries") == [("m1",)]


def role(seen_at: datetime) -> Role:
    return Role("web@here:7", "web", "127.0.0.1:8000", "1.0", NOW, seen_at)


async def test_presence(acts: Any) -> None:
    """A role that beats is present, one that departed is not, and neither is one that fell silent long ago."""
    now = datetime.now(UTC)
    await acts.ledger.beat(role(now))
    assert [one.id for one in await acts.ledger.present(now=now, within_s=60)] == ["web@here:7"]
    assert await acts.ledger.present(now=now, within_s=-60) == []
    await acts.ledger.depart(["web@there:8"], now=now, within_s=60)
    assert len(await acts.ledger.present(now=now, within_s=60)) == 1
    await acts.ledger.depart(["web@there:8"], now=now, within_s=-60)
    assert await acts.ledger.present(now=now, within_s=60) == []
    await acts.ledger.beat(role(now))
    await acts.ledger.depart(["web@here:7"], now=now, within_s=60)
    assert await acts.ledger.present(now=now, within_s=60) == []


async def test_presence_of_a_machine_that_is_behind(acts: Any, ledger_url: str) -> None:
    """On a database that machines share its clock counts: a living worker whose machine is an hour behind is no dead one."""
    now = datetime.now(UTC)
    await acts.ledger.beat(role(now - timedelta(hours=1)))
    seen = [one.id for one in await acts.ledger.present(now=now, within_s=16)]
    assert seen == (["web@here:7"] if ledger_url.startswith("postgresql") else [])
