"""Measure the main job on the simulator: rate, CPU and API reads per item, and memory at two sizes, as one table.

    python scripts/bench/run.py [--rows 1000 --rows 20000] [--model simulator/echo] [--per-minute 0]

Every figure is of one run each on this machine; compare ratios, not absolute numbers.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    """One run, measured from outside."""

    command: str
    rows: int
    wall_s: float
    cpu_s: float
    peak_mb: dict[str, float]
    reads: int
    bought: int

    def line(self) -> str:
        """A row of the table."""
        per = 1e6 / self.rows
        peaks = ", ".join(f"{name} {mb:.0f}" for name, mb in sorted(self.peak_mb.items()))
        return (f"| {self.command} | {self.rows:,} | {self.wall_s:.1f} | {self.rows / self.wall_s:,.0f} | "
                f"{self.cpu_s * per:,.0f} | {self.reads / self.rows:.4f} | {self.bought:,} | {peaks} |")


def main() -> None:
    """Run each size once for `plan` and `run`, on a fresh simulator each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--model", default="simulator/echo")
    parser.add_argument("--per-minute", type=int, default=0)
    parser.add_argument("--latency", default="0.5")
    parser.add_argument("--source", help="a TSV file to use instead of made-up rows, its first column feeding the model")
    given = parser.parse_args()
    print("| command | rows | seconds | items/s | CPU us/item | API reads/item | bought | peak MB by process |")
    print("|---|---|---|---|---|---|---|---|")
    for rows in given.rows or [1000, 20000]:
        for command in ("plan", "run"):
            print(measured(command, rows, given).line(), flush=True)


def measured(command: str, rows: int, given: argparse.Namespace) -> Figures:
    """One command on a simulator of its own."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        stand_in = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.simulator", "--port", "0", "--rate-limit", str(given.per_minute), "--latency",
             given.latency], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            assert stand_in.stdout is not None
            url = json.loads(stand_in.stdout.readline())["url"]
            return _run(command, rows, given, folder=Path(folder), url=url)
        finally:
            stand_in.terminate()
            stand_in.wait()


def _run(command: str, rows: int, given: argparse.Namespace, *, folder: Path, url: str) -> Figures:
    _write_job(folder, rows, given)
    env = os.environ | {
        "PYTHONPATH": str(ROOT), "REPLICATE_API_TOKEN": "r8_simulator", "REPLICATE_BASE_URL": url,
        "ORCHESTRATOR_HOME": str(folder / ".orchestrator"), "ORCHESTRATOR_OUTPUT_HOSTS": url.removeprefix("http://"),
        "ORCHESTRATOR_TEMPO__CREATES_PER_MINUTE": str(given.per_minute), "ORCHESTRATOR_TEMPO__READS_PER_MINUTE": "0"}
    options = ["--yes", "--output", str(folder / "out")] if command == "run" else []
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, "-m", "orchestrator", command, "bench", *options, "--json"], cwd=folder, env=env,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peaks: dict[str, float] = {}
    cpu: dict[int, float] = {}
    while process.poll() is None:
        _sample(folder, peaks, cpu)
        time.sleep(0.2)
    out, err = process.communicate()
    wall_s = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}\n{out}\n{err[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    calls = json.load(urlopen(f"{url}/_admin/calls"))
    return Figures(command, rows, wall_s, max(own_s, sum(cpu.values())), peaks, _reads(calls), _bought(url))


def _write_job(folder: Path, rows: int, given: argparse.Namespace) -> None:
    (folder / "jobs").mkdir()
    column, field = ("Prompt", "prompt") if given.source else ("text", "text")
    path = given.source or "rows.csv"
    (folder / "jobs" / "bench.yaml").write_text(
        f"model: {given.model}\nsource: {{ path: {path} }}\ninput: {{ {field}: \"{{{{ {column} }}}}\" }}\n"
        f"limits: {{ in_flight: 2000 }}\n")
    with (folder / "jobs" / "rows.csv").open("w") as file:
        file.write("text,kind,weight\n")
        file.writelines(f"sentence number {n} about a teapot on a table,kind {n % 7},{n * 0.37:.2f}\n" for n in range(rows))


def _sample(folder: Path, peaks: dict[str, float], cpu: dict[int, float]) -> None:
    """Peak resident memory and CPU of every process of this home."""
    home = f"ORCHESTRATOR_HOME={folder}"
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            mine = home in (entry / "environ").read_bytes().decode("utf-8", "replace")
            if not mine or "simulator" in " ".join(line):
                continue
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        name = "redis" if "redis-server" in line[0] else next((w for w in ("worker", "run", "plan") if w in line), "other")
        mb = int(stat[21]) * PAGE / 2**20
        peaks[name] = max(peaks.get(name, 0.0), mb)
        cpu[int(entry.name)] = (int(stat[11]) + int(stat[12])) / TICK


def _reads(calls: dict[str, dict[str, dict[str, int]]]) -> int:
    """GETs of predictions, lists included."""
    routes = calls["routes"]
    return sum(sum(statuses.values()) for route, statuses in routes.items() if route in ("list predictions", "get prediction"))


def _bought(url: str) -> int:
    ledger = json.load(urlopen(f"{url}/_admin/ledger"))
    return int(ledger.get("created", 0))


if __name__ == "__main__":
    main()
