"""From a cell to the JSON value that a model's schema wants, or the reason why not."""

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from orchestrator.core.nearest import did_you_mean, listed
from orchestrator.core.openapi import FieldSpec

Convert = Callable[[Any], Any]

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
DEEPEST = 64
_INTEGER = re.compile(r"[+-]?\d{1,40}(?:\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?", re.ASCII)
_ADDRESS = re.compile(r"https?://[^\s/]|data:[^,\s]*,", re.IGNORECASE)
_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


class Unfit(ValueError):
    """A value does not fit its input; the text is the reason, fit to follow `row 17, input 'seed', value 'x': `."""


def converter(spec: FieldSpec) -> Convert:
    """The function that types values for this input and checks enum, range and length. It raises Unfit.

    It takes text as CSV has it and native values as Parquet and JSON have them; never an empty cell.
    """
    kind = spec.type
    if kind == "array":
        typed = _array(spec)
    elif kind == "string":
        typed = _address if spec.is_uri else _string
    else:
        typed = {"integer": _integer, "number": _number, "boolean": _boolean, "object": _object}.get(kind or "", plain)
    check = _check(spec)
    if check is None:
        return typed

    def convert(value: Any) -> Any:
        result = typed(value)
        check(result)
        return result

    return convert


def _string(value: Any) -> str:
    if value.__class__ is str:
        if not value.isascii():
            _whole_characters(value)
        text: str = value
        return text
    if isinstance(value, str | int | float | Decimal | datetime | date | time):
        simple = plain(value)
        return simple if isinstance(simple, str) else json.dumps(simple)
    raise Unfit(f"is {_kind(value)}, the model wants text")


def _whole_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unfit("holds half a character (a lone surrogate), which cannot be sent") from None


def _address(value: Any) -> str:
    text = _string(value)
    if _ADDRESS.match(text):
        return text
    raise Unfit("is no http(s) address or data URI; local files are not uploaded yet: give a URL")


def _integer(value: Any) -> int:
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value.strip()):
            raise Unfit("is not an integer")
        number = int(value.strip().partition(".")[0])
    elif isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Unfit(f"is {_kind(value)}, the model wants an integer")
    elif not math.isfinite(value) or value != int(value):
        raise Unfit("is not an integer")
    else:
        number = int(value)
    return _in_64_bits(number)


def _in_64_bits(number: int) -> int:
    if not SMALLEST <= number <= LARGEST:
        raise Unfit("is an integer of more than 64 bits")
    return number


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text) and "." not in text:
            return _in_64_bits(int(text))
        if not _NUMBER.fullmatch(text):
            raise Unfit("is not a number" + (", write it with a point" if re.fullmatch(r"\d+,\d+", text) else ""))
        return _finite(float(text))
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Unfit(f"is {_kind(value)}, the model wants a number")
    return _in_64_bits(value) if isinstance(value, int) else _finite(float(value))


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise Unfit("is not a finite number, which JSON cannot say")
    return number


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        found = _TRUTH.get(value.strip().lower())
        if found is not None:
            return found
    elif isinstance(value, int | float | Decimal) and value in (0, 1):
        return value == 1
    raise Unfit("is neither true nor false; write true, false, yes, no, 1 or 0")


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        value = _json(value, wanted='a JSON object such as {"a": 1}')
    if not isinstance(value, Mapping):
        raise Unfit(f"is {_kind(value)}, the model wants a JSON object such as {{\"a\": 1}}")
    found: dict[str, Any] = plain(value)
    return found


def _array(spec: FieldSpec) -> Convert:
    item = converter(spec.items) if spec.items is not None else plain

    def convert(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = _json(value, wanted='a JSON list such as ["a", "b"]')
        if not isinstance(value, list | tuple):
            raise Unfit(f"is {_kind(value)}, the model wants a JSON list such as [\"a\", \"b\"]")
        result = []
        for place, member in enumerate(value):
            if member is None:
                raise Unfit(f"its item {place} is empty")
            try:
                result.append(item(member))
            except Unfit as error:
                raise Unfit(f"its item {place} {error}") from None
        return result

    return convert


def _json(text: str, *, wanted: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Unfit(f"is not {wanted}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def plain(value: Any, *, depth: int = 0) -> Any:
    """Any value as JSON can say it: times in ISO 8601, decimals as numbers. Raises Unfit for NaN, bytes and the like."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _whole_characters(value)
        return str(value)
    if isinstance(value, int):
        return _in_64_bits(int(value))
    if isinstance(value, float):
        return _finite(float(value))
    if isinstance(value, Decimal):
        whole = value.is_finite() and value == value.to_integral_value()
        return _in_64_bits(int(value)) if whole else _finite(float(value))
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if depth > DEEPEST:
        raise Unfit(f"is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {str(key): plain(member, depth=depth + 1) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member, depth=depth + 1) for member in value]
    raise Unfit(f"is {_kind(value)}, which JSON cannot say")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float | Decimal):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, datetime | date | time):
        return "a time"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"of type {type(value).__name__}"


def _check(spec: FieldSpec) -> Callable[[Any], None] | None:
    """What is left to check once the type is right; None where nothing is."""
    checks = [check for check in (_choice(spec), _range(spec), _length(spec)) if check is not None]
    if len(checks) < 2:
        return checks[0] if checks else None

    def check_all(value: Any) -> None:
        for check in checks:
            check(value)

    return check_all


def _choice(spec: FieldSpec) -> Callable[[Any], None] | None:
    options = spec.enum
    if options is None:
        return None

    def check(value: Any) -> None:
        if any(value == option and isinstance(value, bool) == isinstance(option, bool) for option in options):
            return
        near = did_you_mean(str(value), [option for option in options if isinstance(option, str)])
        raise Unfit(f"is not one of {listed(options)}{near}")

    return check


def _range(spec: FieldSpec) -> Callable[[Any], None] | None:
    if spec.type not in ("integer", "number"):
        return None
    low, high = spec.minimum, spec.maximum
    above, below = spec.exclusive_minimum, spec.exclusive_maximum
    if low is None and high is None and above is None and below is None:
        return None

    def check(value: Any) -> None:
        if low is not None and value < low:
            raise Unfit(f"is below {low}, the least")
        if high is not None and value > high:
            raise Unfit(f"is above {high}, the most")
        if above is not None and value <= above:
            raise Unfit(f"is not above {above}")
        if below is not None and value >= below:
            raise Unfit(f"is not below {below}")

    return check


def _length(spec: FieldSpec) -> Callable[[Any], None] | None:
    if spec.type == "string":
        least, most, unit = spec.min_length, spec.max_length, "characters"
    elif spec.type == "array":
        least, most, unit = spec.min_items, spec.max_items, "items"
    else:
        return None
    if least is None and most is None:
        return None

    def check(value: Any) -> None:
        if least is not None and len(value) < least:
            raise Unfit(f"has {len(value)} {unit}, {least} is the least")
        if most is not None and len(value) > most:
            raise Unfit(f"has {len(value)} {unit}, {most} is the most")

    return check
