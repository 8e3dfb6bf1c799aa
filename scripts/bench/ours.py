"""The main job as a user starts it, set up for a stand-in without limits."""

import shutil
import socket
import sys
from pathlib import Path

from processes import Measured, StandIn, client_env, measured, write_rows

JOB = """model: black-forest-labs/flux-schnell
source: { path: rows.csv }
limits: { in_flight: 100000 }
"""


def whole_path(simulator: StandIn, folder: Path, *, rows: int, webhooks: bool = True) -> Measured:
    """`orchestrator run` from file to results."""
    done = measured(_command(folder, rows), env=_env(simulator, webhooks=webhooks), folder=folder, log="run.log")
    (results,) = folder.glob("out/*/results.parquet")
    files = sum(1 for _ in results.parent.glob("files/*"))
    assert files == rows, f"{files} files of {rows}"
    return done


def submit_stage(simulator: StandIn, folder: Path, *, rows: int) -> Measured:
    """The same until the last row is bought, with nothing ending meanwhile and no sweep looking for ends."""
    env = _env(simulator, webhooks=False) | {"ORCHESTRATOR_TEMPO__SWEEP_MIN_S": "3600"}
    return measured(_command(folder, rows), env=env, folder=folder, log="run.log", until=lambda: simulator.created() >= rows)


def _command(folder: Path, rows: int) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    write_rows(folder / "jobs" / "rows.csv", rows)
    (folder / "jobs" / "bench.yaml").write_text(JOB)
    return [sys.executable, "-m", "orchestrator", "run", "bench", "--yes"]


def _env(simulator: StandIn, *, webhooks: bool) -> dict[str, str]:
    env = client_env(simulator) | {
        "ORCHESTRATOR_OUTPUT_HOSTS": simulator.url.removeprefix("http://"),
        "ORCHESTRATOR_TEMPO__CREATES_PER_MINUTE": "0", "ORCHESTRATOR_TEMPO__READS_PER_MINUTE": "0"}
    if webhooks:
        with socket.create_server(("127.0.0.1", 0)) as free:
            place = f"127.0.0.1:{free.getsockname()[1]}"
        env |= {"ORCHESTRATOR_PUBLIC_URL": f"http://{place}", "ORCHESTRATOR_WEB_BIND": place}
    return env
