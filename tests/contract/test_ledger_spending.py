"""What was spent, as both engines sum it: nothing twice, nothing left out, and what nobody knows apart."""

from dataclasses import replace
from datetime import timedelta

from orchestrator.core.cost import to_units
from orchestrator.core.lifecycle import Event
from orchestrator.core.spending import BatchNames, Spent, total
from tests.contract.conftest import NOW, Acts

HALF = to_units(1) // 2  # a second costs 50 cents


async def mixed(acts: Acts, name: str = "b", prefix: str = "a"):
    """Ten rows: succeeded, failed, canceled by the deadline, refused, bought twice, of unknown price, on its way, untouched."""
    batch = await acts.loaded(10, name)
    await acts.claim(batch, 8, prefix=prefix)
    a, p = prefix, f"{prefix}p"
    await acts.tell(acts.answered(f"{a}0", f"{p}0"), acts.ended(f"{p}0", seconds=2.0))
    await acts.tell(acts.answered(f"{a}1", f"{p}1"), acts.ended(f"{p}1", "failed", output=None, error="broken"))
    await acts.tell(acts.answered(f"{a}2", f"{p}2"), acts.ended(f"{p}2", "canceled", output=None, seconds=4.0))
    await acts.tell(acts.said(Event.REFUSED, f"{a}3", error="no", error_class="invalid_input"))
    await acts.tell(acts.answered(f"{a}4", f"{p}4"), acts.ended(f"{p}4", "failed", output=None, error="(code: PA)"))
    unpriced = acts.ended(f"{p}5")
    assert unpriced.prediction is not None
    await acts.tell(acts.answered(f"{a}5", f"{p}5"), unpriced._replace(prediction=unpriced.prediction._replace(metrics={})))
    await acts.tell(acts.answered(f"{a}6", f"{p}6"))
    await acts.claim(batch, 1, prefix=f"{prefix}again", now=NOW + timedelta(seconds=60))
    await acts.tell(acts.answered(f"{prefix}again0", f"{p}9"), acts.ended(f"{p}9", seconds=6.0))
    return batch


async def test_a_batch(acts: Acts):
    """Of eight rows that were tried one was refused, and one has no answer yet; the sums are those of the batch's own account."""
    batch = await mixed(acts)
    (spent,) = (await acts.ledger.spent_by_batch([batch.pk])).values()
    assert (spent.rows, spent.predictions, spent.unknown_rows) == (6, 7, 1)
    assert (spent.succeeded_units, spent.surplus_units) == (2 * HALF + 6 * HALF, 0)
    assert (spent.failed_units, spent.canceled_units) == (0, 4 * HALF)  # its deadline ended it
    assert spent.units == (await acts.again(batch)).spent_units > 0


async def test_a_prediction_bought_beyond_need(acts: Acts):
    """It is told apart, and in no other sum."""
    batch = await acts.loaded(1)
    await acts.claim(batch, 1)
    await acts.tell(acts.said(Event.ANSWER_LOST, "a0"))
    await acts.tell(acts.said(Event.ABSENT, "a0"))
    await acts.claim(batch, 1, prefix="c", now=NOW + timedelta(seconds=60))
    await acts.tell(acts.answered("c0", "p1"), acts.ended("p1", seconds=2.0))
    await acts.tell(acts.answered("a0", "p0"))
    await acts.tell(acts.ended("p0", "canceled", output=None, seconds=3.0))
    (spent,) = (await acts.ledger.spent_by_batch(None)).values()
    assert spent == Spent(rows=1, predictions=2, succeeded_units=2 * HALF, surplus_units=3 * HALF)
    assert spent.units == (await acts.again(batch)).spent_units


