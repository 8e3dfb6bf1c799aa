"""How far downloads are behind is told where it is asked, and by how much."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.homeward import LOOK_S, SAMPLE, Backlog
from orchestrator.core.lifecycle import Event
from orchestrator.core.ports import Claimable
from orchestrator.core.records import Batch, OutputName, StoredOutput
from orchestrator.gateways.ledger import Database
from orchestrator.gateways.ledger.backlog import oldest

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after the beginning."""
    return NOW + timedelta(seconds=seconds)


async def looked(acts: Any, batch: Batch, seconds: float, *, offset_s: float | None = 0.0) -> Claimable:
    """What `claimable` tells then, asked for what is behind."""
    found: Claimable = await acts.ledger.claimable(batch.pk, count=4, terms=replace(
        acts.terms(now=at(seconds)), asks_behind=True, offset_s=offset_s))
    return found


async def ended(acts: Any, count: int, name: str = "b", **values: Any) -> Batch:
    """A batch of which so many rows have ended there, a second after each other."""
    batch: Batch = await acts.loaded(count, name, **values)
    await acts.claim(batch, count, prefix=f"{name}-a")
    await acts.tell(*(acts.ended(f"{name}-p{n}", attempt_id=f"{name}-a{n}", seconds=n) for n in range(count)))
    return batch


async def bring_home(acts: Any, batch: Batch, count: int, *, from_s: float, every_s: float = 0.0) -> list[int]:
    """The oldest so many files that are due come home, one after the other; their rows."""
    leases = await acts.ledger.to_collect(batch.pk, count=count, now=NOW, lease_until=at(1))
    await acts.ledger.grant_names([OutputName(c.item_pk, batch.pk, c.attempt_id, c.index, 0, c.row_id) for c in leases])
    await acts.ledger.store_outputs([
        StoredOutput(c.item_pk, 0, f"{c.row_id}.png", 3, "ff", "image/png", "https://x/1.png", at(from_s + n * every_s),
                     c.attempt_id) for n, c in enumerate(leases)])
    await acts.tell(*(acts.said(Event.COLLECTED, c.attempt_id) for c in leases))
    return [c.index for c in leases]


async def test_nothing_behind(acts: Any) -> None:
    """A few files that wait are no sign, however old they are: three, and one for each hundred rows started."""
    assert (await looked(acts, await ended(acts, 3), 3000)).behind_since is None
    assert (await looked(acts, await ended(acts, 103, "more"), 3000)).behind_since == at(4)


async def test_behind_since(acts: Any) -> None:
    """The end of the oldest row that counts, and of another one as soon as files come home; told only where asked."""
    batch = await ended(acts, 8)
    assert (await looked(acts, batch, 5)).behind_since == at(3)
    assert (await acts.ledger.claimable(batch.pk, count=4, terms=acts.terms(now=at(100)))).behind_since is None
    await bring_home(acts, batch, 2, from_s=6, every_s=1)
    assert (await looked(acts, batch, 8)).behind_since == at(5)
    await bring_home(acts, batch, 3, from_s=8, every_s=1)
    assert (await looked(acts, batch, 12)).behind_since is None


async def test_each_batch_for_itself(acts: Any) -> None:
    """Another batch's files are not this one's."""
    await ended(acts, 9)
    assert (await looked(acts, await acts.loaded(4, "other"), 3000)).behind_since is None


async def test_only_what_is_collecting(acts: Any) -> None:
    """Rows that are out, failed or home do not wait for a porter."""
    batch = await acts.loaded(12)
    await acts.claim(batch, 12)
    await acts.tell(*(acts.answered(f"a{n}", f"p{n}") for n in range(12)))
    await acts.tell(*(acts.ended(f"p{n}", "canceled", seconds=n) for n in range(6)))
    assert (await looked(acts, batch, 3000)).behind_since is None


