"""A chunk's cells as one compressed Arrow blob: what the ledger keeps of the source."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from orchestrator.core.records import Row, RowChunk
from orchestrator.gateways.rows.arrow_values import array_of

CHUNK_BYTES = 8 << 20  # a chunk ends early where its rows are large: memory and SQL rows stay small
JSON_MARK = {b"orchestrator": b"json"}
EXACT_FLOAT = 2**53  # whole numbers up to here survive as float64


def chunk_of(rows: list[Row], *, columns: Sequence[str], as_text: bool) -> RowChunk:
    """A chunk with its snapshot: all columns text, or each of the one type its values share, else JSON text."""
    names = list(columns) if as_text else list(dict.fromkeys([*columns, *(name for row in rows for name in row.cells)]))
    fields, arrays = [], []
    for name in names:
        values = [row.cells.get(name) for row in rows]
        field, array = (pa.field(name, pa.string()), array_of(values, pa.string())) if as_text else _typed(name, values)
        fields.append(field)
        arrays.append(array)
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)) if names else _columnless(len(rows))
    return RowChunk(rows[0].index, rows, sealed(batch))


def sealed(batch: Any) -> bytes:
    """A record batch as a zstd-compressed Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def open_blob(blob: bytes) -> pa.RecordBatch:
    """The record batch of a chunk's snapshot: a column per source column, a row per row of the chunk."""
    with pa.ipc.open_stream(blob) as reader:
        return reader.read_next_batch()


def is_json(field: Any) -> bool:
    """Whether a column holds JSON text because its values share no Arrow type."""
    return bool(field.metadata) and field.metadata.get(b"orchestrator") == b"json"


def json_field(name: str) -> Any:
    """The field of a column of JSON text."""
    return pa.field(name, pa.string(), metadata=JSON_MARK)


def _typed(name: str, values: list[Any]) -> tuple[Any, Any]:
    kind = _shared_type(values)
    if kind is not None:
        return pa.field(name, kind), array_of(values, kind)
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return json_field(name), array_of(texts, pa.string())


def _shared_type(values: list[Any]) -> Any:
    """The Arrow type that holds all values exactly, or None."""
    kinds = set(map(type, values)) - {type(None)}
    simple = {str: pa.string(), bool: pa.bool_(), float: pa.float64()}
    if not kinds:
        return pa.null()
    if len(kinds) == 1 and (only := next(iter(kinds))) in simple:
        return simple[only]
    whole = [abs(value) for value in values if type(value) is int]
    if kinds == {int}:
        return pa.int64() if max(whole) < 2**63 else None
    if kinds == {int, float}:
        return pa.float64() if max(whole) <= EXACT_FLOAT else None
    return None


def _columnless(count: int) -> Any:
    """Rows of which not one cell could be read still count."""
    return pa.RecordBatch.from_struct_array(pa.Array.from_buffers(pa.struct([]), count, [None]))
