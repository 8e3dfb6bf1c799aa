"""What is out at the provider is known: how much, since when, in doubt or silent, and whose it is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import Target

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


async def test_window(acts: Any) -> None:
    """The window counts running and unsure attempts of one account and begins with the oldest running one, as the provider
    dates it: the machine that claimed it may have another time."""
    batch = await acts.loaded(6)
    await acts.loaded(2, "theirs", account="other")
    await acts.claim(batch, 2)
    await acts.claim(batch, 2, prefix="b", now=NOW + timedelta(seconds=10))
    assert (await acts.ledger.open_window("acme")).oldest_created_at is None
    fast = acts.answered("a1", "p1")
    fast = fast._replace(prediction=fast.prediction._replace(created_at=NOW - timedelta(seconds=300)))
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"), fast, acts.answered("b0", "p2"))
    window = await acts.ledger.open_window("acme")
    assert (window.running, window.unsure, window.oldest_created_at, window.median_s) == (
        2, 1, NOW - timedelta(seconds=300), None)
    assert await acts.ledger.open_window("other") == type(window)(0, 0, None, None)


async def test_median(acts: Any) -> None:
    """The median is over provider times of the latest ended predictions of the account."""
    batch = await acts.loaded(60)
    await acts.claim(batch, 60)
    await acts.tell(*(acts.ended(f"p{n}", attempt_id=f"a{n}", seconds=n) for n in range(60)))
    assert (await acts.ledger.open_window("acme")).median_s == 34.5  # of 10 to 59: the latest fifty


async def test_stragglers(acts: Any) -> None:
    """Old running attempts are given once, and again when their next look is due; they no longer widen the window."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 2)
    await acts.claim(batch, 1, prefix="b", now=LATER)
    late = acts.answered("b0", "p2")
    late = late._replace(prediction=late.prediction._replace(created_at=LATER))
    await acts.tell(acts.answered("a0", "p0"), acts.answered("a1", "p1"), late)
    old = NOW + timedelta(seconds=60)
    found = await acts.ledger.stragglers("acme", older_than=old, now=LATER, count=9)
    assert [(a.attempt_id, a.prediction_id, a.state) for a in found] == [("a0", "p0", "running"), ("a1", "p1", "running")]
    assert (found[0].input_json, found[0].answered_at) == ('{"seed":0}', NOW + timedelta(seconds=1))
    await acts.ledger.checked(["a0", "a1"], next_check_at=LATER + timedelta(seconds=10))
    assert await acts.ledger.stragglers("acme", older_than=old, now=LATER, count=9) == []
    assert (await acts.ledger.open_window("acme")).oldest_created_at == LATER
    again = await acts.ledger.stragglers("acme", older_than=old, now=LATER + timedelta(seconds=10), count=1)
    assert [a.attempt_id for a in again] == ["a0"]
    await acts.ledger.checked([], next_check_at=LATER)


async def test_a_clock_set_back_beside_what_is_out(acts: Any) -> None:
    """What was bought before the step has a later time of ours than what was bought after it, and an earlier one over there."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 1, now=LATER)
    await acts.claim(batch, 1, prefix="b", now=NOW + timedelta(seconds=60))
    new = acts.answered("b0", "p1")
    new = new._replace(prediction=new.prediction._replace(created_at=NOW + timedelta(seconds=60)))
    await acts.tell(acts.answered("a0", "p0"), new)
    assert (await acts.ledger.open_window("acme")).oldest_created_at == NOW
    late = await acts.ledger.stragglers("acme", older_than=NOW + timedelta(seconds=1), now=LATER, count=9)
    assert [attempt.attempt_id for attempt in late] == ["a0"]


async def test_unsure_and_being_sent(acts: Any) -> None:
    """Attempts in doubt and attempts in the air are told apart, oldest first, whatever their batch, and of one account."""
    one, two = await acts.loaded(3, "one"), await acts.loaded(3, "two")
    await acts.claim(one, 2)
    await acts.claim(two, 1, prefix="b", now=NOW + timedelta(seconds=5), owner="host:2")
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"))
    unsure, sending = await acts.ledger.unsure("acme"), await acts.ledger.being_sent("acme")
    assert [(a.attempt_id, a.state, a.target_key, a.input_hash) for a in unsure] == [
        ("a0", "unsure", "models/acme/draw", "hash-0")]
    assert [(a.attempt_id, a.state, a.owner) for a in sending] == [("a1", "open", "w1"), ("b0", "open", "host:2")]
    assert await acts.ledger.unsure("other") == await acts.ledger.being_sent("other") == []


async def test_absence_is_noted(acts: Any) -> None:
    """A first look that found nothing is remembered on the attempt in doubt."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"))
    await acts.ledger.checked(["a0"], next_check_at=LATER)
    assert [a.next_check_at for a in await acts.ledger.unsure("acme")] == [LATER]


