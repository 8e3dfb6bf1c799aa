"""What the databases cannot hold is made to fit: a provider's log or a user's cell must never block a row."""

import json
from typing import Any

import orjson

LOGS_KEPT = 8192  # characters of the end of a prediction's logs
URL_KEPT = 2000


def clean(value: str | None) -> str | None:
    """Without NUL, which PostgreSQL refuses, and with lone surrogates, which are no UTF-8, spelled as `\\udXXX`.

    That spelling is what JSON means by them, so JSON stays JSON."""
    if value is None or (value.isascii() and "\0" not in value):
        return value
    return value.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode("utf-8")


def as_json(value: Any) -> str:
    """Compact JSON, ready to be stored."""
    try:
        return clean(orjson.dumps(value).decode()) or "null"
    except TypeError:  # lone surrogates, and integers beyond 64 bits
        return _as_json_slowly(value)


def _as_json_slowly(value: Any) -> str:
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":"))) or "null"
