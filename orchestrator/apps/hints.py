"""What people are told of a batch by more than one command: why it waits, why rows failed, what to type to go on."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.apps.orders import order_by_hand
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.failing import Cause
from orchestrator.core.job import Job
from orchestrator.core.records import Batch
from orchestrator.core.runkey import run_key
from orchestrator.flow.control import START_LIMIT
from orchestrator.wiring import LedgerViews

LONGEST_MESSAGE = 200
OTHER_WORDS = " (and the --set or --source it was begun with)"


def why(batch: Batch) -> str | None:
    """Why a batch waits; a start limit by the name of the option that set it."""
    if batch.reason != START_LIMIT:
        return batch.reason
    return "--limit reached" if batch.start_limit is None else f"--limit {batch.start_limit} reached"


async def failures(ledger: LedgerViews, batch: Batch) -> list[dict[str, Any]]:
    """Failed rows by class, the most frequent first, with an example of what was said."""
    return [{"class": cause.error_class, "count": cause.count, "example": cause.example, "differs": cause.differs}
            for cause in await ledger.failures(batch.pk)]


def failed_lines(found: Sequence[dict[str, Any]], *, most: int = 50) -> list[str]:
    """The same for people, one line for each class."""
    causes = [Cause(failure["class"], failure["count"], failure["example"], failure["differs"]) for failure in found[:most]]
    lines = [f"  failed   {cause.text(longest=LONGEST_MESSAGE)}" for cause in causes]
    left = len(found) - most
    return lines + ([f"           … and {left} more {'class' if left == 1 else 'classes'}"] if left > 0 else [])


def again(batch: Batch) -> str:
    """The command that goes on with this very batch: its job alone only where that means no other batch."""
    command = ["orchestrator", "run", batch.job]
    job = Job.model_validate_json(batch.job_json)
    as_written = _is_as_written(batch.job, job)
    if not as_written or batch.run_key != _default_key(batch, job):
        command += ["--run-key", batch.run_key]
    return shlex.join(command) + ("" if as_written else OTHER_WORDS)


def _default_key(batch: Batch, job: Job) -> str:
    """The run key that the batch would have got by itself."""
    return run_key(job_name=batch.job, target_as_written=job.target_as_written(), input_mapping=job.input,
                   source_hashes=[file["sha256"] for file in json.loads(batch.source_json)])


def _is_as_written(name: str, job: Job) -> bool:
    """Whether the job file, where there is one, says what the batch was begun with."""
    try:
        written = order_by_hand(wiring.load_job(wiring.find_job(name, cwd=Path.cwd()), changes={})).job
    except OrchestratorError:
        return True
    return (written.target_as_written(), written.input, written.source.path) == (
        job.target_as_written(), job.input, job.source.path)
