"""A batch whose command has ended stands still until somebody names it: who runs another job orders none of its rows."""

import json
import subprocess

from tests.e2e.desk import Desk, Provider, interrupt, wait_until
from tests.e2e.test_commands import ECHO


def texts(word: str, count: int) -> list[dict[str, object]]:
    return [{"name": f"n{i:05}", "text": f"{word} {i}"} for i in range(count)]


def bought(provider: Provider, word: str) -> int:
    """Purchases of rows that begin with this word."""
    return sum(one["input"]["text"].startswith(word) for one in provider.purchases())


def begun(desk: Desk, provider: Provider, rows: int = 120) -> tuple[subprocess.Popen[str], str]:
    """A run in the middle of its batch, and the batch."""
    desk.job(ECHO.format(rate=600), rows=texts("wrong", rows))
    run = desk.start("run", "shots", "--yes", "--json")
    wait_until(lambda: len(provider.purchases()) > 15)
    (batch,) = desk("status", "--json").json["batches"]
    return run, batch["batch"]


def right(desk: Desk, provider: Provider) -> str:
    """The job is corrected and run to its end; what was said on the way."""
    desk.job(ECHO.format(rate=6000), rows=texts("right", 10))
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert bought(provider, "right") == 10
    return done.err


def test_ctrl_c_and_a_corrected_job(desk: Desk, provider: Provider):
    """What was out comes home, nothing more of it is bought, and the first batch goes on when it is named."""
    run, batch = begun(desk, provider)
    stopped = interrupt(run)
    assert (stopped.code, stopped.json["state"]) == (130, "paused"), str(stopped)
    before = bought(provider, "wrong")
    right(desk, provider)
    assert bought(provider, "wrong") == before < 120
    told = desk("status", batch)
    assert "paused, interrupted: it goes on when it is run again" in told.out, str(told)
    assert desk("status", batch, "--json").json["by_state"].keys() == {"pending", "succeeded"}
    desk.job(ECHO.format(rate=6000), rows=texts("wrong", 120))
    again = desk("run", "shots", "--yes", "--json")
    assert (again.code, again.json["batch"], again.json["items"]["succeeded"]) == (0, batch, 120), str(again)
    assert bought(provider, "wrong") == 120


def test_ctrl_c_in_one_of_two_terminals(desk: Desk, provider: Provider):
    """The same command typed twice is one batch: the one that was not interrupted brings it to its end."""
    run, batch = begun(desk, provider)
    other = desk.start("run", "shots", "--yes", "--json")
    wait_until(lambda: len(provider.purchases()) > 40)
    assert interrupt(run).code == 130
    out, err = other.communicate(timeout=90)
    assert other.returncode == 0, err
    done = json.loads(out)
    assert (done["batch"], done["items"]["succeeded"], bought(provider, "wrong")) == (batch, 120, 120)


def test_a_run_that_was_killed_and_a_corrected_job(desk: Desk, provider: Provider):
    """Nobody could say a word: the next run of another batch says it, and buys its own rows only."""
    run, batch = begun(desk, provider)
    run.kill()
    wait_until(lambda: not desk.processes())
    before = bought(provider, "wrong")
    said = right(desk, provider)
    assert f"note: {batch} was left by a command that ended too soon: it is paused" in said
    assert f"orchestrator cancel {batch}" in said
    assert bought(provider, "wrong") == before < 120
    desk("resume", batch)
    assert "was left by a command" in right_again(desk, provider)
    assert bought(provider, "wrong") == before


def right_again(desk: Desk, provider: Provider) -> str:
    """The corrected batch once more, from its beginning."""
    done = desk("run", "shots", "--yes", "--fresh")
    assert done.code == 0, str(done)
    assert bought(provider, "right") == 20
    return done.err


def test_retry_of_one_batch_and_a_run_of_another(desk: Desk, provider: Provider):
    """`retry` says what goes on with the failed rows; only a run of that batch buys them."""
    provider.put("faults", {"fail": 1.0})
    desk.job(ECHO.format(rate=6000) + "retry: { attempts: 1 }\n", rows=texts("wrong", 4))
    batch = desk("run", "shots", "--yes", "--json", "--limit", "2").json["batch"]
    provider.put("faults", {"fail": None})
    retried = desk("retry", batch)
    assert "2 rows wait to be bought again; 2 rows never bought go on with them" in retried.out, str(retried)
    before = bought(provider, "wrong")
    right(desk, provider)
    assert bought(provider, "wrong") == before == 2
