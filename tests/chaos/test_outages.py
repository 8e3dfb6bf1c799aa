"""Outages in mid-batch, on real processes: the batch waits, says why, buys nothing twice, and goes on when they are over."""

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.outages import (
    a_postgresql,
    a_redis,
    all_home,
    begun,
    ended,
    kill_private_redis,
    long,
    nothing_is_sent,
    private_socket,
    tell_private_redis,
    texts,
)
from tests.e2e.desk import Desk, wait_until

QUEUE = "orchestrator:celery:orchestrator"  # Celery's list of messages


def test_the_private_redis_is_flushed_and_killed(desk: Desk):
    """Flushed, messages are sent again; killed, the command starts another by itself: nobody has to do anything."""
    process = begun(desk, 150)
    assert tell_private_redis(desk, "FLUSHALL").startswith(b"+OK")
    wait_until(lambda: len(desk.provider.purchases()) >= 60)
    kill_private_redis(desk)
    all_home(desk, done := ended(process), 150)
    assert "had ended; another one is up" in done.err
    wait_until(lambda: not desk.processes(), timeout_s=10)


@long
def test_messages_are_lost_and_doubled(desk: Desk):
    """Every third message vanishes and every other comes twice or late: the rows know what is to be done."""
    process = begun(desk, 150, bought=1)
    over = threading.Event()
    meddling = threading.Thread(target=_meddle, args=(private_socket(desk), over))
    meddling.start()
    done = ended(process)
    over.set()
    meddling.join(timeout=10)
    all_home(desk, done, 150)


def _meddle(socket_path: str, over: threading.Event) -> None:
    """Takes messages out of the list before a worker can, by turns: lost, sent twice, sent late and twice."""
    with closing(Redis(unix_socket_path=socket_path)) as redis:
        turn, late = 0, list[bytes]()
        while not over.is_set():
            try:
                message = redis.rpop(QUEUE)
            except RedisError:
                return
            if isinstance(message, bytes):
                turn += 1
                if turn % 3 == 1:
                    redis.lpush(QUEUE, message, message)
                elif turn % 3 == 2:
                    late.append(message)
            elif len(late) > 2:
                redis.lpush(QUEUE, *late, *late)
                late = []
            over.wait(0.002)


def test_a_shared_redis_goes_and_comes_back(desk: Desk):
    """While it is away nothing is sent, and the panel and `status` say why; then the batch goes on by itself."""
    with a_redis() as redis:
        desk.env["ORCHESTRATOR_REDIS_URL"] = redis.url
        process = begun(desk, 120)
        redis.stop()
        nothing_is_sent(desk, for_s=3.0)
        said = desk("status", "shots").out  # by the tick, or by a station: whichever met it first
        assert "cannot go on: the message broker at 127.0.0.1" in said or "cannot go on: Redis at 127.0.0.1" in said
        redis.start()
        all_home(desk, done := ended(process), 120)
        assert "waiting: " in done.err and "cannot be reached" in done.err
        assert desk("status", "shots", "--json").json["reason"] is None


@long
def test_patience_with_a_redis_that_stays_away(desk: Desk):
    """After --patience it is exit 4 with the reason and with what is still out; then the same command goes on."""
    with a_redis() as redis:
        desk.env["ORCHESTRATOR_REDIS_URL"] = redis.url
        process = begun(desk, 80, "--patience", "3s")
        redis.stop()
        done = ended(process)
        assert done.code == 4, done
        assert "stopped: " in done.err and "cannot be reached" in done.err
        assert "are still out; the provider keeps their outputs until" in done.err
        wait_until(lambda: not desk.processes(), timeout_s=10)
        redis.start()
        all_home(desk, desk("run", "shots", "--yes", "--json"), 80)


