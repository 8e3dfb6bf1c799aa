"""What a model's OpenAPI schema says: its inputs, and which parts of its output are files.

Shapes as published by Cog (Replicate docs: a version's `openapi_schema`, `components.schemas.Input` and `.Output`):
enums by `allOf` and `$ref`, files as strings of `format: uri`, secrets with `x-cog-secret`, token lists with
`x-cog-array-display: concatenate`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Self

DEEPEST = 40
_ADDRESS = re.compile(r"https?://|data:[\w.+-]*/?[\w.+-]*[;,]", re.IGNORECASE | re.ASCII)
_COUNTERS = ("num_outputs", "num_images", "number_of_images", "n_images", "max_images", "num_samples", "batch_size", "n")


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One model input, or the items of one. `type` None: anything JSON can say."""

    name: str
    type: str | None  # string, integer, number, boolean, array, object
    required: bool = False
    enum: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    min_items: int | None = None
    max_items: int | None = None
    nullable: bool = False
    is_uri: bool = False
    is_secret: bool = False
    items: "FieldSpec | None" = None
    has_default: bool = False
    default: Any = field(default=None, hash=False)


@dataclass(frozen=True, slots=True)
class InputSchema:
    """The inputs of a model, in the order in which it lists them. `raw` is the whole OpenAPI document, as received."""

    raw: Mapping[str, Any]
    fields: Mapping[str, FieldSpec]

    @classmethod
    def from_openapi(cls, openapi_schema: Mapping[str, Any]) -> Self:
        """Read the schema leniently: what it does not say is not checked. An unreadable one has no fields."""
        schemas = _schemas(openapi_schema)
        node = _flat(schemas.get("Input"), schemas)
        required = node.get("required")
        names = set(required) if isinstance(required, list) else set()
        properties = node.get("properties")
        fields = [_field(str(name), prop, schemas, required=name in names)
                  for name, prop in (properties.items() if isinstance(properties, dict) else ())]
        return cls(openapi_schema, {field.name: field for field in fields})

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the inputs without which the provider refuses."""
        return tuple(name for name, spec in self.fields.items() if spec.required)


def _schemas(document: Mapping[str, Any]) -> Mapping[str, Any]:
    components = document.get("components")
    found = components.get("schemas") if isinstance(components, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _flat(node: Any, schemas: Mapping[str, Any], *, depth: int = 0) -> dict[str, Any]:
    """The node with `$ref`, `allOf` and single alternatives laid into it; its own words win."""
    if not isinstance(node, Mapping) or depth > DEEPEST:
        return {}
    below: dict[str, Any] = {}
    reference = node.get("$ref")
    if isinstance(reference, str):
        below |= _flat(schemas.get(reference.rsplit("/", 1)[-1]), schemas, depth=depth + 1)
    for part in _members(node, "allOf"):
        below |= _flat(part, schemas, depth=depth + 1)
    for word in ("anyOf", "oneOf"):
        parts = [_flat(part, schemas, depth=depth + 1) for part in _members(node, word)]
        solid = [part for part in parts if part.get("type") != "null"]
        if len(solid) < len(parts):
            below["nullable"] = True
        if len(solid) == 1:
            below |= solid[0]
        elif solid:
            below["alternatives"] = solid
    own = {key: value for key, value in node.items() if key not in ("$ref", "allOf", "anyOf", "oneOf")}
    return _one_type({**below, **own})


def _members(node: Mapping[str, Any], word: str) -> list[Any]:
    found = node.get(word)
    return found if isinstance(found, list) else []


def _one_type(node: dict[str, Any]) -> dict[str, Any]:
    """`type: [string, null]` of JSON Schema 2020 in the words of OpenAPI 3.0."""
    kind = node.get("type")
    if isinstance(kind, list):
        solid = [name for name in kind if name != "null"]
        node["nullable"] = node.get("nullable") or len(solid) < len(kind)
        node["type"] = solid[0] if len(solid) == 1 else None
    return node


def _field(name: str, prop: Any, schemas: Mapping[str, Any], *, required: bool, depth: int = 0) -> FieldSpec:
    node = _flat(prop, schemas)
    enum = node.get("enum")
    options = tuple(enum) if isinstance(enum, list) and enum else None
    kind = node.get("type")
    kind = kind if kind in ("string", "integer", "number", "boolean", "array", "object") else _type_of(options)
    has_items = kind == "array" and isinstance(node.get("items"), Mapping) and depth < DEEPEST
    return FieldSpec(
        name=name, type=kind, required=required, enum=options,
        minimum=_number(node, "minimum"), maximum=_number(node, "maximum"),
        exclusive_minimum=_number(node, "exclusiveMinimum"), exclusive_maximum=_number(node, "exclusiveMaximum"),
        min_length=_count(node, "minLength"), max_length=_count(node, "maxLength"),
        min_items=_count(node, "minItems"), max_items=_count(node, "maxItems"),
        nullable=bool(node.get("nullable")), is_uri=kind == "string" and node.get("format") == "uri",
        is_secret=bool(node.get("x-cog-secret")) or node.get("format") == "password",
        items=_field(name, node["items"], schemas, required=False, depth=depth + 1) if has_items else None,
        has_default=node.get("default") is not None, default=node.get("default"))


def _type_of(options: tuple[Any, ...] | None) -> str | None:
    if not options:
        return None
    kinds = {type(option) for option in options if option is not None}
    return {str: "string", int: "integer", float: "number"}.get(kinds.pop()) if len(kinds) == 1 else None


def _number(node: Mapping[str, Any], word: str) -> float | None:
    found = node.get(word)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _count(node: Mapping[str, Any], word: str) -> int | None:
    found = _number(node, word)
    return None if found is None else int(found)


@dataclass(frozen=True, slots=True)
class FileRef:
    """One file of an output: its number within the output, where to fetch it, and where it stands (`$[0]`, `$.mask`)."""

    index: int
    url: str
    json_path: str


@dataclass(frozen=True, slots=True)
class OutputShape:
    """What the schema says of a model's output."""

    concatenate: bool  # a list of text pieces to be joined
    _node: dict[str, Any]
    _schemas: Mapping[str, Any]
    _below: dict[int, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)  # flat nodes by identity

    @classmethod
    def from_openapi(cls, openapi_schema: Mapping[str, Any]) -> Self:
        """Read the Output schema; where there is none, any address in an output counts as a file."""
        schemas = _schemas(openapi_schema)
        node = _flat(schemas.get("Output"), schemas)
        joined = node.get("type") == "array" and node.get("x-cog-array-display") == "concatenate"
        return cls(joined, node, schemas)

    def files(self, value: Any) -> list[FileRef]:
        """The files of one output, in its order: strings of `format: uri`, and where the schema is silent, any string that
        begins like an http(s) or data address."""
        found: list[tuple[str, str]] = []
        if not self.concatenate:
            self._walk(value, self._node, "$", found, depth=0)
        return [FileRef(index, url, path) for index, (url, path) in enumerate(found)]

    def text(self, value: Any) -> str | None:
        """The output as text: a string as it is, a concatenating list joined; None for anything else."""
        if isinstance(value, str):
            return value
        if self.concatenate and isinstance(value, list):
            return "".join(piece if isinstance(piece, str) else str(piece) for piece in value if piece is not None)
        return None

    def _walk(self, value: Any, node: dict[str, Any], path: str, found: list[tuple[str, str]], *, depth: int) -> None:
        if depth > DEEPEST:
            return
        if isinstance(value, str):
            if _ADDRESS.match(value) and _may_be_file(node):
                found.append((value, path))
        elif isinstance(value, list):
            items = self._laid_flat(node.get("items"))
            for place, member in enumerate(value):
                self._walk(member, items, f"{path}[{place}]", found, depth=depth + 1)
        elif isinstance(value, dict):
            properties = node.get("properties")
            known = properties if isinstance(properties, Mapping) else {}
            for name, member in value.items():
                below = known.get(name, node.get("additionalProperties"))
                self._walk(member, self._laid_flat(below), f"{path}.{name}", found, depth=depth + 1)

    def _laid_flat(self, node: Any) -> dict[str, Any]:
        """Once for each node of the schema, which this shape keeps alive."""
        if id(node) not in self._below:
            self._below[id(node)] = _flat(node, self._schemas)
        return self._below[id(node)]


