"""What `verify`, `cancel` and the alarm about expired rows ask of the ledger, on both engines."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from orchestrator.core.lifecycle import BatchState, Event, ItemState
from orchestrator.core.records import ChargeLine, Fact, OutputName, Prediction, StoredOutput
from tests.contract.conftest import NOW, Acts


async def home(acts: Acts, pk: int) -> list[Any]:
    return [row async for rows in acts.ledger.home(pk) for row in rows]


async def stored(acts: Acts, item_pk: int, batch_pk: int, attempt_id: str, *, row: int, stem: str, index: int = 0) -> None:
    """A file of a row, at home."""
    (granted,) = await acts.ledger.grant_names([OutputName(item_pk, batch_pk, attempt_id, row, index, stem)])
    await acts.ledger.store_outputs([
        StoredOutput(item_pk, index, f"files/{granted}.png", 3, "ab" * 32, "image/png", "https://x/1.png", NOW, attempt_id)])


async def test_rows_at_home(acts: Acts) -> None:
    """Rows that succeeded, with or without files, and others that have files; each with what is to be looked for, in order."""
    batch = await acts.loaded(6)
    claims = await acts.claim(batch, 4)
    await acts.tell(*(acts.ended(f"p{n}", attempt_id=f"a{n}") for n in range(3)))
    for claim in claims[:2]:
        for index in (1, 0):
            stem = f"s{claim.index}-{index}"
            await stored(acts, claim.item_pk, batch.pk, claim.attempt_id, row=claim.index, stem=stem, index=index)
    await acts.tell(acts.said(Event.COLLECTED, "a0"), acts.said(Event.COLLECTED, "a2"))
    rows = await home(acts, batch.pk)
    assert [(row.row, row.row_id, row.state, [file.path for file in row.files]) for row in rows] == [
        (0, "sku-0", ItemState.SUCCEEDED, ["files/s0-0.png", "files/s0-1.png"]),
        (1, "sku-1", ItemState.COLLECTING, ["files/s1-0.png", "files/s1-1.png"]),
        (2, "sku-2", ItemState.SUCCEEDED, [])]
    assert (rows[0].prediction_id, rows[0].completed_at, rows[0].files[0].sha256) == ("p0", NOW + timedelta(seconds=2), "ab" * 32)


async def test_known_paths(acts: Acts) -> None:
    """Exactly the files of this batch, whatever dots and folders their names have; not what another attempt left behind."""
    batch, other = await acts.loaded(3), await acts.loaded(1, "other")
    claims, (theirs,) = await acts.claim(batch, 2), await acts.claim(other, 1, prefix="o")
    for claim, stem in zip(claims, ("Dir/a.b-0", "plain"), strict=True):
        await stored(acts, claim.item_pk, batch.pk, claim.attempt_id, row=claim.index, stem=stem)
    await stored(acts, theirs.item_pk, other.pk, theirs.attempt_id, row=0, stem="theirs")
    asked = ["files/Dir/a.b-0.png", "files/plain.png", "files/plain.webp", "files/dir/a.b-0.png", "files/theirs.png", "plain.png",
             *(f"files/none{n}.png" for n in range(900))]
    assert await acts.ledger.known_paths(batch.pk, asked) == {"files/Dir/a.b-0.png", "files/plain.png"}


async def test_attempts_to_be_found(acts: Acts) -> None:
    """All attempts of a batch in row order, and whose a prediction is, over all batches."""
    batch, other = await acts.loaded(5), await acts.loaded(1, "other")
    await acts.claim(batch, 2)
    await acts.tell(acts.said(Event.NOT_SENT, "a0"), acts.answered("a1", "p1"))
    await acts.claim(batch, 1, prefix="b", now=NOW + timedelta(minutes=1))
    await acts.claim(other, 1, prefix="o")
    await acts.tell(acts.answered("o0", "q0"))
    bought = [attempt async for some in acts.ledger.bought(batch.pk) for attempt in some]
    assert [(a.attempt_id, a.row, a.n, a.state, a.prediction_id) for a in bought] == [
        ("a0", 0, 1, "not_sent", None), ("b0", 0, 2, "open", None), ("a1", 1, 1, "running", "p1")]
    owners = await acts.ledger.owners(prediction_ids=["p1", "q0", "none"], attempt_ids=["b0"])
    assert {(o.attempt_id, o.batch_id, o.row_id, o.input_hash) for o in owners} == {
        ("a1", "b", "sku-1", "hash-1"), ("o0", "other", "sku-0", "hash-0"), ("b0", "b", "sku-0", "hash-0")}
    assert await acts.ledger.owners() == []
    found = await acts.ledger.rows_of_inputs(batch.pk, ["hash-3", "none"])
    assert (found, await acts.ledger.rows_of_inputs(batch.pk, [])) == ({"hash-3": (3, "sku-3")}, {})


async def test_since_when_answers_are_out(acts: Acts) -> None:
    """The oldest attempt whose answer is not known; none of another account, and none once all are answered."""
    batch = await acts.loaded(2)
    assert await acts.ledger.unanswered_since("acme") is None
    await acts.claim(batch, 2)
    assert await acts.ledger.unanswered_since("acme") == NOW
    assert await acts.ledger.unanswered_since("other") is None
    await acts.tell(acts.answered("a0", "p0"), acts.answered("a1", "p1"))
    assert await acts.ledger.unanswered_since("acme") is None


def gone(prediction_id: str, attempt_id: str) -> Fact:
    """Succeeded, and deleted before anybody looked."""
    return Fact(Event.SUCCEEDED, NOW, attempt_id, Prediction(prediction_id, "succeeded", created_at=NOW, completed_at=NOW,
                                                             metrics={"predict_time": 2.0}, data_removed=True))


async def test_expired_rows_are_bought_again_once(acts: Acts) -> None:
    """Those alone, and a second time never; what the first purchase cost stays spent."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 3)
    refused = acts.said(Event.REFUSED, "a2", error="no", error_class="refused")
    await acts.tell(gone("p0", "a0"), acts.ended("p1", attempt_id="a1"), refused)
    await acts.tell(acts.said(Event.UNCOLLECTABLE, "a1", error="404", error_class="expired"))
    assert await acts.ledger.expired(batch.pk) == 2
    assert await acts.ledger.reopen_expired(batch.pk) == 2
    assert await acts.states(batch) == ["pending", "pending", "failed"]
    assert (await acts.ledger.counts(batch.pk)).spent_usd == Decimal(2)
    await acts.claim(batch, 2, prefix="b", now=NOW + timedelta(minutes=1))
    await acts.tell(gone("r0", "b0"), gone("r1", "b1"))
    assert await acts.ledger.expired(batch.pk) == 2
    assert await acts.ledger.reopen_expired(batch.pk) == 0
    assert (await acts.ledger.counts(batch.pk)).spent_usd == Decimal(4)
    assert await acts.ledger.reopen_failed(batch.pk, classes=frozenset({"expired"})) == 2  # a person may


