"""Result tables: what goes in comes out, joined with what became of it."""

import csv
import datetime as dt
import json
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.records import ResultRow, RowChunk
from orchestrator.gateways.rows.durable import ManifestWriter, write_json
from orchestrator.gateways.rows.reading import read
from orchestrator.gateways.rows.results import RESULT_COLUMNS, ResultsWriter
from orchestrator.gateways.rows.schema import SourceSchema

ResultFormat = Literal["parquet", "csv", "jsonl"]
FORMATS: list[ResultFormat] = ["parquet", "csv", "jsonl"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
DONE = ResultRow(0, "p1", "succeeded", 'a, "b"\nc', ("files/0.webp", "files/ü.webp"), None, None, Decimal("0.003"), 1.5,
                 1, "hidden")
FAILED = ResultRow(1, None, "failed", None, (), "boom", "invalid_input", None, None, 0, None)


def schema_of(chunks: list[RowChunk]) -> SourceSchema:
    """The schema of all chunks, after a trip through JSON."""
    schema: SourceSchema | None = None
    for chunk in chunks:
        schema = SourceSchema.merge(schema, chunk.blob)
    assert schema is not None
    return SourceSchema.from_json(schema.to_json())


def exported(source: Path, to: Path, *, format: ResultFormat, results: list[ResultRow],
             chunk_rows: int = 1000) -> Path:
    """The results of a whole source."""
    chunks = list(read([source], chunk_rows=chunk_rows))
    with ResultsWriter(to, format=format, schema=schema_of(chunks)) as writer:
        for chunk in chunks:
            writer.write(chunk.blob, results[chunk.first_index:chunk.first_index + len(chunk.rows)])
    return to


def csv_rows(path: Path) -> list[dict[str, str]]:
    """A CSV file as the standard library reads it."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def json_rows(path: Path) -> list[dict[str, Any]]:
    """A JSONL file's objects."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def source_csv(folder: Path, *, content: str = "sku,note\n007,\nNA,x\n") -> Path:
    """A small CSV source."""
    path = folder / "source.csv"
    path.write_text(content, newline="")
    return path


def test_parquet_results_have_their_types(tmp_path: Path) -> None:
    """Input columns stay text, files are a list, costs are decimals, unknowns are null."""
    out = exported(source_csv(tmp_path), tmp_path / "r.parquet", format="parquet", results=[DONE, FAILED])
    table = pq.read_table(out)
    assert table.column_names == ["sku", "note", *RESULT_COLUMNS]
    assert table.schema.field("prediction_cost_usd").type == pa.decimal128(38, 12)
    assert table.schema.field("prediction_files").type == pa.list_(pa.string())
    first, second = table.to_pylist()
    assert (first["sku"], first["note"], first["prediction_output"]) == ("007", None, 'a, "b"\nc')
    assert first["prediction_files"] == ["files/0.webp", "files/ü.webp"]
    assert first["prediction_cost_usd"] == Decimal("0.003")
    assert (second["prediction_files"], second["prediction_cost_usd"], second["prediction_seconds"]) == ([], None, None)


def test_csv_results_are_plain_text(tmp_path: Path) -> None:
    """Files are JSON, costs have no exponent, unknown costs are empty cells, lines end with a newline alone."""
    tiny = ResultRow(1, "p2", "succeeded", None, (), None, None, Decimal("0.000000000001"), 2.0, 1, None)
    out = exported(source_csv(tmp_path), tmp_path / "r.csv", format="csv", results=[FAILED, tiny])
    rows = csv_rows(out)
    assert list(rows[0]) == ["sku", "note", *RESULT_COLUMNS]
    assert [row["prediction_cost_usd"] for row in rows] == ["", "0.000000000001"]
    assert (rows[0]["prediction_files"], rows[0]["note"]) == ("[]", "")
    assert rows[0]["prediction_error_class"] == "invalid_input"
    assert b"\r" not in out.read_bytes()


def test_jsonl_results_are_objects(tmp_path: Path) -> None:
    """Files are a list, costs decimal text, empties null, and JSON columns are values again."""
    source = tmp_path / "s.jsonl"
    source.write_text('{"a": 1, "b": {"x": [1, "é"]}}\n{"a": "two"}\n')
    first, second = json_rows(exported(source, tmp_path / "r.jsonl", format="jsonl", results=[DONE, FAILED]))
    assert (first["a"], first["b"], first["prediction_files"]) == (1, {"x": [1, "é"]}, list(DONE.files))
    assert (second["a"], second["b"], second["prediction_cost_usd"]) == ("two", None, None)
    assert first["prediction_cost_usd"] == "0.003"


def test_input_columns_that_collide_are_renamed(tmp_path: Path) -> None:
    """A results file used as a source keeps its columns under names of their own, all unique."""
    source = source_csv(tmp_path, content="prediction_id,input_prediction_id\nold,older\n")
    row = csv_rows(exported(source, tmp_path / "r.csv", format="csv", results=[DONE]))[0]
    assert row["input_prediction_id"] == "older"
    assert row["input_input_prediction_id"] == "old"
    assert row["prediction_id"] == "p1"


def test_chunks_of_different_types_meet_in_one_column(tmp_path: Path) -> None:
    """Whole numbers and fractions become fractions, empty chunks take any type, and a real conflict is JSON text."""
    source = tmp_path / "s.jsonl"
    source.write_text('{"n": 1, "late": null, "mix": 1, "big": 9007199254740993}\n'
                      '{"n": 2.5, "late": true, "mix": "x", "big": 0.5}\n')
    out = exported(source, tmp_path / "r.parquet", format="parquet", results=[DONE, FAILED], chunk_rows=1)
    table = pq.read_table(out).select(["n", "late", "mix", "big"])
    assert table.schema.types == [pa.float64(), pa.bool_(), pa.string(), pa.string()]
    assert table.to_pylist() == [{"n": 1.0, "late": None, "mix": "1", "big": "9007199254740993"},
                                 {"n": 2.5, "late": True, "mix": '"x"', "big": "0.5"}]


def test_parquet_types_survive_to_parquet_and_become_text_elsewhere(tmp_path: Path) -> None:
    """Parquet keeps every type; CSV and JSONL hold base64, ISO 8601, decimals as text, lists as JSON."""
    at = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)
    table = pa.table({"raw": [b"\x00\xff"], "at": pa.array([at], pa.timestamp("ns", tz="UTC")), "tags": [["a", "b"]],
                      "d": [Decimal("1.50")], "nan": [float("nan")], "k": pa.array(["x"]).dictionary_encode()})
    source = tmp_path / "s.parquet"
    pq.write_table(table, source)
    outs = {form: exported(source, tmp_path / f"r.{form}", format=form, results=[DONE]) for form in FORMATS}
    assert pq.read_table(outs["parquet"]).select(table.column_names).schema.types == table.schema.types
    row, line = csv_rows(outs["csv"])[0], json_rows(outs["jsonl"])[0]
    when = "2025-03-01T00:00:00+00:00"
    assert [row[name] for name in table.column_names] == ["AP8=", when, '["a", "b"]', "1.50", "nan", "x"]
    assert [line[name] for name in table.column_names] == ["AP8=", when, ["a", "b"], "1.50", None, "x"]


