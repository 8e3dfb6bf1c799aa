"""The last words of a run: how it stands, why rows failed, and what to type next."""

from dataclasses import dataclass
from datetime import timedelta

from orchestrator import wiring
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.look import EXPIRED, exists, expired_lines, shared_lines, surplus_lines
from orchestrator.apps.cli.options import RunOptions
from orchestrator.apps.cli.panel import clock_text
from orchestrator.apps.cli.speech import say
from orchestrator.apps.hints import failed_lines, failures
from orchestrator.apps.money import about_text, coming_text, spent_text
from orchestrator.core.coming import coming
from orchestrator.core.estimate import Estimate
from orchestrator.core.failing import FAILING
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import LIVE_BATCH, BatchState, ItemState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import REWRITE_LANE, Batch, Counts, Surplus
from orchestrator.core.results import summary
from orchestrator.flow.control import START_LIMIT
from orchestrator.flow.report import report, results_path

MOST_CAUSES = 3


@dataclass(frozen=True, slots=True)
class ThisRun:
    """One `run`: its rooms, what was typed, and when it began (`clock.boottime()`): the batch may be older by nights."""

    rooms: Rooms
    options: RunOptions
    began_s: float


async def close(run: ThisRun, batch: Batch, counts: Counts, *, code: Exit, lines: list[str]) -> Ending:
    """The summary document, with the time of this run, and the last words."""
    if batch.state not in LIVE_BATCH:  # what its documents do not tell yet: nobody else may be at work any more
        await report(run.rooms, batch.id, REWRITE_LANE)
    results = results_path(batch)
    written = exists(results)
    document = summary(batch, counts, results=results if written else None, now=run.rooms.clock.now(), state=batch.state)
    document["elapsed_s"] = round(run.rooms.clock.boottime() - run.began_s, 3)
    items = document["items"]
    estimated_usd = await wiring.views(run.rooms).estimated_usd(batch.pk)
    spent = spent_text(counts.spent_usd, unknown_rows=counts.cost_unknown_items, estimated_usd=estimated_usd) + _expected(batch)
    told = [f"{batch.id}: {items['succeeded']:,} of {items['total']:,} rows succeeded, {items['failed']:,} failed, "
            f"{items['canceled']:,} canceled, {items['pending']:,} pending; {spent}; {clock_text(document['elapsed_s'])}"]
    if items["failed"]:
        found = await failures(wiring.views(run.rooms), batch)
        for line in expired_lines(batch, found):
            say(f"warning: {line}")
        told += failed_lines(sorted(found, key=lambda failure: failure["class"] != EXPIRED), most=MOST_CAUSES)
        told.append(f"  why: orchestrator items {batch.id} --state failed · again: orchestrator retry {batch.id}")
    beyond = await wiring.views(run.rooms).bought_beyond_need(batch.pk)
    ended = await wiring.views(run.rooms).ended_by_deadline(batch.pk)
    lines = [*shared_lines(counts), *surplus_lines(beyond), *_deadline_lines(batch, ended),
             *_not_started(run.options, batch, counts), *lines]
    told += [f"  {line}" for line in lines]
    if written:
        told.append(f"  results: {results}")
    return Ending(code, document, tuple(told))


def _expected(batch: Batch) -> str:
    """Beside what a finished batch has cost, what it was expected to cost."""
    found = Estimate.from_json(batch.estimate_json) if batch.state is BatchState.FINISHED else None
    usd = None if found is None else found.in_all(found.expected.usd)
    return "" if usd is None else f" (expected: {about_text(usd)})"


def _deadline_lines(batch: Batch, ended: Surplus) -> list[str]:
    """What the job's own deadline ended, and what that cost until then. Who ended it there is not told."""
    after_s = Job.model_validate_json(batch.job_json).limits.cancel_after
    if after_s is None or not ended.predictions:
        return []
    predictions = "1 prediction" if ended.predictions == 1 else f"{ended.predictions:,} predictions"
    cost = spent_text(ended.cost_usd, unknown_rows=ended.cost_unknown)
    return [f"{predictions} ended by cancel_after ({after_s:g} s), or canceled at the provider; billed until then: {cost}"]


def _not_started(options: RunOptions, batch: Batch, counts: Counts) -> list[str]:
    """What a start limit left, and the command for it; or how much was not bought, as too much had failed."""
    waiting = counts.by_state.get(ItemState.PENDING, 0)
    if batch.state is not BatchState.PAUSED or not waiting:
        return []
    rows = "1 row" if waiting == 1 else f"{waiting:,} rows"
    if (batch.reason or "").startswith(FAILING):
        return [f"{rows} left, and not bought"]
    if batch.reason != START_LIMIT or options.rehearsal:
        return []
    return [f"{rows} not started (--limit {batch.start_limit}); the rest: {options.command(batch)}"]


async def still_out(run: ThisRun, batch: Batch, counts: Counts, *, why: str = "interrupted") -> list[str]:
    """On leaving early: what is paid and not at home, until when it can be fetched, and how to go on."""
    paid, unheard = (counts.own(*states) for states in (
        (ItemState.RUNNING, ItemState.COLLECTING), (ItemState.CLAIMED, ItemState.UNSURE)))
    to_go_on = f"to go on: {run.options.again(batch)}"
    if not paid and not unheard:
        return [f"{why} with nothing left out; {to_go_on}"]
    oldest = await run.rooms.ledger.oldest_out_at(batch.pk)
    more = coming_text(coming(batch, counts, run.rooms.budget))
    until = (oldest or run.rooms.clock.now()) + timedelta(seconds=run.rooms.tempo.retention_s)
    what = [f"{paid:,} paid predictions are still out"] if paid else []
    what += [f"{unheard:,} purchases were not answered yet (the next run finds out)"] if unheard else []
    return [f"{why}: {', and '.join(what)}; the provider keeps their outputs until "
            f"{until:%Y-%m-%d %H:%M} UTC at least{f'; {more}' if more else ''}; {to_go_on}"]
