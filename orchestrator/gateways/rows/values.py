"""Cell values as text and as JSON, for the formats that have no types of their own."""

import base64
import datetime as dt
import json
import math
from decimal import Decimal
from typing import Any


def decimal_text(value: Decimal) -> str:
    """Plain digits, no exponent, no zeros at the end."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def plain(value: Any) -> Any:
    """What JSON can hold: binary as base64, times in ISO 8601, decimals as text, NaN and infinities as null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return _scalar_text(value)


def json_text(value: Any) -> str:
    """`plain` as JSON text; what is not Unicode reads as a question mark."""
    return sound(json.dumps(plain(value), ensure_ascii=False))


def cell_text(value: Any) -> str:
    """One CSV cell: None is empty, text is itself, lists and objects are JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return json_text(value) if isinstance(value, dict | list | tuple) else _scalar_text(value)


def sound(text: str) -> str:
    """The text without lone surrogates, which no file can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _scalar_text(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, dt.timedelta):
        return str(value.total_seconds())
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return str(value)
