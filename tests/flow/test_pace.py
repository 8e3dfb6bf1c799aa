"""What the provider says of its limits, and what comes of it: for everybody, at once, and without a row's being to blame."""

import asyncio
import errno
import json
import random
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.apps.worker.loop import say_why
from orchestrator.core import lateness
from orchestrator.core.errors import Throttled, TokenRefused, Unreachable
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import ItemState
from orchestrator.core.permits import Flow
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.tempo import ModelLimits
from orchestrator.core.waiting import CREDIT_IS_LOW, TOO_SLOW, is_outage
from orchestrator.flow.collect import collect
from orchestrator.flow.control import pause, resume
from orchestrator.flow.hearing import Ear
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.saying import Voice
from orchestrator.flow.submit import submit
from orchestrator.flow.terms import order_of
from tests.chaos.outages import long
from tests.flow.conftest import Stage
from tests.flow.test_stations import Flaky


async def said(stage: Stage, batch: Any) -> str | None:
    """Why the batch waits, as every command reads it."""
    found = await stage.rooms.ledger.batch(batch.id)
    assert found is not None
    return found.reason


def creates(stage: Stage) -> dict[str, int]:
    """What the provider answered to creates, by status."""
    by_route: dict[str, dict[str, int]] = stage.provider.admin("calls")["routes"]
    found: dict[str, int] = {}
    for route, by_status in by_route.items():
        if route.startswith("create prediction"):
            for status, many in by_status.items():
                found[status] = found.get(status, 0) + many
    return found


async def test_a_429_holds_back_permits_that_are_out(stage: Stage):
    """Rows that were claimed when the provider said stop are handed back, and none of them counts as tried and failed."""
    stage.provider.put("limits", {"creates_per_minute": 600, "burst": 10})
    batch = await stage.load(20)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, creates_per_minute=600, slice_s=2.0))
    lane = asyncio.create_task(submit(rooms, batch.id, 0))
    while len(stage.provider.purchases()) < 4:
        await asyncio.sleep(0.01)
    stage.provider.put("limits", {"creates_per_minute": 1, "burst": 1})  # nothing is left, all of a sudden
    await lane
    answered = creates(stage)
    assert 1 <= answered["429"] <= 3
    assert await said(stage, batch) is not None and "429" in (await said(stage, batch) or "")
    states = await stage.states(batch)
    assert states["pending"] + len(stage.provider.purchases()) == 20 and "failed" not in states
    assert (await stage.limiter.paused(f"creates:{batch.account}") or (0, ""))[1].startswith("backoff")


async def test_low_credit_is_recognised_and_said(stage: Stage):
    """One refusal is enough: from then on six a minute, burst 1, and everybody can read why."""
    stage.provider.put("limits", {"creates_per_minute": 600, "burst": 10, "reduced": "credit"})
    batch = await stage.load(5)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, creates_per_minute=600, slice_s=13.0))
    await submit(rooms, batch.id, 0)  # ends when it is told to wait for longer than a second
    assert creates(stage) == {"201": 1, "429": 1}
    assert await said(stage, batch) == CREDIT_IS_LOW