async def test_what_succeeded_and_never_came_home(acts: Acts):
    """Its row failed all the same, or was bought again: money that gave nothing, and so counted under what failed."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 3)
    for n, seconds in enumerate((2.0, 4.0, 8.0)):
        await acts.tell(acts.answered(f"a{n}", f"p{n}"), acts.ended(f"p{n}", seconds=seconds))
    lost = [acts.said(Event.UNCOLLECTABLE, f"a{n}", error="no such host", error_class="output_forbidden") for n in (1, 2)]
    await acts.tell(acts.said(Event.COLLECTED, "a0"), *lost)
    (spent,) = (await acts.ledger.spent_by_batch(None)).values()
    assert (spent.succeeded_units, spent.failed_units) == (2 * HALF, 12 * HALF)
    await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"output_forbidden"}))
    (spent,) = (await acts.ledger.spent_by_batch(None)).values()
    assert (spent.succeeded_units, spent.failed_units) == (2 * HALF, 12 * HALF)  # while they wait to be bought again, too
    await acts.claim(batch, 2, prefix="c", now=NOW + timedelta(seconds=60))
    await acts.tell(acts.answered("c0", "q1"), acts.ended("q1", seconds=4.0))
    (spent,) = (await acts.ledger.spent_by_batch(None)).values()
    assert (spent.succeeded_units, spent.failed_units, spent.rows) == (6 * HALF, 12 * HALF, 3)
    assert dict(await acts.ledger.spent_by_day(None)) == {f"{NOW:%Y-%m-%d}": spent}


async def test_what_is_only_estimated(acts: Acts):
    """Charges of a deployment, whose idle time no prediction tells: part of the sums, and told apart."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0", seconds=2.0))
    assert acts.policy.price is not None
    acts.policy = replace(acts.policy, price=replace(acts.policy.price, is_estimate=True))
    await acts.tell(acts.answered("a1", "p1"), acts.ended("p1", seconds=4.0))
    (spent,) = (await acts.ledger.spent_by_batch(None)).values()
    assert (spent.units, spent.estimated_units) == (6 * HALF, 4 * HALF)
    assert await acts.ledger.estimated_usd(batch.pk) == 2


async def test_every_grouping_has_all_of_it(acts: Acts):
    """By batch, by day and by row the same dollars; only the batches that were asked for."""
    one, two = await mixed(acts), await mixed(acts, "c", "d")
    await acts.loaded(2, "untouched")
    of_batches = await acts.ledger.spent_by_batch(None)
    assert set(of_batches) == {one.pk, two.pk}
    ((day, of_day),) = await acts.ledger.spent_by_day([one.pk])
    assert day == f"{NOW:%Y-%m-%d}" and of_day == of_batches[one.pk]
    chunks = [chunk async for chunk in acts.ledger.spent_by_row(one.pk)]
    assert [first for first, _, _ in chunks] == [0, 4, 8]
    assert [blob for _, blob, _ in chunks] == [b"blob-0", b"blob-4", b"blob-8"]
    assert set().union(*(spent for _, _, spent in chunks)) == set(range(8))
    assert total(spent for _, _, rows in chunks for spent in rows.values()) == of_batches[one.pk]
    assert [names.id for names in await acts.ledger.batch_names()] == ["untouched", "c", "b"]
    assert (await acts.ledger.batch_names())[2] == BatchNames(one.pk, "b", "shots", "acme/draw")


async def test_the_day_is_that_of_the_end_in_utc(acts: Acts):
    """A prediction that ends behind midnight belongs to the new day, whatever zone the database is in."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    until_midnight = 12 * 3600.0
    await acts.tell(acts.answered("a0", "p0"), acts.ended("p0", seconds=until_midnight - 1))
    await acts.tell(acts.answered("a1", "p1"), acts.ended("p1", seconds=until_midnight + 1))
    days = await acts.ledger.spent_by_day(None)
    assert [(day, spent.rows) for day, spent in days] == [("2026-01-05", 1), ("2026-01-06", 1)]


async def test_by_batch_and_day(acts: Acts):
    """Together what the days have; between two days, both included, and of one account; and whose batches there are."""
    one = await mixed(acts)
    two = await acts.loaded(1, "c", account="other")
    await acts.claim(two, 1, prefix="d", now=NOW + timedelta(days=1))
    late = acts.ended("dp0", seconds=2.0)
    assert late.prediction is not None
    await acts.tell(acts.answered("d0", "dp0"),
                    late._replace(prediction=late.prediction._replace(completed_at=NOW + timedelta(days=1))))
    spent = acts.ledger.spent_by_batch_and_day
    found = await spent(account=None, first=None, last=None)
    today, tomorrow = NOW.date().isoformat(), (NOW + timedelta(days=1)).date().isoformat()
    assert [(pk, day) for pk, day, _ in found] == [(one.pk, today), (two.pk, tomorrow)]
    assert found[0][2] == dict(await acts.ledger.spent_by_day([one.pk]))[today]
    assert await spent(account="acme", first=None, last=None) == found[:1]
    assert await spent(account=None, first=tomorrow, last=tomorrow) == found[1:]
    assert await spent(account=None, first=None, last=today) == found[:1]
    assert await spent(account="acme", first=tomorrow, last=None) == []
    assert await acts.ledger.accounts() == ["acme", "other"]