async def test_echoes(acts: Any) -> None:
    """Per target, the model and version of the latest answer, over batches; nothing of other accounts."""
    one = await acts.loaded(2, "one")
    two = await acts.loaded(2, "two")
    pinned = await acts.loaded(1, "three", target=Target("predictions", "acme/draw", "a" * 64))
    theirs = await acts.loaded(1, "four", account="other")
    for batch, prefix in ((one, "a"), (two, "b"), (pinned, "c"), (theirs, "d")):
        await acts.claim(batch, 2, prefix=prefix)
    await acts.tell(acts.answered("a0", "p0", after_s=9, version="late"), acts.answered("b0", "p1", after_s=5, version="soon"),
                    acts.answered("c0", "p2", version="pinned"), acts.answered("d0", "p3", version="theirs"))
    assert await acts.ledger.echoes("acme") == {
        "models/acme/draw": ("acme/draw", "late"), f"predictions/acme/draw:{'a' * 64}": ("acme/draw", "pinned")}


async def test_owned(acts: Any) -> None:
    """Of a list of predictions those are named that an attempt of ours holds, ended ones too."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p1", attempt_id="a1"))
    assert await acts.ledger.owned(["p0", "p1", *(f"x{n}" for n in range(1500))]) == {"p0", "p1"}
    assert await acts.ledger.owned([]) == set()


async def test_in_air(acts: Any) -> None:
    """To be canceled at the provider is what runs there and belongs to the batch."""
    batch, other = await acts.loaded(4), await acts.loaded(1, "other")
    await acts.claim(batch, 4)
    await acts.claim(other, 1, prefix="o")
    await acts.tell(acts.answered("a1", "p1"), acts.answered("a0", "p0"), acts.ended("p2", attempt_id="a2"),
                    acts.answered("o0", "q0"))
    assert await acts.ledger.in_air(batch.pk, count=9) == [("a0", "p0"), ("a1", "p1")]
    assert await acts.ledger.in_air(batch.pk, count=1) == [("a0", "p0")]


async def test_oldest_out(acts: Any) -> None:
    """The clock of the oldest paid prediction starts at its purchase, and once ended, at its completion."""
    batch = await acts.loaded(2)
    assert await acts.ledger.oldest_out_at(batch.pk) is None
    await acts.claim(batch, 1, now=NOW - timedelta(minutes=5))
    assert await acts.ledger.oldest_out_at(batch.pk) == NOW - timedelta(minutes=5)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=7))
    assert await acts.ledger.oldest_out_at(batch.pk) == NOW + timedelta(seconds=7)
    await acts.tell(acts.said(Event.COLLECTED, "a0"))
    assert await acts.ledger.oldest_out_at(batch.pk) is None


async def test_offset(acts: Any) -> None:
    """The provider's clock is unknown until noted, then the latest note counts."""
    assert await acts.ledger.offset("acme") is None
    await acts.ledger.note_offset("acme", offset_s=-180.25, now=NOW)
    await acts.ledger.note_offset("acme", offset_s=1.5, now=NOW)
    assert await acts.ledger.offset("acme") == 1.5
    assert await acts.ledger.offset("other") is None


async def test_window_outlives_its_batch(acts: Any) -> None:
    """What is out stays known when its batch is paused or ended."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.answered("a0", "p0"))
    await acts.ledger.set_state(batch.pk, to=BatchState.CANCELED, allowed=frozenset(BatchState), reason=None, now=NOW)
    assert (await acts.ledger.open_window("acme")).running == 1


async def test_the_clock_of_an_attempt(acts: Any) -> None:
    """An attempt keeps how the provider's clock stood against that of the machine which claimed it."""
    batch = await acts.loaded(2)
    for name, offset_s in (("a0", -180.5), ("b0", None)):
        await acts.ledger.claim(batch.pk, attempt_ids=[name], terms=replace(acts.terms(), offset_s=offset_s))
    found = {attempt.attempt_id: attempt.offset_s for attempt in await acts.ledger.attempts_of(["a0", "b0"])}
    assert found == {"a0": -180.5, "b0": None}