async def test_a_provider_out_of_order_is_left_alone(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Five purchases in a row without an answer open the breaker: not one for each row is lost, and one answer closes it."""
    monkeypatch.setattr("orchestrator.core.heeding.BREAK_US", 2_500_000)
    stage.provider.put("faults", {"error_before": True})
    batch = await stage.load(80)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, submit_chunk=5, submit_concurrency=5, slice_s=2.0))
    await submit(rooms, batch.id, 0)
    assert sum(creates(stage).values()) <= 10
    assert (await said(stage, batch) or "").startswith("provider down until ")
    assert (await stage.limiter.paused(f"creates:{batch.account}") or (0, ""))[1].startswith("provider down: ")
    stage.provider.put("faults", {"error_before": None})
    await asyncio.sleep(2.7)
    await submit(rooms, batch.id, 0)
    assert len(stage.provider.purchases()) >= 60
    assert await stage.limiter.paused(f"creates:{batch.account}") is None
    assert await said(stage, batch) is None


async def test_a_silent_provider_gets_no_more(stage: Stage, monkeypatch: Any):
    """While nobody answers nothing more is sent: each purchase that is lost has to be looked for."""
    monkeypatch.setattr("orchestrator.flow.hearing.SILENCE_S", 0.5)
    stage.provider.put("faults", {"slow_answer": {"p": 1.0, "seconds": 2.5}})
    batch = await stage.load(60)
    tempo = replace(stage.rooms.tempo, creates_per_minute=600, create_burst=1, submit_chunk=100, slice_s=2.0)
    rooms = replace(stage.rooms, tempo=tempo)
    await submit(rooms, batch.id, 0)
    assert len(stage.provider.purchases()) <= 12
    assert (await said(stage, batch) or "").startswith("provider down: no answer")


async def test_a_changed_priority_counts_with_the_next_permit(stage: Stage):
    """An amended batch is read anew in the middle of a slice, and asks with its new weight."""
    batch = await stage.load(40, more="limits: { priority: 2 }\n")
    asked: list[Flow] = []
    reserve = stage.limiter.reserve

    async def noting(budgets: Any, *, count: int, flow: Flow | None = None) -> Any:
        assert flow is not None
        asked.append(flow)
        if len(asked) == 3:
            await amend(stage, batch, priority=9)
        return await reserve(budgets, count=count, flow=flow)

    stage.limiter.reserve = noting  # type: ignore[method-assign]
    await submit(replace(stage.rooms, tempo=replace(stage.rooms.tempo, creates_per_minute=600, slice_s=2.5)), batch.id, 0)
    assert [flow.weight for flow in asked[:4]] == [20, 20, 20, 90]


async def amend(stage: Stage, batch: Any, **limits: Any) -> None:
    """What `run` does with a job file that says other limits."""
    job = Job.model_validate(json.loads(batch.job_json) | {"limits": limits})
    await stage.rooms.ledger.amend(
        batch.pk, in_flight=batch.in_flight, max_attempts=batch.max_attempts, cap_units=batch.cap_units,
        price_json=batch.price_json, start_limit=None, job_json=job.model_dump_json())


async def test_in_flight_of_a_batch_and_of_its_model(stage: Stage):
    """No more are alive than may be, and the reason says whose bound it is."""
    stage.provider.put("faults", {"stuck": 1.0})
    batch = await stage.load(20, more="limits: { in_flight: 4 }\n")
    await submit(stage.rooms, batch.id, 0)
    assert len(stage.provider.purchases()) == 4
    assert await said(stage, batch) == "in flight: 4 predictions are out, the most for this batch"
    models = ((batch.target.name, ModelLimits(in_flight=3)),)
    await submit(replace(stage.rooms, tempo=replace(stage.rooms.tempo, models=models)), batch.id, 0)
    assert len(stage.provider.purchases()) == 4
    assert await said(stage, batch) == "in flight: 3 predictions are out, the most for this model"


async def test_no_permit_is_lost_where_in_flight_is_the_limit(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Each lane sees a place that has become free; one reserves for it, and the others of the account keep their share."""
    batch = await stage.load(25, more="limits: { in_flight: 5 }\n")
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, creates_per_minute=6000, create_burst=10))
    given, over, reserve = [0], asyncio.Event(), rooms.limiter.reserve

    async def counted(budgets: Any, **asked: Any) -> Any:
        grant = await reserve(budgets, **asked)
        given[0] += grant.count * budgets[0].key.startswith("creates:")
        return grant

    async def lane(number: int) -> None:
        while not over.is_set():
            await submit(rooms, batch.id, number)

    async def the_rest() -> None:
        while await rooms.ledger.unsettled(batch.pk):
            await sweep(rooms, batch.account)
            await collect(rooms, batch.id, 0)
            await asyncio.sleep(0.02)
        over.set()

    monkeypatch.setattr(rooms.limiter, "reserve", counted)
    async with asyncio.timeout(20):
        await asyncio.gather(*(lane(number) for number in range(3)), the_rest())
    assert given == [len(stage.provider.purchases())] == [25]


