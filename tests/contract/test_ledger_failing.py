"""How the rows of a batch fared, as both engines count it, and the pause that is decided under the batch's lock."""

import asyncio
from datetime import timedelta

from orchestrator.core.failing import Cause, Tally
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import Batch, NewChunk, NewItem
from tests.contract.conftest import NOW, Acts


async def failed(acts: Acts, count: int, *, error: str = "broken", prefix: str = "a") -> None:
    """Attempts of these names ended as failed predictions."""
    for n in range(count):
        await acts.tell(acts.answered(f"{prefix}{n}", f"{prefix}-p{n}"))
        await acts.tell(acts.ended(f"{prefix}-p{n}", "failed", output=None, error=error))


async def test_what_is_counted(acts: Acts):
    """Refused inputs apart, rows on their way not at all, and one whose outputs are still to be fetched has worked."""
    batch = await acts.loaded(12)
    await acts.claim(batch, 9)
    await failed(acts, 3)
    for n in (3, 4):
        await acts.tell(acts.said(Event.REFUSED, f"a{n}", error="no such ratio", error_class="invalid_input"))
    await acts.tell(acts.said(Event.REFUSED, "a5", error="no such model", error_class="not_found"))
    await acts.tell(acts.answered("a6", "p6"), acts.ended("p6", "failed", output=None, error="Input failed validation"))
    await acts.tell(acts.answered("a7", "p7"), acts.ended("p7"))
    await acts.tell(acts.answered("a8", "p8"))
    assert await acts.ledger.tally(batch.pk, most=20) == Tally(worked=1, failed=5, refused=2)
    assert await acts.ledger.tally(batch.pk, most=1) == Tally(worked=1, failed=1, refused=1)


async def test_rows_that_never_were_sent(acts: Acts):
    """Rows that were bad when they were read are no failures of what was bought."""
    batch = await acts.loaded(0)
    bad = [NewItem(n, f"sku-{n}", None, None, "not a number") for n in range(4)]
    other, _ = await acts.ledger.open_batch(acts.new("c"))
    await acts.ledger.add_chunk(other.pk, NewChunk(0, bad, b"blob"))
    await acts.ledger.seal(other.pk, total=4, source_schema_json="{}", now=NOW)
    assert await acts.ledger.tally(other.pk, most=20) == Tally(0, 0, 0)
    assert await acts.ledger.tally(batch.pk, most=20) == Tally(0, 0, 0)


async def test_what_a_person_knows_of(acts: Acts):
    """It is kept, counted beyond, and counted anew when it is said again."""
    batch = await acts.loaded(8)
    await acts.claim(batch, 6)
    await failed(acts, 2)
    await acts.tell(acts.said(Event.REFUSED, "a2", error="no such ratio", error_class="invalid_input"))
    await acts.ledger.know_failures(batch.pk)
    assert await acts.ledger.tally(batch.pk, most=0) == Tally(0, 2, 1, known_failed=2, known_refused=1)
    await acts.tell(acts.answered("a3", "p3"), acts.ended("p3", "failed", output=None, error="broken"))
    assert await acts.ledger.tally(batch.pk, most=1) == Tally(0, 3, 1, known_failed=2, known_refused=1)
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset())
    await acts.ledger.know_failures(batch.pk)
    assert await acts.ledger.tally(batch.pk, most=1) == Tally(0, 0, 1, known_refused=1)


async def test_what_is_no_failure_any_more_is_not_known(acts: Acts):
    """Rows that are bought again as they expired, and one that turns up after it was given up: known is at most what stands, and
    each new failure counts."""
    batch = await acts.loaded(8)
    await acts.claim(batch, 5)
    await acts.tell(*(acts.ended(f"p{n}", attempt_id=f"a{n}") for n in range(3)))
    await acts.tell(*(acts.said(Event.UNCOLLECTABLE, f"a{n}", error="404", error_class="expired") for n in range(3)))
    await acts.tell(acts.said(Event.ANSWER_LOST, "a3"), acts.said(Event.GIVEN_UP, "a3", error_class="unsure"))
    await acts.tell(acts.said(Event.REFUSED, "a4", error="no such ratio", error_class="invalid_input"))
    await acts.ledger.know_failures(batch.pk)
    assert await acts.ledger.tally(batch.pk, most=9) == Tally(0, 4, 1, known_failed=4, known_refused=1)
    assert await acts.ledger.reopen_expired(batch.pk) == 3
    assert await acts.ledger.tally(batch.pk, most=9) == Tally(0, 1, 1, known_failed=1, known_refused=1)
    await acts.tell(acts.answered("a3", "p3")._replace(bound_by="url"))
    assert await acts.ledger.tally(batch.pk, most=9) == Tally(0, 0, 1, known_refused=1)
    await acts.claim(batch, 2, prefix="b", now=NOW + timedelta(minutes=1))
    await failed(acts, 2, prefix="b")
    assert await acts.ledger.tally(batch.pk, most=9) == Tally(0, 2, 1, known_refused=1)


