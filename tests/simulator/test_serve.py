"""The simulator as a program of its own."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from orchestrator.simulator.serve import SimulatorConfig, main, running


def test_command_line(tmp_path: Path) -> None:
    """It prints one JSON line when it listens, writes the same to the ready file, and ends with 0 on SIGTERM."""
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "orchestrator.simulator", "--port", "0", "--print-url", "--ready-file", str(ready)]
    command += ["--token", "r8_mine=me", "--latency", "0", "--rate-limit", "0", "--file-bytes", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = json.loads(process.stdout.readline())["url"]
        headers = {"authorization": "Bearer r8_mine"}
        body = {"version": "black-forest-labs/flux-schnell", "input": {"prompt": "x"}}
        made = httpx.post(f"{url}/v1/predictions", json=body, headers=headers).json()
        seen = httpx.get(made["urls"]["get"], headers=headers).json()
        assert len(httpx.get(seen["output"][0]).content) == 5000
        assert json.loads(ready.read_text()) == {"url": url}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert b"REPLICATE_API_TOKEN=r8_mine\n" in process.stderr.read()


def test_taken_address_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use ends with code 2 and a sentence; from Python it is an OSError."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
        assert "simulator:" in capsys.readouterr().err
        with pytest.raises(OSError, match="in use"), running(SimulatorConfig(port=port)):
            pass


def test_bad_argument_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """A senseless number ends with code 2 and the name of the setting."""
    assert main(["--failure-rate", "7"]) == 2
    assert "failure_rate" in capsys.readouterr().err
    assert main(["--webhook-retry-scale", "-1"]) == 2
    assert "webhook_retry_scale" in capsys.readouterr().err
    assert main(["--latency-between", "2", "0.1"]) == 2
    assert "latency_between_s" in capsys.readouterr().err
    for port in ("-5", "99999"):
        assert main(["--port", port]) == 2
        assert "port" in capsys.readouterr().err