@long
def test_postgresql_is_restarted_in_every_way(desk: Desk):
    """Connections cut, a fast stop, and one as if the server had died: answers to purchases are kept until it is back."""
    with a_postgresql() as server:
        desk.env["ORCHESTRATOR_DATABASE_URL"] = server.url
        process = begun(desk, 250)
        assert server.cut_all() > 0
        wait_until(lambda: len(desk.provider.purchases()) >= 60)
        server.stop("fast")
        sent = nothing_is_sent(desk, for_s=2.0, after_s=2.0)
        assert desk("status", "shots").code == 4
        server.start()
        wait_until(lambda: len(desk.provider.purchases()) >= sent + 40)
        server.stop("immediate")
        time.sleep(1.0)
        server.start()
        all_home(desk, done := ended(process), 250)
        assert "waiting: the ledger at" in done.err


@long
def test_patience_with_a_database_that_stays_away(desk: Desk):
    """Exit 4 says the reason and that nothing is lost; then the same command goes on."""
    with a_postgresql() as server:
        desk.env["ORCHESTRATOR_DATABASE_URL"] = server.url
        process = begun(desk, 80, "--patience", "3s")
        server.stop("fast")
        done = ended(process)
        assert done.code == 4, done
        assert "Nothing is lost" in done.err and "run the same command again" in done.err
        server.start()
        all_home(desk, desk("run", "shots", "--yes", "--json"), 80)


@pytest.fixture
def filling(desk: Desk, tmp_path: Path) -> Desk:
    """A desk whose disks are full while a file is there: `ledger.full`, `store.full`."""
    here = Path(__file__).parent / "full"
    desk.env |= {"PYTHONPATH": f"{here}:{desk.env['PYTHONPATH']}", "FULL_LEDGER": str(tmp_path / "ledger.full"),
                 "FULL_STORE": str(tmp_path / "store.full")}
    return desk


def test_the_ledger_s_disk_is_full_for_a_while(filling: Desk, tmp_path: Path):
    """SQLITE_FULL stops the buying and is said; with room again the batch goes on, and knows every purchase."""
    process = begun(filling, 120)
    (tmp_path / "ledger.full").touch()
    nothing_is_sent(filling, for_s=3.0, after_s=3.0)
    assert "database or disk is full" in filling("status", "shots").out
    (tmp_path / "ledger.full").unlink()
    all_home(filling, done := ended(process), 120)
    assert "waiting: " in done.err and "database or disk is full" in done.err


@long
def test_the_store_is_full_for_a_while(filling: Desk, tmp_path: Path):
    """Nothing is bought that cannot be written; panel and `status` say why; with room again everything comes home."""
    filling.job("model: black-forest-labs/flux-schnell\nsource: { path: rows.csv }\ninput: { prompt: \"{{ text }}\" }\n"
                "limits: { per_minute: 900 }\noutput: { to: \"out/{{ batch }}\" }\n", rows=texts(120))
    process = filling.start("run", "shots", "--yes", "--json")
    wait_until(lambda: len(filling.provider.purchases()) >= 20)
    (tmp_path / "store.full").touch()
    nothing_is_sent(filling, for_s=3.0, after_s=3.0)
    assert "cannot write to" in filling("status", "shots").out
    (tmp_path / "store.full").unlink()
    done = ended(process)
    assert (done.code, len(filling.provider.purchases())) == (0, 120), f"{done}\n{filling.log()}"
    assert "waiting: cannot write to" in done.err and "No space left" in done.err


@long
def test_the_ledger_is_locked_by_somebody_else(desk: Desk):
    """Another program holds SQLite's lock beyond every patience of a transaction: a wait with its reason, nothing lost."""
    process = begun(desk, 120)
    with closing(sqlite3.connect(desk.folder / ".orchestrator" / "ledger.db", isolation_level=None, timeout=20)) as other:
        other.execute("BEGIN IMMEDIATE")
        nothing_is_sent(desk, for_s=34.0, after_s=2.0)
        other.execute("COMMIT")
    all_home(desk, done := ended(process), 120)
    assert "database is locked" in done.err
