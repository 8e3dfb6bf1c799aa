"""Processes measured from outside: CPU of a command and everything it waited for, peak memory, and a stand-in to talk to."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[2]
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Measured:
    """One command: wall and CPU seconds (user and system, start-up and imports included), and peak MB by process."""

    wall_s: float
    cpu_s: float
    code: int
    system_s: float = 0.0  # of the CPU, inside the kernel: files, sockets, threads
    peak_mb: dict[str, float] = field(default_factory=dict)

    @property
    def peak_total_mb(self) -> float:
        """All processes at their peaks, added up."""
        return sum(self.peak_mb.values())


def measured(argv: Sequence[str], *, env: Mapping[str, str], folder: Path, log: str,
             until: Callable[[], bool] | None = None) -> Measured:
    """Run a command to its end, or until a condition holds and then to its end by SIGTERM.

    CPU is what the kernel says of the command and of every descendant that was waited for, and of a Redis server of this
    folder, which nobody waits for. Wall is up to the condition. Raises SystemExit with the log's end when it fails."""
    told = dict(env) | {"BENCH_FOLDER": str(folder)}
    path = folder / log
    with path.open("w") as out:
        began = time.monotonic()
        process = subprocess.Popen(list(argv), cwd=folder, env=told, stdout=out, stderr=out)
        peaks: dict[str, float] = {}
        redis_s, stopped_at, waits = 0.0, None, 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if waits % 10 == 0:
                redis_s = max(redis_s, _sample(str(folder), peaks))
            if until is not None and stopped_at is None and until():
                stopped_at = time.monotonic()
                process.terminate()
            waits += 1
            time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = (stopped_at or time.monotonic()) - began
    if process.returncode not in ((0,) if until is None else (0, 143, -15, 130)):
        raise SystemExit(f"{' '.join(argv[:4])} ended with {process.returncode}:\n{path.read_text()[-3000:]}")
    return Measured(wall_s, usage.ru_utime + usage.ru_stime + redis_s, process.returncode, usage.ru_stime, peaks)


def _sample(folder: str, peaks: dict[str, float]) -> float:
    """Note the memory of every process of a folder; CPU seconds of its Redis so far."""
    redis_s = 0.0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"BENCH_FOLDER={folder}" not in (entry / "environ").read_bytes().decode("utf-8", "replace"):
                continue
            words = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if any("leash.py" in word or "watchdog.py" in word for word in words):
            continue
        name = _name(words)
        peaks[name] = max(peaks.get(name, 0.0), int(stat[21]) * PAGE_BYTES / 2**20)
        if name == "Redis":
            redis_s = (int(stat[11]) + int(stat[12])) / TICKS_PER_S
    return redis_s


def _name(words: list[str]) -> str:
    if "redis-server" in words[0]:
        return "Redis"
    return next((word for word in ("worker", "web", "run") if word in words), "script")


@dataclass
class StandIn:
    """A running simulator and what it counts."""

    url: str
    pid: int = 0

    def put(self, name: str, document: dict[str, Any]) -> None:
        """Turn one of its levers."""
        urlopen(Request(f"{self.url}/_admin/{name}", data=json.dumps(document).encode(), method="PUT")).read()

    def reset(self) -> None:
        """Begin anew."""
        urlopen(Request(f"{self.url}/_admin/reset", data=b"{}", method="POST")).read()

    def told(self, name: str) -> dict[str, Any]:
        """One of its documents."""
        found: dict[str, Any] = json.load(urlopen(f"{self.url}/_admin/{name}"))
        return found

    def purchases(self) -> list[dict[str, Any]]:
        """Everything that was bought, oldest first."""
        return [json.loads(line) for line in urlopen(f"{self.url}/_admin/purchases").read().splitlines()]

    def created(self) -> int:
        """Predictions bought so far: cheap enough to ask often."""
        accepted: int = self.told("calls")["creates_accepted"]
        return accepted

    def calls(self) -> int:
        """All calls to the API."""
        return sum(sum(by_status.values()) for by_status in self.told("calls")["routes"].values())


@contextmanager
def stand_in(*more: str, latency_s: float, file_bytes: int | None = None) -> Iterator[StandIn]:
    """A simulator on a free port, without limits unless `more` of its command line gives it some."""
    argv = [sys.executable, "-m", "orchestrator.simulator", "--port", "0", "--rate-limit", "0", "--latency", str(latency_s),
            "--seed", "7"]
    argv += [*(["--file-bytes", str(file_bytes)] if file_bytes else []), *more]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
                               preexec_fn=ends_with_us)  # noqa: PLW1509 - no threads yet
    try:
        assert process.stdout is not None
        yield StandIn(json.loads(process.stdout.readline())["url"], process.pid)
    finally:
        process.terminate()
        process.wait()


def ends_with_us() -> None:
    """In a child before its program starts: however the bench ends, the kernel ends this process too (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def client_env(simulator: StandIn) -> dict[str, str]:
    """What a client of the stand-in needs, and nothing of the caller's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORCHESTRATOR_", "REPLICATE_"))}
    return kept | {"PYTHONPATH": str(ROOT), "REPLICATE_API_TOKEN": "r8_simulator", "REPLICATE_BASE_URL": simulator.url}


def write_rows(path: Path, rows: int) -> None:
    """Prompts, each its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write("prompt\n")
        file.writelines(f"a teapot with {n} spouts on a wooden table\n" for n in range(rows))
