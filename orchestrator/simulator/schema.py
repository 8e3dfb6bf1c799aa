"""Input schemas as Cog publishes them, and the two validators an input meets on its way."""

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why an input is refused, in the words of the API's `invalid_fields`."""

    type: str
    field: str
    description: str


def number(title: str, **rest: Any) -> dict[str, Any]:
    """Return an integer property unless `type` says otherwise."""
    return {"type": "integer", "title": title, **rest}


def text(title: str, **rest: Any) -> dict[str, Any]:
    """Return a string property."""
    return {"type": "string", "title": title, **rest}


def choice(name: str, **rest: Any) -> dict[str, Any]:
    """Return a property that refers to an enum schema of its own, the way Cog writes choices."""
    return {"allOf": [{"$ref": f"#/components/schemas/{name}"}], **rest}


def openapi(
    properties: dict[str, dict[str, Any]], *, required: list[str], output: dict[str, Any], enums: dict[str, list[Any]]
) -> dict[str, Any]:
    """Return a model's `openapi_schema` with Input, Output and the enums referred to."""
    ordered = {name: {**prop, "x-order": place} for place, (name, prop) in enumerate(properties.items())}
    schemas: dict[str, Any] = {
        "Input": {"type": "object", "title": "Input", "properties": ordered},
        "Output": {"title": "Output", **output},
    }
    if required:
        schemas["Input"]["required"] = required
    for name, values in enums.items():
        kind = "integer" if isinstance(values[0], int) else "string"
        schemas[name] = {"title": name, "description": "An enumeration.", "type": kind, "enum": values}
    return {"openapi": "3.0.2", "info": {"title": "Cog", "version": "0.1.0"}, "components": {"schemas": schemas}}


class Validator:
    """Checks inputs against one `openapi_schema`, first as the API does, then as the model's container does."""

    def __init__(self, schema: dict[str, Any], *, strict: bool) -> None:
        """Compile the schema; `strict` makes the API itself check ranges (official models), else only Cog does."""
        schemas = schema["components"]["schemas"]
        self._required: list[str] = schemas["Input"].get("required", [])
        self._properties = {
            name: _resolved(prop, schemas) for name, prop in schemas["Input"].get("properties", {}).items()
        }
        self._strict = strict
        self.secrets = frozenset(name for name, prop in self._properties.items() if prop.get("x-cog-secret"))

    def at_the_door(self, given: dict[str, Any]) -> list[Problem]:
        """Return what the API refuses with 422: missing and mistyped fields, wrong choices and, if strict, ranges."""
        problems = [Problem("required", "input", f"{name} is required") for name in self._required if name not in given]
        for name, value in given.items():
            prop = self._properties.get(name)
            if prop is None or (value is None and prop.get("nullable")):
                continue
            if not _fits(value, prop["type"]):
                words = f"Invalid type. Expected: {prop['type']}, given: {_kind(value)}"
                problems.append(Problem("invalid_type", f"input.{name}", words))
            elif "enum" in prop and value not in prop["enum"]:
                options = ", ".join(orjson.dumps(option).decode() for option in prop["enum"])
                words = f"input.{name} must be one of the following: {options}"
                problems.append(Problem("enum", f"input.{name}", words))
            elif self._strict:
                problems += [
                    Problem(f"number_{code}", f"input.{name}", f"Must be {word} than or equal to {limit}")
                    for code, word, limit in _out_of_range(value, prop)
                ]
        return problems

    def in_the_container(self, given: dict[str, Any]) -> str | None:
        """Return the error text of a prediction that Cog refuses after the API took it, or None."""
        if self._strict:
            return None
        detail = [
            {
                "loc": ["body", "input", name],
                "msg": f"ensure this value is {word} than or equal to {limit}",
                "type": f"value_error.number.not_{code[0]}e",
                "ctx": {"limit_value": limit},
            }
            for name, value in given.items()
            if name in self._properties
            for code, word, limit in _out_of_range(value, self._properties[name])
        ]
        return "Prediction input failed validation: " + orjson.dumps({"detail": detail}).decode() if detail else None


def refusal(problems: list[Problem]) -> dict[str, Any]:
    """Return the body of the 422 for these problems."""
    return {
        "detail": "".join(f"- {problem.field}: {problem.description}\n" for problem in problems),
        "status": 422,
        "title": "Input validation failed",
        "invalid_fields": [
            {"type": problem.type, "field": problem.field, "description": problem.description} for problem in problems
        ],
    }


def _resolved(prop: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    if "allOf" not in prop:
        return prop
    return {**schemas[prop["allOf"][0]["$ref"].rsplit("/", 1)[1]], **prop}


def _out_of_range(value: Any, prop: dict[str, Any]) -> list[tuple[str, str, float]]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    low, high = prop.get("minimum"), prop.get("maximum")
    below = [("gte", "greater", low)] if low is not None and value < low else []
    above = [("lte", "less", high)] if high is not None and value > high else []
    return below + above


def _fits(value: Any, kind: str) -> bool:
    if kind == "integer":
        return not isinstance(value, bool) and (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        )
    if kind == "number":
        return not isinstance(value, bool) and isinstance(value, int | float)
    return _kind(value) == kind


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return kinds[type(value)]
