"""Measure the main job beside what people write without it, on this machine, in one run; print tables of ratios.

    python scripts/bench/run.py [--quick] [intake] [submit] [whole] [size] [rate]

The last is no comparison: what is bought under the limits of an account (rate.py, half an hour). Each of the others uses one
stand-in for Replicate, without rate limits, and interleaves the candidates; figures are medians of three. CPU is user and system
time of every process of a candidate (for ours: command, worker, web part, Redis; SQLite is part of them), start-up and imports
included; the stand-in is not counted. `marginal` leaves start-up out: the difference between two sizes. Absolute figures depend
on the machine and on what else it does: compare within a table only.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OFFERED_PER_S = 2000
AT_ONCE = 128  # webhooks on their way at a time
sys.path.insert(0, str(ROOT))

import intake  # noqa: E402
import ours  # noqa: E402
import rate  # noqa: E402
import theirs  # noqa: E402
from processes import Measured, StandIn, stand_in  # noqa: E402

Candidate = Callable[..., Measured]
_folders: list[Path] = []


def fresh_folder() -> Path:
    """A folder of its own for each run, kept until the end: ext4 looks for free inodes among those deleted within the last five
    minutes, and files made after many were deleted cost it three times as much."""
    _folders.append(Path(tempfile.mkdtemp(prefix="ob-")) / "w")
    return _folders[-1]


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[], help="intake, submit, whole, size, rate; default: all")
    parser.add_argument("--quick", action="store_true", help="one repetition, fewer rows: to see that it works")
    given = parser.parse_args()
    what = given.what or ["intake", "submit", "whole", "size", "rate"]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n", flush=True)
    try:
        found = {name: _KINDS[name](quick=given.quick) for name in what}
    finally:
        for folder in _folders:
            shutil.rmtree(folder.parent, ignore_errors=True)
    out = ROOT / "out" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(found, indent=1))


def whole(*, quick: bool) -> list[dict[str, Any]]:
    """From a file of rows to files at home, by size of output."""
    rows_theirs, times = (200, 1) if quick else (1000, 3)
    print("## Whole path: submit, complete, download, record\n\n| output | candidate | items/s | CPU us/item | marginal | "
          "API calls/item | peak MB | ratio of CPU | ratio of marginal |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    table = []
    for size_kb in (1, 10, 100):
        rows_ours = 1000 if quick else 4000 if size_kb == 100 else 10_000
        with stand_in(latency_s=0.5, file_bytes=size_kb * 1024) as simulator:
            both = [("user's script", theirs.user_script, rows_theirs, {}),
                    ("orchestrator, webhooks", ours.whole_path, rows_ours, {}),
                    ("orchestrator, polling", ours.whole_path, rows_ours, {"webhooks": False})]
            table += _compare(simulator, both, label=f"{size_kb} KB", times=times, small=50)
    return table


def submit(*, quick: bool) -> list[dict[str, Any]]:
    """Only buying: nothing ends meanwhile."""
    rows_ours, rows_theirs, times = (3000, 300, 1) if quick else (20000, 2000, 3)
    print("\n## Submit stage: from file to predictions bought\n\n| output | candidate | items/s | CPU us/item | marginal | "
          "API calls/item | peak MB | ratio of CPU | ratio of marginal |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    with stand_in(latency_s=36000) as simulator:
        both = [("plain Celery", theirs.celery_plain, rows_theirs, {}), ("orchestrator", ours.submit_stage, rows_ours, {})]
        return _compare(simulator, both, label="–", times=times, small=100)


def _compare(simulator: StandIn, candidates: Sequence[tuple[str, Candidate, int, dict[str, Any]]], *, label: str, times: int,
             small: int) -> list[dict[str, Any]]:
    """Interleaved: each candidate once, then each again."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in candidates}
    for _ in range(times):
        for name, candidate, rows, options in candidates:
            least = _once(simulator, candidate, small, options)
            most = _once(simulator, candidate, rows, options)
            runs[name].append({
                "items_s": rows / most["wall_s"], "cpu_us": most["cpu_s"] * 1e6 / rows, "calls": most["calls"] / rows,
                "peak_mb": most["peak_mb"], "marginal_us": (most["cpu_s"] - least["cpu_s"]) * 1e6 / (rows - small)})
    table: list[dict[str, Any]] = []
    for name, *_ in candidates:
        row: dict[str, Any] = {key: statistics.median(run[key] for run in runs[name]) for key in runs[name][0]}
        row |= {"output": label, "candidate": name, "spread_us": [round(run["cpu_us"]) for run in runs[name]]}
        first = table[0] if table else row
        row |= {"ratio": first["cpu_us"] / row["cpu_us"], "ratio_marginal": first["marginal_us"] / row["marginal_us"]}
        table.append(row)
        print(f"| {label} | {name} | {row['items_s']:,.0f} | {row['cpu_us']:,.0f} | {row['marginal_us']:,.0f} "
              f"| {row['calls']:.2f} | {row['peak_mb']:,.0f} | {row['ratio']:.1f} | {row['ratio_marginal']:.1f} |", flush=True)
    return table


