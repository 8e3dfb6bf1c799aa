"""What was typed behind `run` and `plan`, what it orders, and what is to be typed to go on."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import wiring
from orchestrator.apps.orders import order_by_hand
from orchestrator.core.records import Batch
from orchestrator.flow.ingest import Order


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The arguments of `run` and `plan`. `rehearsal`: of the demo, whose batch nobody goes on with."""

    job: str
    source: str | None = None
    output: str | None = None
    run_key: str | None = None
    limit: int | None = None
    changes: dict[str, str] = field(default_factory=dict)
    fresh: bool = False
    patience_s: float = 900.0
    yes: bool = False
    detach: bool = False
    rehearsal: bool = False

    def command(self, batch: Batch | None = None) -> str:
        """The `run` of what was typed, without the limit, and with the key of the batch where it must be named."""
        key = batch.run_key if batch is not None and self.fresh else self.run_key
        words = ["orchestrator", "run", self.job]
        for name, value in (("--source", self.source), ("--output", self.output), ("--run-key", key)):
            words += [name, value] if value is not None else []
        for name, value in self.changes.items():
            words += ["--set", f"{name}={value}"]
        return shlex.join(words)

    def to_buy(self) -> str:
        """The `run` of all that was typed behind `plan`."""
        return self.command() + (" --fresh" if self.fresh else "") + ("" if self.limit is None else f" --limit {self.limit}")

    def again(self, batch: Batch) -> str:
        """How to go on with this very batch: the same command, but that `--fresh` would begin another one."""
        if not self.fresh or self.rehearsal:
            return "run the same command again"
        return self.command(batch) + (f" --limit {self.limit}" if self.limit is not None else "")


def order_of(options: RunOptions) -> tuple[Order, Path]:
    """The order that a job file and the command line make, and the home it belongs to."""
    cwd = Path.cwd()
    path = wiring.find_job(options.job, cwd=cwd)
    source = None if options.source is None else str(cwd / options.source)
    loaded = wiring.load_job(path, changes=options.changes, source=source)
    order = order_by_hand(loaded, output=options.output, run_key=options.run_key, fresh=options.fresh, limit=options.limit)
    return order, wiring.home_of(path, cwd=cwd)
