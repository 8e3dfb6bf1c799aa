"""Stopping well, holding on too long, and rows that end whoever holds them."""

import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.chaos.outages import (
    a_postgresql,
    all_home,
    asked,
    begun,
    bought_once,
    ended,
    free_port,
    gone_on,
    long,
    nothing_is_sent,
    private_socket,
    texts,
    worker_pids,
)
from tests.e2e.desk import Desk, interrupt, wait_until


def test_stopping_burns_no_attempt(desk: Desk):
    """Ctrl-C, and a worker told to end as in a deploy: nothing more is sent, what was claimed is handed back, and in the end each
    row has one attempt and one purchase."""
    stopped = interrupt(begun(desk, 150, per_minute=600, bought=25))
    assert stopped.code == 130 and "are still out" in stopped.err, f"{stopped}\n{desk.log()}"
    bought = len(desk.provider.purchases())
    assert asked(desk, "SELECT count(*) FROM attempts WHERE state IN ('open', 'unsure')") == [(0,)]
    rows = desk("items", "shots", "--state", "pending", "--json").json["items"]
    assert {row["attempts"] for row in rows} == {0}
    process = gone_on(desk, bought=bought + 30)
    (worker,) = worker_pids(desk)
    os.kill(worker, signal.SIGTERM)
    done = ended(process)
    assert done.code == 0 and "starting another" in done.err, f"{done}\n{desk.log()}"
    bought_once(desk, 150)
    assert {row["prediction_attempts"] for row in desk.results()} == {1}
    assert asked(desk, "SELECT count(*) FROM attempts WHERE state NOT IN ('succeeded', 'not_sent')") == [(0,)]


@long
def test_a_second_ctrl_c_leaves_at_once(desk: Desk):
    """It costs rows of which nobody knows yet whether they were bought: the next run finds out, and buys none twice."""
    process = begun(desk, 80, per_minute=600, bought=25)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    left = interrupt(process)
    assert left.code == 130 and time.monotonic() - began < 10, str(left)
    wait_until(lambda: not desk.processes(), timeout_s=10)
    again = desk("run", "shots", "--yes", "--json")
    assert again.code == 0 and again.json["items"]["succeeded"] == 80, f"{again}\n{desk.log()}"
    bought_once(desk, 80)


@long
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_ctrl_c_while_the_database_is_away(desk: Desk, mode: str):
    """It ends with 130 all the same and says that nobody can tell what is out; no process is left, nothing is bought twice."""
    with a_postgresql() as server:
        desk.env["ORCHESTRATOR_DATABASE_URL"] = server.url
        process = begun(desk, 80, per_minute=600)
        server.stop(mode)
        nothing_is_sent(desk, for_s=1.0, after_s=2.0)
        stopped = interrupt(process)
        assert stopped.code == 130, str(stopped)
        assert "what is still out cannot be told. To go on: " in stopped.err, str(stopped)
        wait_until(lambda: not desk.processes(), timeout_s=10)
        server.start()
        all_home(desk, desk("run", "shots", "--yes", "--json"), 80)


@long
def test_ctrl_c_while_the_database_is_away_and_others_work(desk: Desk):
    """The command that only watched ends with 130 as well; those at work go on by themselves when the database is back."""
    desk.env["ORCHESTRATOR_WEB_BIND"] = f"127.0.0.1:{free_port()}"
    with a_postgresql() as server:
        desk.env["ORCHESTRATOR_DATABASE_URL"] = server.url
        up = desk.start("up")
        try:
            wait_until(lambda: all(f"{role}@" in desk("doctor", "--json").out for role in ("worker", "scheduler")))
            process = begun(desk, 80, per_minute=600)
            server.stop("fast")
            nothing_is_sent(desk, for_s=1.0, after_s=2.0)
            stopped = interrupt(process)
            assert stopped.code == 130, str(stopped)
            assert "the batch goes on without this command" in stopped.err, str(stopped)
            server.start()
            wait_until(lambda: len(desk.provider.purchases()) == 80)
            all_home(desk, desk("run", "shots", "--yes", "--json"), 80)
        finally:
            interrupt(up, signal.SIGTERM)


