"""Purchases whose answer was lost: whose prediction is whose, what is canceled, and that every doubt has an end."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.callback import callback_url
from orchestrator.core.errors import NotFound, OrchestratorError, ProviderAway, ProviderRefusal, Unreadable
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.poison import MOST_ABSENT
from orchestrator.core.ports import ClaimTerms, Page
from orchestrator.core.records import REWRITE_LANE, Batch, Claim, Delivery, Fact, Prediction
from orchestrator.core.tempo import Tempo
from orchestrator.flow.control import retry
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.record import fact_of, receive, record
from orchestrator.flow.report import report
from orchestrator.flow.submit import submit
from orchestrator.gateways.testing import HandClock
from tests.flow.conftest import Stage
from tests.flow.test_money import RightClock, loaded

OURS = "https://ours.example"
COLLEAGUE = "https://colleague.example/hook"
EQUAL_ROWS = 'model: simulator/echo\nsource: { path: rows.csv }\ninput: { text: "a teapot" }\n'
LEASE_S = 152
ABSENT_AFTER_S = 460  # nothing of ours is seen created later: from then on a complete list proves that nothing was bought
CONFIRM_S = 31
_NUMBERS = itertools.count()  # what a GET said of a prediction's webhook is remembered by its id, for the process


class Shelf(RightClock):
    """A provider's list, GET and cancel, and what they were asked; only a GET shows webhooks."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: dict[str, str] = {}
        self.asked: list[str] = []
        self.canceled: list[str] = []
        self.failure: OrchestratorError | None = None  # of every GET
        self.is_listed = True  # whether the list can be read
        self.unreadable: tuple[str, ...] = ()  # what of it cannot

    async def list_page(self, **bounds: Any) -> Page:
        """As far as it can be read."""
        if not self.is_listed:
            raise ProviderAway("502")
        return replace(await super().list_page(**bounds), unreadable=self.unreadable)

    async def get(self, prediction_id: str) -> Prediction:
        """One prediction with its webhook, or the failure that is set."""
        self.asked.append(prediction_id)
        if self.failure is not None:
            raise self.failure
        return self._found(prediction_id)._replace(webhook=self.hooks.get(prediction_id))

    async def cancel(self, prediction_id: str) -> Prediction:
        """Ended at once."""
        self.canceled.append(prediction_id)
        found = self._found(prediction_id)
        ended = found._replace(status="canceled", completed_at=found.created_at)
        self.made[self.made.index(found)] = ended
        return ended

    def _found(self, prediction_id: str) -> Prediction:
        (found,) = (prediction for prediction in self.made if prediction.id == prediction_id)
        return found


