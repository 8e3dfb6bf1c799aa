"""Commands that change a batch: pause, resume, cancel, retry, export."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator import wiring
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.look import here
from orchestrator.apps.hints import again
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import did_you_mean
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch
from orchestrator.core.retry import FAILURE_CLASSES
from orchestrator.flow import control
from orchestrator.flow.report import SUFFIX, results_path, write_all
from orchestrator.flow.report import export as write_results


@asynccontextmanager
async def _batch(name: str, *, provider: bool = False) -> AsyncIterator[tuple[Rooms, Batch]]:
    settings = here()
    async with wiring.rooms(settings, token_needed=provider) as rooms:
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
            raise BadInput(f"batch {batch.id} is {batch.state.value}: only a paused or canceled one can be resumed")
    return Ending(Exit.DONE, {"batch": batch.id, "state": "running"},
                  (f"{batch.id} goes on wherever it is being run; if nothing runs it: {again(batch)}",))


async def cancel(name: str) -> Ending:
    """Cancel one batch, at the provider too."""
    async with _batch(name, provider=True) as (rooms, batch):
        done = await control.cancel(rooms, batch)
    document = {"batch": batch.id, "never_bought": done.pending, "ended": done.ended, "still_out": done.still_out}
    lines = (f"{batch.id} is canceled: {done.pending:,} rows were never bought, {done.ended:,} predictions were ended, "
             f"{done.still_out:,} had ended already or could not be (the next run says which)",)
    return Ending(Exit.DONE, document, lines)


async def retry(name: str, *, classes: frozenset[str]) -> Ending:
    """Let failed rows wait for another attempt."""
    async with _batch(name) as (rooms, batch):
        await _check_classes(rooms, batch, classes)
        fetched, bought = await control.retry(rooms, batch, classes=classes)
    said = [f"{fetched:,} rows wait to be fetched again; they were bought already"] if fetched else []
    said += [f"{bought:,} rows wait to be bought again"] if bought else []
    return Ending(Exit.DONE, {"batch": batch.id, "rows": fetched + bought, "to_fetch": fetched, "to_buy": bought},
                  (f"{'; '.join(said)}: {again(batch)}" if said else "no such failed rows",))


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
    return Ending(Exit.DONE, {"batch": batch.id, "results": path, "complete": path == results_path(batch)}, (f"written: {path}",))


async def _export_to(rooms: Rooms, batch: Batch, to: str) -> str:
    kind = next((k for k, suffix in SUFFIX.items() if to.endswith(suffix)), None)
    if kind is None:
        raise BadInput(f"--to {to}: end the name in {', '.join(SUFFIX.values())}")
    await write_results(rooms, batch, path=absolute(to), kind=kind)
    return absolute(to)