async def test_twins_of_what_is_no_failure_any_more(acts: Acts):
    """They leave with the row that is bought for them: of what stands and was known not one try is new."""
    batch, _ = await acts.ledger.open_batch(acts.new("twins", job_json='{"retry": {}}'))
    texts = "aaab"
    await acts.ledger.add_chunk(batch.pk, NewChunk(0, [
        NewItem(n, f"r{n}", f'{{"text":"{letter}"}}', f"hash-{letter}", shares=True) for n, letter in enumerate(texts)], b"blob"))
    await acts.ledger.seal(batch.pk, total=4, source_schema_json="{}", now=NOW)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.ended("p1", "failed", attempt_id="a1", output=None, error="broken"))
    await acts.tell(acts.said(Event.UNCOLLECTABLE, "a0", error="404", error_class="expired"))
    await acts.ledger.know_failures(batch.pk)
    assert await acts.ledger.tally(batch.pk, most=9) == Tally(0, 4, 0, known_failed=4, shared=2, known_shared=2)
    assert await acts.ledger.reopen_expired(batch.pk) == 1
    assert await acts.ledger.tally(batch.pk, most=9) == Tally(0, 1, 0, known_failed=1)


async def test_the_pause_is_decided_once_and_under_the_lock(acts: Acts):
    """Of two who ask at once one pauses; both are told the causes; a batch that does not run is not asked about."""
    batch = await acts.loaded(4)
    await acts.claim(batch, 4)
    await failed(acts, 2, error="out of memory")
    await acts.tell(acts.answered("a2", "p2"), acts.ended("p2", "failed", output=None, error="broken"))
    asked: list[tuple[Batch, Tally]] = []

    def decide(now_is: Batch, tally: Tally) -> str:
        asked.append((now_is, tally))
        return "stopped"

    async def ask() -> bool:
        return await acts.ledger.pause_for_failures(batch.pk, most=9, decide=decide, now=NOW)

    assert sorted(await asyncio.gather(ask(), ask())) == [False, True]
    (now_is, tally), *more = asked
    assert (tally.unknown, tally.out) == (0, 1)
    assert tally.causes == (Cause("memory", 2, "out of memory"), Cause("model", 1, "broken")) and not more
    stands = await acts.again(batch)
    assert (stands.state, stands.reason) == (BatchState.PAUSED, "stopped")
    assert now_is.state is BatchState.RUNNING


async def test_the_numbers_of_a_pause_agree(acts: Acts):
    """Whoever looks counts no further than the bound; what is said under the lock is all that failed, and its causes add up."""
    batch = await acts.loaded(8)
    await acts.claim(batch, 8)
    await failed(acts, 5)
    for n in (5, 6):
        await acts.tell(acts.said(Event.REFUSED, f"a{n}", error="no such ratio", error_class="invalid_input"))
    assert (await acts.ledger.tally(batch.pk, most=3)).failed == 3
    told: list[Tally] = []
    await acts.ledger.pause_for_failures(batch.pk, most=3, decide=lambda _batch, tally: told.append(tally), now=NOW)
    (tally,) = told
    assert (tally.failed, tally.refused, tally.shared) == (5, 2, 0)
    assert tally.failed + tally.refused == sum(cause.count for cause in tally.causes)


async def test_nothing_is_paused_without_a_reason(acts: Acts):
    """Whoever said "go on" since somebody looked is heard: the decision is asked for anew."""
    batch = await acts.loaded(4)
    assert not await acts.ledger.pause_for_failures(batch.pk, most=9, decide=lambda _batch, _tally: None, now=NOW)
    assert (await acts.again(batch)).state is BatchState.RUNNING