async def test_expired_rows_of_a_batch_that_has_ended_stay(acts: Acts) -> None:
    """Nothing is bought by itself in a batch that is over or canceling, nor with `attempts: 1`."""
    for name, state, most in (("f", BatchState.FINISHED, 3), ("c", BatchState.CANCELING, 3), ("one", None, 1)):
        batch = await acts.loaded(1, name)
        await acts.claim(batch, 1, prefix=name)
        await acts.tell(gone(f"p{name}", f"{name}0"))
        await acts.ledger.amend(batch.pk, in_flight=9, max_attempts=most, cap_units=None, price_json="null", start_limit=None,
                                job_json="{}")
        if state is not None:
            await acts.ledger.set_state(batch.pk, to=state, allowed=frozenset({BatchState.RUNNING}), reason=None, now=NOW)
        assert await acts.ledger.reopen_expired(batch.pk) == 0, name


async def test_what_canceling_came_to(acts: Acts) -> None:
    """Rows never bought, rows withdrawn between two attempts, predictions ended with what they cost, and what has no price."""
    batch = await acts.loaded(6)
    await acts.claim(batch, 4)
    again = Fact(Event.FAILED, NOW, "a0", Prediction("p0", "failed", error="E9243", created_at=NOW, completed_at=NOW))
    await acts.tell(again, *(acts.answered(f"a{n}", f"p{n}") for n in (1, 2, 3)))
    canceling = frozenset({BatchState.RUNNING})
    await acts.ledger.set_state(batch.pk, to=BatchState.CANCELING, allowed=canceling, reason=None, now=NOW)
    assert await acts.ledger.cancel_pending(batch.pk) == 3
    unpriced = Fact(Event.CANCELED, NOW, "a2", Prediction("p2", "canceled", created_at=NOW, completed_at=NOW))
    acts.policy = type(acts.policy)(3, 2.0, canceling=True, price=acts.policy.price, count_files=lambda _: 0)
    await acts.tell(acts.ended("p1", "canceled", seconds=3.0), unpriced)
    found = await acts.ledger.canceled(batch.pk)
    assert (found.never_bought, found.between, found.ended, found.ended_usd, found.ended_unknown) == (2, 1, 2, Decimal("1.5"), 1)


