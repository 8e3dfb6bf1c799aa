"""What the ledger has already of an order that is not placed yet."""

from datetime import timedelta
from typing import Any

from sqlalchemy import text

from orchestrator.core.caps import Bound, Cap, Scope
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.ports import Met
from orchestrator.gateways.ledger import Database
from tests.contract.conftest import NOW

DOLLAR = 10**12
CAPS = tuple(Cap(scope, 10 * DOLLAR) for scope in (Scope.BATCH, Scope.JOB, Scope.ACCOUNT, Scope.JOB_DAY, Scope.ACCOUNT_DAY))


async def met(acts: Any, run_key: str, *, job: str = "shots", days: int = 0) -> Met:
    """Asked on account `acme`, so many days later."""
    found: Met = await acts.ledger.met(run_key, account="acme", job=job, caps=CAPS, reserve_units=8 * DOLLAR,
                                   now=NOW + timedelta(days=days))
    return found


def money(found: Met) -> list[tuple[int, int, bool]]:
    """Dollars spent and reserved, and whether what is out may free enough, cap by cap."""
    assert found.bounds is not None and [bound.cap for bound in found.bounds] == list(CAPS)
    return [(bound.spent_units // DOLLAR, bound.reserved_units // DOLLAR, bound.waits) for bound in found.bounds]


async def test_how_caps_stand(acts: Any):
    """By the batch's own money, and by that of all batches of its job and account, in all and today."""
    mine, other = await acts.loaded(8, "mine"), await acts.loaded(8, "other", job="portraits")
    await acts.loaded(8, "elsewhere", account="sun")
    await acts.claim(mine, 3, reserve_units=DOLLAR)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0", seconds=4.0))
    await acts.claim(other, 2, prefix="o", reserve_units=DOLLAR)
    assert money(await met(acts, "mine")) == [(2, 2, True), (2, 2, True), (2, 4, True), (2, 2, True), (2, 4, True)]
    assert money(await met(acts, "new")) == [(0, 0, False), (2, 2, True), (2, 4, True), (2, 2, True), (2, 4, True)]
    assert money(await met(acts, "new", job="nobody's")) == [
        (0, 0, False), (0, 0, False), (2, 4, True), (0, 0, False), (2, 4, True)]
    assert money(await met(acts, "mine", days=1))[3:] == [(0, 0, False), (0, 0, False)]
    await acts.tell(acts.said(Event.NOT_SENT, "a1"), acts.said(Event.NOT_SENT, "a2"))
    assert money(await met(acts, "mine"))[:2] == [(2, 0, False), (2, 0, False)]
    assert (await acts.ledger.met("x", account="nobody", job="shots", caps=CAPS[1:2], reserve_units=1, now=NOW)).bounds == (
        Bound(CAPS[1], 0, 0),)


async def test_the_batch_and_one_of_the_same_rows(acts: Any):
    """How it stands, how many rows were started and how many never were; the newest that was begun afresh, of the same job."""
    assert await met(acts, "key") == Met(None, None, tuple(Bound(cap, 0, 0) for cap in CAPS))
    batch = await acts.loaded(8, "key")
    await acts.claim(batch, 3)
    found = (await met(acts, "key")).batch
    assert found is not None and (found.id, found.state, found.started, found.never_started) == ("key", BatchState.RUNNING, 3, 5)
    for name in ("key-aaaaaaaa", "key-bbbbbbbb", "key-too-long-", "keyx-cccccccc", "k_y-dddddddd"):
        await acts.ledger.open_batch(acts.new(name))
    await acts.ledger.open_batch(acts.new("key-eeeeeeee", job="portraits"))
    fresh = (await met(acts, "key")).fresh
    assert fresh is not None and (fresh.id, fresh.state, fresh.never_started) == ("key-bbbbbbbb", BatchState.LOADING, None)
    assert (await met(acts, "key-bbbbbbbb")).batch == fresh and (await met(acts, "key-bbbbbbbb")).fresh is None
    assert (await met(acts, "k%y")).fresh is None


async def test_a_ledger_of_another_version(acts: Any, database: Database):
    """It may not have the table that tells how caps stand, and nothing is changed by asking."""
    await acts.loaded(4, "key")

    async def older(connection: Any) -> None:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0009'"))

    await database.write(older)
    found = await met(acts, "key")
    assert found.bounds is None and found.batch is not None and found.batch.never_started == 4
