"""The results table: every input column, then what became of the row."""

from collections.abc import Sequence
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pyarrow as pa

from orchestrator.core.records import ResultRow
from orchestrator.gateways.rows.arrow_values import array_of
from orchestrator.gateways.rows.durable import DurableFile
from orchestrator.gateways.rows.schema import SourceSchema
from orchestrator.gateways.rows.snapshot import open_blob
from orchestrator.gateways.rows.tables import CsvTable, JsonlTable, ParquetTable, Table
from orchestrator.gateways.rows.values import sound

RESULT_SCHEMA = pa.schema([
    ("prediction_index", pa.int64()),
    ("prediction_id", pa.string()),
    ("prediction_status", pa.string()),
    ("prediction_output", pa.string()),
    ("prediction_files", pa.list_(pa.string())),
    ("prediction_error", pa.string()),
    ("prediction_error_class", pa.string()),
    ("prediction_cost_usd", pa.decimal128(38, 12)),
    ("prediction_seconds", pa.float64()),
    ("prediction_attempts", pa.int64()),
    ("prediction_version", pa.string()),
])
RESULT_COLUMNS: tuple[str, ...] = tuple(RESULT_SCHEMA.names)
ResultFormat = Literal["parquet", "csv", "jsonl"]
_TABLES: dict[ResultFormat, type[Table]] = {"parquet": ParquetTable, "csv": CsvTable, "jsonl": JsonlTable}
_PICO_USD = Decimal(1).scaleb(-12)


class ResultsWriter:
    """A context manager that writes the results chunk by chunk; the file appears at `path`, whole, at the end."""

    def __init__(self, path: Path, *, format: ResultFormat, schema: SourceSchema) -> None:
        self._source = schema
        self._fields = _output_fields(schema)
        self._table_type = _TABLES[format]
        self._durable = DurableFile(path)
        self._stack = ExitStack()
        self._table: Table | None = None

    def __enter__(self) -> Self:
        """Open the hidden file and write its head."""
        with ExitStack() as stack:
            file = stack.enter_context(self._durable)
            self._table = stack.enter_context(self._table_type(file, schema=pa.schema(self._fields)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Finish the table and put it in its place, or remove it after an error."""
        assert trace is None or isinstance(trace, TracebackType)
        self._stack.__exit__(kind, error, trace)

    def write(self, blob: bytes, rows: Sequence[ResultRow]) -> None:
        """One snapshot chunk and the results of its rows, in the same order.

        Raises ValueError when their counts differ, OSError when the disk is full.
        """
        assert self._table is not None, "write inside the with block"
        batch = open_blob(blob)
        if batch.num_rows != len(rows):
            raise ValueError(f"a chunk of {batch.num_rows} rows cannot be joined with {len(rows)} results")
        columns = [*self._source.fit(batch), *_result_columns(rows)]
        self._table.write(pa.RecordBatch.from_arrays(columns, schema=pa.schema(self._fields)))


def _output_fields(schema: SourceSchema) -> list[Any]:
    taken = {*RESULT_COLUMNS, *schema.arrow.names}
    fields = []
    for field in schema.arrow:
        name = field.name
        while name in RESULT_COLUMNS or (name != field.name and name in taken):
            name = f"input_{name}"
        taken.add(name)
        fields.append(field.with_name(name))
    return [*fields, *RESULT_SCHEMA]


def _result_columns(results: Sequence[ResultRow]) -> list[Any]:
    values = zip(*(_values(result) for result in results), strict=True) if results else [()] * len(RESULT_COLUMNS)
    return [array_of(column, field.type) for column, field in zip(values, RESULT_SCHEMA, strict=True)]


def _values(row: ResultRow) -> tuple[Any, ...]:
    cost = None if row.cost_usd is None else row.cost_usd.quantize(_PICO_USD)
    files = [sound(file) for file in row.files]
    return (row.index, row.prediction_id, row.status, _sound(row.output), files, _sound(row.error), row.error_class,
            cost, row.seconds, row.attempts, row.version)


def _sound(text: str | None) -> str | None:
    return None if text is None else sound(text)
