"""One way to write an input as JSON: equal inputs are equal texts, whoever wrote them down."""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

EXACT = 2**63  # beyond this, a float is not taken for the integer it happens to equal


def canonical(value: Any) -> str:
    """Canonical JSON: keys sorted, no spaces, text in NFC, `7.0` written `7`.

    Text that begins with a URL scheme keeps its code points, because a normalised URL may name another file. Raises
    ValueError for what JSON cannot say (NaN, infinity) and TypeError for values that are not JSON at all.
    """
    return json.dumps(_normal(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _normal(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() or value.startswith(("http:", "https:")) else unicodedata.normalize("NFC", value)
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < EXACT else value
    if isinstance(value, Mapping):
        return {unicodedata.normalize("NFC", str(key)): _normal(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_normal(member) for member in value]
    return value