@pytest.mark.parametrize("offset_s", [0.0, -3600.0, 3600.0])
async def test_a_young_backlog_is_not_counted(acts: Any, offset_s: float) -> None:
    """Below ten seconds of age, by the provider's clock, there is nothing more to read."""
    batch = await ended(acts, 8)
    young, old = 3 + LOOK_S - 1 - offset_s, 3 + LOOK_S - offset_s
    assert (await looked(acts, batch, young, offset_s=offset_s)).backlog is None
    counted = (await looked(acts, batch, old, offset_s=offset_s)).backlog
    assert counted == Backlog(waiting=5, age_s=LOOK_S, in_air=0, home=0, home_s=0.0, idle_s=LOOK_S)


async def test_what_is_in_the_air(acts: Any) -> None:
    """Rows claimed, in doubt or running will want to be fetched as well."""
    batch = await acts.loaded(12)
    await acts.claim(batch, 9)
    await acts.tell(*(acts.ended(f"p{n}", attempt_id=f"a{n}", seconds=n) for n in range(5)))
    await acts.tell(acts.answered("a5", "p5"), acts.said(Event.ANSWER_LOST, "a6"))
    assert (await looked(acts, batch, 60)).backlog == Backlog(waiting=2, age_s=57.0, in_air=4, home=0, home_s=0.0, idle_s=57.0)


async def test_the_pace_of_the_first_files(acts: Any) -> None:
    """As long as few are home, they took since the first of them could be fetched, by whichever clock that was noted."""
    batch = await ended(acts, 20)
    await bring_home(acts, batch, 6, from_s=10, every_s=3)
    found = await looked(acts, batch, 30)
    assert found.behind_since == at(9)
    assert found.backlog == Backlog(waiting=11, age_s=21.0, in_air=0, home=6, home_s=25.0, idle_s=5.0)
    fast = (await looked(acts, batch, 30, offset_s=5.0)).backlog
    assert fast == Backlog(waiting=11, age_s=26.0, in_air=0, home=6, home_s=30.0, idle_s=5.0)


async def test_the_pace_of_the_last_files(acts: Any) -> None:
    """Of many that came home the last two hundred count, for the time in which they came; another batch's do not."""
    batch = await ended(acts, SAMPLE + 60)
    other = await ended(acts, 40, "other")
    await bring_home(acts, other, 40, from_s=1, every_s=5)
    await bring_home(acts, batch, 20, from_s=0, every_s=1)
    await bring_home(acts, batch, SAMPLE, from_s=500, every_s=2)
    found = (await looked(acts, batch, 1000)).backlog
    assert found == Backlog(waiting=40 - 5, age_s=1000 - (220 + 5), in_air=0, home=SAMPLE, home_s=2 * (SAMPLE - 1),
                            idle_s=1000 - 500 - 2 * (SAMPLE - 1))


async def test_what_is_passed_does_not_hide_the_pace(acts: Any) -> None:
    """Files tried in vain, and those that porters still hold, are older than what comes home: what came home tells the pace."""
    batch = await ended(acts, 30)
    await bring_home(acts, batch, 4, from_s=5)
    stubborn = await acts.ledger.to_collect(batch.pk, count=2, now=NOW, lease_until=at(1))
    await acts.ledger.delay_collect({item.item_pk: at(1) for item in stubborn}, due_at=at(20), error="no")
    held = await acts.ledger.to_collect(batch.pk, count=2, now=NOW, lease_until=at(100))
    await acts.ledger.grant_names([OutputName(c.item_pk, batch.pk, c.attempt_id, c.index, 0, c.row_id) for c in held])
    assert await bring_home(acts, batch, 1, from_s=40) == [8]
    found = (await looked(acts, batch, 50)).backlog
    assert found is not None
    assert (found.home, found.idle_s) == (5, 10.0)


async def test_the_read_is_of_the_index(acts: Any, database: Database) -> None:
    """What every round of buying asks is answered by the index of what is collecting, without sorting."""
    batch = await ended(acts, 8)

    async def plan(connection: Any) -> str:
        query = oldest(batch.pk, 100_000).compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
            return str((await connection.execute(text(f"EXPLAIN {query}"))).all())
        return str((await connection.execute(text(f"EXPLAIN QUERY PLAN {query}"))).all())

    told = await database.read(plan)
    assert "ix_items_collecting" in told
    assert "Sort" not in told
    assert "TEMP B-TREE" not in told
