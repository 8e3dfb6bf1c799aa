"""Purchases whose answer was lost: found, bought again, given up; and what turns up after all."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from orchestrator.core.errors import OrchestratorError, ProviderAway, ProviderRefusal, Throttled, TokenRefused
from orchestrator.core.inputs import input_hash
from orchestrator.core.lifecycle import Event
from orchestrator.core.matching import Listing, Verdicts, doubts, resolve
from orchestrator.core.ports import OpenAttempt, Rooms
from orchestrator.core.records import Fact, Prediction, Wake
from orchestrator.flow.asking import paced
from orchestrator.flow.listing import CLOCK_MARGIN_S, learn_clock, pages, provider_now
from orchestrator.flow.record import fact_of, record

log = logging.getLogger("orchestrator.flow")


async def resolve_unsure(rooms: Rooms, account: str, now: datetime) -> list[Wake]:
    """Adopt, buy again, give up, or wait: `core.matching` judges, here it is only carried out."""
    return (await _looked(rooms, account, now, looks_at_all=False))[1]


async def look_for_all(rooms: Rooms, account: str) -> None:
    """The same for everything that is in doubt, given up or found absent, whether or not it is due.

    Raises ProviderAway where the list could not be read to its end, or a doubt not be asked about: what was not seen may be
    there."""
    is_whole, wakes = await _looked(rooms, account, rooms.clock.now(), looks_at_all=True)
    await rooms.ledger.schedule(wakes, now=rooms.clock.now())
    if not is_whole:
        raise ProviderAway("the provider's list of predictions could not be read to its end, or what it shows may be that of an "
                           "equal row which is being bought just now: a purchase that was given up may be there all the same, so "
                           "nothing is bought again. Try again in some minutes")


async def _looked(rooms: Rooms, account: str, now: datetime, *, looks_at_all: bool) -> tuple[bool, list[Wake]]:
    """Whether the look was whole, and the wakes that follow from it."""
    sending = await rooms.ledger.being_sent(account)  # first: what becomes unsure meanwhile is then read twice, not never
    unsure = await rooms.ledger.unsure(account)
    gone = await _due(rooms, account, unsure, now=now, looks_at_all=looks_at_all)
    if not unsure and not gone:
        return True, []
    in_doubt = {attempt.attempt_id for attempt in unsure}
    attempts = await _by_the_clock(rooms, unsure + gone + [a for a in sending if a.attempt_id not in in_doubt])
    oldest_at = min(a.created_at + timedelta(seconds=a.offset_s or 0.0) for a in attempts)  # provider's time
    window = await _window(rooms, account, edge=oldest_at - timedelta(seconds=CLOCK_MARGIN_S))
    listing = await _with_webhooks(rooms, account, attempts, window)
    verdicts = resolve(attempts, listing, now=now, offset_s=rooms.predictions.offset_s,
                       tempo=rooms.tempo, hash_of=input_hash, alive_targets=await rooms.ledger.echoes(account))
    if verdicts.absent_once:
        again_at = now + timedelta(seconds=rooms.tempo.unsure_confirm_s)
        await rooms.ledger.checked(verdicts.absent_once, next_check_at=again_at)
    await _look_later(rooms, gone, now)
    is_whole = (listing.complete and not listing.unasked and not verdicts.contested and rooms.predictions.offset_s is not None)
    return is_whole, await record(rooms, _facts(verdicts, now))


async def _by_the_clock(rooms: Rooms, attempts: Sequence[OpenAttempt]) -> list[OpenAttempt]:
    """Attempts that were made before their process had heard the provider's clock take over what this machine knows of it, if
    they are this machine's: by another one's clock an absence would be concluded too soon."""
    host = rooms.owner.rpartition(":")[0]
    is_ours = [a.offset_s is None and a.owner.rpartition(":")[0] == host for a in attempts]
    if any(is_ours):
        await learn_clock(rooms)
    return [replace(a, offset_s=rooms.predictions.offset_s) if ours else a for a, ours in zip(attempts, is_ours, strict=True)]


async def _with_webhooks(rooms: Rooms, account: str, attempts: Sequence[OpenAttempt], listing: Listing) -> Listing:
    """The listing, with what single GETs say of webhooks where the list is silent.

    Five equal rows of which one was never bought were all given up, though four of the five predictions could have said whose
    they were; and an equal prediction with somebody else's webhook is somebody else's, whether or not we use webhooks."""
    unexplained, seen = doubts(attempts, listing, tempo=rooms.tempo), rooms.webhooks_seen
    if len(seen) > REMEMBERED:
        seen.clear()
    for prediction in [p for p in unexplained if p.id not in seen][:MOST_ASKED]:
        try:
            seen[prediction.id] = (await paced(rooms, account, rooms.predictions.get, prediction.id)).webhook
        except Throttled:
            break  # the next look asks about the rest
        except OrchestratorError:
            continue
    told = {p.id: p._replace(webhook=seen[p.id]) for p in unexplained if p.id in seen}
    return replace(listing, predictions=[told.get(p.id, p) for p in listing.predictions],
                   unasked=frozenset(p.id for p in unexplained if p.id not in told))


MOST_ASKED = 200  # in one look
REMEMBERED = 10_000


CLOCKS_AT_MOST = timedelta(days=1)  # how far those of two machines are apart


async def _due(rooms: Rooms, account: str, unsure: Sequence[OpenAttempt], *, now: datetime,
               looks_at_all: bool) -> list[OpenAttempt]:
    """What is gone and to be looked for now, as long as the provider keeps it by its own clock. While something is unsure only
    what its window shows anyway: what may be bought again must not wait for an hour of pages."""
    if looks_at_all:
        await learn_clock(rooms)
    kept_s = timedelta(seconds=rooms.tempo.retention_s)
    since = await provider_now(rooms, account) - kept_s
    found = await rooms.ledger.gone(account, since=now - kept_s - CLOCKS_AT_MOST, now=now + kept_s if looks_at_all else now)
    gone = [attempt for attempt in found if attempt.created_at + timedelta(seconds=attempt.offset_s or 0.0) > since]
    if looks_at_all or not unsure:
        return gone
    oldest_at = min(attempt.created_at for attempt in unsure)
    return [attempt for attempt in gone if attempt.created_at >= oldest_at]


async def _look_later(rooms: Rooms, gone: Sequence[OpenAttempt], now: datetime) -> None:
    """Less and less often, each by its own age: at half a minute, one and a half, three and a half …"""
    later: dict[datetime, list[str]] = defaultdict(list)
    for attempt in gone:
        age_s = (now - attempt.created_at).total_seconds()
        later[now + timedelta(seconds=max(rooms.tempo.unsure_confirm_s, age_s // 60 * 30))].append(attempt.attempt_id)
    for next_check_at, ids in later.items():
        await rooms.ledger.checked(ids, next_check_at=next_check_at)


async def cancel_surplus(rooms: Rooms, account: str) -> list[Wake]:
    """What was bought beyond need costs as little as can be."""
    facts: list[Fact] = []
    for attempt_id, prediction_id in await rooms.ledger.surplus(account):
        try:
            prediction = await paced(rooms, account, rooms.predictions.cancel, prediction_id)
        except Throttled:
            break
        except ProviderRefusal:
            continue  # ended in the meantime: the list says how
        log.warning("prediction %s was bought beyond need, and is canceled", prediction_id)
        facts.append(fact_of(prediction, at=rooms.clock.now(), attempt_id=attempt_id, via="get"))
    return await record(rooms, facts)


LONGEST_LOOK_S = 60.0


async def _window(rooms: Rooms, account: str, *, edge: datetime) -> Listing:
    """What the list shows since then that is nobody's here. Page by page: an hour of a busy account is 36,000 predictions, nearly
    all of them ours."""
    free, canary_at, is_whole, until_s = list[Prediction](), None, True, rooms.clock.boottime() + LONGEST_LOOK_S
    try:
        async for page in pages(rooms, account, edge):
            found, is_whole = page.predictions, is_whole and not page.unreadable
            owned = await rooms.ledger.owned([p.id for p in found])
            free += [p for p in found if p.id not in owned]
            canary_at = canary_at or max((p.created_at for p in found if p.id in owned and p.created_at), default=None)
            if rooms.clock.boottime() > until_s:  # a task is cut after some time, and would begin again from nothing for ever
                return Listing(free, complete=False, canary_at=canary_at)
    except (ProviderAway, ProviderRefusal, TokenRefused, Throttled):  # what was seen may still be adopted
        return Listing(free, complete=False, canary_at=canary_at)
    return Listing(free, complete=is_whole, canary_at=canary_at)


def _facts(verdicts: Verdicts, now: datetime) -> list[Fact]:
    adopted = [fact_of(b.prediction, at=now, attempt_id=b.attempt_id, via="list", bound_by=b.by) for b in verdicts.adopt]
    absent = [Fact(Event.ABSENT, now, i) for i in verdicts.absent]
    lost = [Fact(Event.GIVEN_UP, now, i, error="the answer to the purchase was lost, and nobody can say whether it was "
                 "made; `orchestrator retry --class unsure` buys the row again", error_class="unsure")
            for i in verdicts.give_up]
    return adopted + absent + lost