def _once(simulator: StandIn, candidate: Candidate, rows: int, options: dict[str, Any]) -> dict[str, float]:
    simulator.reset()
    done = candidate(simulator, fresh_folder(), rows=rows, **options)
    assert simulator.created() == rows, f"{simulator.created()} bought of {rows}"
    return {"wall_s": done.wall_s, "cpu_s": done.cpu_s, "calls": simulator.calls(), "peak_mb": done.peak_total_mb}


def take_in(*, quick: bool) -> list[dict[str, Any]]:
    """Webhooks into the ledger."""
    count_ours, count_theirs, times = (5000, 500, 1) if quick else (30000, 3000, 3)
    print(f"\n## Webhook intake: signed bodies of 1 KB, {AT_ONCE} at once, one core for the server\n\n"
          "| server | webhooks/s | p50 ms | p99 ms | CPU us each | ratio |\n|---|---|---|---|---|---|", flush=True)
    receivers: dict[str, tuple[Callable[..., intake.Rate], int]] = {
        "FastAPI and SQLModel, a commit each": (intake.theirs, count_theirs),
        "the same as async def, blocking its loop": (partial(intake.theirs, route="async"), count_theirs),
        "orchestrator web": (intake.ours, count_ours),
        f"orchestrator web, offered {OFFERED_PER_S:,} a second": (partial(intake.ours, offered_per_s=OFFERED_PER_S), count_ours)}
    runs: dict[str, list[intake.Rate]] = {name: [] for name in receivers}
    with stand_in(latency_s=1) as simulator:
        for _ in range(times):
            for name, (candidate, count) in receivers.items():
                runs[name].append(candidate(simulator, fresh_folder(), count=count, at_once=AT_ONCE))
    table: list[dict[str, Any]] = []
    for name, rates in runs.items():
        row: dict[str, Any] = {key: statistics.median(getattr(rate, key) for rate in rates)
                               for key in ("per_s", "p50_ms", "p99_ms", "cpu_us")}
        row |= {"server": name, "ratio": row["per_s"] / (table[0] if table else row)["per_s"]}
        table.append(row)
        print(f"| {name} | {row['per_s']:,.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {row['cpu_us']:,.0f} | "
              f"{row['ratio']:.1f} |", flush=True)
    return table


def size(*, quick: bool) -> list[dict[str, Any]]:
    """The same job at two sizes: memory stays."""
    sizes = (1000, 5000) if quick else (1000, 100_000)
    print("\n## Memory at two sizes, polling, outputs of 1 KB\n\n"
          "| rows | seconds | items/s | peak MB by process |\n|---|---|---|---|", flush=True)
    table = []
    with stand_in(latency_s=0.5, file_bytes=1024) as simulator:
        for rows in sizes:
            simulator.reset()
            done = ours.whole_path(simulator, fresh_folder(), rows=rows, webhooks=False)
            peaks = ", ".join(f"{name} {mb:.0f}" for name, mb in sorted(done.peak_mb.items()))
            print(f"| {rows:,} | {done.wall_s:.1f} | {rows / done.wall_s:,.0f} | {peaks} |", flush=True)
            table.append({"rows": rows, "wall_s": done.wall_s, "peak_mb": done.peak_mb})
    return table


_KINDS: dict[str, Callable[..., list[dict[str, Any]]]] = {"whole": whole, "submit": submit, "intake": take_in, "size": size,
                                                           "rate": rate.everything}

if __name__ == "__main__":
    main()
