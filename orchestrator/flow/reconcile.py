"""Ask the provider, in bulk: what has ended, what is silent, what is unsure. Answers go through the one door."""

from contextlib import suppress
from datetime import datetime, timedelta

from orchestrator.core.errors import NotFound, ProviderAway, ProviderRefusal, Throttled, Unreadable
from orchestrator.core.inputs import input_hash
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.matching import is_of
from orchestrator.core.poison import VIA_LEASE
from orchestrator.core.ports import KeptDelivery, OpenAttempt, OpenWindow, Rooms
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import Fact, Wake
from orchestrator.core.tempo import Tempo
from orchestrator.flow.asking import paced
from orchestrator.flow.ending import wind_up
from orchestrator.flow.listing import CLOCK_MARGIN_S, learn_clock, pages, provider_now
from orchestrator.flow.record import fact_of, news_of, record
from orchestrator.flow.unsure import cancel_surplus, resolve_unsure

UNSURE_LANE = 1
LONGEST_S = 120.0  # a look in this lane is cut before: its message does not count as lost until then
UNKNOWN_FOR = 2  # times the retention: after that a prediction that the provider does not know is not coming back
UNKNOWN_EARLY = 12  # times `kept_webhook_s`: so long a kept webhook is asked about whose prediction the provider does not know
VANISHED = "the provider no longer knows this prediction (deleted there, or of another account?); what it cost is not known"
UNREADABLE = "what the provider says of this prediction cannot be read; what it cost is not known"


async def sweep(rooms: Rooms, account: str, lane: int = 0) -> list[Wake]:
    """One look at what is out for this account; answers what to wake and when to look again.

    Lane 0 looks for what has ended, often and over a short window. Lane 1 looks for what is unsure, seldom: its window
    reaches back to the oldest lost answer, which at a high rate is hundreds of pages.
    """
    try:
        return await (_unsure_look(rooms, account) if lane == UNSURE_LANE else _look(rooms, account))
    except ProviderAway as error:  # said where everybody looks for the reason of waiting
        reason = str(error) if str(error).startswith("cannot") else f"cannot go on: {error}"
        await rooms.limiter.pause(f"creates:{account}", seconds=rooms.tempo.outage_pause_s, reason=reason)
        raise


async def _look(rooms: Rooms, account: str) -> list[Wake]:
    now = rooms.clock.now()
    await learn_clock(rooms)
    wakes = await _lapse(rooms, now)
    wakes += await _early(rooms, account, now)
    window = await rooms.ledger.open_window(account)
    news = 0
    if window.running:
        news, found = await _list_sweep(rooms, account, window)
        wakes += found + await _stragglers(rooms, account, window, now)
    live = [batch for batch in await rooms.ledger.live_batches() if batch.account == account]
    for batch in live:
        if batch.state is BatchState.CANCELING:
            await wind_up(rooms, batch)
    if live or window.running:
        again_s = interval_s(window, tempo=rooms.tempo, webhooks_tell=rooms.public_url is not None and not news)
        wakes.append(Wake("sweep", account, due_at=now + timedelta(seconds=again_s)))
    return wakes


async def _unsure_look(rooms: Rooms, account: str) -> list[Wake]:
    now, tempo = rooms.clock.now(), rooms.tempo
    await rooms.ledger.hold(Wake("sweep", account, UNSURE_LANE), until=now + timedelta(seconds=LONGEST_S))
    await learn_clock(rooms)
    wakes = await _lapse(rooms, now)  # first: what a dead worker sent is unsure, before anything like it is taken for surplus
    wakes += await resolve_unsure(rooms, account, now)
    wakes += await cancel_surplus(rooms, account)
    window = await rooms.ledger.open_window(account)
    live = any(batch.account == account for batch in await rooms.ledger.live_batches())
    if not live and not window.unsure:
        return wakes
    again_s = tempo.unsure_confirm_s / 2 if window.unsure else tempo.idle_s
    return [*wakes, Wake("sweep", account, UNSURE_LANE, now + timedelta(seconds=again_s))]


def interval_s(window: OpenWindow, *, tempo: Tempo, webhooks_tell: bool) -> float:
    """Seconds between two sweeps: a tenth of the median latency, and seldom while the list has no news for us."""
    return max(tempo.sweep_webhooks_s if webhooks_tell else tempo.sweep_min_s, (window.median_s or 0.0) / 10)


