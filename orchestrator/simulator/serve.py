"""Running the simulator: as a command of its own, from another program, or inside a test."""

import argparse
import asyncio
import contextlib
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import orjson

from orchestrator.simulator.app import Simulator
from orchestrator.simulator.config import SimulatorConfig
from orchestrator.simulator.faults import NAMES
from orchestrator.simulator.wire import Listener, listen

ADMIN = """Levers while it runs, without a token, under /_admin: GET ledger, purchases, invoice (CSV), calls, webhooks,
faults, struck;
PUT faults {"name": probability or {"next": n}}, limits, credit, clock; POST advance {"seconds": s}, reset,
webhooks {"rotate": true, "overlap": false}. Fault switches: """

__all__ = ["SimulatorConfig", "main", "running", "serve"]


def serve(config: SimulatorConfig, *, ready_file: Path | None = None, print_url: bool = True) -> None:
    """Serve until SIGINT or SIGTERM; announces itself on stderr, and as one JSON line on stdout when listening.

    `ready_file` receives the same line. Raises OSError if the address is taken.
    """
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(_serve(config, ready_file=ready_file, print_url=print_url))


@contextlib.contextmanager
def running(config: SimulatorConfig) -> Iterator[str]:
    """Serve from a thread for as long as the context lasts and yield the URL; port 0 picks a free port.

    Raises OSError if the address is taken.
    """
    stage = _Stage()
    thread = threading.Thread(target=stage.play, args=(config,), name="simulator", daemon=True)
    thread.start()
    stage.started.wait()
    if stage.failure is not None:
        raise stage.failure
    try:
        yield f"http://{config.host}:{stage.port}"
    finally:
        stage.end()
        thread.join()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 after a signal, 2 for a bad argument or a taken address."""
    given = _parser().parse_args(argv)
    options = vars(given)
    ready_file, print_url = options.pop("ready_file"), options.pop("print_url")
    try:
        config = SimulatorConfig(**_settings(options))
        serve(config, ready_file=ready_file, print_url=print_url or ready_file is None)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"simulator: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    plain = SimulatorConfig()
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.simulator", description="A local Replicate.", epilog=ADMIN + ", ".join(sorted(NAMES)) + "."
    )
    parser.add_argument("--host", default=plain.host)
    parser.add_argument("--port", type=int, default=plain.port, help="0 picks a free port")
    parser.add_argument("--token", action="append", dest="tokens", help="accepted token, or token=account; repeatable")
    parser.add_argument("--rate-limit", type=float, dest="creates_per_minute", help="creates per minute, 0 for none")
    parser.add_argument("--burst", type=int, help="depth of the create bucket; default: as deep as the rate")
    parser.add_argument("--read-limit", type=float, dest="reads_per_minute", help="other calls per minute, 0 for none")
    parser.add_argument("--poll-limit", type=float, dest="polls_per_minute", help="gets of one prediction per minute")
    parser.add_argument("--latency", type=float, dest="latency_s", help="mean seconds from creation to completion")
    parser.add_argument("--latency-between", type=float, nargs=2, dest="latency_between_s", metavar=("LEAST", "MOST"),
                        help="draw those seconds evenly between two numbers instead")
    parser.add_argument("--seed", type=int, help="repeat ids, latencies and failures; default: new at every start")
    parser.add_argument("--retention", type=float, dest="retention_s", help="seconds outputs are kept")
    parser.add_argument("--file-bytes", type=int, help="make every output file exactly so long, without drawing")
    parser.add_argument("--failure-rate", type=float, help="share of predictions that fail, 0 to 1")
    parser.add_argument(
        "--clock-offset", type=float, dest="clock_offset_s", help="provider's clock minus ours, seconds"
    )
    parser.add_argument("--credit", dest="credit_usd", help="USD on the account; default: bottomless")
    parser.add_argument("--webhook-hosts", choices=("loopback", "any"), help="where webhooks may go; default: this machine")
    parser.add_argument("--webhook-retry-scale", type=float, help="share of the minute in which completions are tried again")
    parser.add_argument("--webhook-aborted", action="store_true", default=None, help="completions for aborted ones too")
    parser.add_argument("--ready-file", type=Path, help="write the JSON line with the URL here when listening")
    parser.add_argument("--print-url", action="store_true", help="print that line on stdout (the default)")
    return parser


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Drop what was not given, so that the defaults stand in one place."""
    settings = {name: value for name, value in options.items() if value is not None}
    if "tokens" in settings:
        settings["tokens"] = tuple(settings["tokens"])
    if "latency_between_s" in settings:
        settings["latency_between_s"] = tuple(settings["latency_between_s"])
    if settings.get("creates_per_minute") == 0:
        settings |= {"reads_per_minute": settings.get("reads_per_minute", 0), "polls_per_minute": 0}
    return settings


def _fast_loop() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.asynccontextmanager
async def _open(config: SimulatorConfig) -> AsyncIterator[Listener]:
    """A listening simulator that sends its webhooks, until the block ends."""
    simulator = Simulator(config, clock=time.time)
    listener = await listen(simulator.handle, host=config.host, port=config.port, date=simulator.told_now)
    sending = asyncio.create_task(simulator.dispatch.run())
    try:
        yield listener
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        listener.close()


async def _serve(config: SimulatorConfig, *, ready_file: Path | None, print_url: bool) -> None:
    async with _open(config) as listener:
        await _announced(config, listener, ready_file=ready_file, print_url=print_url)


async def _announced(config: SimulatorConfig, listener: Listener, *, ready_file: Path | None, print_url: bool) -> None:
    """Say where it listens, and wait for a signal."""
    url = f"http://{config.host}:{listener.port}"
    line = orjson.dumps({"url": url}) + b"\n"
    sys.stderr.write(_welcome(url, token=config.tokens[0].partition("=")[0]))
    if print_url:
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
    if ready_file is not None:
        partial = ready_file.with_name(ready_file.name + ".part")
        partial.write_bytes(line)
        partial.rename(ready_file)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _welcome(url: str, *, token: str) -> str:
    return (
        f"Simulated Replicate listening on {url} (pictures and counts: open it in a browser)\n"
        f"  export REPLICATE_BASE_URL={url}\n"
        f"  export REPLICATE_API_TOKEN={token}\n"
        f"  export ORCHESTRATOR_OUTPUT_HOSTS={url.partition('://')[2]}\n"
    )


class _Stage:
    """A simulator in a thread of its own, and what the starting thread needs to know of it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.failure: OSError | None = None
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def play(self, config: SimulatorConfig) -> None:
        with asyncio.Runner(loop_factory=_fast_loop()) as runner:
            runner.run(self._play(config))

    def end(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _play(self, config: SimulatorConfig) -> None:
        try:
            async with _open(config) as listener:
                self._loop, self.port = asyncio.get_running_loop(), listener.port
                self.started.set()
                await self._stop.wait()
        except OSError as error:
            self.failure = error
            self.started.set()
