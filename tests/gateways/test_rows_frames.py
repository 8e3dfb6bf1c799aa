"""Results as a DataFrame."""

from decimal import Decimal
from pathlib import Path

import pytest

import orchestrator
from orchestrator.core.errors import BadInput
from orchestrator.core.records import ResultRow
from orchestrator.gateways.rows.files import FileTables


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_results_come_as_a_frame(tmp_path: Path, kind: str):
    """Whatever the format: one row per input row, text kept as text, files as lists, an unknown cost as nothing."""
    source = tmp_path / "rows.csv"
    source.write_text("sku,title\n007,NA\n8,\n")
    tables = FileTables()
    (chunk,) = tables.read([str(source)], chunk_rows=10)
    rows = [ResultRow(0, "p1", "succeeded", "hi", ("files/007-0.png",), None, None, Decimal("0.003"), 1.5, 1, "hidden"),
            ResultRow(1, "p2", "failed", None, (), "no", "model", None, None, 2, "hidden")]
    schema = tables.merge_schema(None, chunk.blob)
    with tables.results(str(tmp_path / f"results.{kind}"), kind=kind, source_schema_json=schema) as table:
        table.write(chunk.blob, rows)
    frame = orchestrator.results(tmp_path)
    assert list(frame["sku"]) == ["007", "8"]
    assert frame["title"][0] == "NA"
    assert list(frame["prediction_status"]) == ["succeeded", "failed"]
    assert [list(files) for files in frame["prediction_files"]] == [["files/007-0.png"], []]
    assert frame["prediction_cost_usd"].isna().tolist() == [False, True]
    assert isinstance(frame["prediction_cost_usd"][0], Decimal)
    assert frame["prediction_cost_usd"].sum() == frame["prediction_cost_usd"].dropna().sum() == Decimal("0.003")


def test_a_folder_without_results_says_so(tmp_path: Path):
    """An empty folder is an answer, not a traceback of pandas."""
    with pytest.raises(BadInput, match="holds no results"):
        orchestrator.results(tmp_path)
