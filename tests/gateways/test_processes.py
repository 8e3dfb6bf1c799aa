import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from orchestrator.gateways.processes import Child, is_gone, spawn

ROOT = Path(__file__).parents[2]
FAMILY = "sleep 300 & echo $! $$; wait"  # a child with a child, both of which say who they are


async def printed(path: Path) -> list[int]:
    """The numbers a child has written to its log, as soon as there is a line."""
    async with asyncio.timeout(10):
        while not path.exists() or not path.read_text().endswith("\n"):
            await asyncio.sleep(0.01)
    return [int(word) for word in path.read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is only waiting to be reaped does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def until_gone(pids: list[int]) -> None:
    """Wait for processes to end."""
    end = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, "a process outlived its parent"
        time.sleep(0.02)


async def test_exit_code_and_log(tmp_path: Path) -> None:
    """The command's exit code is answered, its output appended to the log, its environment the one given."""
    log = tmp_path / "log"
    log.write_text("before\n")
    child = await spawn(["sh", "-c", "echo out $MARK; echo err >&2; exit 7"],
                        env={"PATH": os.environ["PATH"], "MARK": "m"}, log_path=log)
    assert (await child.wait(), child.returncode) == (7, 7)
    assert log.read_text() == "before\nout m\nerr\n"
    assert await child.wait() == 7


async def test_signal_death_and_missing_program(tmp_path: Path) -> None:
    """Death by signal n is 128 + n, and a program that is not there is 127 with a sentence in the log."""
    assert await (await spawn(["sh", "-c", "kill -9 $$"])).wait() == 137
    child = await spawn(["/no/such/program"], log_path=tmp_path / "log")
    assert await child.wait() == 127
    assert "cannot run /no/such/program" in (tmp_path / "log").read_text()


async def test_terminate_asks_first(tmp_path: Path) -> None:
    """A command that ends in order on SIGTERM does so, with its own exit code."""
    child = await spawn(["sh", "-c", "trap 'exit 5' TERM; echo 1; while :; do sleep 0.01; done"],
                        log_path=tmp_path / "log")
    await printed(tmp_path / "log")
    assert await child.terminate(grace_s=10) == 5
    assert await child.terminate(grace_s=10) == 5


async def test_terminate_then_kills(tmp_path: Path) -> None:
    """A command deaf to SIGTERM is killed after the grace, and its children with it."""
    child = await spawn(["sh", "-c", f"trap '' TERM; {FAMILY}"], log_path=tmp_path / "log")
    pids = await printed(tmp_path / "log")
    assert await child.terminate(grace_s=0.05) == 137
    until_gone(pids)


async def test_grandchildren_go_when_the_child_ends(tmp_path: Path) -> None:
    """What a command leaves behind in its group ends with it."""
    child = await spawn(["sh", "-c", "sleep 300 & echo $!"], log_path=tmp_path / "log")
    assert await child.wait() == 0
    until_gone(await printed(tmp_path / "log"))


async def test_early_signal_is_not_lost() -> None:
    """A child terminated in the moment of its start ends without waiting for the grace."""
    children = [await spawn(["sleep", "300"]) for _ in range(4)]
    for delay, child in enumerate(children):
        await asyncio.sleep(0.012 * delay)
        async with asyncio.timeout(10):
            assert await child.terminate(grace_s=60) == 143


async def test_own_session_and_no_descriptors(tmp_path: Path) -> None:
    """A child is out of the terminal's reach and inherits only what it is given."""
    read_fd, write_fd = os.pipe()
    script = "import os; print(os.getsid(0), int(os.path.exists('/dev/fd/%d')), int(os.path.exists('/dev/fd/%d')))"
    child = await spawn([sys.executable, "-c", script % (read_fd, write_fd)], log_path=tmp_path / "log",
                        keep_fds=[read_fd])
    assert await child.wait() == 0
    session, kept, dropped = await printed(tmp_path / "log")
    assert (session != os.getsid(0), kept, dropped) == (True, 1, 0)
    os.close(read_fd)
    os.close(write_fd)


async def test_leash_killed(tmp_path: Path) -> None:
    """On Linux even the leash's own kill -9 ends the command."""
    if sys.platform != "linux":
        return
    child: Child = await spawn(["sh", "-c", "echo $$; exec sleep 300"], log_path=tmp_path / "log")
    pids = await printed(tmp_path / "log")
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait() == 137
    until_gone(pids)


async def test_dies_with_its_parent(tmp_path: Path) -> None:
    """After kill -9 of the parent neither child nor grandchild is left, even if they are deaf to SIGTERM."""
    log = tmp_path / "log"
    script = f"""
import asyncio, pathlib
from orchestrator.gateways.processes import spawn
async def main():
    child = await spawn(["sh", "-c", {"trap '' TERM INT HUP; " + FAMILY!r}], log_path=pathlib.Path({str(log)!r}))
    await child.wait()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)}) as parent:
        pids = await printed(log)
        assert all(alive(pid) for pid in pids)
        parent.kill()
    until_gone(pids)


def test_who_is_gone() -> None:
    """A process of this machine that has ended is gone; one that lives is not, and of other machines nothing is claimed."""
    here = socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert is_gone(f"worker@{here}:{ended.pid}")
    assert not is_gone(f"worker@{here}:{os.getpid()}")
    assert not is_gone(f"worker@another-{here}:{ended.pid}")
    assert not is_gone("nonsense")