async def test_charges_and_what_they_were_reckoned_from(acts: Acts) -> None:
    """Each attempt's charge in row order, with all that is kept beside it; by prediction as well, with the row's input where
    nothing is kept to reckon from."""
    batch, other = await acts.loaded(6), await acts.loaded(1, "other")
    await acts.claim(batch, 5)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=2.5), acts.ended("p1", "aborted", attempt_id="a1"),
                    Fact(Event.SUCCEEDED, NOW, "a2", Prediction("p2", "succeeded", created_at=NOW, output=["https://x/1.png"])),
                    acts.said(Event.NOT_SENT, "a3"), acts.answered("a4", "p4"))
    await acts.claim(other, 1, prefix="o")
    await acts.tell(acts.answered("o0", "q0"))
    found = [one for some in [some async for some in acts.ledger.booked(batch.pk)] for one in some]
    assert [(b.row, b.row_id, b.n, b.state, b.prediction_id, b.units, b.basis, b.is_over) for b in found] == [
        (0, "sku-0", 1, "succeeded", "p0", 1250000000000, "metrics", True),
        (1, "sku-1", 1, "aborted", "p1", 0, "free", True),
        (2, "sku-2", 1, "succeeded", "p2", None, None, True),
        (3, "sku-3", 1, "not_sent", None, 0, "not bought", True),
        (4, "sku-4", 1, "running", "p4", None, None, False)]
    assert found[0].line == ChargeLine("second", Decimal("2.5"), Decimal("0.5"), "test")
    assert [b.line for b in found[1:]] == [None] * 4
    assert found[0].at == NOW + timedelta(seconds=2.5) and found[3].at == NOW
    by_prediction = await acts.ledger.booked_of(["p0", "p2", "q0", "none", *(f"x{n}" for n in range(900))], with_input=True)
    assert {id_: (b.batch_pk, b.input_json) for id_, b in by_prediction.items()} == {
        "p0": (batch.pk, None), "p2": (batch.pk, '{"seed":2}'), "q0": (other.pk, '{"seed":0}')}
    assert (await acts.ledger.booked_of(["p2"]))["p2"].input_json is None
    assert await acts.ledger.booked_of([]) == {}


async def test_predictions_of_unknown_cost(acts: Acts):
    """In the order of their rows, each try; not what was never answered, nor what is known, nor another batch's."""
    acts.policy = replace(acts.policy, price=None)
    batch, other = await acts.loaded(4), await acts.loaded(1, "other")
    await acts.claim(batch, 4)
    await acts.claim(other, 1, prefix="o")
    for n in (2, 0):
        await acts.tell(acts.answered(f"a{n}", f"p{n}"), acts.ended(f"p{n}", seconds=2.0))
    await acts.tell(acts.answered("o0", "op"), acts.ended("op"))
    await acts.tell(acts.said(Event.ANSWER_LOST, "a1"))
    await acts.tell(acts.said(Event.GIVEN_UP, "a1"))
    (some,) = [some async for some in acts.ledger.unpriced(batch.pk)]
    assert [(one.prediction_id, one.n, one.status) for one in some] == [("p0", 1, "succeeded"), ("p2", 1, "succeeded")]
    assert some[0].input_json == '{"seed":0}' and "predict_time" in (some[0].metrics_json or "")