class Loss:
    """A batch beside a shelf, with a clock moved by hand; attempts go by one letter each."""

    def __init__(self, stage: Stage, batch: Batch, *, public_url: str | None = None) -> None:
        self.batch = batch
        self.shelf = Shelf()
        self.clock = HandClock(start_at=stage.rooms.clock.now())
        self.rooms = replace(stage.rooms, clock=self.clock, predictions=self.shelf, tempo=Tempo(reads_per_minute=0),
                             public_url=public_url)

    async def claim(self, name: str) -> Claim:
        """An attempt at the next row, committed before its POST."""
        now = self.clock.now()
        terms = ClaimTerms(now, now + timedelta(seconds=LEASE_S), now + timedelta(seconds=1), "a:1", 0, offset_s=0.0)
        (claim,) = await self.rooms.ledger.claim(self.batch.pk, attempt_ids=[name * 26], terms=terms)
        return claim

    def made(self, claim: Claim, *, status: str = "processing", hook: str | None = None, **more: Any) -> Prediction:
        """A prediction of a claim's input, created now; whose it is nobody but its webhook says."""
        prediction = Prediction(f"lost_{next(_NUMBERS)}", status, model="simulator/echo", version="hidden",
                                input=json.loads(claim.input_json), created_at=self.clock.now(), **more)
        self.shelf.made.insert(0, prediction)
        if hook is not None:
            self.shelf.hooks[prediction.id] = hook
        return prediction

    def succeeded(self, claim: Claim, *, hook: str | None = None) -> Prediction:
        """The same, ended at once."""
        return self.made(claim, status="succeeded", hook=hook, output="x", completed_at=self.clock.now())

    async def lost(self, name: str) -> None:
        """The attempt's POST ended without an answer."""
        await self._say(Event.ANSWER_LOST, name, error_class="unsure")

    async def absent(self, name: str) -> None:
        """The attempt was found not to have bought anything."""
        await self._say(Event.ABSENT, name)

    async def given_up(self, name: str) -> None:
        """Nobody could say whether the attempt bought anything."""
        await self._say(Event.GIVEN_UP, name, error_class="unsure")

    async def _say(self, event: Event, name: str, *, error_class: str | None = None) -> None:
        error = None if error_class is None else "?"
        await record(self.rooms, [Fact(event, self.clock.now(), name * 26, error=error, error_class=error_class)])

    def answer(self, name: str, prediction: Prediction) -> Fact:
        """What the attempt's own POST was answered."""
        return fact_of(prediction, at=self.clock.now(), via="post", attempt_id=name * 26, bound_by="post")

    def adoption(self, name: str, prediction: Prediction) -> Fact:
        """What a look at the list makes of an equal input."""
        return fact_of(prediction, at=self.clock.now(), via="list", attempt_id=name * 26, bound_by="input")

    async def look(self, *lanes: int, times: int = 1, every_s: float = 0.0) -> None:
        """So much later, a sweep in each of these lanes, and again."""
        for _ in range(times):
            self.clock.advance(every_s)
            for lane in lanes:
                await sweep(self.rooms, self.batch.account, lane)

    async def ended(self, state: BatchState) -> Batch:
        """The batch, brought into this state."""
        await self.rooms.ledger.set_state(self.batch.pk, to=state, allowed=frozenset({BatchState.RUNNING}), reason=None,
                                          now=self.clock.now())
        batch = await self.rooms.ledger.batch(self.batch.id)
        assert batch is not None and batch.state is state
        return batch

    async def owned(self, names: Sequence[str]) -> dict[str, str | None]:
        """The prediction of each of these attempts."""
        attempts = await self.rooms.ledger.attempts_of([name * 26 for name in names])
        return {attempt.attempt_id[0]: attempt.prediction_id for attempt in attempts}

    async def classes(self) -> list[str]:
        """Why rows failed."""
        return [f.error_class for f in await self.rooms.ledger.failures(self.batch.pk)]  # type: ignore[attr-defined]


async def bought_again(loss: Loss) -> tuple[Claim, Prediction]:
    """A row whose first attempt was found absent, and whose second one was answered."""
    await loss.absent("a")
    claim = await loss.claim("b")
    own = loss.made(claim)
    await record(loss.rooms, [loss.answer("b", own)])
    return claim, own


async def test_an_equal_prediction_created_later(stage: Stage):
    """A colleague runs the same input after our attempt was found absent: taken for that attempt's, it would be canceled."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    await loss.claim("a")
    await loss.lost("a")
    loss.clock.advance(200)
    claim, own = await bought_again(loss)
    await loss.look(1, times=70, every_s=15)
    loss.made(claim, hook=COLLEAGUE)
    await loss.look(1, times=50, every_s=15)
    assert loss.shelf.canceled == []
    assert await loss.owned("ab") == {"a": None, "b": own.id}
    assert await stage.states(batch) == {"running": 1}


async def test_an_equal_prediction_that_nobody_can_be_asked_about(stage: Stage):
    """A colleague's prediction of the same minutes has a webhook of its own, and the GET that would show it fails: taken for one
    without a webhook, it would be canceled."""
    batch = await stage.load(1)
    loss = Loss(stage, batch, public_url=OURS)
    claim = await loss.claim("a")
    await loss.lost("a")
    foreign = loss.made(claim, hook=COLLEAGUE)
    loss.clock.advance(200)
    _, own = await bought_again(loss)
    loss.shelf.failure = ProviderAway("503")
    await loss.look(1, times=3, every_s=60)
    assert foreign.id in loss.shelf.asked
    assert loss.shelf.canceled == []
    assert await loss.owned("ab") == {"a": None, "b": own.id}


async def test_after_a_restart_the_unsure_lane_looks_first(stage: Stage):
    """A row was found absent and bought again as everything was killed, and nobody has noted yet that the worker is dead: its
    living purchase would be taken for the first attempt's, as one too many, and be canceled."""
    batch = await stage.load(2)
    loss = Loss(stage, batch)
    await loss.claim("a")
    await loss.lost("a")
    loss.clock.advance(155)  # absent as soon as can be: what is bought now may by its time be the first attempt's
    await loss.absent("a")
    mine = loss.made(await loss.claim("b"))
    await loss.look(1, every_s=600)
    await loss.look(0)
    canary = loss.made(await loss.claim("c"))
    await record(loss.rooms, [loss.answer("c", canary)])
    await loss.look(1, times=6, every_s=95)
    assert loss.shelf.canceled == []
    assert await loss.owned("abc") == {"a": None, "b": mine.id, "c": canary.id}
    assert await stage.states(batch) == {"running": 2}


