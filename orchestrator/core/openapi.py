"""What a model's OpenAPI schema says: its inputs, and which parts of its output are files.

Shapes as published by Cog (Replicate docs: a version's `openapi_schema`, `components.schemas.Input` and `.Output`):
enums by `allOf` and `$ref`, files as strings of `format: uri`, secrets with `x-cog-secret`, token lists with
`x-cog-array-display: concatenate`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

DEEPEST = 40
_ADDRESS = re.compile(r"https?://|data:[\w.+-]*/?[\w.+-]*[;,]", re.IGNORECASE | re.ASCII)


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

    @property
    def is_list(self) -> bool:
        """Whether it is a list of single files or texts, not one of lists, nor of objects of several files."""
        return self._node.get("type") == "array" and not self.concatenate and self._most_each(self._node, None, depth=0) in (0, 1)

    @property
    def list_bounds(self) -> tuple[int | None, int | None]:
        """The fewest members of an output that is a list, and the most; None where the schema does not say."""
        return _count(self._node, "minItems"), _count(self._node, "maxItems")

    def most_files(self, in_a_list: int | None) -> int | None:
        """The most files that an output can have, text being one; None where nothing bounds them. `in_a_list`: how many a list
        of files can have, whatever its own `maxItems` is; None: this decides."""
        if self.is_list:
            return self._most_members(self._node, in_a_list)
        found = self._most(self._node, in_a_list, depth=0)
        return None if found is None else max(1, found)

    def _most(self, node: dict[str, Any], in_a_list: int | None, *, depth: int) -> int | None:
        """Of a part of the output: text has none. None comes first, so a schema that refers to itself ends there."""
        kind, alternatives = node.get("type"), node.get("alternatives")
        if depth > DEEPEST:
            return None
        if alternatives:
            kinds = [part.get("type") for part in _branches(node)]
            if kinds.count("array") > 1 or kinds.count("object") > 1:  # which of them an output is cannot be told
                return None
            return _all_known(max, (self._most(part, in_a_list, depth=depth + 1) for part in alternatives))
        if kind == "array":
            each = 0 if self.concatenate and depth == 0 else self._most_each(node, in_a_list, depth=depth)
            most = self._most_members(node, in_a_list)
            return 0 if each == 0 else None if each is None or most is None else each * most
        if kind == "object":
            return self._most_of_object(node, in_a_list, depth=depth)
        return int(node.get("format") == "uri") if kind == "string" else 0 if kind in ("integer", "number", "boolean") else None

    def _most_each(self, node: dict[str, Any], in_a_list: int | None, *, depth: int) -> int | None:
        return self._most(self._laid_flat(node.get("items")), in_a_list, depth=depth + 1)

    def _most_members(self, node: dict[str, Any], in_a_list: int | None) -> int | None:
        most = _count(node, "maxItems") if in_a_list is None else in_a_list
        return None if most is None else max(1, most)

    def _most_of_object(self, node: dict[str, Any], in_a_list: int | None, *, depth: int) -> int | None:
        """Properties that the schema does not name are none, unless it speaks of them, or of none at all."""
        properties, more = node.get("properties"), node.get("additionalProperties")
        parts = list(properties.values()) if isinstance(properties, Mapping) else []
        others = self._most(self._laid_flat(more), in_a_list, depth=depth + 1) if more or not parts else 0
        if others != 0:
            return None
        return _all_known(sum, (self._most(self._laid_flat(part), in_a_list, depth=depth + 1) for part in parts))

    def _walk(self, value: Any, node: dict[str, Any], path: str, found: list[tuple[str, str]], *, depth: int) -> None:
        if depth > DEEPEST:
            return
        if isinstance(value, str):
            if _ADDRESS.match(value) and _may_be_file(node):
                found.append((value, path))
        elif isinstance(value, list):
            items = self._laid_flat(_branch(node, "array").get("items"))
            for place, member in enumerate(value):
                self._walk(member, items, f"{path}[{place}]", found, depth=depth + 1)
        elif isinstance(value, dict):
            node = _branch(node, "object")
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


def _all_known(total: Callable[[list[int]], int], each: Iterable[int | None]) -> int | None:
    """The sum of them, or the greatest; None as soon as one is not known."""
    known = list[int]()
    for value in each:
        if value is None:
            return None
        known.append(value)
    return total(known)


def _branches(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The alternatives of a part of an output, also those of alternatives; itself where it has none."""
    parts = node.get("alternatives")
    return [branch for part in parts for branch in _branches(part)] if parts else [node]


def _branch(node: dict[str, Any], kind: str) -> dict[str, Any]:
    """The alternative that a list (`array`) or an `object` is of; nothing where several may be."""
    fitting = [branch for branch in _branches(node) if branch.get("type") in (kind, None)]
    return fitting[0] if len(fitting) == 1 else {}


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
