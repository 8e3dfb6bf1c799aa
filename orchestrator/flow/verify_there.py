"""Do the ledger and the provider's list agree, while it lasts? Asks only, within the budget for reads."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from orchestrator.core.errors import NotFound, OrchestratorError, Unreadable
from orchestrator.core.findings import Finding, Kind
from orchestrator.core.inputs import input_hash
from orchestrator.core.lifecycle import ALIVE_ATTEMPT, LIVE_BATCH, AttemptState
from orchestrator.core.ports import Page, Rooms
from orchestrator.core.prediction import TERMINAL
from orchestrator.core.records import Batch, Prediction
from orchestrator.core.verify import (
    Owner,
    Report,
    Span,
    There,
    Tries,
    Windows,
    is_of_target,
    is_somebody_else_s,
    judge_owned,
    named_attempts,
    unrecorded,
)
from orchestrator.flow.asking import paced
from orchestrator.flow.listing import CLOCK_MARGIN_S, say_unreadable
from orchestrator.flow.verify_charges import compare_charges

MOST_ASKED = 200  # single GETs for each question
UNOWNED_AT_ONCE = 500
_ALIVE = frozenset(state.value for state in ALIVE_ATTEMPT)
_UNANSWERED = frozenset({AttemptState.OPEN.value, AttemptState.UNSURE.value})


@dataclass(slots=True)
class _Look:
    """One look at the list for a batch, and what is known so far."""

    rooms: Rooms
    batch: Batch
    report: Report
    began_at: datetime
    echo: tuple[str | None, str | None] | None
    offset_s: float
    seen: Tries = field(default_factory=Tries)
    unowned: list[Prediction] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)  # predictions whose end is recorded otherwise, by the list
    verbatim: int = 0  # inputs of ours shown as they were sent
    reworded: int = 0  # and otherwise

    @property
    def there(self) -> There:
        return self.report.there


async def verify_there(rooms: Rooms, batch: Batch, report: Report) -> None:
    """Compare the batch with the provider's list and note in `report` what is wrong, and how far the look went."""
    try:
        account = await paced(rooms, batch.account, rooms.predictions.account)
        if account != batch.account:
            report.there.why_not = f"the token is of account {account}, and this batch was bought by {batch.account}"
            return
        await _look(rooms, batch, report)
    except OrchestratorError as error:
        report.there.why_not = str(error)


async def _look(rooms: Rooms, batch: Batch, report: Report) -> None:
    offset_s = await rooms.ledger.offset(batch.account) or 0.0
    echoes = await rooms.ledger.echoes(batch.account)
    look = _Look(rooms, batch, report, rooms.clock.now(), echoes.get(batch.target.key), offset_s)
    unreadable = 0
    for span in await _windows(look):
        async for page in _pages(rooms, batch.account, span):
            unreadable += len(page.unreadable)
            await _page(look, page.predictions)
    await _unowned(look)
    await _confirm(look)
    await _not_listed(look)
    if unreadable:
        look.there.why_not = f"{unreadable:,} of the predictions listed cannot be read (the log says why)"


async def _windows(look: _Look) -> list[Span]:
    """When this batch bought, in the provider's time: from before each claim until nothing of it can be created any more."""
    windows, tempo = Windows(), look.rooms.tempo
    async for some in look.rooms.ledger.bought(look.batch.pk):
        for attempt in some:
            offset_s = look.offset_s if attempt.offset_s is None else attempt.offset_s
            windows.add(attempt.created_at + timedelta(seconds=offset_s))
    after_s = tempo.permit_life_s + tempo.request_timeout_s + tempo.unsure_margin_s + CLOCK_MARGIN_S
    return windows.merged(before=timedelta(seconds=CLOCK_MARGIN_S), after=timedelta(seconds=after_s))


async def _pages(rooms: Rooms, account: str, span: Span) -> AsyncIterator[Page]:
    """The list within a stretch of time, newest first; whether `next` keeps the bounds is not known, so they are asked again."""
    url: str | None = None
    while True:
        first, last = (None, None) if url else (span.first, span.last)
        page = await paced(rooms, account, rooms.predictions.list_page, url=url, created_after=first, created_before=last)
        say_unreadable(page)
        yield replace(page, predictions=[p for p in page.predictions
                                         if p.created_at is None or span.first <= p.created_at < span.last])
        oldest = min((p.created_at for p in page.predictions if p.created_at), default=None)
        url = page.next_url
        if url is None or (oldest is not None and oldest < span.first):
            return


async def _page(look: _Look, page: Sequence[Prediction]) -> None:
    """The list was read before the ledger is: what the ledger does not know now it did not know then."""
    look.there.listed += len(page)
    owners = {owner.prediction_id: owner for owner in await look.rooms.ledger.owners(prediction_ids=[p.id for p in page])}
    agreed: list[Prediction] = []
    for prediction in page:
        owner = owners.get(prediction.id)
        if owner is not None and owner.batch_id == look.batch.id:
            agreed += [prediction] if _owned(look, prediction, owner) else []
        elif owner is None and (_is_ours(look, prediction) or named_attempts([prediction])):
            look.unowned.append(prediction)
    await compare_charges(look.rooms, look.batch, look.report, agreed)
    if len(look.unowned) >= UNOWNED_AT_ONCE:
        await _unowned(look)


def _is_ours(look: _Look, prediction: Prediction) -> bool:
    target = look.batch.target
    return is_of_target(prediction, name=target.name, version=target.version, echo=look.echo)


