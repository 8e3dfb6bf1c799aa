"""The plays around the deaths of points.py: what is run, what a person types afterwards, and how it must stand in the end.

The judge is the simulator's own ledger: what was bought, for which row, and what it cost."""

import asyncio
import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from orchestrator.gateways.ledger import Database, SqlLedger
from tests.chaos.points import Case
from tests.e2e.desk import Desk, Done, interrupt, wait_until

COUNT = 24
ROWS: list[dict[str, Any]] = [{"sku": f"{n:03}", "title": f"a teapot of kind {n}", "seed": n} for n in range(COUNT)]
JOB = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv, id: sku }
input: { prompt: "{{ title }}", seed: "{{ seed }}", output_format: png }
output: { to: "out/{{ batch }}" }
limits: { per_minute: 900 }
"""
BUY = ("run", "shots", "--yes", "--json")
DEATHS_BY_HAND = ("command", "everything")  # who has died by them cannot go on by itself


@dataclass
class Stage:
    """A desk whose processes die as the case says."""

    desk: Desk
    case: Case
    marks: Path
    died: int = 0
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put the crashing folder on every process's path."""
        self.marks.mkdir()
        path = f"{Path(__file__).parent / 'crashing'}:{self.desk.env['PYTHONPATH']}"
        self.env = {"PYTHONPATH": path, "CRASH_AT": ";".join(self.case.deaths), "CRASH_MARKS": str(self.marks)}

    def insist(self, *args: str) -> Done:
        """Type a command, and the same again at once each time it is killed, as a shell's loop would."""
        for _ in range(len(self.case.deaths) + 1):
            done = self.desk(*args, **self.env)
            if done.code != -9:
                return done
            self.died += 1
        raise AssertionError(f"{args} was killed {self.died} times")

    def all_died(self) -> None:
        """Every death has come: a point that nothing reaches proves nothing."""
        missing = [death for n, death in enumerate(self.case.deaths) if not (self.marks / str(n)).exists()]
        assert not missing, f"never reached: {missing}\n{self.desk.log()}"
        by_hand = sum(death.split()[0] in DEATHS_BY_HAND for death in self.case.deaths)
        assert self.died == by_hand

    def ended(self, done: Done, code: int) -> None:
        """A command has ended with this code."""
        assert done.code == code, f"{self.case}\n{done}\n{self.desk.log()}"

    def bought(self) -> Counter[int]:
        """How often each row was bought, by the provider's ledger."""
        return Counter(int(purchase["input"]["seed"]) for purchase in self.desk.provider.purchases())

    def bought_as_recorded(self) -> None:
        """Each row as often as our ledger has attempts with a prediction: none unknown to us, none made up."""
        with closing(sqlite3.connect(self.desk.folder / ".orchestrator" / "ledger.db")) as ledger:
            asked = ("SELECT idx, count(*) FROM attempts JOIN items ON items.pk = item_pk WHERE prediction_id IS NOT NULL "
                     "GROUP BY idx")
            assert Counter(dict(ledger.execute(asked).fetchall())) == self.bought()
            assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    def same_dollars(self, said: str) -> None:
        """What we say it cost is what the provider billed."""
        assert Decimal(said) == Decimal(self.desk.provider.admin("ledger")["billed_usd"])

    def whole(self, done: Done, *, extra: int | None = 0) -> None:
        """All rows at home, each bought once (and `extra` purchases that did not end well; None: some), nothing left over."""
        self.ended(done, 0)
        all_well = {"total": COUNT, "succeeded": COUNT, "failed": 0, "canceled": 0, "pending": 0}
        assert (done.json["items"], done.json["state"]) == (all_well, "finished"), f"{self.case}\n{done}"
        bought = self.bought()
        assert set(bought) == set(range(COUNT)), f"{self.case}: {bought}"
        assert extra is None or bought.total() == COUNT + extra, f"{self.case}: {bought}"
        self.bought_as_recorded()
        self.same_dollars(done.json["cost_usd"])
        self.nothing_runs()
        (results,) = self.desk.folder.glob("out/*/results.parquet")
        complete(results.parent, self.desk, done.json)

    def nothing_runs(self) -> None:
        """No process is left."""
        wait_until(lambda: not self.desk.processes(), timeout_s=15)


