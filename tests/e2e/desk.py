"""The installed program as a user runs it: a command in a folder of its own, against the simulator."""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

# Waiting times of the protocol, scaled down: a minute of the real thing is a second here.
QUICK = {
    "UNSURE_MARGIN_S": "1.5", "UNSURE_CONFIRM_S": "0.5", "UNSURE_NO_CANARY_S": "3", "LEASE_MARGIN_S": "2",
    "REQUEST_TIMEOUT_S": "5", "SWEEP_MIN_S": "0.5", "IDLE_S": "0.3", "SLICE_S": "5", "HOLD_S": "8", "RETRY_FIRST_S": "0.2",
    "CREATES_PER_MINUTE": "0", "READS_PER_MINUTE": "0", "OUTAGE_PAUSE_S": "1",
    "BEAT_S": "0.4", "SLOTS_S": "0.5", "ALIVE_S": "2", "SWEEP_WEBHOOKS_S": "1.5", "KEPT_WEBHOOK_S": "0.5",
}


@dataclass
class Provider:
    """A running simulator, and what its own ledger says.

    `verify=False`: httpx loads a store of certificates for each call, 30 ms of CPU, and these are asked twenty times a second.
    A machine with much else to do may take its time over the answer."""

    url: str

    def admin(self, name: str) -> Any:
        """One admin document."""
        return httpx.get(f"{self.url}/_admin/{name}", verify=False, timeout=60).raise_for_status().json()

    def put(self, name: str, value: Any) -> None:
        """Change a setting."""
        httpx.put(f"{self.url}/_admin/{name}", json=value, verify=False, timeout=60).raise_for_status()

    def post(self, name: str, value: Any) -> None:
        """Make something happen."""
        httpx.post(f"{self.url}/_admin/{name}", json=value, verify=False, timeout=60).raise_for_status()

    def purchases(self) -> list[dict[str, Any]]:
        """Everything that was bought."""
        text = httpx.get(f"{self.url}/_admin/purchases", verify=False, timeout=60).raise_for_status().text
        return [json.loads(line) for line in text.splitlines()]


@dataclass
class Desk:
    """A folder with jobs/, a command line, and an environment. On leaving it ends what a test has left at work, and closes
    pipes that nobody read: the next test would be told of them."""

    folder: Path
    provider: Provider
    env: dict[str, str] = field(default_factory=dict)
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> "Desk":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            with process:  # closes its pipes
                process.kill()

    def job(self, text: str, *, name: str = "shots", rows: list[dict[str, Any]] | None = None) -> None:
        """Write jobs/NAME.yaml, and rows.csv beside jobs/."""
        (self.folder / "jobs").mkdir(exist_ok=True)
        (self.folder / "jobs" / f"{name}.yaml").write_text(text, "utf-8")
        if rows is not None:
            with (self.folder / "jobs" / "rows.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start a command."""
        process = subprocess.Popen([sys.executable, "-m", "orchestrator", *args], cwd=self.folder, env=self.env | env, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._started.append(process)
        return process

    def __call__(self, *args: str, **env: str) -> "Done":
        """Run a command to its end."""
        process = self.start(*args, **env)
        out, err = process.communicate(timeout=120)
        return Done(process.returncode, out, err)

    def results(self) -> list[dict[str, Any]]:
        """The rows of the only results.parquet below the folder."""
        (path,) = self.folder.glob("out/*/results.parquet")
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows

    def log(self) -> str:
        """What the worker logged, for failing assertions."""
        path = self.folder / ".orchestrator" / "logs" / "worker.log"
        return path.read_text("utf-8")[-4000:] if path.exists() else "no worker log"

    def processes(self) -> list[str]:
        """Command lines of living processes that mention this folder or its home."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                environment = (entry / "environ").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if str(self.folder) in line or f"ORCHESTRATOR_HOME={self.folder}" in environment:
                found.append(line)
        return found


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on stdout."""
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def wait_until(true: Any, *, timeout_s: float = 60.0) -> None:
    """Wait for a condition of another process; fails loudly."""
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[str], number: int = signal.SIGINT) -> Done:
    """Send a signal and wait for the end."""
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)
