"""What the provider says of its limits, and what comes of it: for everybody, at once, and without a row's being to blame."""

import asyncio
import json
from dataclasses import replace
from typing import Any

from orchestrator.core.job import Job
from orchestrator.core.permits import Flow
from orchestrator.core.tempo import ModelLimits
from orchestrator.core.waiting import CREDIT_IS_LOW
from orchestrator.flow.collect import collect
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.submit import submit
from tests.flow.conftest import Stage


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
    stage.provider.put("limits", {"creates_per_minute": 60, "burst": 2})
    batch = await stage.load(20)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, creates_per_minute=600, slice_s=2.0))
    await submit(rooms, batch.id, 0)
    answered = creates(stage)
    assert answered["429"] <= 2
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


async def test_a_provider_out_of_order_is_left_alone(stage: Stage):
    """Five purchases in a row without an answer open the breaker: not one for each row is lost, and one answer closes it."""
    stage.provider.put("faults", {"error_before": True})
    batch = await stage.load(80)
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, submit_chunk=5, submit_concurrency=5, slice_s=2.0))
    await submit(rooms, batch.id, 0)
    assert sum(creates(stage).values()) <= 10
    assert (await said(stage, batch) or "").startswith("provider down until ")
    assert (await stage.limiter.paused(f"creates:{batch.account}") or (0, ""))[1].startswith("provider down: ")
    stage.provider.put("faults", {"error_before": None})
    await asyncio.sleep(5.2)
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


async def amend(stage: Stage, batch: Any, *, priority: int) -> None:
    """What `run` does with a job file that says another priority."""
    job = Job.model_validate(json.loads(batch.job_json) | {"limits": {"priority": priority}})
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
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, retention_s=10.0, slice_s=2.5))
    await submit(rooms, batch.id, 0)
    while (await stage.states(batch)).get("collecting") != 20:
        await sweep(rooms, batch.account)
    await asyncio.sleep(5.1)
    await submit(rooms, batch.id, 0)
    assert len(stage.provider.purchases()) == 20
    assert await said(stage, batch) == "downloads: 1 minute behind; buying waits until they catch up"
    await collect(rooms, batch.id, 0)
    await submit(rooms, batch.id, 0)
    assert len(stage.provider.purchases()) == 40
