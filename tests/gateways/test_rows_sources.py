"""Which files a source means."""

import gzip
import hashlib
from pathlib import Path

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.records import SourceFile
from orchestrator.gateways.rows.reading import columns_of, read
from orchestrator.gateways.rows.sources import fingerprint, resolve


def test_glob_is_sorted_and_relative_to_its_base(tmp_path: Path) -> None:
    """A glob means all its files in sorted order, below the base, without folders."""
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / name).write_text("x\n1\n")
    (tmp_path / "d.csv").mkdir()
    assert resolve("*.csv", base=tmp_path) == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert resolve("a.csv", base=tmp_path) == [tmp_path / "a.csv"]


def test_a_file_with_brackets_in_its_name_is_found(tmp_path: Path) -> None:
    """A name that happens to look like a glob means the file of that name."""
    (tmp_path / "p[1].csv").write_text("x\n1\n")
    assert resolve("p[1].csv", base=tmp_path) == [tmp_path / "p[1].csv"]


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    """A misspelt name is answered with the near one."""
    (tmp_path / "products.csv").write_text("x\n1\n")
    with pytest.raises(BadInput, match=r"no such file.*nearest in .*products\.csv"):
        resolve("prodcts.csv", base=tmp_path)


@pytest.mark.parametrize(("name", "said"), [
    ("a.xlsx", "export the sheet to CSV"),
    ("a.json", "one JSON object per line"),
    ("a.parquet.gz", "unpack"),
    ("a", r"\(no suffix\)"),
    ("a.toml", r"Supported: \.csv"),
])
def test_unsupported_formats_say_what_to_do(tmp_path: Path, *, name: str, said: str) -> None:
    """Each format that cannot be read is refused with a remedy."""
    (tmp_path / name).write_text("x")
    with pytest.raises(BadInput, match=said):
        resolve(name, base=tmp_path)


def test_folders_and_remote_addresses_are_refused(tmp_path: Path) -> None:
    """A folder and an s3 address are refused in words of their own."""
    with pytest.raises(BadInput, match=r"is a folder.*\*\.csv"):
        resolve(".", base=tmp_path)
    with pytest.raises(BadInput, match=r"s3:// sources are not supported by this version yet; download"):
        resolve("s3://bucket/a.csv", base=tmp_path)


def test_fingerprint_is_of_the_raw_bytes(tmp_path: Path) -> None:
    """Size and hash are of the file as it lies there, compressed or not."""
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"x\n1\n"))
    raw = path.read_bytes()
    assert fingerprint([path]) == [SourceFile(str(path), len(raw), hashlib.sha256(raw).hexdigest())]


def test_files_of_one_glob_must_agree(tmp_path: Path) -> None:
    """Two files with other columns are both named, with the difference; another order of columns is no difference."""
    one, two, three = tmp_path / "1.csv", tmp_path / "2.csv", tmp_path / "3.csv"
    one.write_text("a,b\n1,2\n")
    two.write_text("b,a\n4,3\n")
    three.write_text("a,c\n1,2\n")
    assert columns_of([one, two]) == ["a", "b"]
    rows = [row.cells for chunk in read([one, two]) for row in chunk.rows]
    assert rows == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    with pytest.raises(BadInput, match=r"3\.csv lacks b and adds c, compared with .*1\.csv"):
        columns_of([one, three])


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    """A source of CSV and JSONL files is refused."""
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(BadInput, match="one format"):
        read([tmp_path / "a.csv", tmp_path / "b.jsonl"])