async def test_what_turns_up_in_a_canceling_batch(stage: Stage):
    """A purchase that was given up is seen after all while the batch is being canceled: taken by its row, it would run on and
    be paid for though nobody wants it."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    claim = await loss.claim("a")
    await loss.lost("a")
    await loss.given_up("a")
    await loss.ended(BatchState.CANCELING)
    late = loss.made(claim)
    loss.clock.advance(100)
    await loss.look(1, 0, times=3, every_s=60)
    assert loss.shelf.canceled == [late.id]
    assert await stage.states(batch) == {"failed": 1}


async def test_purchases_that_always_come_to_nothing(stage: Stage):
    """The provider breaks every POST of a row and makes nothing: the row would be bought again without an end."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    bought = 0
    for name in "abcdefghijkl":
        await loss.claim(name)
        await loss.lost(name)
        bought += 1
        await loss.look(1, every_s=ABSENT_AFTER_S)
        assert await stage.states(batch) == {"unsure": 1}
        await loss.look(1, every_s=CONFIRM_S)
        if await stage.states(batch) != {"pending": 1}:
            break
    assert bought == MOST_ABSENT == 10
    assert await stage.states(batch) == {"failed": 1}
    assert await loss.classes() == ["infrastructure"]


async def test_equal_rows_that_changed_places(stage: Stage):
    """While GETs fail one row adopts the other's prediction by its input. Once webhooks can be seen each has its own: without
    that one would be given up, and its prediction be nobody's."""
    batch = await loaded(stage, EQUAL_ROWS, rows=2)
    loss = Loss(stage, batch, public_url=OURS)
    first, second = await loss.claim("a"), await loss.claim("b")
    loss.clock.advance(0.2)
    of_b = loss.succeeded(second, hook=callback_url(OURS, "b" * 26))
    loss.clock.advance(0.2)
    of_a = loss.succeeded(first, hook=callback_url(OURS, "a" * 26))
    await loss.lost("a")
    loss.shelf.failure = ProviderAway("503")
    await loss.look(1)
    await record(loss.rooms, [loss.answer("b", of_b)])
    loss.shelf.failure = None
    await loss.look(1, times=25, every_s=30)
    assert await loss.owned("ab") == {"a": of_a.id, "b": of_b.id}
    assert await stage.states(batch) == {"collecting": 2}
    assert loss.shelf.canceled == []


