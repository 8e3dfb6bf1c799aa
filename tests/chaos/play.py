"""Play one schedule from its first purchase to its end, and gather what the oracle needs."""

import hashlib
import json
import subprocess
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

from orchestrator.simulator.serve import SimulatorConfig, running
from tests.chaos.acts import ACTS
from tests.chaos.house import House, Postgres, opened
from tests.chaos.oracle import Attempt, Left, Purchase, Row, Tally, judge, tally
from tests.chaos.schedule import MODELS, Act, Schedule
from tests.e2e.desk import Provider

JOB = """\
model: {model}
source: {{ path: rows.csv, id: name }}
input: {{ prompt: "{{{{ prompt }}}}" }}
limits: {{ per_minute: 600 }}
retry: {{ attempts: 3 }}
price: {{ {price} }}
output: {{ to: "out/{name}" }}
"""
PRICES = {"flux": "per_output_usd: 0.003", "sdxl": "hardware: gpu-l40s"}
LOOK_S = 0.05
LONGEST_S = 240.0
MOST_RUNS = 10
LATE_S = 12.0  # for what is still under way at the provider, and for processes that are on their way out
OVER = (0, 1)
AGAIN = (4, 130, 143, -9, -2, -15)
PATIENCE = ("--patience", "15s")
NOTES = frozenset((".orchestrator.json", "manifest.jsonl", "results.parquet", "summary.json"))


@dataclass(slots=True)
class Command:
    """One `orchestrator run`, started again by a person until it ends by itself."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    codes: list[int] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether it came to an end of its own."""
        return bool(self.codes) and self.codes[-1] in OVER

    @property
    def is_stuck(self) -> bool:
        """Whether a person would give up."""
        if not self.codes or self.codes[-1] in OVER:
            return False
        return len(self.codes) >= MOST_RUNS or not (self.codes[-1] in AGAIN or self._came_too_soon())

    def _came_too_soon(self) -> bool:
        """A web part that starts at the same moment holds its address before it is known to be there."""
        said = self.log.read_text("utf-8", "replace").splitlines()
        return self.codes[-1] == 2 and "cannot listen" in said[-1]

    @property
    def tail(self) -> str:
        """What it said last."""
        return self.log.read_text("utf-8", "replace")[-600:]


@dataclass(frozen=True, slots=True)
class Played:
    """One schedule, what was wrong with its end (nothing: all well), and its figures."""

    schedule: Schedule
    complaints: tuple[str, ...]
    tally: Tally
    seconds: float
    done: str  # what was really done, and how often the commands ran
    folder: Path

    def __str__(self) -> str:
        verdict = "\n    ".join(["FAILED", *self.complaints, f"left in {self.folder}"]) if self.complaints else "ok"
        unsure = f"{self.tally.unsure} of {self.tally.doubted} in doubt ended unsure" + ", SURPLUS" * bool(self.tally.surplus)
        return f"{self.schedule} | {self.done} | {unsure} | {self.seconds:.0f} s: {verdict}"


def play(schedule: Schedule, *, folder: Path, postgres: Postgres | None = None) -> Played:
    """The whole of it. What goes wrong in the playing itself is a complaint too."""
    began = time.monotonic()
    config = SimulatorConfig(port=0, latency_s=0.8, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0,
                             seed=schedule.seed, clock_offset_s=schedule.offset_s, webhook_retry_scale=0.1)
    stage = _Stage(schedule, folder)
    try:
        with running(config) as url:
            stage.provider = Provider(url)
            with opened(folder, provider_url=url, shape=schedule.shape, webhooks=schedule.webhooks, postgres=postgres) as house:
                complaints, counted = stage.perform(house)
    except Exception:
        complaints, counted = [traceback.format_exc()], Tally(schedules=1, failed=1)
    return Played(schedule, tuple(complaints), counted, time.monotonic() - began, stage.told(), folder)