async def test_a_machine_that_is_too_slow_to_buy(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Each POST misses its moment: the reason says so, one at a time is tried, and the ledger does not fill with attempts."""
    monkeypatch.setattr(lateness, "SLOW_S", 0.0)
    batch = await stage.load(60)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, permit_life_s=-1.0))

    async def attempts() -> int:
        return sum(row.attempts for row in await rooms.ledger.items(batch.pk, limit=100))

    await submit(rooms, batch.id, 0)
    await submit(rooms, batch.id, 0)
    assert rooms.lateness.is_slow and await said(stage, batch) == TOO_SLOW
    before = await attempts()
    for _ in range(3):
        rooms.lateness.until_s = float("-inf")
        await submit(rooms, batch.id, 0)
        assert await said(stage, batch) == TOO_SLOW
    assert await attempts() <= before + 3 and not stage.provider.purchases()
    rooms.lateness.until_s = float("-inf")
    await submit(replace(rooms, tempo=stage.rooms.tempo), batch.id, 0)
    assert not rooms.lateness.is_slow and stage.provider.purchases() and await said(stage, batch) != TOO_SLOW


async def test_the_rate_of_a_model(stage: Stage):
    """What settings give one model is kept, beside the account's own rate."""
    batch = await stage.load(30)
    models = ((batch.target.name, ModelLimits(per_minute=120)),)
    await submit(replace(stage.rooms, tempo=replace(stage.rooms.tempo, models=models, slice_s=2.0)), batch.id, 0)
    assert 2 <= len(stage.provider.purchases()) <= 6
    assert await said(stage, batch) == "limit: 120 per minute, this model"


async def test_nothing_is_bought_that_cannot_be_fetched(stage: Stage):
    """Half of the time that outputs are kept is waited for downloads already: nothing more is bought until they catch up."""
    batch = await stage.load(40, model="black-forest-labs/flux-schnell", more="limits: { in_flight: 20 }\n")
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, retention_s=6.0, slice_s=1.0))
    await submit(rooms, batch.id, 0)
    while (await stage.states(batch)).get("collecting") != 20:
        await sweep(rooms, batch.account)
    await asyncio.sleep(3.1)
    await submit(rooms, batch.id, 0)
    assert len(stage.provider.purchases()) == 20
    assert await said(stage, batch) == "downloads: 1 minute behind; buying waits until they catch up"
    await collect(rooms, batch.id, 0)
    await submit(rooms, batch.id, 0)
    assert len(stage.provider.purchases()) == 40


async def test_a_full_folder_is_said_until_it_takes_files_again(stage: Stage):
    """By a batch that has nothing more to buy too: folder and remedy stand, whatever the submitting tasks have to say."""
    batch = await stage.load(4, model="black-forest-labs/flux-schnell")
    full = Flaky(stage.rooms.storage(batch.output_to), put=no_room)
    rooms = replace(stage.rooms, storage=lambda _: full)
    early = Voice(rooms, batch, Ear(rooms, order_of(rooms, batch).budgets[0]))
    await submit(rooms, batch.id, 0)
    while (await stage.states(batch)).get("collecting", 0) < 4:
        await sweep(rooms, batch.account)
    await collect(rooms, batch.id, 0)
    told = await said(stage, batch)
    assert told == (f"cannot write to {batch.output_to}: No space left on device; buying waits: make room there, and it goes "
                    "on by itself")
    await early.say("limit: 600 per minute")
    await submit(rooms, batch.id, 0)
    assert await said(stage, batch) == told and is_outage(told)
    stage.limiter.flush()
    await submit(rooms, batch.id, 0)
    assert await said(stage, batch) is None