async def test_its_own_answer_after_an_adoption_by_input(stage: Stage):
    """A row adopted a stranger's equal prediction, and then its own POST is answered: the answer would be dropped, and what the
    row had bought be nobody's."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    claim = await loss.claim("a")
    foreign = loss.made(claim)
    loss.clock.advance(1)
    own = loss.made(claim)
    await loss.lost("a")
    await loss.look(1)
    assert await loss.owned("a") == {"a": foreign.id}
    await record(loss.rooms, [loss.answer("a", own)])
    await loss.look(1, times=20, every_s=30)
    assert await loss.owned("a") == {"a": own.id}
    assert await stage.states(batch) == {"running": 1}
    assert loss.shelf.canceled == []


async def test_an_adoption_and_better_evidence_in_one_call(stage: Stage):
    """The list gives a prediction to one row, and in the same call the other's own answer names it: what was noted for the first
    would be written all the same, and both would have it."""
    batch = await loaded(stage, EQUAL_ROWS, rows=2)
    loss = Loss(stage, batch)
    await loss.claim("a")
    prediction = loss.made(await loss.claim("b"))
    await loss.lost("a")
    await record(loss.rooms, [loss.adoption("a", prediction), loss.answer("b", prediction)])
    assert await loss.owned("ab") == {"a": None, "b": prediction.id}
    assert await stage.states(batch) == {"running": 1, "unsure": 1}


@pytest.mark.parametrize("state", [BatchState.CANCELING, BatchState.FINISHED])
async def test_a_failed_row_gives_back_what_is_not_its_own(stage: Stage, state: BatchState):
    """A row that was given up took, as its batch ended, what another row's own answer names: as the failed row no longer moves,
    it would keep it, and the other have nothing."""
    batch = await loaded(stage, EQUAL_ROWS, rows=2)
    loss = Loss(stage, batch)
    await loss.claim("a")
    await loss.lost("a")
    prediction = loss.made(await loss.claim("b"))
    await loss.given_up("a")
    await loss.ended(state)
    await record(loss.rooms, [loss.adoption("a", prediction)])
    assert await loss.owned("ab") == {"a": prediction.id, "b": None}
    await record(loss.rooms, [loss.answer("b", prediction)])
    assert await loss.owned("ab") == {"a": None, "b": prediction.id}
    assert await stage.states(batch) == {"failed": 1, "running": 1}


async def test_a_doubt_whose_row_has_failed_has_an_end(stage: Stage):
    """Given back what was not its own, the attempt of a failed row was in doubt for ever, and each look reached back to it."""
    batch = await loaded(stage, EQUAL_ROWS, rows=2)
    loss = Loss(stage, batch)
    await loss.claim("a")
    await loss.lost("a")
    prediction = loss.made(await loss.claim("b"))
    await loss.given_up("a")
    await loss.ended(BatchState.FINISHED)
    await record(loss.rooms, [loss.adoption("a", prediction), loss.answer("b", prediction)])
    assert len(await loss.rooms.ledger.unsure(batch.account)) == 1
    await loss.look(1, times=20, every_s=60)
    assert await loss.rooms.ledger.unsure(batch.account) == []
    assert await stage.states(batch) == {"failed": 1, "running": 1}


async def test_a_prediction_that_nobody_knows_any_more(stage: Stage):
    """Neither the list nor a GET knows a prediction that was running: asked about for ever, its row and its batch would never
    end. One 404 says little, so within the hour nothing is decided."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    prediction = loss.made(await loss.claim("a"))
    await record(loss.rooms, [loss.answer("a", prediction)])
    loss.shelf.made.clear()
    loss.shelf.failure = NotFound("no such prediction", status=404)
    await loss.look(0, 1, every_s=3600)
    assert await stage.states(batch) == {"running": 1}
    await loss.look(0, 1, times=20, every_s=3600)
    assert await stage.states(batch) == {"failed": 1}
    assert await loss.classes() == ["vanished"]
    assert loss.shelf.asked == [prediction.id] * 3
    assert not await loss.rooms.ledger.unsettled(batch.pk)


async def test_a_refused_look_at_an_early_webhook(stage: Stage):
    """The provider refuses to say whose a kept webhook is: every sweep would end there, and no row's end be heard of."""
    batch = await stage.load(2)
    loss = Loss(stage, batch)
    early = loss.made(await loss.claim("a"))
    await receive(loss.rooms, [Delivery("message_1", "a" * 26, early, loss.clock.now())])
    other = loss.succeeded(await loss.claim("b"))
    await record(loss.rooms, [loss.answer("b", other._replace(status="processing", output=None, completed_at=None))])
    loss.shelf.failure = ProviderRefusal("gone", status=410)
    await loss.look(0, times=3, every_s=30)
    assert loss.shelf.asked == [early.id]
    assert await stage.states(batch) == {"claimed": 1, "collecting": 1}


