"""Small tables beside the results, and one column of a snapshot."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.gateways.rows.arrow_values import array_of, python_values
from orchestrator.gateways.rows.durable import DurableFile
from orchestrator.gateways.rows.snapshot import open_blob
from orchestrator.gateways.rows.tables import csv_line
from orchestrator.gateways.rows.values import cell_text, decimal_text, sound

_TYPES = {int: pa.int64(), Decimal: pa.decimal128(38, 12)}


def column(blob: bytes, name: str) -> list[str | None]:
    """The cells of one column as text, None where empty; a chunk may lack the column."""
    batch = open_blob(blob)
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    return [None if value is None or value == "" else cell_text(value) for value in python_values(batch.column(name))]


def write(path: Path, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    """The rows in one durable step; `.csv`, or else Parquet, where money is a decimal and a count a whole number."""
    with DurableFile(path) as file:
        if path.suffix == ".csv":
            cells = ([_text(row[name]) for name in columns] for row in rows)
            file.write("".join(csv_line(line) for line in [columns, *cells]).encode())
        else:
            pq.write_table(_table(columns, rows), file)


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Any:
    kinds = [next((_TYPES[type(row[name])] for row in rows if type(row[name]) in _TYPES), _of_nothing(name)) for name in names]
    arrays = [array_of([row[name] for row in rows], kind) for name, kind in zip(names, kinds, strict=True)]
    return pa.Table.from_arrays(arrays, names=list(names))


def _of_nothing(name: str) -> Any:
    """The type of a column without a number in it: one of money is of money also where nobody knows any."""
    return _TYPES[Decimal] if name.endswith("_usd") else pa.string()


def _text(value: Any) -> str:
    return "" if value is None else decimal_text(value) if isinstance(value, Decimal) else sound(cell_text(value))
