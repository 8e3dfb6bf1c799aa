"""Arrow columns as Python values, whatever they hold."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

UNREADABLE = (ValueError, OverflowError)  # broken UTF-8 (also pa.ArrowInvalid), a year beyond 9999


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
