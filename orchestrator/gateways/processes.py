"""Child processes that end with their parent, grandchildren and all, however the parent ends."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LET_GO_S = 5.0


class Child:
    """A command on its leash (`gateways/leash.py`). `pid` is the leash's; signals sent to it reach the command."""

    def __init__(self, process: asyncio.subprocess.Process, *, leash_fd: int) -> None:
        self._process = process
        self._leash_fd: int | None = leash_fd
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code as a shell tells it (128 + n for signal n, 127: cannot be run); None while it runs."""
        code = self._process.returncode
        return 128 - code if code is not None and code < 0 else code

    async def wait(self) -> int:
        """Wait for the end; answers the exit code. May be awaited by several, and again after the end."""
        await self._process.wait()
        self._let_go()
        code = self.returncode
        assert code is not None
        return code

    async def terminate(self, *, grace_s: float) -> int:
        """Ask the command to end (SIGTERM), and after the grace kill it and all of its group; answers the exit code.

        Harmless on a command that has ended. Leaves no zombie."""
        with contextlib.suppress(ProcessLookupError):
            if self._process.returncode is None:
                self._process.terminate()
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """Kill the command and all of its group at once; answers the exit code."""
        self._let_go()
        try:
            return await asyncio.wait_for(self.wait(), LET_GO_S)
        except TimeoutError:  # a leash that was itself stopped; on Linux its end is the command's
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            return await self.wait()

    def _let_go(self) -> None:
        if self._leash_fd is not None:
            os.close(self._leash_fd)
            self._leash_fd = None


async def spawn(argv: Sequence[str], *, env: Mapping[str, str] | None = None, log_path: Path | None = None,
                keep_fds: Sequence[int] = ()) -> Child:
    """Start a command that cannot outlive this process.

    It has a session of its own, so Ctrl-C on the terminal reaches only us, who then end it in order. stdin is empty;
    stdout and stderr are appended to `log_path`, or are ours. `env` replaces the environment (None: ours). `keep_fds`
    are inherited under their numbers (a home's `lock_fd`). A command that cannot be run ends with 127 and says why in
    its log. Raises OSError where the log cannot be opened."""
    read_fd, write_fd = os.pipe()
    leash = [sys.executable, "-I", "-S", str(Path(__file__).with_name("leash.py")), str(read_fd)]
    try:
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, read_fd)
            log = None if log_path is None else closing.enter_context(log_path.open("ab"))
            process = await asyncio.create_subprocess_exec(
                *leash, *argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, pass_fds=(read_fd, *keep_fds))
    except BaseException:
        os.close(write_fd)
        raise
    return Child(process, leash_fd=write_fd)


def is_gone(identity: str) -> bool:
    """Whether `role@host:pid` names a process of this machine that has ended. Of other machines nothing can be said: False."""
    host, _, pid = identity.rpartition("@")[2].rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
