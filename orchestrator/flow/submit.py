"""Buy: permits, then rows, then POSTs. Every attempt is committed before its POST, and no POST is ever repeated."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from orchestrator.core import homeward
from orchestrator.core.callback import callback_url
from orchestrator.core.caps import is_budget, is_spent
from orchestrator.core.errors import Unreachable
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.pacing import LIMIT_REASON, PROVIDER_DOWN
from orchestrator.core.permits import Grant
from orchestrator.core.ports import LAPSED, Claimable, ClaimTerms, CreateAnswer, Proof, Rooms
from orchestrator.core.records import Claim, Fact, Wake
from orchestrator.core.refusals import Kind, judge
from orchestrator.core.waiting import TOO_SLOW, TRIED_AGAIN, behind, in_words, limited, until
from orchestrator.flow.failing import Watch
from orchestrator.flow.hearing import SILENCE_S, Ear
from orchestrator.flow.listing import learn_clock, provider_now
from orchestrator.flow.record import FactsBuffer, buffered, fact_of
from orchestrator.flow.saying import Voice
from orchestrator.flow.terms import Order, budgets_for, order_of

log = logging.getLogger("orchestrator.flow")
AHEAD_S = 0.1  # the next permits are reserved a little before the last ones are used
SHORT_WAIT_S = 1.0  # a wait up to this is slept through; a longer one goes back to the ledger as a due time
AWAY_S = 2.0  # a lane that is not needed comes back after so long
SOON_S = 5.0  # a row that is tried again within this is no reason to speak of
LONG_WAIT_S = 5.0  # and nobody stays away longer: a pause ends with the first answer
BEHIND_EVERY_S = 1.0  # between two looks at how far downloads are behind
FULL_S = 0.2  # between two looks while as many are in flight as may be


@dataclass(slots=True)
class _Task:
    """One submitting task: what it buys by, what it has in the air, what it hears and says."""

    rooms: Rooms
    order: Order
    facts: FactsBuffer
    ear: Ear
    voice: Voice
    lane: int
    ends_at_s: float  # clock.boottime()
    part: float = 1.0  # of the batch's rate, that downloads leave
    late_s: float = 0.0  # so long files wait, that are bought now
    looked_at_s: float = float("-inf")
    in_air: set[asyncio.Task[None]] = field(default_factory=set)
    failing: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.failing = Watch(self.rooms)


async def submit(rooms: Rooms, batch_id: str, lane: int) -> list[Wake]:
    """Buy rows of one batch for one slice of time; answers when to go on."""
    batch = await rooms.ledger.batch(batch_id)
    if batch is None or batch.state is not BatchState.RUNNING:
        return []
    await learn_clock(rooms)
    order = order_of(rooms, batch)
    async with buffered(rooms) as facts:
        ear, ends_at_s = Ear(rooms, order.budgets[0]), rooms.clock.boottime() + rooms.tempo.slice_s
        pause_s = await _slice(_Task(rooms, order, facts, ear, Voice(rooms, batch, ear), lane, ends_at_s))
    after = rooms.clock.now() + timedelta(seconds=min(pause_s, LONG_WAIT_S))
    return [*facts.wakes, Wake("submit", batch_id, lane, after)]


async def _slice(task: _Task) -> float:
    """Reserve, claim and send until the slice ends or there is reason to wait; seconds to wait."""
    try:
        return await _rounds(task)
    finally:  # whatever ended the rounds, the POSTs that are out are heard to their end
        if task.in_air:
            await asyncio.wait(task.in_air)
        with suppress(Unreachable):  # what was heard is said again by the next answers
            await task.ear.tell()


async def _rounds(task: _Task) -> float:
    rooms, tempo = task.rooms, task.rooms.tempo
    while rooms.clock.boottime() < task.ends_at_s and not rooms.stopping():
        free = min(tempo.submit_chunk, tempo.submit_concurrency - len(task.in_air))
        if task.in_air and free < tempo.submit_concurrency // 4:  # chunks, not items: a claim for each answer costs dearly
            await asyncio.wait(task.in_air, timeout=SHORT_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            await _listen(task)
            continue
        await task.ear.tell()
        wait_s = await _round(task, free=free)
        if wait_s > SHORT_WAIT_S:
            return wait_s
        if _is_in_the_way(task):
            return AWAY_S
        await rooms.clock.sleep(wait_s)
    return 0.0


def _is_in_the_way(task: _Task) -> bool:
    """Whether a task that is given nothing had better go. One lane is enough to wait, and it stays in its place: by way of the
    ledger it would come late for its turn. The others are there for the rate."""
    return task.lane > 0 and not task.in_air


async def _round(task: _Task, *, free: int) -> float:
    """One look, and what comes of it; seconds until the next round.

    Room for fewer rows than are asked for (places in flight that have become free, what a cap leaves, the last rows) is seen by
    each task of a batch, and permits are never given back: so one after the other looks, reserves and claims. With room for all
    nobody waits."""
    if await _listen(task):
        return SHORT_WAIT_S
    late = task.rooms.lateness
    free = 1 if late.is_slow else free
    room, batch_id, claiming = await _look(task, count=free), task.order.batch.id, task.rooms.claiming
    if room.count and (wait_s := late.wait_s(task.rooms.clock.boottime())) > 0:
        await task.voice.say(TOO_SLOW)
        return wait_s
    if room.reason is None or not room.count:
        return await _bulk(task, room)
    if batch_id in claiming:
        return FULL_S
    claiming.add(batch_id)
    try:
        return await _bulk(task, await _look(task, count=free))
    finally:
        claiming.discard(batch_id)


async def _bulk(task: _Task, room: Claimable) -> float:
    """One bulk of permits, the rows to use them, and their POSTs set going; seconds until the next round."""
    rooms, order = task.rooms, task.order
    if not room.count:
        return await _no_row(task, room)
    if await task.failing.stops(order.batch):
        return SHORT_WAIT_S
    if not task.part:
        await task.voice.say(behind(task.late_s, 0.0))
        return SHORT_WAIT_S
    flow = replace(order.flow, has_more=room.reason is None)
    grant = await rooms.limiter.reserve(budgets_for(order, part=task.part), count=room.count, flow=flow)
    await task.voice.say(_why(task, room, grant))
    if not grant.count or (grant.is_probe and not await task.ear.is_there(grant.serial)):
        return grant.first_in_s
    start_s = rooms.clock.boottime() + grant.first_in_s
    ids = [rooms.clock.token() for _ in range(grant.count)]
    claims = await rooms.ledger.claim(order.batch.pk, attempt_ids=ids, terms=_terms(task, grant))
    for n, claim in enumerate(claims):
        _set_going(task, order, claim, at_s=start_s + n * grant.every_s, serial=grant.serial - grant.count + 1 + n,
                   is_probe=grant.is_probe)
    if grant.is_probe:
        if task.in_air:
            await asyncio.wait(task.in_air)
        task.ear.probed(grant.serial)
    return max(0.0, start_s + (grant.count - 1) * grant.every_s - rooms.clock.boottime() - AHEAD_S)


async def _look(task: _Task, *, count: int) -> Claimable:
    """How many rows may go; and now and then, what part of the rate downloads leave."""
    rooms, now_s = task.rooms, task.rooms.clock.boottime()
    is_due = now_s - task.looked_at_s > BEHIND_EVERY_S
    terms = replace(_terms(task, Grant(0, 0, 0)), asks_behind=is_due)
    room = await rooms.ledger.claimable(task.order.batch.pk, count=count, terms=terms)
    if is_due:
        age_s = 0.0
        if room.behind_since is not None:
            age_s = (await provider_now(rooms, task.order.batch.account) - room.behind_since).total_seconds()
        task.looked_at_s, retention_s = now_s, rooms.tempo.retention_s
        task.part = homeward.buys(age_s, room.backlog, retention_s=retention_s)
        task.late_s = max(age_s, homeward.wait_s(room.backlog) if room.backlog else 0.0)
    return room


async def _listen(task: _Task) -> bool:
    """Whether the provider is silent; then it is said."""
    if task.ear.is_silent:
        await task.voice.say(f"{PROVIDER_DOWN}: no answer for {SILENCE_S:.0f} s")
    return task.ear.is_silent


def _set_going(task: _Task, order: Order, claim: Claim, *, at_s: float, serial: int, is_probe: bool) -> None:
    """`order`: that by which the row was claimed, as the batch may be amended meanwhile."""
    post = asyncio.create_task(_post(task, order, claim, at_s=at_s, serial=serial, is_probe=is_probe))
    task.in_air.add(post)
    post.add_done_callback(partial(_landed, task))


def _landed(task: _Task, post: asyncio.Task[None]) -> None:
    task.in_air.discard(post)
    if not post.cancelled() and (error := post.exception()) is not None:  # its fact was recorded before
        log.error("after a purchase of batch %s", task.order.batch.id, exc_info=error)


def _terms(task: _Task, grant: Grant) -> ClaimTerms:
    rooms, order = task.rooms, task.order
    now, tempo = rooms.clock.now(), rooms.tempo
    last_write = now + timedelta(seconds=grant.first_in_s + grant.count * grant.every_s + _permit_life_s(task))
    lease = last_write + timedelta(seconds=tempo.request_timeout_s + tempo.lease_margin_s)
    made_from = (order.batch.job_json, order.batch.price_json)
    return ClaimTerms(now, lease, last_write, rooms.owner, order.reserve_units, rooms.predictions.offset_s, made_from,
                      order.model.in_flight, caps=order.caps)


def _permit_life_s(task: _Task) -> float:
    """Without a rate to keep, a permit only has to be younger than its lease."""
    tempo = task.rooms.tempo
    return tempo.permit_life_s if tempo.creates_per_minute else 10 * tempo.permit_life_s


async def _no_row(task: _Task, room: Claimable) -> float:
    """Nothing may be claimed: say why, and stop the batch where its budget is spent for good."""
    rooms, batch, reason = task.rooms, task.order.batch, room.reason
    if is_spent(reason):
        await rooms.ledger.pause_for_budget(batch.pk, terms=_terms(task, Grant(0, 0, 0)))
        return rooms.tempo.idle_s
    if reason == "amended":
        return await _read_anew(task)
    await task.voice.say(_held(task, room))
    if room.next_due_at is not None:
        return max(0.05, (room.next_due_at - rooms.clock.now()).total_seconds())
    return FULL_S if reason in ("in flight", "in flight: this model") else rooms.tempo.idle_s


async def _read_anew(task: _Task) -> float:
    """The terms are out of date: priority, rate or budget were changed."""
    batch = await task.rooms.ledger.batch(task.order.batch.id)
    if batch is None or batch.state is not BatchState.RUNNING:
        return task.rooms.tempo.idle_s
    task.order = order_of(task.rooms, batch)
    return 0.0


def _held(task: _Task, room: Claimable) -> str | None:
    """What holds rows back, as the ledger tells; while the machine is too slow, that."""
    if task.rooms.lateness.is_slow:
        return task.voice.said
    due_at = room.next_due_at
    if due_at is not None and (due_at - task.rooms.clock.now()).total_seconds() > SOON_S:
        return until(TRIED_AGAIN, due_at)
    return in_words(room.reason, batch=task.order.batch.in_flight, model=task.order.model.in_flight)


def _why(task: _Task, room: Claimable, grant: Grant) -> str | None:
    """What holds the batch back, downloads before all, and then as the grant tells."""
    if grant.is_probe or task.rooms.lateness.is_slow:
        return task.voice.said
    if task.part < 1:
        return behind(task.late_s, task.part)
    if grant.count or grant.reason == LIMIT_REASON or grant.is_low_credit:
        # The rows that a budget leaves are the last ones once the permits are for all of them.
        is_held = grant.count >= room.count or not is_budget(room.reason)
        return limited(grant, task.order.budgets) or (_held(task, room) if is_held else None)
    return until(grant.reason or "", task.rooms.clock.now() + timedelta(seconds=grant.pause_s))


async def _post(task: _Task, order: Order, claim: Claim, *, at_s: float, serial: int, is_probe: bool) -> None:
    """One purchase: wait for the permit's moment, POST once, turn the outcome into a fact.

    A pause that was set meanwhile holds back permits that are out already, all but a probe's: that pause is its own."""
    rooms = task.rooms
    handed_back = Fact(Event.NOT_SENT, rooms.clock.now(), claim.attempt_id, error="handed back: not sent")
    try:
        await rooms.clock.sleep(max(0.0, at_s - rooms.clock.boottime()))
        is_off = rooms.stopping() or (not is_probe and await task.ear.is_held())
    except BaseException:
        task.facts.add(handed_back)
        raise
    if is_off:
        task.facts.add(handed_back)
        return
    task.ear.sent()
    try:
        answer = await rooms.predictions.create(
            order.batch.target, input_json=claim.input_json, post_by_s=at_s + _permit_life_s(task),
            cancel_after_s=order.cancel_after_s,
            webhook=callback_url(rooms.public_url, claim.attempt_id) if rooms.public_url else None)
    except BaseException:  # canceled, or a defect: either way nobody heard the answer
        task.facts.add(Fact(Event.ANSWER_LOST, rooms.clock.now(), claim.attempt_id, error="the answer was not heard",
                            error_class="unsure"))
        raise
    finally:
        task.ear.over()
    _note_lateness(rooms, answer)
    task.facts.add(_fact(answer, claim.attempt_id, now=rooms.clock.now()))
    await task.ear.hear(answer, order.batch, serial=serial)


def _note_lateness(rooms: Rooms, answer: CreateAnswer) -> None:
    if answer.proof is not Proof.NOT_SENT:
        rooms.lateness.note_in_time()
    elif answer.detail == LAPSED:
        rooms.lateness.note_missed(rooms.clock.boottime())


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
