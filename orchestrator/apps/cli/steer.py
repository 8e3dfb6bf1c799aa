"""Commands that change a batch: pause, resume, cancel, retry, export."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.look import here, is_anybody_at_work
from orchestrator.apps.hints import again
from orchestrator.apps.machine import is_served
from orchestrator.core.cost import usd_text
from orchestrator.core.errors import BadInput, ProviderAway, TokenRefused, Unreachable
from orchestrator.core.lifecycle import IN_AIR_ITEM, LIVE_BATCH, ItemState
from orchestrator.core.nearest import did_you_mean
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch, Counts
from orchestrator.core.retry import FAILURE_CLASSES
from orchestrator.flow import control
from orchestrator.flow.report import SUFFIX, write_all
from orchestrator.flow.report import export as write_results
from orchestrator.wiring import CanceledView


@asynccontextmanager
async def _batch(name: str) -> AsyncIterator[tuple[Rooms, Batch]]:
    settings = here()
    async with wiring.rooms(settings, token_needed=False) as rooms:
        yield rooms, await rooms.ledger.find(name)


@asynccontextmanager
async def _asking(name: str) -> AsyncIterator[tuple[Rooms, Batch]]:
    """The same for who asks the provider, at the account's pace."""
    settings = here()
    async with wiring.redis(settings) as hold, wiring.rooms(settings, redis_url=hold.redis_url) as rooms:
        yield rooms, await rooms.ledger.find(name)


@asynccontextmanager
async def _ending(name: str) -> AsyncIterator[tuple[Rooms, Batch]]:
    """The same for `cancel`: what is out costs money by the second, so it is ended also where Redis is away and nobody paces."""
    settings, redis_url = here(), wiring.NO_REDIS
    async with AsyncExitStack() as stack:
        with suppress(Unreachable):
            redis_url = (await stack.enter_async_context(wiring.redis(settings))).redis_url
        rooms = await stack.enter_async_context(wiring.rooms(settings, redis_url=redis_url))
        yield rooms, await rooms.ledger.find(name)


async def pause(name: str) -> Ending:
    """Pause one batch."""
    async with _batch(name) as (rooms, batch):
        if not await control.pause(rooms, batch):
            raise BadInput(f"batch {batch.id} is {batch.state.value}: only a running one can be paused")
    return Ending(Exit.DONE, {"batch": batch.id, "state": "paused"},
                  (f"{batch.id} is paused; what is out is still brought home. Go on with: orchestrator resume {batch.id}",))


async def resume(name: str) -> Ending:
    """Resume one batch."""
    async with _batch(name) as (rooms, batch):
        if not await control.resume(rooms, batch):
            await control.wake_all(rooms, batch)  # should nobody have been called for it
            raise BadInput(f"batch {batch.id} is {batch.state.value}: only a paused or canceled one can be resumed")
        await _attend(rooms, batch)
    return Ending(Exit.DONE, {"batch": batch.id, "state": "running"},
                  (f"{batch.id} goes on wherever it is being run; if nothing runs it: {again(batch)}",))


async def _attend(rooms: Rooms, batch: Batch) -> None:
    """Where no roles are at work the batch waits for a command that names it: a run of another job orders none of its rows."""
    await rooms.ledger.attend(batch.pk, attended=not await is_served(rooms))


async def cancel(name: str) -> Ending:
    """Cancel one batch, at the provider too."""
    settings, trouble = here(), None
    async with _ending(name) as (rooms, batch):
        try:
            await control.cancel(rooms, batch)
        except (ProviderAway, TokenRefused) as error:
            trouble = str(error)
        ledger = wiring.views(rooms)
        found, counts = await ledger.canceled(batch.pk), await ledger.counts(batch.pk)
        is_idle = not await is_anybody_at_work(ledger, settings)
    document = canceled_document(batch, found, counts) | ({"trouble": trouble} if trouble else {})
    lines = canceled_lines(batch, document, trouble=trouble, go_on=again(batch) if is_idle else None)
    return Ending(Exit.UNREACHABLE if trouble else Exit.DONE, document, tuple(lines))


def canceled_document(batch: Batch, found: CanceledView, counts: Counts) -> dict[str, Any]:
    """What canceling came to, with money as decimal text; what has no price is counted apart."""
    out = counts.own(*IN_AIR_ITEM)
    return {"batch": batch.id, "never_bought": found.never_bought, "between_attempts": found.between, "ended": found.ended,
            "ended_cost_usd": format(found.ended_usd, "f"), "ended_cost_unknown": found.ended_unknown, "still_out": out,
            "to_fetch": counts.own(ItemState.COLLECTING), "cost_usd": format(counts.spent_usd, "f"),
            "cost_unknown_items": counts.cost_unknown_items}


