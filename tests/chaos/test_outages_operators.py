"""Two people, or one person twice: the same batch, each row bought once, and an ending that makes sense for both."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.outages import ECHO, a_desk, a_postgresql, a_redis, begun, bought_once, ended, gone_on, long, texts
from tests.e2e.desk import Desk, Done, wait_until


def both_home(desk: Desk, first: Done, second: Done, rows: int) -> None:
    """Both saw the same batch end well."""
    assert (first.code, second.code) == (0, 0), f"{first}\n{second}\n{desk.log()}"
    assert first.json["batch"] == second.json["batch"]
    assert first.json["items"]["succeeded"] == second.json["items"]["succeeded"] == rows
    bought_once(desk, rows)


def test_the_same_command_twice_at_once(desk: Desk):
    """Typed twice in the same second on a new home: one batch, and no process is left."""
    desk.job(ECHO % 900, rows=texts(120))
    one, two = (desk.start("run", "shots", "--yes", "--json") for _ in range(2))
    both_home(desk, ended(one), ended(two), 120)
    wait_until(lambda: not desk.processes(), timeout_s=10)


@long
def test_a_second_operator_comes_and_the_first_goes(desk: Desk):
    """The second one joins in mid-batch, the first one leaves by Ctrl-C: the second brings everything home."""
    one = begun(desk, 150, per_minute=600)
    two = gone_on(desk, bought=80)
    one.send_signal(2)
    assert ended(one).code == 130
    second = ended(two)
    both_home(desk, second, second, 150)


@long
@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_another_terminal_steers(desk: Desk, verb: str):
    """Paused from elsewhere, the run waits and says so until it is resumed; canceled from elsewhere, it ends with exit 5."""
    run = begun(desk, 150, per_minute=600)
    assert desk(verb, "shots").code == 0
    if verb == "cancel":
        done = ended(run)
        assert done.code == 5, f"{done}\n{desk.log()}"
        assert done.json["state"] == "canceled" and len(desk.provider.purchases()) < 150
        return
    bought = len(desk.provider.purchases())
    assert desk("resume", "shots").code == 0
    done = ended(run)
    assert done.code == 0 and "paused by an operator" in done.err, f"{done}\n{desk.log()}"
    assert bought < 150
    bought_once(desk, 150)


@long
def test_one_of_two_with_a_limit(desk: Desk):
    """`--limit` is of the run that was given it last: the rows that were left are bought by the next run, none twice."""
    desk.job(ECHO % 900, rows=texts(60))
    one, two = desk.start("run", "shots", "--yes", "--json"), desk.start("run", "shots", "--yes", "--json", "--limit", "10")
    first, second = ended(one), ended(two)
    assert {first.code, second.code} == {0}, f"{first}\n{second}"
    last = desk("run", "shots", "--yes", "--json")
    both_home(desk, last, last, 60)


@long
def test_two_homes_with_one_database_and_one_redis(tmp_path: Path):
    """Two machines, so to speak, that share PostgreSQL and Redis: the same job file started on both is one batch."""
    with a_desk(tmp_path) as desk, a_redis() as redis, a_postgresql() as server:
        desk.env |= {"ORCHESTRATOR_REDIS_URL": redis.url, "ORCHESTRATOR_DATABASE_URL": server.url}
        desk.job(ECHO % 900, rows=texts(150))
        homes = [str(tmp_path / name) for name in ("one", "two")]
        one, two = (subprocess.Popen([sys.executable, "-m", "orchestrator", "run", "shots", "--yes", "--json"], cwd=desk.folder,
                                     env=desk.env | {"ORCHESTRATOR_HOME": home}, text=True, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE) for home in homes)
        both_home(desk, ended(one), ended(two), 150)
