"""Python values as Arrow columns and back, whatever they hold."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Any

import pyarrow as pa
from pyarrow.lib import StringBuilder

UNREADABLE = (ValueError, OverflowError)  # broken UTF-8 (also pa.ArrowInvalid), a year beyond 9999


def array_of(values: Sequence[Any], kind: Any) -> Any:
    """An Arrow array of texts, numbers, truth values, decimals or lists of texts; None is null.

    Not `pa.array`: that imports pandas, a third of a second that a run need not pay.
    """
    if pa.types.is_null(kind):
        return pa.nulls(len(values))
    if pa.types.is_list(kind):
        ends = accumulate((len(value) for value in values), initial=0)
        flat = [text for value in values for text in value]
        return pa.ListArray.from_arrays(array_of(list(ends), pa.int32()), array_of(flat, kind.value_type))
    builder = StringBuilder()
    if kind == pa.string():
        builder.append_values(values)
        return builder.finish()
    builder.append_values([None if value is None else _digits(value) for value in values])
    return builder.finish().cast(kind)


def in_microseconds(column: Any) -> Any:
    """The column without nanoseconds: Python's datetime has none, and Arrow would load pandas to express them."""
    kind = _coarser(column.type)
    return column if kind.equals(column.type) else column.cast(kind, safe=False)


def python_values(column: Any) -> list[Any]:
    """A value per cell; one that has no Python form is given as text."""
    column = in_microseconds(column)
    try:
        values: list[Any] = column.to_pylist()
    except UNREADABLE:
        return [_value(cell) for cell in column]
    return values


def _value(cell: Any) -> Any:
    attempts: tuple[Callable[[], Any], ...] = (
        cell.as_py,
        lambda: bytes(cell.as_buffer()).decode("utf-8", "replace"),
        lambda: cell.cast(pa.string()).as_py(),
    )
    for attempt in attempts:
        try:
            return attempt()
        except (*UNREADABLE, AttributeError, pa.ArrowNotImplementedError):
            continue
    return None


def _digits(value: bool | int | float | Decimal) -> str:
    return format(value, "f") if isinstance(value, Decimal) else str(value).lower()


def _coarser(kind: Any) -> Any:
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", tz=kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if kind.equals(pa.time64("ns")):
        return pa.time64("us")
    if pa.types.is_list(kind):
        return pa.list_(_coarser_field(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([_coarser_field(kind.field(number)) for number in range(kind.num_fields)])
    return kind


def _coarser_field(field: Any) -> Any:
    return field.with_type(_coarser(field.type))
