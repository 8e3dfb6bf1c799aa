"""Reading back what a batch left behind: results file and manifest, in bounded chunks, only the columns asked for."""

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput

ROWS_AT_ONCE = 1000


def entries(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The objects of a JSON-lines file. Raises BadInput with the line for one that is none, FileNotFoundError."""
    with path.open(encoding="utf-8", errors="replace") as file:
        numbered = enumerate(file, start=1)
        while some := list(islice(numbered, ROWS_AT_ONCE)):
            yield [_entry(line, number) for number, line in some if line.strip()]


def _entry(line: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"line {number} is no JSON object")
    return found


def cells(path: Path, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """These columns of a results file, row by row; a cell of CSV is text, an empty one None.

    Raises BadInput for a file that cannot be read as what its name says, or lacks a column; FileNotFoundError."""
    return {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}[path.suffix](path, columns)


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            _check_columns(file.schema_arrow.names, columns)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
                yield batch.to_pylist()
    except pa.ArrowException as error:
        raise BadInput(f"it cannot be read as Parquet ({error})") from error


def _csv(path: Path, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    with _cells_of_any_size(), path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(file, strict=True)
        try:
            head = next(rows, [])
            _check_columns(head, columns)
            places = [(name, head.index(name)) for name in columns]
            while some := list(islice(rows, ROWS_AT_ONCE)):
                yield [{name: row[at] or None for name, at in places} for row in some]
        except (csv.Error, IndexError) as error:
            raise BadInput(f"it cannot be read as CSV, line {rows.line_num} ({error})") from error


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Outputs are cells too. The limit belongs to the whole process, where sources are read with one of their own."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    for some in entries(path):
        yield [{name: entry.get(name) for name in columns} for entry in some]


def _check_columns(there: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise BadInput(f"it has no column {', '.join(missing)}")
