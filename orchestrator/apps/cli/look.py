"""Commands that only look: status, watch, items, jobs. Reads go straight to the ledger's views."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli import schedules
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.follow import Follower
from orchestrator.apps.cli.panel import screen
from orchestrator.apps.foretelling import ahead, ahead_lines, projected
from orchestrator.apps.hints import again, failed_lines, failures, why
from orchestrator.apps.money import coming_text, spent_text
from orchestrator.core.caps import caps_of, held_text
from orchestrator.core.coming import coming
from orchestrator.core.cost import to_units, to_usd, usd_text
from orchestrator.core.errors import BadInput, OrchestratorError
from orchestrator.core.failing import FAILING
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.records import Batch, Counts, Surplus
from orchestrator.core.results import summary
from orchestrator.flow.control import BY_OPERATOR
from orchestrator.flow.report import results_path
from orchestrator.wiring import LedgerViews, Settings, home_of, read_settings

EXPIRED = "expired"
_MOVED_BY_WORKERS = (BatchState.RUNNING, BatchState.CANCELING)  # one that is loading is held by its `run`


def here() -> Settings:
    """The settings of the home nearest to the working folder. Raises BadInput where it has no ledger."""
    return settings_of(home_of(None, cwd=Path.cwd()))


def settings_of(home: Path) -> Settings:
    """The settings of a home that has a ledger; none is made by looking. Raises BadInput."""
    settings = read_settings(home)
    if settings.database_url is None and wiring.is_new(settings):
        raise BadInput(f"no ledger here: {settings.home} has none. Run from the folder of your jobs/, or set ORCHESTRATOR_HOME.")
    return settings


async def migrate() -> Ending:
    """Tables as this program knows them."""
    settings = wiring.own_settings()
    async with wiring.ledger(settings):
        return Ending(Exit.DONE, {"ledger": "ready"}, ("the ledger's tables are up to date",))


def exists(path: str) -> bool:
    """Whether a file is there."""
    return Path(path).is_file()


async def status(name: str | None) -> Ending:
    """All batches, newest first, or one in full."""
    settings = here()
    async with wiring.ledger(settings) as ledger:
        if name is not None:
            batch = await ledger.find(name)
            counts = await ledger.counts(batch.pk)
            results = results_path(batch)
            document = summary(batch, counts, results=results if exists(results) else None, now=wiring.clock().now(),
                               state=batch.state)
            document |= {"reason": why(batch), "by_state": {s.value: n for s, n in counts.by_state.items()},
                         "reserved_usd": format(counts.reserved_usd, "f"),
                         "estimated_usd": format(await ledger.estimated_usd(batch.pk), "f"),
                         "output": batch.output_to, "model": batch.target.name}
            document |= await ahead(ledger, batch, counts, now=wiring.clock().now())
            document["ended_via"] = await ledger.endings(batch.pk)
            document["failures"] = await failures(ledger, batch)
            beyond = await ledger.bought_beyond_need(batch.pk)
            document["surplus"] = {"predictions": beyond.predictions, "cost_usd": str(beyond.cost_usd),
                                   "cost_unknown": beyond.cost_unknown}
            found = coming(batch, counts, settings.budget)
            document["to_come"] = found.to_json()
            held = _held(batch, counts, settings)
            is_idle = batch.state in _MOVED_BY_WORKERS and not await is_anybody_at_work(ledger, settings)
            return Ending(Exit.DONE, document, (
                *_lines(document, held=held, is_idle=is_idle), *_next(batch, is_idle=is_idle),
                *(f"  to come  {line}" for line in [coming_text(found)] if line),
                *(f"  shared   {line}" for line in shared_lines(counts)),
                *(f"  expired  {line}" for line in expired_lines(batch, document["failures"])),
                *(f"  surplus  {line}" for line in surplus_lines(beyond))))
        documents, idle, expired = [], dict[str, str](), dict[str, str]()
        for batch in await ledger.batches(limit=50):
            counts = await ledger.counts(batch.pk)
            documents.append(summary(batch, counts, results=None, now=wiring.clock().now(), state=batch.state)
                             | {"reason": why(batch), "projected_usd": projected(batch, counts)})
            if counts.by_state.get(ItemState.FAILED, 0) and (many := await ledger.expired(batch.pk)):
                expired[batch.id] = f" ({many:,} expired)"
            if batch.state in _MOVED_BY_WORKERS:
                idle[batch.id] = f"  nobody at work: {again(batch)}"
        if idle and await is_anybody_at_work(ledger, settings):
            idle = {}
    lines = [f"{d['batch']:<40} {d['state']:<9} {d['items']['succeeded']:>7,} of {d['items']['total']:>7,} done, "
             f"{d['items']['failed']:,} failed{expired.get(d['batch'], '')}  {_spent(d)}"
             f"{'  ' if d['reason'] else ''}{d['reason'] or ''}{idle.get(d['batch'], '')}"
             for d in documents] or ["no batches yet"]
    return Ending(Exit.DONE, {"batches": documents}, tuple(lines))


async def is_anybody_at_work(ledger: LedgerViews, settings: Settings) -> bool:
    """Whether a worker was seen of late that is not known to have ended."""
    there = await ledger.present(now=wiring.clock().now(), within_s=settings.tempo.alive_s)
    return any(role.role == "worker" and not wiring.is_gone(role.id) for role in there)


def expired_lines(batch: Batch, found: Sequence[dict[str, Any]]) -> list[str]:
    """What was paid for and is lost, where there is any, and what brings it back."""
    many = sum(failure["count"] for failure in found if failure["class"] == EXPIRED)
    if not many:
        return []
    rows = "1 row was" if many == 1 else f"{many:,} rows were"
    return [f"{rows} paid for, and what came of it was deleted before it could be fetched; to buy again: "
            f"orchestrator retry {batch.id} --class {EXPIRED}"]


def shared_lines(counts: Counts) -> list[str]:
    """How many rows were not bought, as an equal one is bought for them, where there are any."""
    here = sum(counts.shared.values()) - counts.earlier
    return [f"{'1 row shares' if many == 1 else f'{many:,} rows share'} what {whose} (duplicates: once)"
            for many, whose in ((here, "an equal row buys"), (counts.earlier, "earlier batches bought")) if many]


def surplus_lines(beyond: Surplus) -> list[str]:
    """What was bought twice after all, where anything was."""
    if not beyond.predictions:
        return []
    predictions = "1 prediction was" if beyond.predictions == 1 else f"{beyond.predictions:,} predictions were"
    unknown = f", {beyond.cost_unknown:,} of unknown cost" if beyond.cost_unknown else ""
    return [f"{predictions} bought beyond need and canceled ({usd_text(beyond.cost_usd)} of the above{unknown}): the answer to "
            "the purchase was lost, and it turned up after its row had been bought again or withdrawn"]


def _held(batch: Batch, counts: Counts, settings: Settings) -> str:
    """What is reserved, of a batch that is bought under a cap: else nothing is held back by it."""
    is_capped = caps_of(Job.model_validate_json(batch.job_json), settings.budget)
    return held_text(to_units(counts.reserved_usd), is_out=counts.is_out) if is_capped else ""


def _spent(document: dict[str, Any]) -> str:
    """What is told of a batch's money; how much of it is an estimate only where that was asked for."""
    estimated_usd = Decimal(document.get("estimated_usd", 0))
    return spent_text(Decimal(document["cost_usd"]), unknown_rows=document["cost_unknown_items"], estimated_usd=estimated_usd)


