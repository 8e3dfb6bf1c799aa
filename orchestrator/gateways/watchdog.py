"""The keeper of a home's private Redis: a tiny process that stops the server once no command holds the home.

Run by path with `python -I -S` (standard library only, nothing of this package), so that it starts in some 20 ms and
stays small. Arguments: lock file (its text is the socket), start-lock file, watch-lock file, seconds
between two looks.

It never holds the home itself and never races a newcomer: it looks only while it has the start lock, which every
command takes to come in or to leave. It ends when the server is gone or has been stopped.
"""

import fcntl
import os
import socket
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

ANSWER_S = 1.0
SERVER_FILES = ("r.sock", "redis.pid", "redis.log")


def ask_redis(socket_path: str, command: str, *, timeout_s: float = ANSWER_S) -> bytes:
    """Send one inline command and answer the first bytes that come back.

    Raises TimeoutError where the server is there but busy, another OSError where there is none."""
    with closing(socket.socket(socket.AF_UNIX)) as link:
        link.settimeout(timeout_s)
        link.connect(socket_path)
        link.sendall(command.encode() + b"\r\n")
        return link.recv(200)


def try_lock(fd: int) -> bool:
    """Take an exclusive lock if nobody holds any."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stop_redis(socket_path: str, *, patience_s: float = 5.0) -> None:
    """End the server without saving, wait until its socket answers no more, and clear its folder away."""
    until = time.monotonic() + patience_s
    try:
        ask_redis(socket_path, "SHUTDOWN NOSAVE")
        while time.monotonic() < until:
            ask_redis(socket_path, "PING")
            time.sleep(0.005)
    except TimeoutError:
        return
    except OSError:
        clear_folder(Path(socket_path).parent)


def clear_folder(folder: Path) -> None:
    """Remove what a server leaves, by name, and the folder if nothing else is in it."""
    with suppress(OSError):
        for name in SERVER_FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _finished(lock_path: str, socket_path: str) -> bool:
    """One look, with the start lock held: whether the server is gone, or was stopped because nobody holds the home."""
    try:
        ask_redis(socket_path, "PING")
    except TimeoutError:
        return False
    except OSError:
        return True
    fd = os.open(lock_path, os.O_RDWR)
    try:
        if not try_lock(fd):
            return False
        stop_redis(socket_path)
        return True
    finally:
        os.close(fd)


def watch(lock_path: str, start_path: str, *, every_s: float) -> None:
    """Look every so often until there is nothing left to watch. A home that was deleted is held by nobody.

    The socket is read anew each time: after a crash of the server the next command may have started one elsewhere."""
    socket_path = ""
    while True:
        try:
            start = os.open(start_path, os.O_RDWR)
            try:
                socket_path = Path(lock_path).read_text("utf-8").strip() or socket_path
                if try_lock(start) and _finished(lock_path, socket_path):
                    return
            finally:
                os.close(start)
        except FileNotFoundError:
            stop_redis(socket_path)
            return
        time.sleep(every_s)


def main(arguments: list[str]) -> None:
    """Become a daemon, unless this home is watched already, and watch."""
    lock_path, start_path, watch_path, every_s = arguments
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    watch_lock = os.open(watch_path, os.O_RDWR | os.O_CREAT, 0o600)
    if try_lock(watch_lock):
        os.ftruncate(watch_lock, 0)
        os.pwrite(watch_lock, f"{os.getpid()}\n".encode(), 0)
        watch(lock_path, start_path, every_s=float(every_s))


if __name__ == "__main__":
    main(sys.argv[1:])