async def _early(rooms: Rooms, account: str, now: datetime) -> list[Wake]:
    """Webhooks that have waited too long for their attempt's own answer: the provider itself is asked whose they are."""
    waiting = await rooms.ledger.kept(account, before=now - timedelta(seconds=rooms.tempo.kept_webhook_s))
    if not waiting:
        return []
    attempts = {a.attempt_id: a for a in await rooms.ledger.attempts_of([kept.attempt_id for kept in waiting])}
    facts, decided = list[Fact](), list[str]()
    for kept in waiting:
        try:
            facts += await _whose(rooms, account, attempts[kept.attempt_id], kept)
        except Throttled:
            break  # the next look asks about the rest
        except NotFound:  # intermittent 404s for valid ids have been reported
            if now - kept.received_at < UNKNOWN_EARLY * timedelta(seconds=rooms.tempo.kept_webhook_s):
                continue
        except ProviderRefusal:
            pass
        decided.append(kept.message_id)
    wakes = await record(rooms, facts)
    await rooms.ledger.drop_kept(decided)
    return wakes


async def _whose(rooms: Rooms, account: str, attempt: OpenAttempt, kept: KeptDelivery) -> list[Fact]:
    prediction = await paced(rooms, account, rooms.predictions.get, kept.prediction_id)
    if not is_of(prediction, attempt, hash_of=input_hash):
        return []
    by = "input" if prediction.webhook is None else "url"
    return [fact_of(prediction, at=rooms.clock.now(), via="webhook", attempt_id=kept.attempt_id, bound_by=by)]


async def _lapse(rooms: Rooms, now: datetime) -> list[Wake]:
    """An attempt whose worker went silent past its lease may have been bought: unsure."""
    ids = await rooms.ledger.expire_leases(now=now, offset_s=rooms.predictions.offset_s, owner_not=None)
    lost = [Fact(Event.ANSWER_LOST, now, i, error="the worker ended before the answer was recorded",
                 error_class="unsure", via=VIA_LEASE) for i in ids]
    return await record(rooms, lost)


async def _list_sweep(rooms: Rooms, account: str, window: OpenWindow) -> tuple[int, list[Wake]]:
    """How much the list had to tell that was news, and whom it concerns. What a throttled look does not reach, the next does."""
    if window.oldest_created_at is None:
        return 0, []
    edge = window.oldest_created_at - timedelta(seconds=CLOCK_MARGIN_S / 12)
    news, wakes = 0, list[Wake]()
    with suppress(Throttled):
        async for page in pages(rooms, account, edge):
            ended = [fact_of(p, at=rooms.clock.now(), via="list") for p in page.predictions if p.status in TERMINAL]
            moved, concerned = await news_of(rooms, ended)
            news, wakes = news + moved, wakes + concerned
    return news, wakes


async def _stragglers(rooms: Rooms, account: str, window: OpenWindow, now: datetime) -> list[Wake]:
    """Single GETs for what is out much longer than usual, each less and less often."""
    tempo = rooms.tempo
    age_s = max(tempo.straggler_min_s, 4 * window.median_s) if window.median_s else 10 * tempo.straggler_min_s
    older_than = await provider_now(rooms, account) - timedelta(seconds=age_s)
    late = await rooms.ledger.stragglers(account, older_than=older_than, now=now, count=tempo.straggler_gets)
    wakes: list[Wake] = []
    for attempt in late:
        try:
            wakes += await record(rooms, await _ask(rooms, account, attempt))
        except Throttled:
            break
        waited_s = (now - attempt.created_at).total_seconds()
        await rooms.ledger.checked([attempt.attempt_id], next_check_at=now + timedelta(seconds=max(10.0, waited_s / 10)))
    return wakes


async def _ask(rooms: Rooms, account: str, attempt: OpenAttempt) -> list[Fact]:
    assert attempt.prediction_id is not None
    try:
        prediction = await paced(rooms, account, rooms.predictions.get, attempt.prediction_id)
    except (NotFound, Unreadable) as error:  # intermittent 404s for valid ids have been reported; the next look decides, but
        age, why = rooms.clock.now() - attempt.created_at, UNREADABLE if isinstance(error, Unreadable) else VANISHED
        return [Fact(Event.VANISHED, rooms.clock.now(), attempt.attempt_id, error=why, error_class="vanished")] \
            if age > UNKNOWN_FOR * timedelta(seconds=rooms.tempo.retention_s) else []  # not for ever
    except Throttled:
        raise
    except ProviderRefusal:
        return []
    return [fact_of(prediction, at=rooms.clock.now(), via="get")] if prediction.status in TERMINAL else []
