"""Where files go: a folder. A file is there whole, hashed and durable, or not at all."""

import asyncio
import errno
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from orchestrator.core.errors import OutputBroken
from orchestrator.core.verify import Seen
from orchestrator.gateways import stored
from orchestrator.gateways.rows.durable import remove_abandoned

T = TypeVar("T")
BLOCK_BYTES = 1024 * 1024  # what is gathered before a thread is asked to write it
WRITERS = 16  # large files being written at once; groups at once on a slow disk
LARGEST_GROUP = 64
SLOW_FILE_S = 0.003  # a disk that takes longer for each file is slow
STALE_S = 6 * 3600.0  # far longer than any download: a temporary file of this age has no owner
_TEMP_PREFIX, _TEMP_SUFFIX = ".incoming-", ".part"


class LocalFolder:
    """`core.ports.Storage` in a local folder. Nothing is ever written outside it, whatever a path says.

    File work happens in threads, so that an fsync stalls nobody. Files of up to 1 MB are finished in groups: what arrived
    while one group was written is the next one, and a group costs one hop to a thread and one fsync of its folder."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._folders = _Folders(self._root)
        self._open = asyncio.Semaphore(WRITERS)
        self._waiting: list[_Errand] = []
        self._writing = 0
        self._slow_disk = False

    async def put(self, path: str, chunks: AsyncIterator[bytes], *, length: int | None) -> tuple[int, str]:
        """As the port says: temporary name, sha256 as bytes arrive, fsync of file and folder, rename.

        An existing file of that name is replaced. Raises also OSError (EINVAL) for a path that leaves the folder."""
        incoming = _Incoming(self._folders, _parts(path), length)
        blob, last = await _gathered(chunks)
        if last:
            return await self._finished(incoming, blob)
        async with self._open:
            try:
                return await self._streamed(incoming, blob, chunks)
            finally:
                if incoming.is_open:
                    await _in_thread(incoming.discard)

    async def measure(self, wanted: Sequence[tuple[str, int]]) -> list[Seen | None]:
        """As the port says."""
        return await stored.measure(self._root, wanted)

    async def remove(self, told: Sequence[tuple[str, int, str]]) -> int:
        """As the port says. Raises OSError (EINVAL) for a path that leaves the folder, before any is removed."""
        for path, _, _ in told:
            _parts(path)
        return await _in_thread(partial(stored.remove, self._root, told))

    def names(self) -> AsyncIterator[list[str]]:
        """As the port says."""
        return stored.names(self._root)

    async def _streamed(self, incoming: "_Incoming", blob: bytes, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
        last = False
        while not last:
            await _in_thread(partial(incoming.write, blob))
            blob, last = await _gathered(chunks)
        return await self._finished(incoming, blob)

    async def _finished(self, incoming: "_Incoming", blob: bytes) -> tuple[int, str]:
        """In the next group. Once handed over it is finished, whoever goes away."""
        errand = _Errand(incoming, blob, asyncio.get_running_loop().create_future())
        self._waiting.append(errand)
        if self._writing < (WRITERS if self._slow_disk else 1):
            self._writing += 1
            writing = asyncio.create_task(self._write_groups())
            _BACKGROUND.add(writing)
            writing.add_done_callback(_BACKGROUND.discard)
        try:
            return await asyncio.shield(errand.done)
        except asyncio.CancelledError:
            await asyncio.wait({errand.done})  # nobody may close a file that is being written
            raise

    async def _write_groups(self) -> None:
        """One writer while the disk is quick; on a slow one several, as their waiting overlaps."""
        try:
            while self._waiting:
                count = LARGEST_GROUP if not self._slow_disk else 1 + len(self._waiting) // WRITERS
                group, self._waiting = self._waiting[:count], self._waiting[count:]
                began = time.monotonic()
                outcomes = await asyncio.to_thread(_finish_all, [(errand.incoming, errand.blob) for errand in group])
                self._slow_disk = time.monotonic() - began > SLOW_FILE_S * len(group)
                for errand, outcome in zip(group, outcomes, strict=True):
                    errand.settle(outcome)
        finally:
            self._writing -= 1

    async def clean(self, *, older_than_s: float = STALE_S) -> int:
        """Remove temporary files that dead processes left, outputs and documents, by their age; how many."""
        return await _in_thread(partial(_sweep, self._root, before_s=time.time() - older_than_s))


_BACKGROUND: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly


@dataclass(slots=True)
class _Errand:
    """A file whose last bytes are here."""

    incoming: "_Incoming"
    blob: bytes
    done: "asyncio.Future[tuple[int, str]]"

    def settle(self, outcome: "tuple[int, str] | Exception") -> None:
        """Tell who waits, unless it has gone."""
        if self.done.done():
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


async def _gathered(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """The next bytes, about a megabyte of them, and whether they are the last."""
    block: list[bytes] = []
    gathered = 0
    async for chunk in chunks:
        block.append(chunk)
        gathered += len(chunk)
        if gathered >= BLOCK_BYTES:
            return b"".join(block), False
    return (block[0] if len(block) == 1 else b"".join(block)), True


def _finish_all(group: "Sequence[tuple[_Incoming, bytes]]") -> "list[tuple[int, str] | Exception]":
    """All bytes first, then each file made durable and visible, then their folders, once each.

    The disk is told of all bytes before the first fsync waits for it: most of the others then find their work done."""
    arrived = [_outcome(partial(incoming.complete, blob)) for incoming, blob in group]
    outcomes: list[tuple[int, str] | Exception] = []
    folders: dict[str, list[int]] = {}
    for place, ((incoming, _), trouble) in enumerate(zip(group, arrived, strict=True)):
        outcome = trouble if isinstance(trouble, Exception) else _outcome(incoming.appear)
        outcomes.append(outcome)
        if not isinstance(outcome, Exception):
            folders.setdefault(incoming.folder, []).append(place)
    for folder, places in folders.items():
        try:
            _sync_folder(folder)
        except OSError as error:
            for place in places:
                outcomes[place] = error
    return outcomes


def _outcome(call: Callable[[], T]) -> T | Exception:
    """What a call returns, or raises: it is told to the one whose file it is."""
    try:
        return call()
    except Exception as error:
        return error


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

    def __init__(self, folders: "_Folders", parts: list[str], length: int | None) -> None:
        self._folders = folders
        self.name = parts[-1]
        self.folder = folders.path_of(parts[:-1])
        self._final = f"{self.folder}/{self.name}"
        self._temp = f"{self.folder}/{_TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{_TEMP_SUFFIX}"
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
            self._fd = self._folders.create(self.folder, self._temp)
        self._size += len(blob)
        self._hash.update(blob)
        if self._length is not None and self._size > self._length:
            raise OutputBroken(f"{self.name}: more bytes came than the {self._length} announced")
        rest = memoryview(blob)
        while rest:
            rest = rest[os.write(self._fd, rest):]

    def complete(self, blob: bytes) -> None:
        """Append the last bytes, and have the disk begin with them. Leaves nothing behind when it fails."""
        try:
            self.write(blob)
            if self._length is not None and self._size != self._length:
                raise OutputBroken(f"{self.name}: {self._size} bytes came of the {self._length} announced")
            assert self._fd is not None
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            self.discard()
            raise

    def appear(self) -> tuple[int, str]:
        """Make the file durable but for its folder, and visible. Leaves nothing behind when it fails."""
        assert self._fd is not None
        try:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
            os.replace(self._temp, self._final)  # noqa: PTH105 - a Path for each file showed in the profile
        except BaseException:
            self.discard()
            raise
        return self._size, self._hash.hexdigest()

    def discard(self) -> None:
        """Forget what was written."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
        with suppress(FileNotFoundError):
            os.unlink(self._temp)  # noqa: PTH108 - as above