async def no_room(*_: Any, **__: Any) -> Any:
    """A disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_an_outage_is_said_over_a_usual_reason(stage: Stage):
    """What stands is "limit: …" nearly always; `status` went on saying it while Redis was away."""
    batch = await stage.load(3)
    await stage.rooms.ledger.note_reason(batch.pk, "limit: 600 per minute")
    await say_why(stage.rooms, batch.id, Unreachable("Redis cannot be reached"))
    assert await said(stage, batch) == "cannot go on: Redis cannot be reached"


@pytest.fixture
async def broken(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[Batch, Rooms]:
    """A batch whose account's breaker is open, its pause just over, and a provider that is in order again."""
    monkeypatch.setattr("orchestrator.core.heeding.BREAK_US", 1_500_000)
    stage.provider.put("faults", {"error_before": True})
    batch = await stage.load(30)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, submit_chunk=5, submit_concurrency=5, slice_s=1.0))
    await submit(rooms, batch.id, 0)
    left_s, reason = await stage.limiter.paused(f"creates:{batch.account}") or (0.0, "")
    assert reason.startswith("provider down: ")
    stage.provider.put("faults", {"error_before": None})
    await asyncio.sleep(left_s + 0.1)
    return batch, rooms


@pytest.mark.parametrize("refusal", [Throttled("reads are used up", retry_after_s=55.0), TokenRefused("not this token")])
async def test_a_refused_question_is_an_answer(stage: Stage, broken: tuple[Batch, Rooms], refusal: Exception,
                                               monkeypatch: pytest.MonkeyPatch):
    """Before it risks a purchase the breaker asks for the account: while reads were throttled, nothing was bought."""
    batch, rooms = broken

    async def refused(_: Any) -> str:
        raise refusal

    monkeypatch.setattr(type(rooms.predictions), "account", refused)
    await submit(rooms, batch.id, 0)
    assert len(stage.provider.purchases()) > 5


async def test_a_probe_without_a_row_holds_nobody_up(stage: Stage, broken: tuple[Batch, Rooms], monkeypatch: pytest.MonkeyPatch):
    """Its permit pauses the account until it is heard of; where another lane took the last row, that was half a minute."""
    batch, rooms = broken

    async def none(*_: Any, **__: Any) -> list[Any]:
        return []

    monkeypatch.setattr(stage.rooms.ledger, "claim", none)
    await submit(replace(rooms, tempo=replace(rooms.tempo, slice_s=0.3)), batch.id, 0)
    assert await stage.limiter.paused(f"creates:{batch.account}") is None


async def test_rows_that_wait_for_their_next_try_say_so(stage: Stage):
    """After failures of the provider a row waits up to ten minutes: "3 waiting" without a word why looks like a stall."""
    stage.provider.put("faults", {"fail": 1.0})
    batch = await stage.load(3)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, retry_first_s=60.0))
    await submit(rooms, batch.id, 0)
    while (await stage.states(batch)).get("pending") != 3:
        await sweep(rooms, batch.account)
    await submit(rooms, batch.id, 0)
    words = r"backoff until [\d:]{8} UTC: rows wait for their next try, after failures"
    assert re.fullmatch(words, await said(stage, batch) or "")


async def test_the_pace_of_yesterday_does_not_count(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """A batch that goes on after a night seemed to need minutes for each file: downloads of now were "648 minutes behind"."""
    batch = await stage.load(120, model="black-forest-labs/flux-schnell", more="limits: { in_flight: 30 }\n")
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, slice_s=0.6))
    while (await stage.states(batch)).get("succeeded", 0) < 60:
        await one_round(rooms, batch)
    await at_rest(rooms, batch)
    a_day_ago(stage)
    await submit(rooms, batch.id, 0)
    while (await stage.states(batch)).get("running"):
        await sweep(rooms, batch.account)
    monkeypatch.setattr("orchestrator.gateways.ledger.claims.LOOK_S", 0.5)
    await asyncio.sleep(0.6)
    await submit(rooms, batch.id, 0)
    assert not (await said(stage, batch) or "").startswith("downloads")