def _may_be_file(node: dict[str, Any]) -> bool:
    """Whether a string here is a file: yes by `format: uri`, no where the schema says plain text, yes where it says nothing."""
    if node.get("format") == "uri":
        return True
    alternatives = node.get("alternatives")
    if alternatives:
        return any(_may_be_file(part) for part in alternatives if part.get("type") in (None, "string"))
    return node.get("type") != "string"


@lru_cache(maxsize=32)
def secret_inputs(schema_json: str) -> frozenset[str]:
    """The inputs that a schema calls secret: the provider shows them in other words than they were sent (Replicate docs:
    HTTP API)."""
    return frozenset(spec.name for spec in InputSchema.from_openapi(json.loads(schema_json)).fields.values() if spec.is_secret)


@lru_cache(maxsize=32)
def shape_of(schema_json: str) -> OutputShape:
    """The output shape of a schema kept as JSON text: asked for with every chunk, so remembered."""
    return OutputShape.from_openapi(json.loads(schema_json))


def most_outputs(openapi_schema: Mapping[str, Any], constants: Mapping[str, Any] | None = None) -> int:
    """The most files that one prediction can return, for the worst case of prices per output.

    One, unless the output is a list: then what `constants` (inputs alike for every row, among them the model's defaults of
    those that nothing feeds) ask for in the input that counts outputs, else that input's maximum, else the list's `maxItems`,
    else one: nothing in the schema bounds it.
    """
    schemas = _schemas(openapi_schema)
    output = _flat(schemas.get("Output"), schemas)
    if output.get("type") != "array" or output.get("x-cog-array-display") == "concatenate":
        return 1
    fields = InputSchema.from_openapi(openapi_schema).fields
    for name in _COUNTERS:
        spec = fields.get(name)
        if spec is None or spec.type != "integer":
            continue
        asked = (constants or {}).get(name)
        if isinstance(asked, int) and asked > 0:
            return asked
        if spec.maximum is not None:
            return max(1, int(spec.maximum))
    return max(1, _count(output, "maxItems") or 1)