def _lines(document: dict[str, Any], *, held: str, is_idle: bool) -> list[str]:
    parts = ", ".join(f"{n:,} {name}" for name, n in document["by_state"].items() if n)
    lines = [f"{document['batch']} ({document['job']}, {document['model']}): {document['state']}"
             + (f", {document['reason']}" if document["reason"] else "") + (", nobody at work" if is_idle else ""),
             f"  rows     {parts or 'none'}", f"  spent    {_spent(document)}"
             + (f", {held}" if held else "")]
    lines += [f"  {label:<8} {told}" for label, told in ahead_lines(document)]
    return [*lines, f"  output   {document['output']}", *failed_lines(document["failures"])]


def _next(batch: Batch, *, is_idle: bool) -> list[str]:
    """What to type where only a person can let it go on."""
    if is_idle:
        return [f"  go on    {again(batch)}"]
    if batch.state is not BatchState.PAUSED:
        return []
    needs_a_word = batch.reason == BY_OPERATOR or (batch.reason or "").startswith(FAILING)
    return [f"  go on    {f'orchestrator resume {batch.id}' if needs_a_word else again(batch)}"]


async def watch(name: str) -> Ending:
    """The panel of a batch that runs elsewhere."""
    settings = here()
    async with wiring.redis(settings) as hold, wiring.rooms(settings, redis_url=hold.redis_url, token_needed=False) as rooms:
        batch = await rooms.ledger.find(name)
        with screen() as shown:
            looking_on = float("inf")  # whoever only looks is not sent home by an outage
            code = await Follower(rooms, batch.id, shown, None, looking_on, rooms.clock.boottime()).follow(asyncio.Event())
    return replace(await status(batch.id), code=code or Exit.DONE)