async def one_round(rooms: Rooms, batch: Batch) -> None:
    """Some rows further."""
    await submit(rooms, batch.id, 0)
    await at_rest(rooms, batch)


async def at_rest(rooms: Rooms, batch: Batch) -> None:
    """All that is out comes home."""
    while any(state in (ItemState.RUNNING, ItemState.COLLECTING)
              for state, many in (await rooms.ledger.counts(batch.pk)).by_state.items() if many):
        await sweep(rooms, batch.account)
        await collect(rooms, batch.id, 0)


def a_day_ago(stage: Stage) -> None:
    """Everything that happened, happened yesterday."""
    with closing(sqlite3.connect(stage.folder / "home" / "ledger.db", timeout=30)) as db, db:
        for table, column in (("attempts", "completed_at"), ("outputs", "stored_at"), ("items", "completed_at")):
            db.execute(f"UPDATE {table} SET {column} = strftime('%Y-%m-%d %H:%M:%f', julianday({column}) - 1) || '000' "
                       f"WHERE {column} IS NOT NULL")


@long
async def test_whatever_is_changed_meanwhile_each_row_is_bought_once(stage: Stage):
    """429 storms, slow answers, and an operator who changes priority, rate and deadline, pauses and resumes: the provider's own
    ledger has each row once, and never were more alive than the model may have."""
    stage.provider.put("limits", {"creates_per_minute": 1800, "burst": 30})
    stage.provider.put("faults", {"storm_429": {"p": 0.01, "seconds": 1.0}, "slow_answer": {"p": 0.05, "seconds": 1.2}})
    batch = await stage.load(200, more="limits: { in_flight: 25 }\n")
    tempo = replace(stage.rooms.tempo, creates_per_minute=3000, create_burst=40, slice_s=1.5, lease_margin_s=20,
                    request_timeout_s=10, models=((batch.target.name, ModelLimits(in_flight=22)),))
    rooms, most = replace(stage.rooms, tempo=tempo), 0
    doing = [asyncio.create_task(one) for one in (*(again(submit, rooms, batch, n) for n in range(3)), meddling(stage, batch),
                                                  again(collect, rooms, batch, 0))]
    async with asyncio.timeout(60):
        while (states := await stage.states(batch)).get("succeeded", 0) < 200:
            most = max(most, sum(states.get(state, 0) for state in ("claimed", "running", "unsure")))
            await sweep(rooms, batch.account)
            await sweep(rooms, batch.account, 1)
    for one in doing:
        one.cancel()
    await asyncio.gather(*doing, return_exceptions=True)
    bought = [json.dumps(purchase["input"], sort_keys=True) for purchase in stage.provider.purchases()]
    assert len(bought) == len(set(bought)) == 200
    assert 0 < most <= 22


async def again(station: Any, rooms: Rooms, batch: Batch, lane: int) -> None:
    """One lane of a station, on and on."""
    while True:
        await station(rooms, batch.id, lane)
        await asyncio.sleep(0.02)


async def meddling(stage: Stage, batch: Batch) -> None:
    """An operator who cannot leave it alone."""
    chance = random.Random(1)
    while True:
        await asyncio.sleep(chance.uniform(0.2, 0.6))
        await amend(stage, batch, priority=chance.randint(0, 9), in_flight=25, per_minute=chance.choice([None, 2000, 1000]),
                    cancel_after=chance.choice([600, 900]))
        if chance.random() < 0.3:
            await pause(stage.rooms, batch)
            await asyncio.sleep(0.3)
            now = await stage.rooms.ledger.batch(batch.id)
            assert now is not None
            await resume(stage.rooms, now)
