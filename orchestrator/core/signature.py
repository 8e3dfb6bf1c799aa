"""Standard Webhooks signatures, as Replicate makes them: which deliveries are genuine. Pure.

A delivery carries `webhook-id`, `webhook-timestamp` (unix seconds) and `webhook-signature`, a list of `v1,<base64>`
separated by spaces. The signature is HMAC-SHA256 over `id.timestamp.body`, the raw bytes (Replicate docs: verify
webhooks; Standard Webhooks 1.0). It does not cover the URL: what an event is about is judged elsewhere.
"""

import binascii
import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from enum import StrEnum

TOLERANCE_S = 300.0  # Standard Webhooks' own; older or newer deliveries are refused
LONGEST_ID = 200
MOST_SIGNATURES = 16  # a sender in rotation lists two


class Verdict(StrEnum):
    """What a signature says of its delivery."""

    GENUINE = "genuine"
    STALE = "stale"  # signed, perhaps, but not now: a replay, or a clock that is wrong
    FORGED = "forged"  # no listed signature fits
    UNREADABLE = "unreadable"  # a header is missing or is no such thing


def secret_bytes(text: str) -> bytes:
    """The key in `whsec_<base64>`. Raises ValueError where it is none."""
    prefix, _, encoded = text.strip().partition("_")
    try:
        key = b64decode(encoded, validate=True) if prefix == "whsec" else b""
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("a signing secret looks like whsec_ and base64 behind it")
    return key


def sign(secret: bytes, *, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of one delivery: `v1,<base64>`."""
    return "v1," + b64encode(_digest(secret, message_id, str(timestamp), body)).decode()


def _digest(secret: bytes, message_id: str, stamp: str, body: bytes) -> bytes:
    return hmac.digest(secret, b"%s.%s.%s" % (message_id.encode(), stamp.encode(), body), "sha256")


def check(headers: Mapping[str, str], *, secrets: Sequence[bytes], body: bytes, now_s: float) -> Verdict:
    """Judge one delivery; `headers` by lower-case name, `now_s` in unix seconds.

    Any listed signature by any of `secrets` will do, versions not known are passed over: so a rotation loses nothing."""
    message_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    listed = headers.get("webhook-signature", "").split()
    if not (0 < len(message_id) <= LONGEST_ID and message_id.isascii() and message_id.isprintable() and listed):
        return Verdict.UNREADABLE
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        return Verdict.UNREADABLE
    if abs(now_s - int(stamp)) > TOLERANCE_S:
        return Verdict.STALE
    offered = [text for text in listed[:MOST_SIGNATURES] if text.startswith("v1,") and text.isascii()]
    for secret in secrets:
        wanted = "v1," + b64encode(_digest(secret, message_id, stamp, body)).decode()
        if any(hmac.compare_digest(wanted, text) for text in offered):
            return Verdict.GENUINE
    return Verdict.FORGED
