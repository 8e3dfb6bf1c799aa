"""A model that always fails, as a user meets it: a few rows are paid for, not all of them."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from orchestrator.core.failing import FAILING
from tests.chaos.outages import long
from tests.e2e.desk import Desk, Provider, wait_until
from tests.e2e.test_roles import up

ROWS, IN_FLIGHT = 200, 5
LANES = 2  # each looks for itself before it buys
JOB = f"""\
model: black-forest-labs/flux-schnell
source: {{ path: rows.csv }}
input: {{ prompt: "{{{{ text }}}}" }}
limits: {{ in_flight: {IN_FLIGHT} }}
output: {{ to: "out/{{{{ batch }}}}" }}
"""
BROKEN = {"fail": {"p": 1.0, "text": "CUDA out of memory"}}


def texts(count: int) -> list[dict[str, str]]:
    """So many rows."""
    return [{"text": f"sentence {n}"} for n in range(count)]


def test_a_model_that_always_fails(desk: Desk, provider: Provider):
    """Of 200 rows about twenty are bought; exit 1 says what is left and how to go on; run again buys nothing; `resume` goes on,
    and with the model mended all of it comes home."""
    provider.put("faults", BROKEN)
    desk.job(JOB, rows=texts(ROWS))
    first = desk("run", "shots", "--yes", "--json")
    assert (first.code, first.json["state"]) == (1, "paused"), f"{first}\n{desk.log()}"
    bought = len(provider.purchases())
    assert 20 <= bought <= 20 + LANES * IN_FLIGHT
    assert first.json["items"] == {"total": ROWS, "succeeded": 0, "failed": bought, "canceled": 0, "pending": ROWS - bought}
    assert Path(first.json["results"]).exists()
    batch = first.json["batch"]
    again = desk("run", "shots", "--yes")
    assert again.code == 1 and len(provider.purchases()) == bought
    assert f"{ROWS - bought} rows left, and not bought" in again.out
    assert f"{FAILING}: not one has succeeded, and {bought} have failed ({bought} × memory: CUDA out of memory)" in again.out
    assert f"orchestrator resume {batch}" in again.out and f"orchestrator retry {batch}" in again.out
    told = desk("status", batch)
    assert FAILING in told.out and f"go on    orchestrator resume {batch}" in told.out
    provider.put("faults", {"fail": None})
    assert desk("resume", batch).code == 0
    done = desk("run", "shots", "--yes", "--json")
    assert done.json["items"]["succeeded"] == ROWS - bought, f"{done}\n{desk.log()}"
    assert done.json["state"] == "finished" and done.code == 1


@long
def test_a_nightly_job_whose_model_is_broken(desk: Desk, provider: Provider, free_port: Callable[[], int]):
    """Nobody sits before it: the batch waits with its reason, nothing more is bought, and `jobs` says that it is paused."""
    provider.put("faults", BROKEN)
    desk.env["ORCHESTRATOR_WEB_BIND"] = f"127.0.0.1:{free_port()}"
    desk.job(JOB, name="other", rows=texts(ROWS))
    assert desk("run", "other", "--limit", "1", "--yes").code == 1  # by hand, and so there is a ledger
    rule = "*/5 * * * *"
    desk.job(f'{JOB}schedule: {{ cron: "{rule}", timezone: Europe/Berlin, missed: run-once }}\n', name="nightly")
    with closing(sqlite3.connect(desk.folder / ".orchestrator" / "ledger.db")) as ledger, ledger:
        ledger.execute("INSERT INTO schedules VALUES (?, ?, ?)",
                       ("jobs/nightly.yaml", f"{rule} Europe/Berlin", "2026-11-01 02:00:00.000000"))
    with up(desk):
        wait_until(lambda: _batch_state(desk) == "paused", timeout_s=60)
    bought = len(provider.purchases()) - 1
    assert 20 <= bought <= 20 + LANES * IN_FLIGHT
    assert ": paused (batch nightly-" in desk("jobs").out
    assert FAILING in desk("status", "nightly").out


def _batch_state(desk: Desk) -> str | None:
    """Of the batch of the last slot."""
    (job,) = [job for job in desk("jobs", "--json").json["jobs"] if job["job"] == "nightly"]
    last = job["schedule"]["last"]
    return last and last["batch_state"]
