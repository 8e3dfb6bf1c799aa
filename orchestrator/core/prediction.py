"""The provider's account of one prediction: read alike from wherever it came, and what its failure means. Pure."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from orchestrator.core.records import Prediction

TERMINAL = frozenset({"succeeded", "failed", "canceled", "aborted"})
LOGS_TAIL_BYTES = 8192

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


def parse(payload: Mapping[str, Any]) -> Prediction:
    """A prediction from a POST's answer, a GET, an item of a list or a webhook.

    Only `id` and `status` must be there; any other key may be absent or null (Replicate docs: HTTP API; old and new
    answers differ). Times may have any precision. Raises ValueError without a readable id and status."""
    identity, status = payload.get("id"), payload.get("status")
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise ValueError("a prediction without a readable id")
    if not isinstance(status, str) or not status:
        raise ValueError(f"prediction {identity} has no readable status")
    return Prediction(
        id=identity,
        status=_clean(status),
        model=_text(payload, "model"),
        version=_text(payload, "version"),
        input=_object(payload, "input"),
        output=payload.get("output"),
        error=_error(payload.get("error")),
        logs_tail=_tail(_text(payload, "logs")),
        metrics=_object(payload, "metrics") or {},
        created_at=_time(payload.get("created_at")),
        started_at=_time(payload.get("started_at")),
        completed_at=_time(payload.get("completed_at")),
        data_removed=payload.get("data_removed") is True,
        webhook=_text(payload, "webhook"),
    )


def seconds_of(metrics: Mapping[str, Any]) -> float | None:
    """Of predict_time; None where that is no number that a float can hold: a fact must not be lost for it."""
    value = metrics.get("predict_time")
    try:
        seconds = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return None
    return seconds if math.isfinite(seconds) else None


def _clean(text: str) -> str:
    """NUL and lone surrogates are legal in JSON and refused by databases."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _text(payload: Mapping[str, Any], key: str) -> str | None:
    value = payload.get(key)
    return _clean(value) if isinstance(value, str) else None


def _object(payload: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    value = payload.get(key)
    return value if isinstance(value, dict) else None


def _error(value: Any) -> str | None:
    """An empty text is no error: succeeded predictions carry one."""
    if value is None or value == "":
        return None
    return _clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _tail(logs: str | None) -> str | None:
    if not logs:
        return None
    if len(logs) <= LOGS_TAIL_BYTES and logs.isascii():
        return logs
    return logs.encode()[-LOGS_TAIL_BYTES:].decode(errors="ignore")


def _time(value: Any) -> datetime | None:
    """RFC 3339 of any precision, cut to microseconds; what cannot be read is None, like what is absent."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


# Codes that the provider's own list says to try again (Replicate docs: error codes), and two seen in its answers.
WORTH_AGAIN = frozenset({"E1000", "E6716", "E8367", "E8765", "E9243", "E9825", "E9828", "PA"})

_CODE = re.compile(r"\b(E\d{4})\b|\(code: ([A-Z]{2})\)")
_TEXTS = (
    ("invalid_input", re.compile(r"input failed validation", re.IGNORECASE)),
    ("safety", re.compile(r"flagged as sensitive|\bNSFW\b", re.IGNORECASE)),
    ("memory", re.compile(r"\bE1001\b|out of memory", re.IGNORECASE)),
)
_TIMEOUT = re.compile(r"\btimed out\b|\btime-?out\b", re.IGNORECASE)


def classify(prediction: Prediction) -> tuple[str, bool]:
    """The class of a failed prediction's error, and whether buying it again is worth it.

    Worth it are only the codes of `WORTH_AGAIN`, class `infrastructure`. The others end the row: `invalid_input`,
    `safety`, `memory`, `timeout`, else `model`."""
    error = prediction.error or ""
    for name, pattern in _TEXTS:
        if pattern.search(error):
            return name, False
    codes = {match[1] or match[2] for match in _CODE.finditer(error)}
    if codes & WORTH_AGAIN:
        return "infrastructure", True
    return ("timeout" if _TIMEOUT.search(error) else "model"), False
