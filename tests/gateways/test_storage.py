"""Files in a folder: whole, hashed, durable, inside, or not there."""

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.core.errors import OutputBroken
from orchestrator.gateways.rows.durable import DurableFile
from orchestrator.gateways.storage import BLOCK_BYTES, LocalFolder

BIG = bytes(range(256)) * (BLOCK_BYTES // 64)  # four blocks


async def parts(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def sliced(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start:start + size]


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("content", [b"", b"x", b"y" * 10_000, BIG, b"z" * BLOCK_BYTES])
async def test_a_file_is_stored_whole(tmp_path: Path, content: bytes) -> None:
    """Bytes and sha256 of what was written; nothing else stays; readable as any file."""
    got = await LocalFolder(tmp_path).put("files/a/b.bin", sliced(content), length=len(content))
    path = tmp_path / "files/a/b.bin"
    assert got == (len(content), hashlib.sha256(content).hexdigest())
    assert path.read_bytes() == content
    assert everything(tmp_path) == ["files/a/b.bin"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


async def test_the_same_name_again_replaces(tmp_path: Path) -> None:
    """A file fetched twice, after a crash, is simply there."""
    folder = LocalFolder(tmp_path)
    await folder.put("a", parts(b"old, longer"), length=None)
    await folder.put("a", parts(b"new"), length=3)
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(("content", "length"), [(b"abc", 4), (b"abc", 2), (b"", 1), (BIG, len(BIG) + 1), (BIG, 10)])
async def test_a_wrong_length_is_broken(tmp_path: Path, content: bytes, length: int) -> None:
    """Too short or too long: no file, and what was there before stays."""
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(OutputBroken):
        await LocalFolder(tmp_path).put("a", sliced(content), length=length)
    assert everything(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize("before", [b"", BIG])
async def test_a_source_that_fails_leaves_nothing(tmp_path: Path, before: bytes) -> None:
    """The error passes through, early or late."""
    async def failing() -> AsyncIterator[bytes]:
        yield before
        raise OutputBroken("cut")

    with pytest.raises(OutputBroken, match="cut"):
        await LocalFolder(tmp_path).put("a/b", failing(), length=None)
    assert everything(tmp_path) == []


async def test_cancellation_leaves_nothing(tmp_path: Path) -> None:
    """Stopped in the middle of a large file: its temporary file goes too."""
    started = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield BIG
        started.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(LocalFolder(tmp_path).put("a", endless(), length=None))
    await started.wait()
    assert len(everything(tmp_path)) == 1
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert everything(tmp_path) == []


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "./a", "a/", "a\0b", "a\\b", "C:/a", "a:b"])
async def test_no_path_leaves_the_folder(tmp_path: Path, path: str) -> None:
    """Absolute, upward, empty, NUL and Windows forms are refused before anything is created."""
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(OSError, match="inside the output folder") as raised:
        await LocalFolder(root).put(path, parts(b"x"), length=1)
    assert raised.value.errno == errno.EINVAL
    assert everything(tmp_path) == []


async def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """No folder is made behind it either; a link in the file's own place is replaced, not written through."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "target").write_bytes(b"untouched")
    (root / "files").symlink_to(outside)
    (root / "a").symlink_to(outside / "target")
    with pytest.raises(OSError, match="leads out"):
        await LocalFolder(root).put("files/new/a", parts(b"x"), length=1)
    await LocalFolder(root).put("a", parts(b"mine"), length=4)
    assert everything(outside) == ["target"]
    assert (outside / "target").read_bytes() == b"untouched"
    assert (root / "a").read_bytes() == b"mine"


async def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    """People put outputs on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    await LocalFolder(tmp_path / "out").put("files/a", parts(b"x"), length=1)
    assert (tmp_path / "disk/files/a").read_bytes() == b"x"


async def test_a_full_disk_is_an_oserror_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC passes through with its number, so that the batch can wait and say why."""
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as raised:
        await LocalFolder(tmp_path).put("a", parts(b"x"), length=1)
    assert raised.value.errno == errno.ENOSPC
    assert everything(tmp_path) == []


async def test_file_and_folders_are_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order: the folders made, the file under its temporary name, its folder after the rename."""
    synced: list[str] = []
    real = os.fsync

    def noted(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        synced.append("temporary" if path.name.startswith(".incoming-") else str(path.relative_to(tmp_path)))
        real(fd)

    monkeypatch.setattr(os, "fsync", noted)
    await LocalFolder(tmp_path).put("x/y/a", parts(b"x"), length=1)
    assert synced == [".", "x", "temporary", "x/y"]


async def test_many_at_once(tmp_path: Path) -> None:
    """More files than writers, into the same new folder, all come right."""
    folder = LocalFolder(tmp_path)
    await asyncio.gather(*(folder.put(f"d/{n}", parts(str(n).encode()), length=None) for n in range(60)))
    assert {path.name: path.read_text() for path in (tmp_path / "d").iterdir()} == {str(n): str(n) for n in range(60)}


async def test_clean_removes_only_old_leftovers(tmp_path: Path) -> None:
    """Temporary files of dead processes go by age; fresh ones may belong to a living worker, and results stay."""
    for name, age_s in ((".incoming-1-aa.part", 7200), (".incoming-2-bb.part", 0), ("old.png", 7200), ("x.part", 7200)):
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    assert await LocalFolder(tmp_path).clean(older_than_s=3600) == 1
    assert everything(tmp_path) == ["files/.incoming-2-bb.part", "files/old.png", "files/x.part"]


async def test_clean_removes_documents_that_were_never_finished(tmp_path: Path) -> None:
    """Results, summary and note of a killed process stayed under their hidden names for ever; a user's file stays."""
    for name in (".results.parquet.0123abcd.part", "..orchestrator.json.89abcdef.part", ".mine.part", "results.parquet"):
        (tmp_path / name).touch()
    assert await LocalFolder(tmp_path).clean(older_than_s=-1) == 2
    assert everything(tmp_path) == [".mine.part", "results.parquet"]


async def test_clean_leaves_documents_that_somebody_writes(tmp_path: Path) -> None:
    """Two who write results at once took each other's away."""
    with DurableFile(tmp_path / "results.parquet") as file:
        file.write(b"rows")
        assert await LocalFolder(tmp_path).clean(older_than_s=-1) == 0
    assert everything(tmp_path) == ["results.parquet"]


async def test_documents_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have none: documents are written all the same, and what is left half-written goes by age."""
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with DurableFile(tmp_path / "results.parquet") as file:
        file.write(b"rows")
        assert await LocalFolder(tmp_path).clean(older_than_s=-1) == 0
    old = tmp_path / ".results.parquet.0123abcd.part"
    old.touch()
    os.utime(old, (old.stat().st_mtime - 7200,) * 2)
    assert await LocalFolder(tmp_path).clean(older_than_s=-1) == 1
    assert everything(tmp_path) == ["results.parquet"]
