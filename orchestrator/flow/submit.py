"""Buy: permits, then rows, then POSTs. Every attempt is committed before its POST, and no POST is ever repeated."""

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.core.callback import callback_url
from orchestrator.core.cost import Pricing, to_units
from orchestrator.core.errors import Unreachable
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.permits import Budget, Grant
from orchestrator.core.ports import ClaimTerms, CreateAnswer, Proof, Rooms
from orchestrator.core.records import Batch, Claim, Fact, Wake
from orchestrator.core.refusals import Kind, is_low_credit, judge
from orchestrator.flow.listing import learn_clock
from orchestrator.flow.record import FactsBuffer, buffered, fact_of

AHEAD_S = 0.1  # the next permits are reserved a little before the last ones are used
SHORT_WAIT_S = 1.0  # a wait up to this is slept through; a longer one goes back to the ledger as a due time


@dataclass(frozen=True, slots=True)
class _Order:
    """What is the same for all rows of one submitting task."""

    batch: Batch
    budgets: tuple[Budget, ...]
    cancel_after_s: float | None
    reserve_units: int | None
    ends_at: float  # clock.boottime()
    said: list[str | None]  # the reason for waiting, as this task knows it to stand in the ledger


async def submit(rooms: Rooms, batch_id: str, lane: int) -> list[Wake]:
    """Buy rows of one batch for one slice of time; answers when to go on."""
    batch = await rooms.ledger.batch(batch_id)
    if batch is None or batch.state is not BatchState.RUNNING:
        return []
    await learn_clock(rooms)
    order = _order(rooms, batch)
    async with buffered(rooms) as facts:
        pause_s = await _slice(rooms, order, facts)
    after = rooms.clock.now() + timedelta(seconds=pause_s)
    return [*facts.wakes, Wake("submit", batch_id, lane, after)]


