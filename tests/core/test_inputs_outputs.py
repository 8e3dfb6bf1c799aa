"""The output's shape: which strings are files, what is text, and how many there can be."""

from typing import Any

import pytest

from orchestrator.core.inputs import OutputShape, most_outputs

URI = {"type": "string", "format": "uri"}
A, B = "https://replicate.delivery/x/out-0.png", "https://replicate.delivery/x/out-1.png"
DATA = "data:image/png;base64,AA=="


def document(output: dict[str, Any] | None, **inputs: Any) -> dict[str, Any]:
    schemas: dict[str, Any] = {"Input": {"type": "object", "properties": inputs},
                               "Pair": {"type": "object", "properties": {"image": URI, "caption": {"type": "string"}}}}
    return {"components": {"schemas": schemas | ({} if output is None else {"Output": output})}}


@pytest.mark.parametrize(("output", "value", "files"), [
    (URI, A, [(0, A, "$")]),
    (URI, DATA, [(0, DATA, "$")]),
    (URI, None, []),
    ({"type": "array", "items": URI}, [A, None, B], [(0, A, "$[0]"), (1, B, "$[2]")]),
    ({"$ref": "#/components/schemas/Pair"}, {"caption": "https: said the fox", "image": A}, [(0, A, "$.image")]),
    ({"type": "array", "items": {"$ref": "#/components/schemas/Pair"}}, [{"image": A}, {"image": B}],
     [(0, A, "$[0].image"), (1, B, "$[1].image")]),
    ({"anyOf": [URI, {"type": "null"}]}, A, [(0, A, "$")]),
    ({"anyOf": [{"type": "string"}, URI]}, A, [(0, A, "$")]),
    ({"type": "string"}, "https://example.com is a nice page", []),
    ({"type": "array", "items": {"type": "string"}}, [A], []),
    ({"type": "array", "items": {"type": "string"}, "x-cog-array-display": "concatenate"}, ["https:", "//x.test"], []),
    ({"type": "object", "additionalProperties": URI}, {"a": A, "b": B}, [(0, A, "$.a"), (1, B, "$.b")]),
    ({"type": "object"}, {"deep": [{"er": A}], "n": 1, "t": "data: none"}, [(0, A, "$.deep[0].er")]),
    ({}, A, [(0, A, "$")]),
    (None, {"x": A}, [(0, A, "$.x")]),
    ({}, "https: is not an address", []),
])
def test_which_strings_are_files(output: dict[str, Any] | None, value: Any, files: list[tuple[int, str, str]]) -> None:
    """By `format: uri` where the schema speaks, by the look of an address where it is silent."""
    found = OutputShape.from_openapi(document(output)).files(value)
    assert [(file.index, file.url, file.json_path) for file in found] == files


def test_text() -> None:
    """Token lists are joined, strings stay, anything else is not text."""
    tokens = OutputShape.from_openapi(document(
        {"type": "array", "items": {"type": "string"}, "x-cog-array-display": "concatenate"}))
    assert tokens.concatenate
    assert tokens.text(["Hel", "lo", None, " 7"]) == "Hello 7"
    assert tokens.text("whole") == "whole"
    plain = OutputShape.from_openapi(document({"type": "array", "items": {"type": "string"}}))
    assert plain.text(["a"]) is None
    assert plain.text({"a": 1}) is None


@pytest.mark.parametrize(("output", "inputs", "constants", "most"), [
    (URI, {"num_outputs": {"type": "integer", "maximum": 4}}, None, 1),
    ({"type": "array", "items": URI}, {"num_outputs": {"type": "integer", "maximum": 4}}, None, 4),
    ({"type": "array", "items": URI}, {"num_outputs": {"type": "integer", "maximum": 4}}, {"num_outputs": 2}, 2),
    ({"type": "array", "items": URI, "maxItems": 3}, {}, None, 3),
    ({"type": "array", "items": URI}, {}, None, 1),
    ({"type": "array", "items": {"type": "string"}, "x-cog-array-display": "concatenate"},
     {"n": {"type": "integer", "maximum": 9}}, None, 1),
])
def test_most_outputs(output: dict[str, Any], inputs: dict[str, Any], constants: dict[str, Any] | None, most: int) -> None:
    """The worst case of a price per output: what is asked for, else what the schema allows."""
    assert most_outputs(document(output, **inputs), constants) == most
