"""The baselines, set up for the same stand-in."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from processes import ROOT, Measured, StandIn, client_env, measured, write_rows

from orchestrator.gateways.local import redis_server
from tests.outsiders.environments import environment

BASELINES = Path(__file__).resolve().parent / "baselines"


def user_script(simulator: StandIn, folder: Path, *, rows: int) -> Measured:
    """The official client, in an environment of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    write_rows(folder / "rows.csv", rows)
    env = client_env(simulator)
    del env["PYTHONPATH"]
    done = measured([str(environment("replicate1")), str(BASELINES / "user_script.py"), "rows.csv", "files"], env=env,
                    folder=folder, log="script.log")
    files = sum(1 for path in (folder / "files").iterdir() if path.suffix != ".csv")
    assert files == rows, f"{files} files of {rows}"
    return done


def celery_plain(simulator: StandIn, folder: Path, *, rows: int) -> Measured:
    """A task for each row; enqueueing, worker and Redis together, until the last row is bought."""
    shutil.rmtree(folder, ignore_errors=True)
    write_rows(folder / "rows.csv", rows)
    socket_path = folder / "r.sock"
    redis = subprocess.Popen([redis_server(), "--port", "0", "--unixsocket", str(socket_path), "--save", ""],
                             stdout=subprocess.DEVNULL, cwd=folder, env={"BENCH_FOLDER": str(folder)})
    try:
        while not socket_path.exists():
            time.sleep(0.02)
        env = client_env(simulator) | {"BENCH_REDIS": f"redis+socket://{socket_path}", "PYTHONPATH": f"{BASELINES}:{ROOT}",
                                       "BENCH_DATABASE": f"sqlite:///{folder / 'plain.db'}"}
        enqueued = measured([sys.executable, str(BASELINES / "celery_plain.py"), "rows.csv"], env=env, folder=folder,
                            log="enqueue.log")
        worked = measured([sys.executable, "-m", "celery", "-A", "celery_plain", "worker", "--pool=prefork", "--concurrency=2",
                           "--loglevel=ERROR", "--without-gossip", "--without-mingle"],
                          env=env, folder=folder, log="worker.log", until=lambda: simulator.created() >= rows)
        return Measured(enqueued.wall_s + worked.wall_s, enqueued.cpu_s + worked.cpu_s, 0,
                        enqueued.system_s + worked.system_s, enqueued.peak_mb | worked.peak_mb)
    finally:
        redis.terminate()
        redis.wait()