def _owned(look: _Look, prediction: Prediction, owner: Owner) -> bool:
    """Whether its end is the one that is recorded, by the list."""
    look.there.ours += 1
    look.seen.add(owner.row, owner.n)
    is_over = look.batch.state not in LIVE_BATCH
    agrees = judge_owned(prediction, owner, is_over=is_over) is None
    if not agrees:
        look.doubtful.append(prediction.id)
    elif prediction.status in TERMINAL and owner.state in _ALIVE:
        look.there.waiting += 1
    if prediction.input and not prediction.data_removed:
        is_same = input_hash(prediction.input) == owner.input_hash
        look.verbatim, look.reworded = look.verbatim + is_same, look.reworded + (not is_same)
    return agrees


async def _unowned(look: _Look) -> None:
    """Predictions of this model that no attempt owned when they were listed: owned by now, explained, or never recorded."""
    ledger, some = look.rooms.ledger, look.unowned
    look.unowned = []
    recorded = {owner.prediction_id for owner in await ledger.owners(prediction_ids=[p.id for p in some])}
    some = [p for p in some if p.id not in recorded]
    hashes = {p.id: input_hash(p.input) for p in some if p.input and not p.data_removed}
    rows = await ledger.rows_of_inputs(look.batch.pk, sorted(set(hashes.values())))
    row_of = {id_: rows.get(found) for id_, found in hashes.items()}
    doubtful = [p for p in some if not _explained(look, p, row=row_of.get(p.id), named=None) or named_attempts([p])]
    look.there.others += len(some) - len(doubtful)
    doubtful = [await _in_full(look.rooms, look.batch.account, p) if n < MOST_ASKED else p for n, p in enumerate(doubtful)]
    named = {owner.attempt_id: owner for owner in await ledger.owners(attempt_ids=named_attempts(doubtful))}
    since = await ledger.unanswered_since(look.batch.account)
    for prediction in doubtful:
        owner = next((named[i] for i in named_attempts([prediction]) if i in named), None)
        _judge(look, prediction, named=owner, row=row_of.get(prediction.id), since=since)


def _explained(look: _Look, prediction: Prediction, *, row: tuple[int, str] | None, named: Owner | None) -> bool:
    return is_somebody_else_s(prediction, named=named, row=row, verbatim=bool(look.verbatim) and not look.reworded)


async def _in_full(rooms: Rooms, account: str, prediction: Prediction) -> Prediction:
    """As a GET shows it: the list leaves the webhook out."""
    try:
        return await paced(rooms, account, rooms.predictions.get, prediction.id)
    except (NotFound, Unreadable):
        return prediction


def _judge(look: _Look, prediction: Prediction, *, named: Owner | None, row: tuple[int, str] | None,
           since: datetime | None) -> None:
    if named is not None and named.batch_id != look.batch.id:
        look.there.others += 1  # another batch's: verify that one
    elif _explained(look, prediction, row=row, named=named):
        look.there.others += 1
    elif _is_undecided(look, prediction, named=named, since=since):
        look.there.undecided += 1
    else:
        look.report.findings.add(unrecorded(prediction, named=named, row=row))


def _is_undecided(look: _Look, prediction: Prediction, *, named: Owner | None, since: datetime | None) -> bool:
    """While answers are out or in doubt, what was created since may be theirs: the sweep decides."""
    if named is not None:
        return named.state in _UNANSWERED
    if since is None:
        return False
    earliest = since + timedelta(seconds=look.offset_s - CLOCK_MARGIN_S)
    return prediction.created_at is None or prediction.created_at >= earliest


async def _confirm(look: _Look) -> None:
    """The list may be older than the ledger: an end that differs is asked for again before it is called wrong."""
    rooms, is_over = look.rooms, look.batch.state not in LIVE_BATCH
    for n, prediction_id in enumerate(look.doubtful):
        if n >= MOST_ASKED:
            look.there.not_asked += len(look.doubtful) - n
            return
        try:
            prediction = await paced(rooms, look.batch.account, rooms.predictions.get, prediction_id)
        except (NotFound, Unreadable):
            continue  # intermittent 404s for valid ids have been reported, and the list has just shown it
        for owner in await rooms.ledger.owners(prediction_ids=[prediction_id]):
            look.report.findings.add(judge_owned(prediction, owner, is_over=is_over))
        await compare_charges(rooms, look.batch, look.report, [prediction])


async def _not_listed(look: _Look) -> None:
    """Predictions of ours which the list did not show: a GET decides."""
    asked = 0
    async for some in look.rooms.ledger.bought(look.batch.pk):
        for attempt in some:
            is_listed = attempt.prediction_id is None or (attempt.row, attempt.n) in look.seen
            if is_listed or attempt.created_at >= look.began_at:
                continue
            asked += 1
            if asked > MOST_ASKED:
                look.there.not_asked += 1
            elif attempt.prediction_id is not None and not await _is_known(look, attempt.prediction_id):
                look.report.findings.add(Finding(
                    Kind.UNKNOWN_THERE, f"is recorded as {attempt.state}; the provider does not know it", attempt.row,
                    attempt.row_id, prediction_id=attempt.prediction_id,
                    remedy="look whether REPLICATE_BASE_URL and token are those it was bought with"))


async def _is_known(look: _Look, prediction_id: str) -> bool:
    """Asked twice, as intermittent 404s for valid ids have been reported. What it shows is compared like what is listed."""
    for _ in range(2):
        try:
            found = await paced(look.rooms, look.batch.account, look.rooms.predictions.get, prediction_id)
            await compare_charges(look.rooms, look.batch, look.report, [found])
            return True
        except Unreadable:
            return True
        except NotFound:
            await look.rooms.clock.sleep(1.0)
    return False