@pytest.mark.parametrize("form", FORMATS)
def test_values_without_a_python_form_do_not_stop_an_export(tmp_path: Path, *, form: ResultFormat) -> None:
    """Rows skipped for a value nobody can read are in the results all the same."""
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff"]).buffers())
    source = tmp_path / "s.parquet"
    pq.write_table(pa.table({"at": pa.array([400_000_000_000], pa.timestamp("s")), "t": texts}), source)
    out = exported(source, tmp_path / f"r.{form}", format=form, results=[FAILED])
    if form == "parquet":
        assert pq.read_table(out).num_rows == 1
    else:
        row = csv_rows(out)[0] if form == "csv" else json_rows(out)[0]
        assert row["t"] == "a\ufffd"
        assert row["at"].startswith("14645")


def test_rows_of_which_nothing_was_readable_are_exported(tmp_path: Path) -> None:
    """A JSONL file of bad lines has no columns, and yet a result per line."""
    source = tmp_path / "s.jsonl"
    source.write_text("oops\n[]\n")
    rows = csv_rows(exported(source, tmp_path / "r.csv", format="csv", results=[FAILED, FAILED]))
    assert [row["prediction_status"] for row in rows] == ["failed", "failed"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_source_without_rows_gives_a_table_without_rows(tmp_path: Path, *,
                                                          form: ResultFormat) -> None:
    """No rows in, a well-formed empty table out."""
    out = tmp_path / f"r.{form}"
    with ResultsWriter(out, format=form, schema=SourceSchema.of_columns(["sku"])):
        pass
    names = {"parquet": lambda: pq.read_table(out).column_names, "csv": lambda: out.read_text().strip().split(","),
             "jsonl": lambda: [] if out.read_bytes() == b"" else ["something"]}[form]()
    assert names == ([] if form == "jsonl" else ["sku", *RESULT_COLUMNS])


@given(TEXTS, TEXTS)
@settings(max_examples=80, deadline=None)
def test_csv_results_give_texts_back_exactly(tmp_path_factory: pytest.TempPathFactory, output: str, cell: str) -> None:
    """Any text in a cell or an output is read back from the results as it was."""
    folder = tmp_path_factory.mktemp("any")
    source = folder / "s.jsonl"
    source.write_text(json.dumps({"cell": cell}) + "\n")
    result = ResultRow(0, "p", "succeeded", output, (), None, None, None, None, 1, None)
    row = csv_rows(exported(source, folder / "r.csv", format="csv", results=[result]))[0]
    assert (row["cell"], row["prediction_output"]) == (cell, output)


@pytest.mark.parametrize("form", FORMATS)
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, *, form: ResultFormat) -> None:
    """Results appear whole or not at all: after an error the old file stands and no part of the new one."""
    chunks = list(read([source_csv(tmp_path)]))
    out = tmp_path / "out" / f"r.{form}"
    out.parent.mkdir()
    out.write_text("old")
    with pytest.raises(ValueError, match="a chunk of 2 rows cannot be joined with 1 results"):
        with ResultsWriter(out, format=form, schema=schema_of(chunks)) as writer:
            writer.write(chunks[0].blob, [DONE, FAILED])
            assert out.read_text() == "old"
            writer.write(chunks[0].blob, [DONE])
    assert [(path.name, path.read_text()) for path in out.parent.iterdir()] == [(out.name, "old")]


