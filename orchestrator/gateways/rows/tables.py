"""The three ways a results table is written: Parquet with types, CSV as text, JSONL as objects."""

import io
import json
import re
from collections.abc import Iterable
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.gateways.rows.arrow_values import python_values
from orchestrator.gateways.rows.snapshot import is_json
from orchestrator.gateways.rows.values import cell_text, decimal_text, json_text

_COST = "prediction_cost_usd"
_GROUP_ROWS = 10_000
_GROUP_BYTES = 4 << 20
_NEEDS_QUOTES = re.compile(r'[,"\r\n]')


class Table(Protocol):
    """A table being written to an open file; closing the table leaves the file open."""

    def __init__(self, file: BinaryIO, *, schema: Any) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...

    def write(self, batch: Any) -> None:
        """Add the rows of one record batch."""


class ParquetTable:
    """Row groups of up to 10,000 rows or 4 MB, zstd."""

    def __init__(self, file: BinaryIO, *, schema: Any) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._held: list[Any] = []

    def __enter__(self) -> Self:
        """Nothing to prepare: Parquet has its head at the end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Write what is held, and the footer."""
        if kind is None:
            self._write_group()
        self._writer.close()

    def write(self, batch: Any) -> None:
        """Hold the rows until a row group is full."""
        self._held.append(batch)
        rows, size = sum(held.num_rows for held in self._held), sum(held.nbytes for held in self._held)
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held, schema=self._schema))
            self._held = []


class CsvTable:
    r"""RFC 4180 with lines ended by \n; None and the empty text are both an empty cell."""

    def __init__(self, file: BinaryIO, *, schema: Any) -> None:
        self._names = schema.names
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)

    def __enter__(self) -> Self:
        """Write the column names."""
        self._text.write(csv_line(self._names))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Leave the file to whoever opened it."""
        self._text.detach()

    def write(self, batch: Any) -> None:
        """Add the rows as text."""
        columns = [_texts(name, column) for name, column in zip(self._names, batch.columns, strict=True)]
        self._text.write("".join(csv_line(cells) for cells in zip(*columns, strict=True)))


class JsonlTable:
    """One JSON object per row."""

    def __init__(self, file: BinaryIO, *, schema: Any) -> None:
        self._schema = schema
        self._file = file

    def __enter__(self) -> Self:
        """JSONL has no head."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """JSONL has no foot."""

    def write(self, batch: Any) -> None:
        """Add the rows; JSON columns become values again, costs are decimal text."""
        columns = [_objects(field, column) for field, column in zip(self._schema, batch.columns, strict=True)]
        names = self._schema.names
        lines = (json_text(dict(zip(names, cells, strict=True))) for cells in zip(*columns, strict=True))
        self._file.write("".join(f"{line}\n" for line in lines).encode())


def csv_line(cells: Iterable[str]) -> str:
    """The cells as one line, those quoted that need it."""
    # Not csv.writer: with "\n" as line end, Python 3.11's leaves a carriage return inside a cell without quotes.
    quoted = ['"' + cell.replace('"', '""') + '"' if _NEEDS_QUOTES.search(cell) else cell for cell in cells]
    return ",".join(quoted) + "\n"


def _texts(name: str, column: Any) -> list[str]:
    if name == _COST:
        return ["" if value is None else decimal_text(value) for value in python_values(column)]
    return [cell_text(value) for value in python_values(column)]


def _objects(field: Any, column: Any) -> list[Any]:
    values: list[Any] = python_values(column)
    if field.name == _COST:
        return [None if value is None else decimal_text(value) for value in values]
    if is_json(field):
        return [None if value is None else json.loads(value) for value in values]
    return values
