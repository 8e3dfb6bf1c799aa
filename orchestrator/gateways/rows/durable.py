"""Files that appear whole or not at all, and are on the disk when they do."""

import errno
import fcntl
import json
import os
import re
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")


def remove_abandoned(path: Path) -> bool:
    """Remove a hidden file as `DurableFile` names them, if nobody is writing it any more. Raises OSError, also if somebody is.

    Who writes holds a lock on it, which ends with its process: two who swept by age took each other's files away for ever. On a
    file system without locks age is all there is."""
    if _PART.fullmatch(path.name) is None:
        return False
    with path.open("r+b") as file:
        if not _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB) and time.time() - os.fstat(file.fileno()).st_mtime < UNLOCKED_S:
            return False
        path.unlink()  # while it is locked: who waits for the lock sees that the file has gone
    return True


def _locked(file: BinaryIO, how: int) -> bool:
    """Whether the lock was given; False as well where the file system has none."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
UNLOCKED_S = 1800.0  # nobody writes one document for longer


class DurableFile:
    """A context manager: bytes go to a hidden name beside `path`, which takes the place of `path` at the end.

    File and folder are fsynced. On an error the hidden file is removed and `path` stays as it was. Raises OSError when
    the disk is full or not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        """The file to write to; its folder is made where it is missing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = self._part.open("xb")
            _locked(self._file, fcntl.LOCK_EX)
            if os.fstat(self._file.fileno()).st_nlink:
                return self._file
            self._file.close()  # taken for abandoned before it was locked

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Put the file in its place, or remove it after an error."""
        assert self._file is not None
        try:
            with self._file as file:  # locked until it is in its place
                if kind is None:
                    file.flush()
                    os.fsync(file.fileno())
                    self._part.replace(self.path)
                    _sync_folder(self.path.parent)
        finally:
            self._part.unlink(missing_ok=True)


class ManifestWriter:
    """A context manager that writes one JSON line per entry; the file appears, whole, at the end."""

    def __init__(self, path: Path) -> None:
        self._durable = DurableFile(path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Open the hidden file."""
        self._file = self._durable.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Put the manifest in its place, or remove it after an error."""
        self._durable.__exit__(kind, error, trace)

    def write(self, entry: dict[str, Any]) -> None:
        """Add one line. Raises TypeError for values JSON does not know."""
        assert self._file is not None, "write inside the with block"
        self._file.write(_json_bytes(entry) + b"\n")


def write_json(path: Path, document: Any) -> None:
    """Write one JSON document, indented, in one durable step."""
    data = _json_bytes(document, indent=2)  # before the file is opened: a bad document leaves no trace
    with DurableFile(path) as file:
        file.write(data + b"\n")


def _json_bytes(document: Any, *, indent: int | None = None) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "replace")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
