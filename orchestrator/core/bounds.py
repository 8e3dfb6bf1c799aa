"""How many files a prediction gives and how long they last: what is asked for, and what the model's schema bounds. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, Self

from orchestrator.core.openapi import FieldSpec, InputSchema, OutputShape

_COUNTERS = ("num_outputs", "num_images", "number_of_images", "n_images", "max_images", "num_samples", "batch_size", "n")
_LENGTH = "duration"
_TOO_MUCH = 10**9  # of files or of seconds: no model means it, and nobody could pay for it


class _Number(NamedTuple):
    """The fewest, the usual number and the most; None where nothing tells."""

    least: int | None
    usual: int | None
    most: int | None


def most_outputs(openapi_schema: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> int | None:
    """The most files that one prediction can return, for the worst case of prices per output; None: nothing bounds them.

    Text is one, an object has those of its properties, of alternatives the greatest counts. Of a list: what `known` (inputs
    alike for every row: constants, and the model's defaults of those that nothing feeds) asks for in the input that counts
    outputs, else the most that this input allows, else the list's `maxItems`.
    """
    return Asks.of(openapi_schema).files(known or {}).most


def asked_outputs(openapi_schema: Mapping[str, Any], constants: Mapping[str, Any],
                  fed: Sequence[str]) -> tuple[int | None, int | None, int | None]:
    """The fewest files that one prediction is asked for, the usual number, and the most; None where the schema does not say.

    All the same where the input that counts outputs is among `constants`, or is not `fed` and has a default."""
    asks = Asks.of(openapi_schema)
    return asks.files({name: value for name, value in asks.defaults.items() if name not in fed} | dict(constants))


@dataclass(frozen=True, slots=True)
class Asks:
    """What a model's schema says of files and lengths, read once for many rows."""

    inputs: InputSchema
    defaults: Mapping[str, Any]
    _shape: OutputShape

    @classmethod
    def of(cls, openapi_schema: Mapping[str, Any]) -> Self:
        """Read the document."""
        inputs = InputSchema.from_openapi(openapi_schema)
        return cls(inputs, {name: spec.default for name, spec in inputs.fields.items()}, OutputShape.from_openapi(openapi_schema))

    def files(self, known: Mapping[str, Any]) -> "_Number":
        """How many files, where these inputs are known."""
        members = _in_a_list(self.inputs, known)
        most = self._shape.most_files(members.most)
        if not self._shape.is_list:
            return _Number(1, 1, 1) if most == 1 else _Number(None, None, most)
        return _Number(self._shape.list_bounds[0] if members.least is None else members.least, members.usual, most)

    def of_row(self, given: Mapping[str, Any], *, lasting: bool) -> list[tuple[Decimal | None, ...]]:
        """The fewest, the usual number and the most files of a row of this input; `lasting`: and the seconds of each."""
        files = tuple(None if number is None else Decimal(number) for number in self.files({**self.defaults, **given}))
        return [files, asked_length_s(self.inputs, given, ())] if lasting else [files]


def counting(schema: InputSchema, *, lasting: bool) -> list[str]:
    """The inputs that say how many files a row gives; `lasting`: and how long they last."""
    return [name for name in _COUNTERS if name in schema.fields] + ([_LENGTH] if lasting and _LENGTH in schema.fields else [])


def _in_a_list(schema: InputSchema, known: Mapping[str, Any]) -> _Number:
    """By the inputs that count outputs. Where there are several nobody knows which one counts."""
    specs = [spec for name in _COUNTERS if (spec := schema.fields.get(name)) is not None and spec.type == "integer"]
    each = [number for spec in specs if (number := _counter(spec, known)) is not None]
    if not each:
        return _Number(None, None, None)
    least = [number.least or 1 for number in each]
    most = [number.most for number in each if number.most is not None]
    usual = {number.usual for number in each}
    return _Number(min(least), usual.pop() if len(usual) == 1 else None, max(most) if len(most) == len(each) else None)


def _counter(spec: FieldSpec, known: Mapping[str, Any]) -> _Number | None:
    """What one input asks for; None: nothing feeds it, and the schema says nothing of it."""
    usual = _whole(known.get(spec.name, spec.default))
    if spec.name in known and usual is not None:
        return _Number(usual, usual, usual)
    most = _greatest_whole(spec)
    if most is None:
        return None if spec.name in known else _Number(_fewest(spec), usual, None)
    return _Number(_fewest(spec), usual, max(most, usual or 1))  # a cell may be empty: a default counts, even beyond the bounds


def _greatest_whole(spec: FieldSpec) -> int | None:
    if spec.enum is not None:
        return max((one for value in spec.enum if (one := _whole(value)) is not None), default=None)
    below = None if spec.exclusive_maximum is None else math.ceil(spec.exclusive_maximum) - 1
    bounds = [math.floor(bound) for bound in (spec.maximum, below) if bound is not None]
    return min(bounds, default=None)


def _fewest(spec: FieldSpec) -> int:
    if spec.enum is not None:
        return min((one for value in spec.enum if (one := _whole(value)) is not None), default=1)
    return max(1, math.ceil(spec.minimum or 1))


def _whole(value: Any) -> int | None:
    """More than none; a model may mean something else by 0 or -1."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _TOO_MUCH else None


def asked_length_s(schema: InputSchema, constants: Mapping[str, Any],
                   fed: Sequence[str]) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
    """The same of the seconds that one output is asked to last, by the input `duration`."""
    spec = schema.fields.get(_LENGTH)
    if spec is None:
        return None, None, None
    usual = _seconds(constants.get(_LENGTH, spec.default))
    if usual is not None and (_LENGTH in constants or _LENGTH not in fed):
        return usual, usual, usual
    values = spec.enum if spec.enum is not None else (spec.minimum,)
    least = min((one for value in values if (one := _seconds(value)) is not None), default=None)
    return least, usual, longest_output_s(schema, constants)


def longest_output_s(schema: InputSchema, known: Mapping[str, Any]) -> Decimal | None:
    """The most seconds that one output can last, for the worst case of prices per second of video: what `known` (as of
    `most_outputs`) says of the input `duration`, else the greatest of its values, else its maximum; None where the schema does
    not bound it, or one of its values is no number of seconds (`auto`)."""
    spec = schema.fields.get(_LENGTH)
    if spec is None:
        return None
    asked = _seconds(known.get(_LENGTH))
    if asked is not None:
        return asked
    longest = _longest(spec)
    by_default = None if _LENGTH in known else _seconds(spec.default)
    return longest if longest is None or by_default is None else max(longest, by_default)


def _longest(spec: FieldSpec) -> Decimal | None:
    if spec.enum is not None:
        each = [_seconds(value) for value in spec.enum if value is not None]
        return None if None in each else max((one for one in each if one is not None), default=None)
    bounds = [_seconds(bound) for bound in (spec.maximum, spec.exclusive_maximum)]
    return min((bound for bound in bounds if bound is not None), default=None)


def _seconds(value: Any) -> Decimal | None:
    """More than none; a model may mean something else by 0 or -1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and 0 < number < _TOO_MUCH else None
