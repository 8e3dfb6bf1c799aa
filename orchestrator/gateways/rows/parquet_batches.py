"""Rows of Parquet files: types kept, row groups streamed in small batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.core.errors import BadInput
from orchestrator.core.records import Row, RowChunk
from orchestrator.gateways.rows.arrow_values import UNREADABLE, in_microseconds
from orchestrator.gateways.rows.lines import broken_files_named
from orchestrator.gateways.rows.snapshot import CHUNK_BYTES, sealed

_BUFFER = 1 << 20


def header(path: Path) -> list[str]:
    """The column names. Raises BadInput for a file that is not Parquet."""
    with _opened(path) as file:
        names: list[str] = file.schema_arrow.names
        return names


def chunks(path: Path, *, first_index: int, chunk_rows: int) -> Iterator[RowChunk]:
    """The file in chunks of at most `chunk_rows` rows, fewer where rows are large."""
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=_batch_rows(file, chunk_rows=chunk_rows)):
            if batch.num_rows == 0:
                continue
            batch = _with_small_dictionaries(batch)
            yield RowChunk(first_index, _rows(batch, first_index=first_index), sealed(batch))
            first_index += batch.num_rows


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with broken_files_named(path), pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            yield file
    except pa.ArrowException as error:
        raise BadInput(f"source {path}: cannot be read as Parquet ({error}); write the file again") from error


def _batch_rows(file: Any, *, chunk_rows: int) -> int:
    meta = file.metadata
    sizes = [meta.row_group(number).total_byte_size / max(meta.row_group(number).num_rows, 1)
             for number in range(meta.num_row_groups)]
    return int(max(1, min(chunk_rows, CHUNK_BYTES // max([*sizes, 1.0]))))


def _rows(batch: Any, *, first_index: int) -> list[Row]:
    names, columns = batch.schema.names, [in_microseconds(column) for column in batch.columns]
    try:
        values = zip(*(column.to_pylist() for column in columns), strict=True)
        return [Row(index, None, dict(zip(names, cells, strict=True)), None)
                for index, cells in enumerate(values, start=first_index)]
    except UNREADABLE:
        return [_row(names, [column[offset] for column in columns], index=first_index + offset)
                for offset in range(batch.num_rows)]


def _row(names: list[str], values: list[Any], *, index: int) -> Row:
    """One row, cell by cell: some value of its batch has no Python form (broken UTF-8, a year beyond 9999)."""
    cells: dict[str, Any] = {}
    problems = []
    for name, value in zip(names, values, strict=True):
        try:
            cells[name] = value.as_py()
        except UNREADABLE as error:
            cells[name] = None
            problems.append(f"column {name}: {error}")
    return Row(index, None, cells, "; ".join(problems) or None)


def _with_small_dictionaries(batch: Any) -> Any:
    """Every batch of a row group carries its whole dictionary; a snapshot needs the values of its own rows."""
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and len(column.dictionary) > batch.num_rows:
            small = column.dictionary_decode().dictionary_encode()
            column = pa.DictionaryArray.from_arrays(small.indices.cast(column.type.index_type), small.dictionary,
                                                    ordered=column.type.ordered)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)
