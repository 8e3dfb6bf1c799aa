"""The one Arrow schema of all chunks of a source, small enough to be kept with the batch."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.gateways.rows.arrow_values import array_of, python_values
from orchestrator.gateways.rows.snapshot import EXACT_FLOAT, is_json, json_field, open_blob
from orchestrator.gateways.rows.values import json_text

_WIDE = {b"orchestrator": b"wide"}  # a whole-number column with values that float64 would change


@dataclass(frozen=True, slots=True)
class SourceSchema:
    """Names and types of the source's columns, in source order. Columns whose chunks share no type are JSON text."""

    arrow: Any  # pa.Schema

    @classmethod
    def merge(cls, schema: Self | None, blob: bytes) -> Self:
        """The schema that holds all that `schema` held (None: nothing yet) and the chunk in `blob`."""
        batch = open_blob(blob)
        fields = {field.name: field for field in (schema.arrow if schema is not None else ())}
        for field, column in zip(batch.schema, batch.columns, strict=True):
            found = _noted(field, column)
            fields[field.name] = _widened(fields[field.name], found) if field.name in fields else found
        return cls(pa.schema(list(fields.values())))

    @classmethod
    def of_columns(cls, columns: Sequence[str]) -> Self:
        """The schema of a text source without rows."""
        return cls(pa.schema([pa.field(name, pa.string()) for name in columns]))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(json.loads(text)["arrow"]))))

    def to_json(self) -> str:
        """JSON: `columns` for people, `arrow` (base64 of Arrow's own form) for `from_json`."""
        columns = {field.name: "json" if is_json(field) else str(field.type) for field in self.arrow}
        return json.dumps({"columns": columns, "arrow": base64.b64encode(self.arrow.serialize()).decode()})

    def fit(self, batch: Any) -> list[Any]:
        """A chunk's columns in this schema's order and types; columns the chunk lacks are empty."""
        return [_fitted(batch, field) for field in self.arrow]


def _noted(field: Any, column: Any) -> Any:
    field = field.with_nullable(True)
    if is_json(field):
        return field
    if field.type in (pa.int64(), pa.uint64()):
        low, high = (bound.as_py() or 0 for bound in pc.min_max(column).values())
        if high > EXACT_FLOAT or low < -EXACT_FLOAT:
            return field.with_metadata(_WIDE)
    return field.remove_metadata()


def _widened(one: Any, other: Any) -> Any:
    """The field that holds the values of both without changing any."""
    if pa.types.is_null(other.type):
        return one
    if pa.types.is_null(one.type):
        return other
    if is_json(one) or is_json(other):
        return json_field(one.name)
    wide = _WIDE if one.metadata or other.metadata else None
    if one.type.equals(other.type):
        return pa.field(one.name, one.type, metadata=wide)
    kind = _common_type(one.type, other.type, wide=bool(wide))
    return json_field(one.name) if kind is None else pa.field(one.name, kind, metadata=wide)


def _common_type(one: Any, other: Any, *, wide: bool) -> Any:
    is_ = pa.types
    for same in (is_.is_signed_integer, is_.is_unsigned_integer, is_.is_floating):
        if same(one) and same(other):
            return one if one.bit_width >= other.bit_width else other
    if (is_.is_integer(one) and is_.is_floating(other)) or (is_.is_floating(one) and is_.is_integer(other)):
        return None if wide else pa.float64()
    if {str(one), str(other)} == {"string", "large_string"}:
        return pa.large_string()
    return None


def _fitted(batch: Any, field: Any) -> Any:
    place = batch.schema.get_field_index(field.name)
    if place < 0:
        return pa.nulls(batch.num_rows, field.type)
    column, found = batch.column(place), batch.schema.field(place)
    if is_json(field) and not is_json(found):
        return array_of([None if value is None else json_text(value) for value in python_values(column)], pa.string())
    return column if column.type.equals(field.type) else column.cast(field.type)
