"""Deaths of those who hold a row: counted, forgotten, and the suspects one at a time."""

from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.core.lifecycle import Event
from orchestrator.core.poison import POISON, VIA_LEASE

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


async def _die(acts: Any, batch: Any, rows: int, *, prefix: str, on: datetime) -> list[int]:
    """Claimed by somebody who dies, and proven never to have been bought; which rows."""
    claims = await acts.claim(batch, rows, prefix=prefix, now=on)
    for event, via in ((Event.ANSWER_LOST, VIA_LEASE), (Event.ABSENT, None)):
        await acts.tell(*(acts.said(event, claim.attempt_id)._replace(via=via) for claim in claims))
    return [claim.index for claim in claims]


async def test_a_row_that_ends_every_worker(acts: Any) -> None:
    """Two deaths make suspects, who then go one at a time; who lives is free, who ends a third worker is set aside."""
    batch = await acts.loaded(3)
    assert await _die(acts, batch, 3, prefix="a", on=NOW) == [0, 1, 2]
    assert await _die(acts, batch, 3, prefix="b", on=NOW + DAY) == [0, 1, 2]
    again = NOW + 2 * DAY
    assert (await acts.ledger.claimable(batch.pk, count=3, terms=acts.terms(now=again))).count == 1
    (alone,) = await acts.claim(batch, 3, prefix="c", now=again)
    assert await acts.claim(batch, 3, prefix="d", now=again) == []
    assert (await acts.ledger.claimable(batch.pk, count=3, terms=acts.terms(now=again))).count == 0
    await acts.tell(acts.ended("p0", attempt_id=alone.attempt_id))
    assert await _die(acts, batch, 3, prefix="e", on=again) == [1]
    assert await acts.states(batch) == ["collecting", "failed", "pending"]
    (_, poisoned, _) = await acts.results(batch)
    assert (poisoned.error_class, poisoned.charge_units) == ("poison", 0)
    assert await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"poison"})) == 1
    assert [c.index for c in await acts.claim(batch, 3, prefix="f", now=again + DAY)] == [1, 2]


async def test_collecting_counts_leases_that_nobody_gave_back(acts: Any) -> None:
    """Handed back or delayed, nobody died; lapsed, somebody did, and the suspects are held one at a time."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.ended("p1", attempt_id="a1"))
    ledger = acts.ledger

    async def leased(on: datetime) -> list[tuple[int, int]]:
        found = await ledger.to_collect(batch.pk, count=9, now=on, lease_until=on + timedelta(minutes=3))
        return [(one.index, one.deaths) for one in found]

    (first, second) = await ledger.to_collect(batch.pk, count=9, now=NOW + DAY, lease_until=NOW + DAY)
    await ledger.hand_back({first.item_pk: NOW + DAY}, now=NOW + DAY)
    await ledger.delay_collect({second.item_pk: NOW + DAY}, due_at=NOW + DAY, error="slow")
    assert await leased(NOW + 2 * DAY) == [(0, 0), (1, 0)]
    assert await leased(NOW + 3 * DAY) == [(0, 1), (1, 1)]
    assert await leased(NOW + 4 * DAY) == [(0, 2)]
    assert await leased(NOW + 4 * DAY) == []
    assert await leased(NOW + 5 * DAY) == [(0, POISON)]
    await ledger.hand_back({first.item_pk: NOW + 5 * DAY + timedelta(minutes=3)}, now=NOW + 5 * DAY)
    await acts.tell(acts.said(Event.UNCOLLECTABLE, "a0", error="x", error_class="poison"))
    assert await leased(NOW + 6 * DAY) == [(1, 2)]