async def test_an_early_webhook_whose_prediction_a_get_does_not_know_at_first(stage: Stage):
    """Intermittent 404s for valid ids have been reported: a webhook dropped after one of them would leave its row unsure for
    minutes, though the provider has told its end."""
    batch = await stage.load(1)
    loss = Loss(stage, batch, public_url=OURS)
    claim = await loss.claim("a")
    early = loss.succeeded(claim, hook=callback_url(OURS, claim.attempt_id))
    await receive(loss.rooms, [Delivery("message_1", "a" * 26, early, loss.clock.now())])
    loss.shelf.failure = NotFound("no such prediction", status=404)
    await loss.look(0, times=2, every_s=15)
    assert await stage.states(batch) == {"claimed": 1}
    loss.shelf.failure = None
    await loss.look(0, every_s=15)
    assert loss.shelf.asked == [early.id] * 3
    assert await stage.states(batch) == {"collecting": 1}
    assert await loss.rooms.ledger.kept(batch.account, before=loss.clock.now()) == []


async def test_an_early_webhook_whose_prediction_nobody_knows(stage: Stage):
    """Asked about for ever, a webhook that nobody can say anything of would cost a GET in every look."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    early = loss.made(await loss.claim("a"))
    await receive(loss.rooms, [Delivery("message_1", "a" * 26, early, loss.clock.now())])
    loss.shelf.failure = NotFound("no such prediction", status=404)
    await loss.look(0, times=20, every_s=15)
    assert loss.shelf.asked == [early.id] * 4
    assert await loss.rooms.ledger.kept(batch.account, before=loss.clock.now()) == []


async def test_a_list_with_something_unreadable(stage: Stage, caplog: pytest.LogCaptureFixture):
    """One prediction of the list cannot be read. The others are heard of all the same; it is said, once; and as it may be what is
    looked for, nothing is found absent and bought again."""
    batch = await stage.load(2)
    loss = Loss(stage, batch)
    done = loss.succeeded(await loss.claim("a"))
    await record(loss.rooms, [loss.answer("a", done._replace(status="processing", output=None, completed_at=None))])
    await loss.claim("b")
    await loss.lost("b")
    loss.clock.advance(400)
    loss.shelf.unreadable = ("prediction lost_x has no readable status",)
    await loss.look(0, 1, times=3, every_s=CONFIRM_S)
    assert await stage.states(batch) == {"collecting": 1, "unsure": 1}
    assert [record.message.count("lost_x") for record in caplog.records if "cannot be read" in record.message] == [1]
    loss.shelf.unreadable = ()
    await loss.look(1, times=2, every_s=CONFIRM_S)
    assert await stage.states(batch) == {"collecting": 1, "pending": 1}


async def test_a_get_that_cannot_be_read(stage: Stage):
    """What the provider says of one prediction cannot be read, in the list or alone: taken for a provider that is away it would
    stop all buying, and its own row would never end."""
    batch = await stage.load(2)
    loss = Loss(stage, batch)
    odd = loss.made(await loss.claim("a"))
    await record(loss.rooms, [loss.answer("a", odd)])
    loss.shelf.made.clear()
    loss.shelf.failure = Unreadable("no readable status", status=200)
    await loss.look(0, every_s=3600)
    assert loss.shelf.asked == [odd.id]
    assert await loss.rooms.limiter.paused(f"creates:{batch.account}") is None
    assert await stage.states(batch) == {"running": 1, "pending": 1}
    await loss.look(0, times=3, every_s=3600)
    assert await loss.classes() == ["vanished"]


async def test_retry_of_an_ended_batch_looks_first(stage: Stage):
    """Given up, the batch ended, nobody has looked since, and the purchase stands in the list: `retry` would buy it again."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    claim = await loss.claim("a")
    await loss.lost("a")
    bought = loss.succeeded(claim)
    await loss.given_up("a")
    ended = await loss.ended(BatchState.FINISHED)
    loss.clock.advance(900)
    assert await retry(loss.rooms, ended, classes=frozenset({"unsure"})) == (1, 0)
    assert await loss.owned("a") == {"a": bought.id}
    assert await stage.states(batch) == {"collecting": 1}