async def items(name: str, *, state: str | None, limit: int) -> Ending:
    """Rows of a batch."""
    if state is not None and state not in set(ItemState):
        raise BadInput(f"--state {state!r}: one of {', '.join(ItemState)}")
    async with wiring.ledger(here()) as ledger:
        batch = await ledger.find(name)
        rows = await ledger.items(batch.pk, state=ItemState(state) if state else None, after_idx=-1, limit=limit + 1)
    has_more, rows = len(rows) > limit, rows[:limit]
    documents = [{"index": r.index, "id": r.row_id, "state": r.state.value, "prediction_id": r.prediction_id, "error": r.error,
                  "error_class": r.error_class, "attempts": r.attempts, "seconds": r.seconds,
                  "cost_usd": None if r.charge_units is None else format(to_usd(r.charge_units), "f"),
                  "cost_is_estimate": r.is_estimate, "shares_row": r.shares_row, "shares_batch": r.shares_batch} for r in rows]
    lines = [f"{d['index']:>7}  {d['id']:<20} {d['state']:<10} {d['prediction_id'] or '–':<27}"
             + (f" ${d['cost_usd']}{' (estimated)' if d['cost_is_estimate'] else ''}" if d["cost_usd"] else "")
             + (f"  as row {d['shares_row']}" if d["shares_row"] is not None else "")
             + (f" of {d['shares_batch']}" if d["shares_batch"] else "")
             + (f"  {d['error_class']}: {d['error']}" if d["error"] else "")
             for d in documents] or ["no such rows"]
    lines += [f"and more: --limit {limit * 10} shows them"] if has_more else []
    return Ending(Exit.DONE, {"batch": batch.id, "items": documents, "has_more": has_more}, tuple(lines))


async def jobs() -> Ending:
    """Every job file that can be found from here, and when it runs by itself."""
    found = [(path, *_read(path)) for path in wiring.discover_jobs(Path.cwd())]
    kept = await schedules.kept([path for path, job, _ in found if job is not None and job.schedule is not None])
    now = wiring.clock().now()
    documents: list[dict[str, Any]] = []
    lines = []
    for path, job, wrong in found:
        schedule, model = (job.schedule, job.target_as_written()) if job else (None, None)
        last = kept.last.get(path)
        documents.append({"job": path.stem, "path": str(path), "model": model, "wrong": wrong,
                          "schedule": schedules.document(schedule, last=last, now=now) if schedule else None})
        lines.append(f"{path.stem:<24} {model:<44} {'; '.join(wrong) or 'ready'}" if job else f"{path.stem:<24} {wrong[0]}")
        lines += [schedules.line(schedule, last=last, now=now)] if schedule else []
    bad = any(d["wrong"] for d in documents)
    lines += [f"note: {kept.trouble}"] if kept.trouble else []
    return Ending(Exit.BAD_INPUT if bad else Exit.DONE, {"jobs": documents}, tuple(lines or ["no jobs/ folder here"]))


def _read(path: Path) -> tuple[Job | None, list[str]]:
    """The job, and what is wrong with it."""
    try:
        job = wiring.load_job(path, changes={}).job
    except OrchestratorError as error:
        return None, [str(error)]
    return job, job.unsupported()