def test_texts_no_file_can_hold_are_repaired(tmp_path: Path) -> None:
    """Half a surrogate pair in an output does not stop the export."""
    broken = ResultRow(0, "p", "succeeded", "x\ud800", (), "\udfff", "provider", None, None, 1, None)
    source = source_csv(tmp_path, content="a\n1\n")
    row = csv_rows(exported(source, tmp_path / "r.csv", format="csv", results=[broken]))[0]
    assert (row["prediction_output"], row["prediction_error"]) == ("x?", "?")


def test_manifest_and_summary_appear_whole(tmp_path: Path) -> None:
    """A manifest is one object per line; a document that JSON cannot hold leaves the old file and no part."""
    with ManifestWriter(tmp_path / "out" / "manifest.jsonl") as manifest:
        manifest.write({"path": "files/ü.webp", "bytes": 3})
        manifest.write({"path": "files/1.webp", "bytes": 4})
        assert not (tmp_path / "out" / "manifest.jsonl").exists()
    assert [entry["bytes"] for entry in json_rows(tmp_path / "out" / "manifest.jsonl")] == [3, 4]
    write_json(tmp_path / "summary.json", {"cost_usd": "1.20"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "summary.json", {"cost_usd": Decimal(1)})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"cost_usd": "1.20"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "summary.json"]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_export_holds_one_chunk_at_a_time(tmp_path: Path, *, form: ResultFormat) -> None:
    """Twenty thousand rows peak no more than half again above what a single chunk takes."""
    chunk = next(read([source_csv(tmp_path, content="a\n" + "x\n" * 1000)]))

    def peak(chunks: int) -> int:
        tracemalloc.start()
        try:
            schema = SourceSchema.merge(None, chunk.blob)
            with ResultsWriter(tmp_path / f"r.{form}", format=form, schema=schema) as writer:
                for _ in range(chunks):
                    writer.write(chunk.blob, [DONE] * 1000)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(20) < 1.5 * peak(1)


def test_reading_and_writing_do_not_load_pandas(tmp_path: Path) -> None:
    """Importing pandas costs a third of a second that a run has no use for."""
    (tmp_path / "s.jsonl").write_text('{"t": "x", "n": 1, "f": 0.5, "b": true, "j": [1], "z": null}\n')
    code = """if True:
        import sys
        from decimal import Decimal
        from pathlib import Path
        from orchestrator.core.records import ResultRow
        from orchestrator.gateways.rows.reading import read
        from orchestrator.gateways.rows.results import ResultsWriter
        from orchestrator.gateways.rows.schema import SourceSchema
        chunk = next(read([Path("s.jsonl")]))
        with ResultsWriter(Path("r.parquet"), format="parquet", schema=SourceSchema.merge(None, chunk.blob)) as writer:
            writer.write(chunk.blob, [ResultRow(0, "p", "failed", None, ("f",), None, None, Decimal(1), 0.5, 1, None)])
        print("pandas" in sys.modules)
    """
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True,
                         text=True)
    assert (run.stdout.strip(), run.stderr) == ("False", "")
    first = pq.read_table(tmp_path / "r.parquet").to_pylist()[0]
    assert [first[name] for name in "tnfbjz"] == ["x", 1, 0.5, True, "[1]", None]
