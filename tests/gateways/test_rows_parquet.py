"""Rows of Parquet files: types kept, whatever they are."""

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.core.errors import BadInput
from orchestrator.gateways.rows.reading import columns_of, read
from orchestrator.gateways.rows.snapshot import open_blob

AT = dt.datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)


def table() -> pa.Table:
    """A row of many types, and a row of nothing."""
    return pa.table({
        "at": pa.array([AT, None], pa.timestamp("ns", tz="UTC")),
        "money": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
        "tags": pa.array([["a", "b"], None], pa.list_(pa.string())),
        "box": pa.array([{"w": 1, "h": None}, None]),
        "kind": pa.array(["x", None]).dictionary_encode(),
        "raw": pa.array([b"\x00\xff", None]),
        "seed": pa.array([2**62 + 1, None], pa.int64()),
    })


def test_types_are_kept_in_cells_and_snapshot(tmp_path: Path) -> None:
    """Cells are Python values of their type; the snapshot keeps the Arrow types."""
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    chunk = next(read([path]))
    assert columns_of([path]) == table().column_names
    assert chunk.rows[0].cells == {"at": AT, "money": Decimal("1.50"), "tags": ["a", "b"], "box": {"w": 1, "h": None},
                                   "kind": "x", "raw": b"\x00\xff", "seed": 2**62 + 1}
    assert chunk.rows[1].cells == dict.fromkeys(table().column_names)
    assert type(chunk.rows[0].cells["at"]) is dt.datetime
    assert open_blob(chunk.blob).schema.types == table().schema.types


def test_row_groups_are_cut_into_chunks(tmp_path: Path) -> None:
    """One big row group streams as chunks in order; large rows make small chunks."""
    pq.write_table(pa.table({"n": range(2500)}), tmp_path / "a.parquet")
    assert [(chunk.first_index, len(chunk.rows)) for chunk in read([tmp_path / "a.parquet"])] == [
        (0, 1000), (1000, 1000), (2000, 500)]
    blobs = pa.table({"b": [bytes([number]) * 3_000_000 for number in range(5)]})
    pq.write_table(blobs, tmp_path / "b.parquet", use_dictionary=False)
    assert [len(chunk.rows) for chunk in read([tmp_path / "b.parquet"])] == [2, 2, 1]


def test_a_snapshot_carries_only_its_own_dictionary_values(tmp_path: Path) -> None:
    """A column with a large dictionary does not put the whole of it into every chunk."""
    words = pa.array([f"a rather long word number {number}" for number in range(20_000)]).dictionary_encode()
    pq.write_table(pa.table({"w": words}), tmp_path / "a.parquet")
    chunk = next(read([tmp_path / "a.parquet"]))
    assert len(open_blob(chunk.blob).column(0).dictionary) == 1000
    assert open_blob(chunk.blob).schema.types == [words.type]


def test_values_python_cannot_hold_are_the_rows_problem(tmp_path: Path) -> None:
    """A year beyond 9999 and broken UTF-8 spoil their own row only."""
    years = pa.array([0, 400_000_000_000, 0], pa.timestamp("s"))
    texts = pa.Array.from_buffers(pa.string(), 3, pa.array([b"ok", b"ok", b"\xff"]).buffers())
    pq.write_table(pa.table({"at": years, "t": texts}), tmp_path / "a.parquet")
    rows = next(read([tmp_path / "a.parquet"])).rows
    assert [row.problem is None for row in rows] == [True, False, False]
    assert "column at" in (rows[1].problem or "") and "column t" in (rows[2].problem or "")
    assert rows[1].cells == {"at": None, "t": "ok"}


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    """Text with a .parquet suffix is a BadInput with the file's name, and so are doubled columns."""
    (tmp_path / "a.parquet").write_text("no, this is not it")
    with pytest.raises(BadInput, match=r"a\.parquet: cannot be read as Parquet"):
        columns_of([tmp_path / "a.parquet"])
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "b.parquet")
    with pytest.raises(BadInput, match="both named 'a'"):
        columns_of([tmp_path / "b.parquet"])