def _order(rooms: Rooms, batch: Batch) -> _Order:
    job = Job.model_validate_json(batch.job_json)
    tempo = rooms.tempo
    budgets = [Budget(f"creates:{batch.account}", tempo.creates_per_minute, tempo.create_burst)]
    if job.limits.per_minute is not None and job.limits.per_minute < (tempo.creates_per_minute or math.inf):
        burst = max(1, min(tempo.create_burst, int(job.limits.per_minute // 60) or 1))
        budgets.append(Budget(f"batch:{batch.id}", float(job.limits.per_minute), burst))
    else:
        budgets.append(Budget(f"batch:{batch.id}", 0.0, 1))  # no rate of its own, but it may be told to pause
    worst = Pricing.from_json(batch.price_json).worst_case_usd(
        cancel_after_s=job.limits.cancel_after, per_row_usd=job.budget.per_row_usd if job.budget else None)
    return _Order(batch, tuple(budgets), job.limits.cancel_after, None if worst is None else to_units(worst),
                  rooms.clock.boottime() + tempo.slice_s, [batch.reason])


async def _slice(rooms: Rooms, order: _Order, facts: FactsBuffer) -> float:
    """Reserve, claim and send until the slice ends or there is reason to wait; seconds to wait."""
    in_air: set[asyncio.Task[None]] = set()
    try:
        return await _rounds(rooms, order, facts=facts, in_air=in_air)
    finally:  # whatever ended the rounds, the POSTs that are out are heard to their end
        if in_air:
            await asyncio.wait(in_air)


async def _rounds(rooms: Rooms, order: _Order, *, facts: FactsBuffer, in_air: set[asyncio.Task[None]]) -> float:
    while rooms.clock.boottime() < order.ends_at and not rooms.stopping():
        free = min(rooms.tempo.submit_chunk, rooms.tempo.submit_concurrency - len(in_air))
        if in_air and free < rooms.tempo.submit_concurrency // 4:  # chunks, not items: a claim for each answer costs dearly
            await asyncio.wait(in_air, return_when=asyncio.FIRST_COMPLETED)
            continue
        wait_s, claims = await _round(rooms, order, free=free)
        for claim, at in claims:
            post = asyncio.create_task(_post(rooms, order, claim, at=at, facts=facts))
            in_air.add(post)
            post.add_done_callback(in_air.discard)
        if wait_s > SHORT_WAIT_S:
            return wait_s
        await rooms.clock.sleep(wait_s)
    return 0.0


async def _round(rooms: Rooms, order: _Order, *, free: int) -> tuple[float, list[tuple[Claim, float]]]:
    """One bulk of permits and the rows to use them: seconds until the next round, and each row with its moment."""
    batch = order.batch
    room = await rooms.ledger.claimable(batch.pk, count=free, terms=_terms(rooms, order, Grant(0, 0, 0)))
    if not room.count:
        return await _no_row(rooms, order, reason=room.reason, next_due_at=room.next_due_at), []
    grant = await rooms.limiter.reserve(order.budgets, count=room.count)
    await _say(rooms, order, grant.reason if not grant.count and grant.reason != "limit" else None)
    if not grant.count:
        return grant.first_in_s, []
    start = rooms.clock.boottime() + grant.first_in_s
    ids = [rooms.clock.token() for _ in range(grant.count)]
    claims = await rooms.ledger.claim(batch.pk, attempt_ids=ids, terms=_terms(rooms, order, grant))
    wait_s = max(0.0, start + (grant.count - 1) * grant.every_s - rooms.clock.boottime() - AHEAD_S)
    return wait_s, [(claim, start + n * grant.every_s) for n, claim in enumerate(claims)]


def _terms(rooms: Rooms, order: _Order, grant: Grant) -> ClaimTerms:
    now, tempo = rooms.clock.now(), rooms.tempo
    last_write = now + timedelta(seconds=grant.first_in_s + grant.count * grant.every_s + _permit_life_s(rooms, grant))
    lease = last_write + timedelta(seconds=tempo.request_timeout_s + tempo.lease_margin_s)
    made_from = (order.batch.job_json, order.batch.price_json)
    return ClaimTerms(now, lease, last_write, rooms.owner, order.reserve_units, rooms.predictions.offset_s, made_from)


def _permit_life_s(rooms: Rooms, grant: Grant) -> float:
    """Without a rate to keep, a permit only has to be younger than its lease."""
    return rooms.tempo.permit_life_s if grant.every_s > 0 else 10 * rooms.tempo.permit_life_s


async def _no_row(rooms: Rooms, order: _Order, *, reason: str | None, next_due_at: datetime | None) -> float:
    """Nothing may be claimed: say why, and stop the batch where its budget is spent for good."""
    if reason == "budget":
        await rooms.ledger.pause_for_budget(order.batch.pk, terms=_terms(rooms, order, Grant(0, 0, 0)))
        return rooms.tempo.idle_s
    if reason == "amended":
        return SHORT_WAIT_S * 2  # ends the slice: the next one reads the batch anew
    await _say(rooms, order, None if reason in ("none due", "not running", None) else reason)
    if next_due_at is not None:
        return max(0.05, (next_due_at - rooms.clock.now()).total_seconds())
    return 0.2 if reason == "in flight" else rooms.tempo.idle_s


async def _say(rooms: Rooms, order: _Order, reason: str | None) -> None:
    """Write the reason only when it changes: the batch row is read by everybody."""
    if reason == order.said[0]:
        return
    current = await rooms.ledger.batch(order.batch.id)
    if current is not None and current.reason != reason and current.state is BatchState.RUNNING:
        await rooms.ledger.note_reason(order.batch.pk, reason)
    order.said[0] = reason


async def _post(rooms: Rooms, order: _Order, claim: Claim, *, at: float, facts: FactsBuffer) -> None:
    """One purchase: wait for the permit's moment, POST once, turn the outcome into a fact."""
    handed_back = Fact(Event.NOT_SENT, rooms.clock.now(), claim.attempt_id, error="handed back: the worker is stopping")
    try:
        await rooms.clock.sleep(max(0.0, at - rooms.clock.boottime()))
    except BaseException:
        facts.add(handed_back)
        raise
    if rooms.stopping():
        facts.add(handed_back)
        return
    life_s = rooms.tempo.permit_life_s if rooms.tempo.creates_per_minute else 10 * rooms.tempo.permit_life_s
    try:
        answer = await rooms.predictions.create(
            order.batch.target, input_json=claim.input_json, post_by_s=at + life_s, cancel_after_s=order.cancel_after_s,
            webhook=callback_url(rooms.public_url, claim.attempt_id) if rooms.public_url else None)
    except BaseException:  # canceled, or a defect: either way nobody heard the answer
        facts.add(Fact(Event.ANSWER_LOST, rooms.clock.now(), claim.attempt_id, error="the answer was not heard",
                       error_class="unsure"))
        raise
    facts.add(_fact(answer, claim.attempt_id, now=rooms.clock.now()))
    with suppress(Unreachable):  # with Redis away no permit is granted either: a pause that cannot be set is kept anyway
        await _heed(rooms, order.batch, answer)


def _fact(answer: CreateAnswer, attempt_id: str, *, now: datetime) -> Fact:
    if answer.proof is Proof.CREATED and answer.prediction is not None:
        return fact_of(answer.prediction, at=now, attempt_id=attempt_id, via="post", bound_by="post")
    if answer.proof is Proof.NOT_SENT:
        return Fact(Event.NOT_SENT, now, attempt_id, error=answer.detail)
    if answer.proof is Proof.UNSURE:
        return Fact(Event.ANSWER_LOST, now, attempt_id, error=answer.detail, error_class="unsure")
    refusal = judge(answer.status or 0, answer.detail or "")
    event = {Kind.THROTTLED: Event.THROTTLED, Kind.HELD: Event.HELD}.get(refusal.kind, Event.REFUSED)
    return Fact(event, now, attempt_id, error=refusal.sentence, error_class=refusal.error_class)


async def _heed(rooms: Rooms, batch: Batch, answer: CreateAnswer) -> None:
    """What one answer means for everybody: a pause, a stop, or a provider's clock learned."""
    budget, now = f"creates:{batch.account}", rooms.clock.now()
    if answer.proof is Proof.NOT_SENT and answer.detail and answer.detail.startswith("cannot reach"):
        await rooms.limiter.pause(budget, seconds=rooms.tempo.outage_pause_s, reason=answer.detail)
    if answer.proof is not Proof.REFUSED:
        return
    refusal = judge(answer.status or 0, answer.detail or "")
    if refusal.kind is Kind.THROTTLED:
        reason = "low credit: 6 per minute" if is_low_credit(answer.detail or "") else "throttled by the provider (429)"
        seconds = (answer.retry_after_s or 2.0) + rooms.clock.jitter()
        await rooms.limiter.pause(budget, seconds=seconds, reason=reason)
    elif refusal.kind is Kind.HELD:
        await rooms.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}),
                                     reason=refusal.sentence, now=now)