def complete(folder: Path, desk: Desk, document: dict[str, Any]) -> None:
    """The output folder holds what it should, each file with the provider's bytes, and nothing else."""
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]
    ours = [".orchestrator.json", "manifest.jsonl", "results.parquet", "summary.json"]
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert there == sorted([*ours, *(line["path"] for line in manifest)])
    rows = desk.results()
    assert [row["sku"] for row in rows] == [row["sku"] for row in ROWS]
    seed_of = {purchase["id"]: purchase["input"]["seed"] for purchase in desk.provider.purchases()}
    for row, line in zip(rows, manifest, strict=True):
        content = (folder / line["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (line["bytes"], line["sha256"])
        assert content == httpx.get(line["source_url"]).content
        assert row["prediction_status"] == "succeeded" and row["prediction_files"] == [line["path"]]
        assert row["prediction_id"] == line["prediction_id"] and seed_of[row["prediction_id"]] == int(row["seed"])
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert {name: summary[name] for name in ("batch", "items", "state", "cost_usd")} == {
        name: document[name] for name in ("batch", "items", "state", "cost_usd")}


# The plays


def run(stage: Stage) -> None:
    """A batch, killed on its way, and run again."""
    stage.desk.job(JOB, rows=ROWS)
    stage.whole(stage.insist(*BUY))


def refused(stage: Stage) -> None:
    """A source with a bad row: refused whole, whatever died while it was taken out again; corrected, it runs."""
    stage.desk.job(JOB, rows=[*ROWS[:-1], ROWS[-1] | {"seed": "many"}])
    stage.ended(stage.insist(*BUY), 2)
    assert stage.desk("status", "--json").json["batches"] == [] and not stage.bought()
    stage.desk.job(JOB, rows=ROWS)
    stage.whole(stage.desk(*BUY))


def _under(faults: dict[str, Any]) -> Callable[[Stage], None]:
    """The plain play with a provider that misbehaves."""
    def play(stage: Stage) -> None:
        stage.desk.provider.put("faults", faults)
        run(stage)

    return play


def credit(stage: Stage) -> None:
    """The account runs dry after three rows (an account with little credit buys six a minute); with more credit the same command
    goes on."""
    stage.desk.job(JOB, rows=ROWS)
    stage.desk.provider.put("credit", {"usd": "0.009"})
    stage.ended(stage.insist(*BUY), 3)
    stage.desk.provider.put("credit", {"usd": None})
    stage.whole(stage.desk(*BUY))


def budget(stage: Stage) -> None:
    """A budget for ten rows is kept over the death; a larger one goes on."""
    stage.desk.job(f"{JOB}budget: {{ usd: 0.03, per_row_usd: 0.003 }}\n", rows=ROWS)
    stage.ended(stage.insist(*BUY), 3)
    assert stage.bought().total() == 10
    stage.desk.job(f"{JOB}budget: {{ usd: 3, per_row_usd: 0.003 }}\n")
    stage.whole(stage.desk(*BUY))


def _ten_out(stage: Stage) -> None:
    """Ten predictions that do not end, fourteen rows that wait, and nobody at work."""
    stage.desk.job(JOB, rows=ROWS)
    stage.desk.provider.put("faults", {"stuck": 1.0})
    process = stage.desk.start(*BUY, "--limit", "10")
    wait_until(lambda: stage.bought().total() == 10)
    assert interrupt(process).code == 130
    stage.nothing_runs()


def cancel(stage: Stage) -> None:
    """`cancel`, killed and typed again: what is out is ended there, what waits is never bought; the next run says so."""
    _ten_out(stage)
    stage.ended(stage.insist("cancel", "shots", "--json"), 0)
    done = stage.desk(*BUY)
    stage.ended(done, 5)
    assert done.json["items"] == {"total": COUNT, "succeeded": 0, "failed": 0, "canceled": COUNT, "pending": 0}
    assert [purchase["status"] for purchase in stage.desk.provider.purchases()] == ["canceled"] * 10
    stage.bought_as_recorded()
    stage.same_dollars(done.json["cost_usd"])
    stage.nothing_runs()


def resume(stage: Stage) -> None:
    """`resume` of a canceled batch, killed and typed again: all its rows wait again, and the next run buys them."""
    _ten_out(stage)
    stage.ended(stage.desk("cancel", "shots"), 0)
    stage.ended(stage.desk(*BUY, "--limit", "10"), 5)
    stage.desk.provider.put("faults", {"stuck": None})
    resumed = stage.insist("resume", "shots")
    assert resumed.code == 0 or "is running" in resumed.err, f"{stage.case}\n{resumed}"
    stage.whole(stage.desk(*BUY), extra=10)


def retry(stage: Stage) -> None:
    """`retry` of three failed rows, killed and typed again: they and only they are bought again."""
    stage.desk.job(JOB, rows=ROWS)
    stage.desk.provider.put("faults", {"fail": {"next": 3, "text": "NSFW content detected"}})
    stage.ended(stage.desk(*BUY), 1)
    stage.ended(stage.insist("retry", "shots"), 0)
    stage.whole(stage.desk(*BUY), extra=3)


def refetch(stage: Stage) -> None:
    """Outputs on a host that was not allowed: `retry`, killed and typed again, fetches them and buys none anew."""
    stage.desk.job(JOB, rows=ROWS)
    stage.ended(stage.desk(*BUY, ORCHESTRATOR_OUTPUT_HOSTS=""), 1)
    stage.ended(stage.insist("retry", "shots"), 0)
    stage.whole(stage.desk(*BUY))


def expired(stage: Stage) -> None:
    """Outputs that are gone before they are fetched, in a job that buys such rows again: each once more at most."""
    stage.desk.job(f"{JOB}retry: {{ expired: buy }}\n", rows=ROWS)
    stage.desk.provider.put("faults", {"output_404": {"next": 30}})
    stage.desk.env["ORCHESTRATOR_TEMPO__RETENTION_S"] = "1"
    stage.whole(stage.insist(*BUY), extra=None)
    assert stage.bought().total() > COUNT and max(stage.bought().values()) == 2


def early(stage: Stage) -> None:
    """Webhooks that come while their POST waits for its answer, in vain: a GET says whose they are."""
    stage.desk.env["ORCHESTRATOR_TEMPO__SWEEP_WEBHOOKS_S"] = "0.3"
    stage.desk.provider.put("faults", {"slow_answer": {"next": 8, "seconds": 6}})
    run(stage)


def export(stage: Stage) -> None:
    """`export` over the results of a finished batch, killed and typed again: whole, and nothing beside them."""
    stage.desk.job(JOB, rows=ROWS)
    stage.ended(stage.desk(*BUY), 0)
    stage.ended(stage.insist("export", "shots"), 0)
    stage.whole(stage.desk(*BUY))  # which sweeps up what the dead have left


def night(stage: Stage) -> None:
    """A slot that came two minutes ago, under `up`: one batch, started and brought home once, whoever died."""
    at = datetime.now(UTC) - timedelta(minutes=2)
    rule = f"{at.minute} {at.hour} * * *"
    stage.desk.job(f'{JOB}schedule: {{ cron: "{rule}", timezone: UTC, missed: run-once }}\n', name="nightly", rows=ROWS)
    asyncio.run(_known_since(stage, f"{rule} UTC", at - timedelta(hours=1)))
    up = stage.desk.start("up", **stage.env)
    try:
        wait_until(lambda: up.poll() is not None or _slot(stage.desk) == "done", timeout_s=60)
    finally:
        told = interrupt(up, 15)
    assert _slot(stage.desk) == "done", f"{stage.case}\n{told}\n{stage.desk.log()}"
    (batch,) = stage.desk("status", "--json").json["batches"]
    assert batch["run_key"].startswith("jobs/nightly.yaml@20")
    stage.whole(Done(0, json.dumps(batch), told.err))


async def _known_since(stage: Stage, rule: str, since: datetime) -> None:
    """A ledger that has known the schedule for long enough: the slot counts."""
    home = stage.desk.folder / ".orchestrator"
    home.mkdir()
    async with Database.open(f"sqlite:///{home / 'ledger.db'}") as database:
        await SqlLedger(database).know_schedule("jobs/nightly.yaml", rule=rule, now=since)


def _slot(desk: Desk) -> str | None:
    with closing(sqlite3.connect(desk.folder / ".orchestrator" / "ledger.db")) as ledger:
        states = [state for (state,) in ledger.execute("SELECT state FROM slots")]
    assert len(states) <= 1, states
    return states[0] if states else None


PLAYS: dict[str, Callable[[Stage], None]] = {
    "run": run, "refused": refused, "credit": credit, "budget": budget, "cancel": cancel, "resume": resume, "retry": retry,
    "refetch": refetch, "expired": expired, "export": export, "night": night, "hooked": run, "early": early,
    "throttled": _under({"storm_429": {"next": 3}}),
    "lost": _under({"lost_answer": {"next": 5}}),
    "reset": _under({"reset_before": {"next": 4}}),
    "slow": _under({"output_slow": {"next": 3, "seconds": 4}}),
    "broken": _under({"output_error": {"next": 3}}),
}
WITH_WEBHOOKS = ("hooked", "early")