def asked_outputs(openapi_schema: Mapping[str, Any], constants: Mapping[str, Any],
                  fed: Sequence[str]) -> tuple[int | None, int | None, int | None]:
    """The fewest files that one prediction is asked for, the usual number, and the most; None where the schema does not say.

    All the same where the input that counts outputs is among `constants`, or is not `fed` and has a default."""
    schemas = _schemas(openapi_schema)
    output = _flat(schemas.get("Output"), schemas)
    if output.get("type") != "array" or output.get("x-cog-array-display") == "concatenate":
        return 1, 1, 1
    fields = InputSchema.from_openapi(openapi_schema).fields
    counters = [spec for name in _COUNTERS if (spec := fields.get(name)) is not None and spec.type == "integer"]
    for spec in counters:
        usual = constants.get(spec.name, spec.default)
        if isinstance(usual, int) and usual > 0:
            if spec.name in constants or spec.name not in fed:
                return usual, usual, usual
            return max(1, int(spec.minimum or 1)), usual, None if spec.maximum is None else int(spec.maximum)
    return _count(output, "minItems"), None, _count(output, "maxItems")


def asked_length_s(schema: InputSchema, constants: Mapping[str, Any],
                   fed: Sequence[str]) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
    """The same of the seconds that one output is asked to last, by the input `duration`."""
    spec = schema.fields.get("duration")
    if spec is None:
        return None, None, None
    usual = _seconds(constants.get("duration", spec.default))
    if usual is not None and ("duration" in constants or "duration" not in fed):
        return usual, usual, usual
    values = spec.enum if spec.enum is not None else (spec.minimum,)
    least = min((one for value in values if (one := _seconds(value)) is not None), default=None)
    return least, usual, longest_output_s(schema, constants)


def longest_output_s(schema: InputSchema, constants: Mapping[str, Any]) -> Decimal | None:
    """The most seconds that one output can last, for the worst case of prices per second of video: what `constants` (as of
    `most_outputs`) say of the input `duration`, else the greatest of its values, else its maximum; None where the schema does not
    bound it."""
    spec = schema.fields.get("duration")
    if spec is None:
        return None
    asked = _seconds(constants.get("duration"))
    if asked is not None:
        return asked
    if spec.enum is not None:
        each = [_seconds(value) for value in spec.enum]
        return max((one for one in each if one is not None), default=None)
    return _seconds(spec.maximum if spec.exclusive_maximum is None else spec.exclusive_maximum)


def _seconds(value: Any) -> Decimal | None:
    """More than none; a model may mean something else by 0 or -1."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and number > 0 else None
