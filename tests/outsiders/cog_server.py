"""A real Cog server on loopback, without Docker: the pure Python server of the package `cog` and a small model."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.desk import wait_until

MODEL = Path(__file__).resolve().parent / "cog_model"
STOP_S = 15


@dataclass
class CogServer:
    """A client of one server."""

    http: httpx.Client

    def put(self, name: str, value: Mapping[str, Any], **more: Any) -> httpx.Response:
        """Run a prediction of this id and wait for its end."""
        return self.http.put(f"/predictions/{name}", json={"input": value, **more})

    def start(self, name: str, value: Mapping[str, Any], **more: Any) -> httpx.Response:
        """Run a prediction of this id in the background."""
        body = {"input": value, **more}
        return self.http.put(f"/predictions/{name}", json=body, headers={"Prefer": "respond-async"})

    def health(self) -> str:
        """What the server says of itself; empty while it cannot be reached."""
        with contextlib.suppress(httpx.TransportError):
            return str(self.http.get("/health-check").json()["status"])
        return ""


@contextlib.contextmanager
def serving(python: Path, folder: Path, *options: str) -> Iterator[CogServer]:
    """Serve the model from `folder`, which is made, for as long as the context lasts."""
    shutil.copytree(MODEL, folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    env = {"PATH": os.environ["PATH"], "PORT": str(port), "TMPDIR": str(folder)}
    command = [python, "-m", "cog.server.http", "--host", "127.0.0.1", *options]
    log = folder / "server.log"
    with log.open("wb") as written, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=written, stderr=written, start_new_session=True)
        server = CogServer(client)
        try:
            wait_until(lambda: process.poll() is not None or server.health() == "READY", timeout_s=60)
            assert process.poll() is None, log.read_text("utf-8")
            yield server
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its worker too
        process.wait()