@long
def test_ctrl_c_while_the_ledger_is_locked(desk: Desk):
    """Another program holds SQLite's lock: it ends within the patience of one transaction, and nothing is bought twice."""
    process = begun(desk, 80, per_minute=600)
    with closing(sqlite3.connect(desk.folder / ".orchestrator" / "ledger.db", isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN IMMEDIATE")
        nothing_is_sent(desk, for_s=1.0, after_s=2.0)
        process.send_signal(signal.SIGINT)
        stopped = ended(process)
        other.execute("COMMIT")
    assert stopped.code == 130, str(stopped)
    assert "o go on: " in stopped.err, str(stopped)
    wait_until(lambda: not desk.processes(), timeout_s=10)
    all_home(desk, desk("run", "shots", "--yes", "--json"), 80)


def leaves_at_once(desk: Desk, process: subprocess.Popen[str]) -> None:
    """Two Ctrl-C, and it is gone with 130, and so is what it had started."""
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)  # as a person would: two at once are one
    began = time.monotonic()
    left = interrupt(process)
    assert left.code == 130 and time.monotonic() - began < 15, str(left)
    assert "the next run finds out what is still out" in left.err, str(left)
    wait_until(lambda: not desk.processes(), timeout_s=10)


@long
def test_a_second_ctrl_c_while_the_database_hangs(desk: Desk):
    """It answers nothing and refuses nothing: the second Ctrl-C leaves all the same, and the next run buys nothing twice."""
    with a_postgresql() as server:
        desk.env["ORCHESTRATOR_DATABASE_URL"] = server.url
        process = begun(desk, 80, per_minute=600)
        with server.frozen():
            nothing_is_sent(desk, for_s=1.0, after_s=2.0)
            leaves_at_once(desk, process)
        all_home(desk, desk("run", "shots", "--yes", "--json"), 80)


@long
def test_a_second_ctrl_c_while_the_ledger_is_locked(desk: Desk):
    """Nobody waits for another program's lock who wants to leave, and the next run buys nothing twice."""
    process = begun(desk, 80, per_minute=600)
    with closing(sqlite3.connect(desk.folder / ".orchestrator" / "ledger.db", isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN IMMEDIATE")
        nothing_is_sent(desk, for_s=1.0, after_s=2.0)
        leaves_at_once(desk, process)
        other.execute("COMMIT")
    all_home(desk, desk("run", "shots", "--yes", "--json"), 80)


def is_frozen_with_rows_in_hand(desk: Desk, worker: int) -> bool:
    """Stop the worker, and let it go on if it has nothing under way, or holds the lock of SQLite: that is one for everybody, and
    nobody could take over from a process that is stopped with it."""
    os.kill(worker, signal.SIGSTOP)
    with closing(sqlite3.connect(desk.folder / ".orchestrator" / "ledger.db", isolation_level=None, timeout=0)) as ledger:
        with suppress(sqlite3.OperationalError):
            ledger.execute("BEGIN IMMEDIATE")
            ledger.execute("ROLLBACK")
            if ledger.execute("SELECT count(*) FROM attempts WHERE state = 'open'").fetchone()[0] >= 2:
                return True
    os.kill(worker, signal.SIGCONT)
    return False


def test_a_worker_that_was_stopped_beyond_its_lease(desk: Desk):
    """Frozen with rows in hand, it wakes when others have bought them: it sends nothing, and overwrites nothing."""
    process = begun(desk, 60, per_minute=600)
    (frozen,) = worker_pids(desk)
    wait_until(lambda: is_frozen_with_rows_in_hand(desk, frozen))
    other = desk.start("worker", ORCHESTRATOR_REDIS_URL=f"unix://{private_socket(desk)}",
                       ORCHESTRATOR_HOME=str(desk.folder / ".orchestrator"))
    try:
        wait_until(lambda: len(desk.provider.purchases()) == 60, timeout_s=100)
        os.kill(frozen, signal.SIGCONT)
        done = ended(process)
    finally:
        other.terminate()
        other.communicate(timeout=30)
    assert done.code == 0 and done.json["items"]["succeeded"] == 60, f"{done}\n{desk.log()}"
    bought_once(desk, 60)


PICTURES = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv, id: sku }
input: { prompt: "{{ text }}" }
output: { to: "out/{{ batch }}" }
"""


def test_a_row_that_ends_its_worker_three_times(desk: Desk):
    """It is set aside with its reason, the others come home; `retry --class poison` fetches it, and buys nothing again."""
    desk.env["PYTHONPATH"] = f"{Path(__file__).parent / 'full'}:{desk.env['PYTHONPATH']}"
    desk.job(PICTURES, rows=[{"sku": "deadly" if n == 3 else f"n{n}", **row} for n, row in enumerate(texts(8))])
    done = desk("run", "shots", "--yes", "--json", DEADLY_FILE="deadly")
    assert done.code == 1, f"{done}\n{desk.log()}"
    assert done.json["items"] | {"pending": 0} == {"total": 8, "succeeded": 7, "failed": 1, "canceled": 0, "pending": 0}
    (row,) = [row for row in desk.results() if row["prediction_status"] == "failed"]
    assert (row["sku"], row["prediction_error_class"]) == ("deadly", "poison")
    assert "3 times in a row" in row["prediction_error"]
    assert done.err.count("worker ended with code 137") == 3
    assert desk("retry", "shots", "--class", "poison", "--json").json["to_fetch"] == 1
    again = desk("run", "shots", "--yes", "--json")
    assert again.json["items"]["succeeded"] == 8, f"{again}\n{desk.log()}"
    assert len(desk.provider.purchases()) == 8
