"""Looking at an output folder: what lies at a path, and which names there are; and removing what is still as it is told."""

import asyncio
import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from pathlib import Path

from orchestrator.core.verify import Seen

BLOCK_BYTES = 1024 * 1024
NAMES_AT_ONCE = 1000


async def measure(root: Path, wanted: Sequence[tuple[str, int]]) -> list[Seen | None]:
    """What lies at each of these paths (relative to `root`), with the size that is expected there; None: nothing.

    One thread reads them one after the other, a megabyte at a time; a file of another size is not read."""
    ended = threading.Event()
    try:
        return await asyncio.to_thread(lambda: [_measured(root / path, size, ended) for path, size in wanted])
    finally:
        ended.set()  # whoever was canceled must not wait for the thread to read a large file to its end


def _measured(path: Path, size: int, ended: threading.Event) -> Seen | None:
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            return Seen(about.st_size, None, "it is no file")
        return Seen(about.st_size, _sha256(path, ended) if about.st_size == size else None)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Seen(0, None, error.strerror or str(error))


def _sha256(path: Path, ended: threading.Event) -> str:
    found, buffer = hashlib.sha256(), bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while (count := file.readinto(buffer)) and not ended.is_set():
            found.update(view[:count])
    return found.hexdigest()


def remove(root: Path, told: Sequence[tuple[str, int, str]]) -> int:
    """Remove those of these files (path, size, sha256) that are still what is told of them; how many."""
    removed, never = 0, threading.Event()
    for name, size, sha256 in told:
        seen = _measured(root / name, size, never)
        if seen is not None and seen.sha256 == sha256:
            (root / name).unlink(missing_ok=True)
            removed += 1
    return removed


async def names(root: Path) -> AsyncIterator[list[str]]:
    """The names in the folder, relative to it, a thousand at a time: what lies directly in it (a folder, with `/` behind
    it, is not looked into) and every file below `files/`. Names that begin with a dot directly in it are left out."""
    found = _names(root)
    while some := await asyncio.to_thread(lambda: list(islice(found, NAMES_AT_ONCE))):
        yield some


def _names(root: Path) -> Iterator[str]:
    for entry in _entries(str(root)):
        if entry.name == "files" and entry.is_dir(follow_symlinks=False):
            yield from _below(entry.path, "files/")
        elif not entry.name.startswith("."):
            yield entry.name + ("/" if entry.is_dir() else "")


def _below(folder: str, prefix: str) -> Iterator[str]:
    """Folders wait in a list, not files: there may be a million of these."""
    waiting = [(folder, prefix)]
    while waiting:
        place, before = waiting.pop()
        for entry in _entries(place):
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, f"{before}{entry.name}/"))
            else:
                yield before + entry.name


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder; one that is not there, or is closed to us, is empty."""
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError:
        return
