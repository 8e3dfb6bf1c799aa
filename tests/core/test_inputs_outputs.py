"""The output's shape: which strings are files, what is text, and how many there can be."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.bounds import longest_output_s, most_outputs
from orchestrator.core.inputs import InputSchema, OutputShape

URI = {"type": "string", "format": "uri"}
FILES = {"type": "array", "items": URI}
A, B = "https://replicate.delivery/x/out-0.png", "https://replicate.delivery/x/out-1.png"
DATA = "data:image/png;base64,AA=="


def document(output: dict[str, Any] | None, **inputs: Any) -> dict[str, Any]:
    schemas: dict[str, Any] = {"Input": {"type": "object", "properties": inputs},
                               "Pair": {"type": "object", "properties": {"image": URI, "caption": {"type": "string"}}},
                               "Few": {"type": "integer", "enum": [1, 4]},
                               "Tree": {"type": "object", "properties": {
                                   name: {"$ref": "#/components/schemas/Tree"} for name in ("left", "right")}}}
    return {"components": {"schemas": schemas | ({} if output is None else {"Output": output})}}


@pytest.mark.parametrize(("output", "value", "files"), [
    (URI, A, [(0, A, "$")]),
    (URI, DATA, [(0, DATA, "$")]),
    (URI, None, []),
    ({"anyOf": [URI, {"$ref": "#/components/schemas/Pair"}]}, {"image": A, "caption": B}, [(0, A, "$.image")]),
    ({"anyOf": [URI, {"type": "array", "items": {"$ref": "#/components/schemas/Pair"}}]}, [{"image": A, "caption": B}],
     [(0, A, "$[0].image")]),
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
    (FILES, {}, None, None),
    (FILES, {"num_outputs": {"type": "integer", "default": 1, "minimum": 1}}, None, None),  # a cell may ask for any number
    (FILES, {"num_outputs": {"type": "integer", "default": 1}}, {"num_outputs": 1}, 1),
    (FILES, {"num_outputs": {"type": "integer"}}, {"num_outputs": None}, None),  # nothing asks for a number
    (FILES, {"num_outputs": {"type": "integer", "maximum": 4}}, {"num_outputs": None}, 4),
    (FILES, {"n": {"allOf": [{"$ref": "#/components/schemas/Few"}], "default": 1}}, None, 4),
    (FILES, {"n": {"type": "integer", "exclusiveMaximum": 5}}, None, 4),
    (FILES, {"n": {"type": "integer", "maximum": 9, "exclusiveMaximum": 5}}, None, 4),
    (FILES, {"n": {"type": "integer", "maximum": 4, "default": 6}}, None, 6),  # of a cell that is empty
    (FILES, {"n": {"type": "integer", "maximum": 4}, "num_outputs": {"type": "integer", "default": 1}}, {"num_outputs": 1}, 4),
    (FILES, {"n": {"type": "integer"}, "num_outputs": {"type": "integer", "default": 1}}, {"num_outputs": 1}, None),
    (FILES | {"maxItems": 3}, {"n": {"type": "integer"}}, None, 3),
    ({"type": "array", "items": {"type": "string"}, "x-cog-array-display": "concatenate"},
     {"n": {"type": "integer", "maximum": 9}}, None, 1),
    ({"type": "array", "items": {"type": "string"}}, {"n": {"type": "integer", "maximum": 9}}, None, 9),
    ({"type": "array", "items": {"$ref": "#/components/schemas/Pair"}, "maxItems": 3}, {}, None, 3),
    ({"type": "array", "items": FILES}, {"n": {"type": "integer", "maximum": 3}}, None, 9),
    ({"type": "array"}, {"n": {"type": "integer", "maximum": 3}}, None, None),
    ({"type": "string"}, {}, None, 1),
    ({"type": "integer"}, {}, None, 1),
    ({"type": "object", "properties": {"image": URI, "mask": {"anyOf": [URI, {"type": "null"}]}, "seed": {"type": "integer"},
                                       "words": {"type": "array", "items": {"type": "string"}}}}, {}, None, 2),
    ({"type": "object", "properties": {"image": URI, "masks": FILES | {"maxItems": 5}}}, {}, None, 6),
    ({"type": "object", "properties": {"image": URI, "masks": FILES}}, {}, None, None),
    ({"type": "object", "properties": {"image": URI, "more": {}}}, {}, None, None),
    ({"type": "object", "properties": {"score": {"type": "number"}}}, {}, None, 1),
    ({"type": "object", "properties": {"image": URI}, "additionalProperties": URI}, {}, None, None),
    ({"type": "object", "additionalProperties": {"type": "number"}}, {}, None, 1),
    ({"type": "object"}, {}, None, None),
    ({"anyOf": [URI, FILES]}, {}, None, None),
    ({"anyOf": [URI, FILES | {"maxItems": 3}, {"type": "null"}]}, {}, None, 3),
    ({"oneOf": [{"type": "string"}, URI]}, {}, None, 1),
    ({"oneOf": [{"$ref": "#/components/schemas/Pair"}, URI]}, {}, None, 1),
    ({"oneOf": [{"$ref": "#/components/schemas/Pair"}, {"type": "object", "properties": {"image": URI}}]}, {}, None, None),
    ({"$ref": "#/components/schemas/Tree"}, {}, None, None),
    ({}, {}, None, None),
    (None, {}, None, None),
])
def test_most_outputs(output: dict[str, Any] | None, inputs: dict[str, Any], constants: dict[str, Any] | None,
                      most: int | None) -> None:
    """The worst case of a price per output: what is asked for, else what the schema allows; None where nothing bounds it."""
    assert most_outputs(document(output, **inputs), constants) == most


@given(st.recursive(st.sampled_from([URI, {"type": "string"}, {"type": "number"}, {}]), lambda below: st.one_of(
    st.builds(lambda items, most: {"type": "array", "items": items} | most, below, st.sampled_from([{}, {"maxItems": 2}])),
    st.builds(lambda a, b: {"type": "object", "properties": {"a": a, "b": b}}, below, below),
    st.builds(lambda a, b: {"anyOf": [a, b]}, below, below)), max_leaves=6), st.data())
def test_no_output_has_more_files(output: dict[str, Any], data: st.DataObject) -> None:
    """Whatever fits a schema that bounds its files has no more of them than that."""
    schema = document(output)
    most = most_outputs(schema)
    found = OutputShape.from_openapi(schema).files(data.draw(fitting(output)))
    assert most is None or len(found) <= most


def fitting(node: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Outputs of a schema; of one that is silent, up to three files."""
    if "anyOf" in node:
        return st.one_of(*(fitting(part) for part in node["anyOf"]))
    if node.get("type") == "array":
        return st.lists(fitting(node["items"]), max_size=node.get("maxItems", 4))
    if node.get("type") == "object":
        return st.fixed_dictionaries({name: fitting(part) for name, part in node["properties"].items()})
    return st.just(0.5) if node.get("type") == "number" else st.just(A) if node else st.lists(st.just(A), max_size=3)


@pytest.mark.parametrize(("spec", "known", "most"), [
    ({"type": "integer", "minimum": 1}, {}, None),
    ({"type": "integer", "maximum": 10}, {}, 10),
    ({"type": "integer", "maximum": 10, "exclusiveMaximum": 9}, {}, 9),
    ({"type": "number", "exclusiveMaximum": 9.5}, {}, Decimal("9.5")),
    ({"type": "integer", "maximum": 10, "default": 12}, {}, 12),  # of a cell that is empty
    ({"type": "integer", "maximum": 10, "default": 12}, {"duration": 4}, 4),
    ({"type": "integer", "enum": [4, 8]}, {}, 8),
    ({"type": "string", "enum": ["5", "10", None]}, {}, 10),
    ({"type": "string", "enum": ["5", "auto"]}, {}, None),
    ({"type": "integer", "enum": [5, -1]}, {"duration": -1}, None),
])
def test_longest_output(spec: dict[str, Any], known: dict[str, Any], most: Any) -> None:
    """The same of the seconds that it lasts; a value that is no length (`auto`) may be any."""
    assert longest_output_s(InputSchema.from_openapi(document(URI, duration=spec)), known) == most