async def test_a_failed_row_takes_what_its_older_attempt_bought(stage: Stage):
    """The second purchase fails for good while the batch goes on, then the first one turns up: canceled as one too many, it would
    be money for nothing."""
    batch = await stage.load(2)
    loss = Loss(stage, batch)
    late = loss.made(await loss.claim("a"))
    loss.shelf.made.clear()
    await loss.lost("a")
    loss.clock.advance(300)
    await loss.absent("a")
    await record(loss.rooms, [loss.answer("b", loss.made(await loss.claim("b"), status="failed", error="NSFW"))])
    assert await stage.states(batch) == {"failed": 1, "pending": 1}
    loss.shelf.made.append(late)
    await loss.look(1, times=80, every_s=15)
    assert loss.shelf.canceled == []
    assert (await loss.owned("a"))["a"] == late.id
    assert await stage.states(batch) == {"running": 1, "pending": 1}


@pytest.mark.parametrize(("owner", "states"), [(None, {"pending": 1}), ("elsewhere:7", {"unsure": 1})])
async def test_by_whose_clock(stage: Stage, owner: str | None, states: dict[str, int]):
    """An attempt made before its process had heard the provider's clock: this machine's clock says nothing of another machine's,
    by which its purchase may be yet to come."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    now = loss.clock.now()
    terms = ClaimTerms(now, now + timedelta(seconds=LEASE_S), now + timedelta(seconds=1), owner or loss.rooms.owner, 0)
    await loss.rooms.ledger.claim(batch.pk, attempt_ids=["a" * 26], terms=terms)
    await loss.lost("a")
    await loss.look(1, every_s=ABSENT_AFTER_S)
    await loss.look(1, every_s=CONFIRM_S)
    assert await stage.states(batch) == states


async def test_an_ended_batch_tells_what_was_learned_since(stage: Stage):
    """What a finished batch had given up is found, with its price: its summary said for ever that nobody knows what it cost."""
    batch = await stage.load(1, more="price: { per_run_usd: 0.25 }\n")
    loss = Loss(stage, batch)
    claim = await loss.claim("a")
    await loss.lost("a")
    loss.succeeded(claim)
    await loss.given_up("a")
    assert await report(stage.rooms, batch.id) == []
    assert _summary(batch) == ("finished", "0", 1)
    loss.clock.advance(900)
    await loss.look(1)
    assert await report(stage.rooms, batch.id) == []
    assert _summary(batch) == ("finished", "0", 1)
    assert await report(stage.rooms, batch.id, REWRITE_LANE) == []
    assert _summary(batch) == ("finished", "0.25", 0)
    (Path(batch.output_to) / "summary.json").unlink()
    assert await report(stage.rooms, batch.id, REWRITE_LANE) == []  # a doubled message
    assert not (Path(batch.output_to) / "summary.json").exists()


def _summary(batch: Batch) -> tuple[str, str, int]:
    told = json.loads((Path(batch.output_to) / "summary.json").read_text())
    return told["state"], told["cost_usd"], told["cost_unknown_items"]


@pytest.mark.parametrize("fault", ["list", "get"])
async def test_retry_that_cannot_look_buys_nothing(stage: Stage, fault: str):
    """Right after an outage is when people type it: with the list out of order, or a GET that would say whose a prediction is,
    what was given up would be bought again."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    claim = await loss.claim("a")
    await loss.lost("a")
    bought = loss.succeeded(claim)
    await loss.given_up("a")
    ended = await loss.ended(BatchState.FINISHED)
    loss.clock.advance(900)
    loss.shelf.failure = ProviderAway("503")
    loss.shelf.is_listed = fault != "list"
    with pytest.raises(ProviderAway, match="nothing is bought again"):
        await retry(loss.rooms, ended, classes=frozenset({"unsure"}))
    assert await stage.states(batch) == {"failed": 1}
    loss.shelf.failure, loss.shelf.is_listed = None, True
    assert await retry(loss.rooms, ended, classes=frozenset({"unsure"})) == (1, 0)
    assert await loss.owned("a") == {"a": bought.id}


