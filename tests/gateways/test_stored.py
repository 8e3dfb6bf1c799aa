"""Looking at an output folder: sizes, hashes, names, and documents read back."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.verify import Seen
from orchestrator.gateways import stored
from orchestrator.gateways.rows import written
from orchestrator.gateways.storage import LocalFolder


async def test_measuring(tmp_path: Path):
    """Size and hash of what is there as expected; a file of another size is not read; nothing is None."""
    (tmp_path / "files").mkdir()
    blob = b"x" * (stored.BLOCK_BYTES + 7)
    (tmp_path / "files" / "big").write_bytes(blob)
    (tmp_path / "files" / "link").symlink_to("big")
    wanted = [("files/big", len(blob)), ("files/link", len(blob)), ("files/big", 3), ("files/none", 1), ("files/big/none", 1)]
    right = Seen(len(blob), hashlib.sha256(blob).hexdigest())
    found = await LocalFolder(tmp_path).measure([*wanted, ("files", 1)])
    assert found[:5] == [right, right, Seen(len(blob), None), None, None]
    assert found[5] is not None and found[5].trouble == "it is no file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_cannot_be_read(tmp_path: Path):
    """It is said why; it is neither missing nor changed."""
    (tmp_path / "closed").write_bytes(b"x")
    (tmp_path / "closed").chmod(0)
    (seen,) = await LocalFolder(tmp_path).measure([("closed", 1)])
    assert seen is not None and seen.trouble == "Permission denied"


async def test_whoever_is_canceled_does_not_wait_for_a_large_file(tmp_path: Path):
    """The thread that reads a sparse file of a terabyte ends soon after its caller."""
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    work = asyncio.create_task(LocalFolder(tmp_path).measure([("huge", 1 << 40)]))
    await asyncio.sleep(0.2)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 10)


async def test_names(tmp_path: Path):
    """What lies directly in the folder and every file below `files/`; other folders and links are named, not entered."""
    for path in ("results.csv", ".orchestrator.json", "files/a.png", "files/deep/er/b.png", "files/.incoming-1.part", "other/x"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / "files" / "loop").symlink_to(tmp_path)
    found = [name async for some in LocalFolder(tmp_path).names() for name in some]
    assert sorted(found) == [
        "files/.incoming-1.part", "files/a.png", "files/deep/er/b.png", "files/loop", "other/", "results.csv"]
    assert [some async for some in LocalFolder(tmp_path / "none").names()] == []


async def test_many_names_come_in_bounded_portions(tmp_path: Path):
    """A thousand at a time."""
    (tmp_path / "files").mkdir()
    for number in range(2500):
        (tmp_path / "files" / f"{number}").touch()
    sizes = [len(some) async for some in LocalFolder(tmp_path).names()]
    assert sizes == [1000, 1000, 500]


def test_entries_of_a_manifest(tmp_path: Path):
    """Objects line by line, in bounded chunks; a line that is none is told by its number."""
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(2100)))
    chunks = list(written.entries(path))
    assert ([len(chunk) for chunk in chunks], chunks[2][-1]) == ([1000, 1000, 100], {"n": 2099})
    for wrong in ("{}\n[]\n", "{}\n{\n"):
        path.write_text(wrong)
        with pytest.raises(BadInput, match="line 2 is no JSON object"):
            list(written.entries(path))


@pytest.mark.parametrize(("name", "content", "said"), [
    ("r.parquet", b"PAR1 not really", "cannot be read as Parquet"), ("r.csv", b"a,b\n1,2\n", "no column prediction_id"),
    ("r.csv", b'prediction_id\n"x', "cannot be read as CSV"), ("r.csv", b"a,prediction_id\n1\n", "cannot be read as CSV"),
    ("r.csv", b"", "no column"), ("r.jsonl", b"]", "no JSON object")])
def test_results_that_are_none(tmp_path: Path, name: str, content: bytes, said: str):
    """Whatever was done to a results file, it is said in words."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=said):
        list(written.cells(tmp_path / name, ["prediction_id"]))


async def test_removed_only_as_told(tmp_path: Path):
    """A file goes if it is still the one that is told of; another one stays, of any size; what is not there is no trouble."""
    folder = LocalFolder(tmp_path)
    for name, blob in (("a", b"old"), ("b", b"new"), ("c", b"longer")):
        (tmp_path / name).write_bytes(blob)
    told = [(name, 3, hashlib.sha256(b"old").hexdigest()) for name in ("a", "b", "c", "none")]
    assert await folder.remove(told) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    with pytest.raises(OSError, match="not a path inside"):
        await folder.remove([("b", 3, hashlib.sha256(b"new").hexdigest()), ("../x", 3, "ff")])
    assert (tmp_path / "b").exists()
