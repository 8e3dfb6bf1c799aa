"""The leash of one child process: runs a command, and ends it and its children when the owner lets go or dies.

Run by path with `python -I -S` (standard library only). Arguments: a descriptor to read, then the command. The owner
holds the other end of that pipe: however the owner ends, the kernel closes it, and the command's whole process group is
killed. So no signal handler of the owner has to run, threads do not matter (PR_SET_PDEATHSIG fires when the *thread*
that forked ends), and it works on macOS. Should the leash itself be killed, Linux kills the command (the leash has one
thread, so there the death signal is safe).

SIGTERM and SIGINT are passed on to the command alone: a Celery worker stops its own children. When the command ends,
what is left of its group is killed, and the leash ends with its exit code, 128 + n for signal n.
"""

import ctypes
import os
import select
import signal
import sys
from contextlib import suppress
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PASSED_ON = (signal.SIGTERM, signal.SIGINT)


def die_with_parent(parent: int) -> None:
    """On Linux: SIGKILL for this process when its parent ends, now or already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)


def start(command: list[str], *, leash_fd: int) -> int:
    """Fork and exec the command in a process group of its own; 127 where it cannot be run."""
    parent = os.getpid()
    # Blocked over the fork: a signal for the command must not end in the leash's own handler, inherited until exec.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child:
        with suppress(OSError):
            os.setpgid(child, child)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        return child
    try:
        os.setpgid(0, 0)
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        os.close(leash_fd)
        die_with_parent(parent)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error}\n".encode())
    os._exit(127)


def hold(child: int, *, leash_fd: int, wakeup_fd: int) -> int:
    """Wait until the command has ended, killing its group when the leash is let go; answers the wait status."""
    watched = [leash_fd, wakeup_fd]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if leash_fd in ready:
            watched.remove(leash_fd)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
        if wakeup_fd in ready:
            os.read(wakeup_fd, 512)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status


def main(arguments: list[str]) -> None:
    """Run the command on the leash and end as it ended."""
    leash_fd, command = int(arguments[0]), arguments[1:]
    os.set_inheritable(leash_fd, False)
    wakeup_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    child = 0
    pending: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, number)
        else:
            pending.append(number)

    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    for number in PASSED_ON:
        signal.signal(number, pass_on)
    child = start(command, leash_fd=leash_fd)
    for waiting in pending:
        os.kill(child, waiting)
    status = hold(child, leash_fd=leash_fd, wakeup_fd=wakeup_fd)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