class _Stage:
    """What one performance remembers."""

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self._schedule = schedule
        self._folder = folder
        self._commands: list[Command] = []
        self._todo = list(schedule.acts)
        self._done: list[str] = []
        self._acts_at: float | None = None
        self.provider: Provider

    def told(self) -> str:
        """Acts that were played, and exit codes."""
        skipped = f" ({len(self._todo)} acts not reached)" if self._todo else ""
        codes = " ".join(f"{one.name}:{','.join(map(str, one.codes))}" for one in self._commands)
        return f"did {', '.join(self._done) or 'nothing'}{skipped}; exits {codes}"

    def perform(self, house: House) -> tuple[list[str], Tally]:
        """Buy, disturb, buy again until all is over; then judge."""
        self._set_up()
        for name in self._schedule.jobs:
            self._commands.append(Command(name, self._run(house, name), self._folder / f"run-{name}.err"))
        until = time.monotonic() + LONGEST_S
        while time.monotonic() < until and not all(one.is_over or one.is_stuck for one in self._commands):
            self._look(house)
            time.sleep(LOOK_S)
        complaints = self._troubles()
        if complaints:
            return complaints, Tally(schedules=1, failed=1)
        house.close()
        self._settle(house)
        return self._judged(house)

    def _set_up(self) -> None:
        self.provider.put("faults", self._schedule.switches | ({"list_webhook": 1.0} if self._schedule.echoes else {}))
        (self._folder / "jobs").mkdir()
        for name in self._schedule.jobs:
            text = JOB.format(model=MODELS[name], name=name, price=PRICES[name])
            (self._folder / "jobs" / f"{name}.yaml").write_text(text, "utf-8")
        lines = [f"r{place:03},{prompt}" for place, prompt in enumerate(self._schedule.prompts)]
        (self._folder / "jobs" / "rows.csv").write_text("\n".join(["name,prompt", *lines, ""]), "utf-8")

    def _run(self, house: House, name: str) -> subprocess.Popen[bytes]:
        return house.start("run", name, "--yes", "--json", *PATIENCE, log=f"run-{name}")

    def _look(self, house: House) -> None:
        """One look at everything: supervisors, commands that ended, the next act."""
        house.look_after()
        for one in self._commands:
            code = one.process.poll()
            if code is None or one.is_over or one.is_stuck:
                continue
            one.codes.append(code)
            if not one.is_over and not one.is_stuck:
                (self._folder / f"run-{one.name}.out").unlink()
                one.process = self._run(house, one.name)
        if self._todo and self._is_time(self._todo[0]):
            self._act(house, self._todo.pop(0))

    def _is_time(self, act: Act) -> bool:
        wanted = act.share * self._schedule.rows * len(self._schedule.jobs)
        if self._acts_at is None and self.provider.admin("ledger")["created"] >= wanted:
            self._acts_at = time.monotonic() + act.wait_s
        return self._acts_at is not None and time.monotonic() >= self._acts_at

    def _act(self, house: House, act: Act) -> None:
        self._acts_at = None
        living = [one.process.pid for one in self._commands if one.process.poll() is None]
        ACTS[act.what](house, act, living)
        self._done.append(act.what)

    def _troubles(self) -> list[str]:
        """What kept a command from its end."""
        return [f"{one.name} did not come to its end: exits {one.codes}; {one.tail}" for one in self._commands if not one.is_over]

    def _settle(self, house: House) -> None:
        """No new mischief; what is under way at the provider ends, and processes on their way out are gone."""
        self.provider.put("faults", dict.fromkeys(self._schedule.switches))
        until = time.monotonic() + LATE_S
        while time.monotonic() < until and (house.living() or any(
                p["status"] in ("starting", "processing") for p in self.provider.purchases())):
            time.sleep(LOOK_S * 4)

    def _judged(self, house: House) -> tuple[list[str], Tally]:
        sold = self.provider.purchases()  # kept beside the rest for whoever looks for the cause
        (self._folder / "purchases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sold), "utf-8")
        purchases = [purchase_of(line) for line in sold]
        lefts = [left_of(house, one.name, prompts=self._schedule.prompts, exit_code=one.codes[-1]) for one in self._commands]
        complaints = judge(lefts, purchases, alive=[" ".join(args) for args in house.living().values()])
        return complaints, tally(lefts, purchases, struck=self.provider.admin("struck"), is_evident=self._schedule.is_evident,
                                 failed=bool(complaints))


def purchase_of(line: dict[str, Any]) -> Purchase:
    """A line of the simulator's ledger."""
    billed = None if line["billed_usd"] is None else Decimal(line["billed_usd"])
    return Purchase(line["id"], line["model"], line["input"]["prompt"], line["status"], billed)


def left_of(house: House, name: str, *, prompts: Sequence[str], exit_code: int) -> Left:
    """What the batch of a job left in its folder, and whose its purchases are."""
    folder = house.folder / "out" / name
    table: list[dict[str, Any]] = pq.read_table(folder / "results.parquet").to_pylist()
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    there = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in folder.rglob("*") if path.is_file() and str(path.relative_to(folder)) not in NOTES}
    with httpx.Client(verify=False, timeout=60) as client:
        served = {line["source_url"]: hashlib.sha256(client.get(line["source_url"]).content).hexdigest() for line in manifest}
    return Left(model=MODELS[name], prompts=prompts, exit_code=exit_code, rows=[_row(values) for values in table],
                attempts=_attempts(house, name), manifest=manifest, there=there, served=served,
                summary=json.loads((folder / "summary.json").read_text("utf-8")), books=_books(house, name))


def _row(values: dict[str, Any]) -> Row:
    return Row(values["prediction_index"], values["name"], values["prompt"], values["prediction_status"], values["prediction_id"],
               values["prediction_error_class"], values["prediction_cost_usd"], tuple(values["prediction_files"] or ()))


_ATTEMPTS = """
SELECT items.idx, attempts.state, attempts.prediction_id, attempts.sent_until_at IS NOT NULL,
       attempts.charge_units IS NOT NULL, attempts.surplus_at IS NOT NULL
FROM attempts JOIN items ON items.pk = attempts.item_pk JOIN batches ON batches.pk = attempts.batch_pk WHERE batches.job = '{}'
"""


_BOOKS = """
SELECT 'batch', spent_units, reserved_units FROM batches WHERE job = '{job}' UNION ALL
SELECT 'days', SUM(batch_days.spent_units), SUM(batch_days.reserved_units)
FROM batch_days JOIN batches ON batches.pk = batch_pk WHERE job = '{job}' UNION ALL
SELECT 'attempts', COALESCE(SUM(charge_units), 0), SUM(attempts.reserved_units)
FROM attempts JOIN batches ON batches.pk = batch_pk WHERE job = '{job}'
"""


def _books(house: House, job: str) -> dict[str, tuple[int, int]]:
    """What is spent and reserved, by each that keeps it; one batch of the job has tried something."""
    return {name: (int(spent), int(reserved)) for name, spent, reserved in house.query(_BOOKS.format(job=job))}


def _attempts(house: House, job: str) -> list[Attempt]:
    return [Attempt(index, state, prediction_id, bool(was_lost), bool(is_priced), bool(is_surplus))
            for index, state, prediction_id, was_lost, is_priced, is_surplus in house.query(_ATTEMPTS.format(job))]
