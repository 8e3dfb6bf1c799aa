"""From a job file to an order: what the command line, or the slot of a schedule, asks for."""

from pathlib import Path

from orchestrator import wiring
from orchestrator.core.errors import BadInput, OrchestratorError
from orchestrator.core.ports import Rooms
from orchestrator.core.schedule import SlotRun, date_of, dated, job_key
from orchestrator.flow.ingest import Order, Prepared, output_to
from orchestrator.flow.schedule import ScheduledJob
from orchestrator.wiring import LoadedJob, Settings


def order_by_hand(loaded: LoadedJob, *, output: str | None = None, run_key: str | None = None, fresh: bool = False,
                  limit: int | None = None) -> Order:
    """What `run` and `plan` order. Raises BadInput for what this version cannot do."""
    refused = loaded.job.unsupported()
    if refused:
        raise BadInput("\n".join(f"{loaded.path}: {sentence}" for sentence in refused))
    job = dated(loaded.job, date=date_of(loaded.job, at=wiring.clock().now()))
    return Order(job=job, name=loaded.name, folder=str(loaded.folder), output_to=output or job.output.to,
                 output_base=str(Path.cwd() if output else _beside(loaded)), places=loaded.places, run_key=run_key,
                 fresh=fresh, limit=limit)


def order_of_slot(loaded: LoadedJob, run: SlotRun) -> Order:
    """What a slot orders: its run key is job and slot, its date the slot's."""
    return Order(job=run.job, name=loaded.name, folder=str(loaded.folder), output_to=run.job.output.to,
                 output_base=str(_beside(loaded)), places=loaded.places, run_key=run.run_key, date=run.date)


def _beside(loaded: LoadedJob) -> Path:
    """Relative output folders lie beside `jobs/`, or beside a job file that lies elsewhere."""
    return loaded.folder.parent if loaded.folder.name == "jobs" else loaded.folder


async def check_folder(rooms: Rooms, prepared: Prepared) -> None:
    """Raises BadInput where a new batch could not have its output folder: before it is written, so that none is left behind.

    A batch that is there already may have its files in another folder than the order says, and goes on in that one."""
    if await rooms.ledger.known(prepared.run_key):
        return
    no_batch = rooms.clock.token()  # in a folder of its own no other batch has anything
    wiring.check_folder(output_to(prepared.order, no_batch, rooms.clock.now()), run_key=prepared.run_key)


def scheduled_jobs(settings: Settings, cwd: Path) -> tuple[list[ScheduledJob], dict[str, LoadedJob], list[str]]:
    """The jobs that can be found from here, each by its key in the ledger, and what is wrong with others.

    Those without a schedule too: it may have been taken out."""
    jobs: list[ScheduledJob] = []
    by_key: dict[str, LoadedJob] = {}
    wrong: list[str] = []
    for path in wiring.discover_jobs(cwd):
        try:
            loaded = wiring.load_job(path, changes={})
        except OrchestratorError as error:
            wrong.append(str(error))
            continue
        refused = loaded.job.unsupported() if loaded.job.schedule else []
        if refused:
            wrong += [f"{path}: {sentence}" for sentence in refused]
            continue
        key = job_key(path.resolve(), home=settings.home)
        by_key[key] = loaded
        jobs.append(ScheduledJob(key, loaded.job))
    return jobs, by_key, wrong
