"""Where files go: a folder. A file is there whole, hashed and durable, or not at all."""

import asyncio
import errno
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from orchestrator.core.errors import OutputBroken

T = TypeVar("T")
BLOCK_BYTES = 1024 * 1024  # what is gathered before a thread is asked to write it
WRITERS = 16  # files being written at once
STALE_S = 6 * 3600.0  # far longer than any download: a temporary file of this age has no owner
_TEMP_PREFIX, _TEMP_SUFFIX = ".incoming-", ".part"


class LocalFolder:
    """`core.ports.Storage` in a local folder. Nothing is ever written outside it, whatever a path says.

    All file work happens in threads, so that an fsync stalls nobody: one hop for a file of up to 1 MB."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._free = asyncio.Semaphore(WRITERS)

    async def put(self, path: str, chunks: AsyncIterator[bytes], *, length: int | None) -> tuple[int, str]:
        """As the port says: temporary name, sha256 as bytes arrive, fsync of file and folder, rename.

        An existing file of that name is replaced. Raises also OSError (EINVAL) for a path that leaves the folder."""
        parts = _parts(path)
        incoming = _Incoming(self._root, parts, length)
        async with self._free:
            try:
                return await _stream(incoming, chunks)
            finally:
                if incoming.is_open:
                    await _in_thread(incoming.discard)

    async def clean(self, *, older_than_s: float = STALE_S) -> int:
        """Remove temporary files that dead processes left, by their age; how many."""
        return await _in_thread(partial(_sweep, self._root, before_s=time.time() - older_than_s))


async def _stream(incoming: "_Incoming", chunks: AsyncIterator[bytes]) -> tuple[int, str]:
    block: list[bytes] = []
    gathered = 0
    async for chunk in chunks:
        block.append(chunk)
        gathered += len(chunk)
        if gathered >= BLOCK_BYTES:
            await _in_thread(partial(incoming.write, b"".join(block)))
            block, gathered = [], 0
    return await _in_thread(partial(incoming.finish, b"".join(block)))


async def _in_thread(call: Callable[[], T]) -> T:
    """Blocking work in a thread, to its end even when canceled: nobody may close a file that is being written."""
    work = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    if any(part in ("", ".", "..") or any(char in part for char in "\\\0:") for part in parts):
        raise OSError(errno.EINVAL, "not a path inside the output folder", path)
    return parts


class _Incoming:
    """One file on its way, written by one thread at a time. Opened with its first bytes."""

    def __init__(self, root: Path, parts: list[str], length: int | None) -> None:
        self._root = root
        self._final = root.joinpath(*parts)
        self._temp = self._final.with_name(f"{_TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{_TEMP_SUFFIX}")
        self._length = length
        self._size = 0
        self._hash = hashlib.sha256()
        self._fd: int | None = None

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    def write(self, blob: bytes) -> None:
        """Append. Raises OutputBroken as soon as there is too much, OSError when the disk is full."""
        if self._fd is None:
            _make_folder(self._root, self._final.parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self._temp, flags, 0o666)
        self._size += len(blob)
        self._hash.update(blob)
        if self._length is not None and self._size > self._length:
            raise OutputBroken(f"{self._final.name}: more bytes came than the {self._length} announced")
        rest = memoryview(blob)
        while rest:
            rest = rest[os.write(self._fd, rest):]

    def finish(self, blob: bytes) -> tuple[int, str]:
        """Append the last bytes and make the file appear, durably. Leaves nothing behind when it fails."""
        try:
            self.write(blob)
            if self._length is not None and self._size != self._length:
                raise OutputBroken(f"{self._final.name}: {self._size} bytes came of the {self._length} announced")
            assert self._fd is not None
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
            self._temp.replace(self._final)
        except BaseException:
            self.discard()
            raise
        _sync_folder(self._final.parent)
        return self._size, self._hash.hexdigest()

    def discard(self) -> None:
        """Forget what was written."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
        self._temp.unlink(missing_ok=True)


def _make_folder(root: Path, folder: Path) -> None:
    """Create a folder durably. Raises OSError where a link inside the output folder leads out of it."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(errno.EINVAL, "a link leads out of the output folder", str(folder))
    if folder.is_dir():
        return
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is durable once its folder is. Windows cannot open folders, and needs no such thing."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sweep(root: Path, *, before_s: float) -> int:
    removed = 0
    for temp in root.rglob(f"{_TEMP_PREFIX}*{_TEMP_SUFFIX}"):
        with suppress(OSError):
            if temp.lstat().st_mtime < before_s:
                temp.unlink()
                removed += 1
    return removed