class _Folders:
    """The folders below a root, each looked at and made durable once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: set[str] = set()

    def path_of(self, parts: Sequence[str]) -> str:
        return "/".join((str(self._root), *parts))

    def create(self, folder: str, path: str) -> int:
        """A new file, open for writing. Raises OSError where a link inside the root leads out of it."""
        if folder not in self._known:
            _make_folder(self._root, Path(folder))
            self._known.add(folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:  # somebody removed the folder meanwhile
            _make_folder(self._root, Path(folder))
            return os.open(path, flags, 0o666)


def _make_folder(root: Path, folder: Path) -> None:
    """Create a folder durably. Raises OSError where a link inside the output folder leads out of it."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise OSError(errno.EINVAL, "a link leads out of the output folder", str(folder))
    if folder.is_dir():
        return
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        _sync_folder(str(made.parent))


def _sync_folder(folder: str) -> None:
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
    for temp in chain(root.rglob(f"{_TEMP_PREFIX}*{_TEMP_SUFFIX}"), root.glob(f".*{_TEMP_SUFFIX}")):
        with suppress(OSError):
            if temp.lstat().st_mtime >= before_s:
                continue
            if temp.name.startswith(_TEMP_PREFIX):
                temp.unlink()
            elif not remove_abandoned(temp):
                continue
            removed += 1
    return removed
