"""What an error status means, for the row and for the batch. Pure."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

LONGEST_HINT_S = 3600.0


class Kind(StrEnum):
    """Whom a refusal concerns."""

    THROTTLED = "throttled"  # everybody waits; the row is not to blame
    HELD = "held"  # the account: a person must act, the row waits
    REFUSED = "refused"  # this row: waiting will not change it
    UNSURE = "unsure"  # not a proof of anything


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error status, judged. `sentence` is for people: what is wrong and what to do."""

    kind: Kind
    error_class: str
    sentence: str


# These statuses buy nothing. Any other one proves nothing about money.
_BY_STATUS: dict[int, tuple[Kind, str, str]] = {
    400: (Kind.REFUSED, "invalid_input", "the provider does not take this request"),
    401: (Kind.HELD, "token", "the provider does not accept the token: check REPLICATE_API_TOKEN, then resume"),
    402: (Kind.HELD, "credit", "the account is out of credit: buy some at https://replicate.com/account/billing, "
                               "wait a few minutes, then resume"),
    403: (Kind.HELD, "token", "the token is not permitted to do this: check REPLICATE_API_TOKEN, then resume"),
    404: (Kind.REFUSED, "not_found", "the provider does not know this model, version or deployment"),
    405: (Kind.REFUSED, "refused", "the provider does not take this kind of request here: check REPLICATE_BASE_URL"),
    413: (Kind.REFUSED, "invalid_input", "the input is too large: pass big files by URL"),
    415: (Kind.REFUSED, "refused", "the provider does not take this kind of request here: check REPLICATE_BASE_URL"),
    422: (Kind.REFUSED, "invalid_input", "the provider does not take this input"),
    429: (Kind.THROTTLED, "throttled", "throttled by the provider"),
}
NOTHING_BOUGHT = frozenset(_BY_STATUS)

_NO_SUCH_VERSION = re.compile(r"version does not exist|invalid version", re.IGNORECASE)


def judge(status: int, detail: str) -> Refusal:
    """What an error status of a purchase means. `detail`: the provider's own words, appended to ours."""
    detail = detail.strip()
    kind, error_class, sentence = _BY_STATUS.get(
        status, (Kind.UNSURE, "unsure", "the provider's answer does not say whether the prediction was made"))
    if status == 422 and _NO_SUCH_VERSION.search(detail):
        error_class, sentence = "not_found", "the version does not exist, or the token may not use it"
    return Refusal(kind, error_class, f"{sentence} ({status}: {detail})" if detail else f"{sentence} ({status})")


_IN_TEXT = re.compile(r"(?:resets in ~?|available in )(\d+(?:\.\d+)?)\s*s", re.IGNORECASE)
_LOW_CREDIT = re.compile(r"reduced to \d+ requests? per minute", re.IGNORECASE)


def retry_after(headers: Mapping[str, str], body: Any, text: str) -> float | None:
    """Seconds that a 429 asks to wait: the header (seconds or a date), the body's `retry_after`, the text; else None.

    Which of them the provider sends differs (Replicate docs: rate limits). `headers` are looked up in lower case;
    absurd values count as absent, and an hour is the most."""
    of_body = _number(body.get("retry_after")) if isinstance(body, Mapping) else None
    hints = (_of_header(headers), of_body, _of_text(text))
    return next((min(hint, LONGEST_HINT_S) for hint in hints if hint is not None), None)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _of_header(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    return seconds if seconds is not None else _until(value, headers.get("date"))


def _until(moment: str, date: str | None) -> float | None:
    """A date is counted from the answer's own Date: the provider's clock, not ours."""
    try:
        return max(0.0, (parsedate_to_datetime(moment) - parsedate_to_datetime(date or "")).total_seconds())
    except (ValueError, TypeError):
        return None


def _of_text(text: str) -> float | None:
    match = _IN_TEXT.search(text)
    return float(match[1]) if match else None


def is_low_credit(text: str) -> bool:
    """Whether a 429 speaks of the reduced rate for accounts low on credit or without a payment method."""
    return _LOW_CREDIT.search(text) is not None