def canceled_lines(batch: Batch, told: dict[str, Any], *, trouble: str | None, go_on: str | None) -> list[str]:
    """The same for people. `go_on`: nobody is at work for the batch, and this brings it to its end."""
    lines = [f"{batch.id} is canceled: nothing more is bought", f"  never bought  {_many(told['never_bought'], 'row')}"
             + (f", and {_many(told['between_attempts'], 'row')} between two attempts" if told["between_attempts"] else "")]
    if told["ended"]:
        lines.append(f"  ended         {_many(told['ended'], 'prediction')} at the provider, billed until then: {_cost(told)}")
    if told["still_out"]:
        doing = "ended as soon as their answers are there" if trouble is None else f"not ended yet: {trouble}"
        lines.append(f"  still out     {_many(told['still_out'], 'row')}, {doing}")
    if told["to_fetch"]:
        lines.append(f"  to fetch      {_many(told['to_fetch'], 'row')} had succeeded before; what they gave is brought home")
    unknown = f" and {_many(told['cost_unknown_items'], 'row')} of unknown cost" if told["cost_unknown_items"] else ""
    lines.append(f"  spent         {usd_text(Decimal(told['cost_usd']))} in all{unknown}")
    if go_on and (told["still_out"] or told["to_fetch"]):
        lines.append(f"  nobody is at work for it; to see to the rest: {go_on}")
    return lines


def _cost(told: dict[str, Any]) -> str:
    """What the ended predictions cost: what is known, and how many are not."""
    unknown, known = told["ended_cost_unknown"], told["ended"] - told["ended_cost_unknown"]
    if not known:
        return "cost unknown"
    return usd_text(Decimal(told["ended_cost_usd"])) + (f", and {unknown:,} of unknown cost" if unknown else "")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


async def retry(name: str, *, classes: frozenset[str]) -> Ending:
    """Let failed rows wait for another attempt."""
    async with _asking(name) if "unsure" in classes else _batch(name) as (rooms, batch):
        await _check_classes(rooms, batch, classes)
        fetched, bought = await control.retry(rooms, batch, classes=classes)
        waiting = (await rooms.ledger.counts(batch.pk)).own(ItemState.PENDING) - bought if fetched or bought else 0
        if fetched or bought:
            await _attend(rooms, batch)
        left = [] if classes else await _left_out(rooms, batch)
    said = [f"{fetched:,} rows wait to be fetched again; they were bought already"] if fetched else []
    said += [f"{bought:,} rows wait to be bought again"] if bought else []
    said += [f"{_many(waiting, 'row')} never bought go on with them"] if waiting > 0 else []
    return Ending(Exit.DONE, {"batch": batch.id, "rows": fetched + bought, "to_fetch": fetched, "to_buy": bought},
                  (f"{'; '.join(said)}: {again(batch)}" if said else "no such failed rows", *left))


_WHY_NAMED = {"invalid_input": "were refused for their input", "unsure": "may have been bought already",
              "expired": "were paid for once", "vanished": "ran, and may have been paid for"}


async def _left_out(rooms: Rooms, batch: Batch) -> list[str]:
    """Failed rows that are tried again only by the name of their class."""
    found = {failure.error_class: failure.count for failure in await wiring.views(rooms).failures(batch.pk)}
    return [f"  left out {found[name]:,} × {name}: they {why}; to try them again all the same: orchestrator retry {batch.id} "
            f"--class {name}" for name, why in _WHY_NAMED.items() if name in found]


async def _check_classes(rooms: Rooms, batch: Batch, classes: frozenset[str]) -> None:
    """A typo must not pass for "nothing to do"."""
    there = [found.error_class for found in await wiring.views(rooms).failures(batch.pk)]
    known = list(dict.fromkeys([*there, *FAILURE_CLASSES]))
    for wrong in sorted(classes.difference(known)):
        failed = f"failed rows of {batch.id} are of: {', '.join(there)}" if there else f"{batch.id} has no failed rows"
        raise BadInput(f"--class {wrong}: there is no such class{did_you_mean(wrong, known)}; {failed}")


def absolute(path: str) -> str:
    """A path as typed, made absolute."""
    return str(Path(path).resolve())


async def export(name: str, *, to: str | None) -> Ending:
    """Write the results as they stand."""
    async with _batch(name) as (rooms, batch):
        try:
            path = await write_all(rooms, batch) if to is None else await _export_to(rooms, batch, to)
        except OSError as error:
            what, other = (batch.output_to, "--to FILE") if to is None else (f"--to {to}", "another --to")
            raise BadInput(f"{what} cannot be written: {error.strerror or error}. Choose {other}") from error
    document = {"batch": batch.id, "results": path, "complete": batch.state not in LIVE_BATCH}
    return Ending(Exit.DONE, document, (f"written: {path}",))


async def _export_to(rooms: Rooms, batch: Batch, to: str) -> str:
    kind = next((k for k, suffix in SUFFIX.items() if to.endswith(suffix)), None)
    if kind is None:
        raise BadInput(f"--to {to}: end the name in {', '.join(SUFFIX.values())}")
    await write_results(rooms, batch, path=absolute(to), kind=kind)
    return absolute(to)