@pytest.mark.parametrize("later_s", [5, 900])
async def test_retry_beside_an_equal_row_that_is_being_bought(stage: Stage, later_s: int):
    """Of two equal rows one is being sent, the other was given up: what is there is the latter's, unless it was created in the
    time of the former; then nobody can say, and nothing is bought again."""
    batch = await loaded(stage, EQUAL_ROWS, rows=2)
    loss = Loss(stage, batch)
    claim = await loss.claim("a")
    await loss.lost("a")
    bought = loss.succeeded(claim)
    await loss.given_up("a")
    loss.clock.advance(later_s)
    await loss.claim("b")
    loss.clock.advance(155)
    ask = retry(loss.rooms, batch, classes=frozenset({"unsure"}))
    if later_s == 900:
        assert await ask == (1, 0)  # by the look itself, as the batch goes on
    else:
        with pytest.raises(ProviderAway, match="equal row"):
            await ask
    assert (await loss.owned("a"))["a"] == (bought.id if later_s == 900 else None)
    assert await stage.states(batch) == ({"claimed": 1, "collecting": 1} if later_s == 900 else {"claimed": 1, "failed": 1})


@pytest.mark.parametrize("fast_s", [0, 3700])
async def test_retry_on_a_machine_that_is_fast(stage: Stage, fast_s: int):
    """By its clock the hour in which lost purchases are looked for was over: nothing was looked for, and the row bought again."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    claim = await loss.claim("a")
    await loss.lost("a")
    loss.succeeded(claim)
    await loss.given_up("a")
    ended = await loss.ended(BatchState.FINISHED)
    loss.clock.advance(900 + fast_s)
    loss.shelf.offset_s = float(-fast_s)
    assert await retry(loss.rooms, ended, classes=frozenset({"unsure"})) == (1, 0)


async def test_retry_as_it_is_typed(stage: Stage):
    """The command that the row's own error names looks in the list at the account's pace, and so needs what paces it."""
    stage.provider.put("faults", {"lost_answer": 1.0})
    batch = await stage.load(2)
    await submit(stage.rooms, batch.id, 0)
    lost = [Fact(Event.GIVEN_UP, stage.rooms.clock.now(), a.attempt_id, error="?", error_class="unsure")
            for a in await stage.rooms.ledger.unsure(batch.account)]
    await record(stage.rooms, lost)
    assert await report(stage.rooms, batch.id) == []
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
        "ORCHESTRATOR_HOME": str(stage.folder / "home"), "REPLICATE_API_TOKEN": "r8_simulator",
        "REPLICATE_BASE_URL": stage.provider.url, "ORCHESTRATOR_TEMPO__UNSURE_MARGIN_S": "0.2",
        "ORCHESTRATOR_TEMPO__REQUEST_TIMEOUT_S": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    await asyncio.sleep(2)  # older than a request can last: before that it might be the answer of somebody just on its way
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "orchestrator", "retry", batch.id, "--class", "unsure", "--json"],
        cwd=stage.folder, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["to_fetch"] == len(lost) == 2
    assert len(stage.provider.purchases()) == 2


async def test_a_row_takes_what_its_older_attempt_bought(stage: Stage):
    """The first purchase is seen only after the row was bought again, and the second comes to nothing: while the row waits for a
    third, the first would be canceled as one too many."""
    batch = await stage.load(1)
    loss = Loss(stage, batch)
    late = loss.made(await loss.claim("a"))
    loss.shelf.made.clear()
    await loss.lost("a")
    loss.clock.advance(300)
    await loss.absent("a")
    await loss.claim("b")
    await loss.lost("b")
    loss.shelf.made.append(late)
    await loss.look(1, times=80, every_s=15)
    assert loss.shelf.canceled == []
    assert await loss.owned("ab") == {"a": late.id, "b": None}
    assert await stage.states(batch) == {"running": 1}
