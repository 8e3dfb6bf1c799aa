"""Ask the provider, in bulk: what has ended, what is silent, what is unsure. Answers go through the one door."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.core.errors import NotFound, OrchestratorError, ProviderAway, ProviderRefusal
from orchestrator.core.inputs import input_hash
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.matching import Listing, Verdicts, is_of, resolve
from orchestrator.core.ports import Budget, OpenAttempt, OpenWindow, Rooms
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import Fact, Prediction, Wake
from orchestrator.core.tempo import Tempo
from orchestrator.flow.ending import wind_up
from orchestrator.flow.record import fact_of, news_of, record

CLOCK_MARGIN_S = 60.0  # around every window in the provider's time


UNSURE_LANE = 1
log = logging.getLogger("orchestrator.flow")


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
    wakes = await _resolve_unsure(rooms, account, now)
    wakes += await _cancel_surplus(rooms, account)
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
    facts: list[Fact] = []
    for kept in waiting:
        await _permit(rooms, account)
        with suppress(NotFound):
            prediction = await rooms.predictions.get(kept.prediction_id)
            if is_of(prediction, attempts[kept.attempt_id], hash_of=input_hash):
                by = "input" if prediction.webhook is None else "url"
                facts.append(fact_of(prediction, at=rooms.clock.now(), via="webhook", attempt_id=kept.attempt_id, bound_by=by))
    wakes = await record(rooms, facts)
    await rooms.ledger.drop_kept([kept.message_id for kept in waiting])
    return wakes


async def _lapse(rooms: Rooms, now: datetime) -> list[Wake]:
    """An attempt whose worker went silent past its lease may have been bought: unsure."""
    ids = await rooms.ledger.expire_leases(now=now, owner_not=None)
    lost = [Fact(Event.ANSWER_LOST, now, i, error="the worker ended before the answer was recorded",
                 error_class="unsure") for i in ids]
    return await record(rooms, lost)


async def _list_sweep(rooms: Rooms, account: str, window: OpenWindow) -> tuple[int, list[Wake]]:
    """How much the list had to tell that was news, and whom it concerns."""
    if window.oldest_created_at is None:
        return 0, []
    offset_s = await rooms.ledger.offset(account) or 0.0
    edge = window.oldest_created_at + timedelta(seconds=offset_s - CLOCK_MARGIN_S / 12)
    news, wakes = 0, list[Wake]()
    async for page in _pages(rooms, account, edge):
        ended = [fact_of(p, at=rooms.clock.now(), via="list") for p in page if p.status in TERMINAL]
        moved, concerned = await news_of(rooms, ended)
        news, wakes = news + moved, wakes + concerned
    return news, wakes


async def _pages(rooms: Rooms, account: str, edge: datetime) -> AsyncIterator[list[Prediction]]:
    """Pages of predictions created after `edge` (provider's time), newest first, within the budget for reads."""
    url: str | None = None
    while True:
        await _permit(rooms, account)
        page = await rooms.predictions.list_page(url=url, created_after=None if url else edge)
        if page.provider_offset_s is not None and url is None:
            await rooms.ledger.note_offset(account, offset_s=page.provider_offset_s, now=rooms.clock.now())
        yield [p for p in page.predictions if p.created_at is None or p.created_at >= edge]
        oldest = min((p.created_at for p in page.predictions if p.created_at), default=None)
        url = page.next_url
        if url is None or (oldest is not None and oldest < edge):
            return


async def _permit(rooms: Rooms, account: str) -> None:
    """Wait for a permit to read."""
    budget = Budget(f"reads:{account}", rooms.tempo.reads_per_minute, 50)
    while True:
        grant = await rooms.limiter.reserve([budget], count=1)
        await rooms.clock.sleep(grant.first_in_s)
        if grant.count:
            return


async def _stragglers(rooms: Rooms, account: str, window: OpenWindow, now: datetime) -> list[Wake]:
    """Single GETs for what is out much longer than usual, each less and less often."""
    tempo = rooms.tempo
    age_s = max(tempo.straggler_min_s, 4 * window.median_s) if window.median_s else 10 * tempo.straggler_min_s
    late = await rooms.ledger.stragglers(account, older_than=now - timedelta(seconds=age_s), now=now,
                                         count=tempo.straggler_gets)
    wakes: list[Wake] = []
    for attempt in late:
        await _permit(rooms, account)
        wakes += await record(rooms, await _ask(rooms, attempt))
        waited_s = (now - attempt.created_at).total_seconds()
        await rooms.ledger.checked([attempt.attempt_id], next_check_at=now + timedelta(seconds=max(10.0, waited_s / 10)))
    return wakes


async def _ask(rooms: Rooms, attempt: OpenAttempt) -> list[Fact]:
    assert attempt.prediction_id is not None
    try:
        prediction = await rooms.predictions.get(attempt.prediction_id)
    except NotFound:
        return []  # intermittent 404s for valid ids have been reported; the next look decides
    return [fact_of(prediction, at=rooms.clock.now(), via="get")] if prediction.status in TERMINAL else []


@dataclass(slots=True)
class _Seen:
    predictions: list[Prediction] = field(default_factory=list)
    complete: bool = True


async def _resolve_unsure(rooms: Rooms, account: str, now: datetime) -> list[Wake]:
    """Adopt, buy again, give up, or wait: `core.matching` judges, here it is only carried out."""
    gone = await rooms.ledger.gone(account, since=now - timedelta(seconds=rooms.tempo.retention_s), now=now)
    attempts = await rooms.ledger.unsure(account) + gone
    if not attempts:
        return []
    known_s = await rooms.ledger.offset(account)
    attempts = [a if a.offset_s is not None else replace(a, offset_s=known_s) for a in attempts]
    oldest_at = min(a.created_at + timedelta(seconds=a.offset_s or 0.0) for a in attempts)  # provider's time
    seen = await _window_of(rooms, account, edge=oldest_at - timedelta(seconds=CLOCK_MARGIN_S))
    owned = await rooms.ledger.owned([p.id for p in seen.predictions])
    verdicts = resolve(attempts, Listing(seen.predictions, frozenset(owned), seen.complete), now=now,
                       offset_s=rooms.predictions.offset_s,
                       tempo=rooms.tempo, hash_of=input_hash, alive_targets=await rooms.ledger.echoes(account))
    if verdicts.absent_once:
        again_at = now + timedelta(seconds=rooms.tempo.unsure_confirm_s)
        await rooms.ledger.checked(verdicts.absent_once, next_check_at=again_at)
    await _look_later(rooms, gone, now)
    return await record(rooms, _facts(verdicts, now))


async def _look_later(rooms: Rooms, gone: Sequence[OpenAttempt], now: datetime) -> None:
    """Less and less often: the window reaches back to the oldest of them."""
    if gone:
        age_s = (now - min(attempt.created_at for attempt in gone)).total_seconds()
        later = now + timedelta(seconds=max(rooms.tempo.unsure_confirm_s, age_s / 2))
        await rooms.ledger.checked([attempt.attempt_id for attempt in gone], next_check_at=later)


async def _cancel_surplus(rooms: Rooms, account: str) -> list[Wake]:
    """What was bought beyond need costs as little as can be."""
    facts: list[Fact] = []
    for attempt_id, prediction_id in await rooms.ledger.surplus(account):
        await _permit(rooms, account)
        with suppress(ProviderRefusal):  # ended in the meantime: the list says how
            prediction = await rooms.predictions.cancel(prediction_id)
            log.warning("prediction %s was bought beyond need, and is canceled", prediction_id)
            facts.append(fact_of(prediction, at=rooms.clock.now(), attempt_id=attempt_id, via="get"))
    return await record(rooms, facts)


async def _window_of(rooms: Rooms, account: str, *, edge: datetime) -> _Seen:
    seen = _Seen()
    try:
        async for page in _pages(rooms, account, edge):
            seen.predictions.extend(page)
    except OrchestratorError:
        seen.complete = False
    return seen


def _facts(verdicts: Verdicts, now: datetime) -> list[Fact]:
    adopted = [fact_of(b.prediction, at=now, attempt_id=b.attempt_id, via="list", bound_by=b.by) for b in verdicts.adopt]
    absent = [Fact(Event.ABSENT, now, i) for i in verdicts.absent]
    lost = [Fact(Event.GIVEN_UP, now, i, error="the answer to the purchase was lost, and nobody can say whether it was "
                 "made; `orchestrator retry --class unsure` buys the row again", error_class="unsure")
            for i in verdicts.give_up]
    return adopted + absent + lost
