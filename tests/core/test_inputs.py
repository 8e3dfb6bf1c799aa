"""From a row to a model's input: mapping, typing, checking, and every problem told."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from orchestrator.core.errors import BadInput, RowProblem
from orchestrator.core.inputs import InputPlan, InputSchema, plan_inputs

DOCUMENT: dict[str, Any] = {"components": {"schemas": {
    "Input": {"type": "object", "required": ["prompt"], "properties": {
        "prompt": {"type": "string", "maxLength": 40},
        "seed": {"type": "integer"},
        "count": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
        "scale": {"type": "number", "minimum": 0, "exclusiveMaximum": 10},
        "fast": {"type": "boolean"},
        "ratio": {"allOf": [{"$ref": "#/components/schemas/ratio"}], "default": "1:1"},
        "steps": {"$ref": "#/components/schemas/steps"},
        "image": {"type": "string", "format": "uri"},
        "images": {"type": "array", "items": {"type": "string", "format": "uri"}, "maxItems": 2},
        "tags": {"type": "array", "items": {"type": "string"}},
        "sizes": {"type": "array", "items": {"type": "integer"}},
        "extra": {"type": "object"},
        "maybe": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
        "key": {"type": "string", "format": "password", "x-cog-secret": True, "minLength": 8},
        "anything": {},
    }},
    "ratio": {"type": "string", "enum": ["1:1", "16:9", "9:16"]},
    "steps": {"type": "integer", "enum": [1, 2, 4]},
}}}
SCHEMA = InputSchema.from_openapi(DOCUMENT)


def plan(mapping: Mapping[str, Any] | None, *, columns: Sequence[str] = ("prompt", "cell"), **more: Any) -> InputPlan:
    return plan_inputs(mapping, columns=columns, schema=SCHEMA, **more)


def one(name: str, cell: Any) -> tuple[Any, list[RowProblem]]:
    """The value of one input fed from a cell (`missing` where it was left out), and the problems."""
    value, problems = plan({"prompt": "x", name: "{{ cell }}"}).build({"cell": cell}, index=17)
    return (None if value is None else value.get(name, "missing")), problems


def wrong(mapping: Mapping[str, Any] | None, **more: Any) -> str:
    with pytest.raises(BadInput) as caught:
        plan(mapping, **more)
    return str(caught.value)


@pytest.mark.parametrize(("name", "cell", "value"), [
    ("seed", "7", 7), ("seed", " 7 ", 7), ("seed", "-0", 0), ("seed", "007", 7), ("seed", "7.0", 7), ("seed", 7.0, 7),
    ("seed", Decimal("7.00"), 7), ("seed", "9223372036854775807", 2**63 - 1), ("maybe", "3", 3),
    ("scale", "0.5", 0.5), ("scale", "7", 7), ("scale", ".5", 0.5), ("scale", "1e-3", 0.001), ("scale", Decimal("0.1"), 0.1),
    ("scale", 3, 3), ("fast", "true", True), ("fast", "NO", False), ("fast", "1", True), ("fast", "0", False), ("fast", 1, True),
    ("fast", False, False), ("prompt", 7, "7"), ("prompt", True, "true"), ("prompt", "007", "007"), ("prompt", "NA", "NA"),
    ("prompt", " a ", " a "), ("prompt", date(2026, 1, 2), "2026-01-02"), ("prompt", 0.5, "0.5"),
    ("ratio", "16:9", "16:9"), ("steps", "4", 4), ("image", "https://x.test/a.png", "https://x.test/a.png"),
    ("image", "data:image/png;base64,AA==", "data:image/png;base64,AA=="), ("images", '["https://x.test/a"]', ["https://x.test/a"]),
    ("tags", '["a", "7"]', ["a", "7"]), ("tags", ["a", 7], ["a", "7"]), ("sizes", "[1, 2.0]", [1, 2]), ("sizes", "[]", []),
    ("extra", '{"a": [1, null]}', {"a": [1, None]}), ("extra", {"at": datetime(2026, 1, 2, tzinfo=UTC)},
                                                      {"at": "2026-01-02T00:00:00+00:00"}),
    ("anything", "7", "7"), ("anything", 7, 7), ("anything", [Decimal("1.5")], [1.5]),
])
def test_cells_become_what_the_schema_wants(name: str, cell: Any, value: Any) -> None:
    """Text of a CSV and native values of Parquet are typed by the schema."""
    if name == "prompt":
        built, problems = plan({"prompt": "{{ cell }}"}).build({"cell": cell}, index=0)
        assert problems == []
        assert built == {"prompt": value}
        return
    found, problems = one(name, cell)
    assert problems == []
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("name", "cell", "part"), [
    ("seed", "seven", "is not an integer"), ("seed", "7.5", "is not an integer"), ("seed", 7.5, "is not an integer"),
    ("seed", "1_000", "is not an integer"), ("seed", "１", "is not an integer"), ("seed", True, "is a truth value"),
    ("seed", "9223372036854775808", "more than 64 bits"), ("seed", 10**30, "more than 64 bits"), ("seed", "9" * 5000, "integer"),
    ("seed", float("nan"), "is not an integer"), ("seed", float("inf"), "is not an integer"), ("seed", [1], "is a list"),
    ("scale", "nan", "is not a number"), ("scale", "1,5", "write it with a point"), ("scale", "1e999", "not a finite number"),
    ("scale", float("nan"), "not a finite number"), ("scale", "-1", "below 0, the least"), ("scale", "10", "not below 10"),
    ("count", "5", "above 4, the most"), ("fast", "maybe", "neither true nor false"), ("fast", 2, "neither true nor false"),
    ("ratio", "16;9", "is not one of 1:1, 16:9, 9:16 (did you mean '16:9'?)"), ("steps", "3", "is not one of 1, 2, 4"),
    ("image", "photos/a.png", "local files are not uploaded yet: give a URL"), ("image", "file:///etc/passwd", "give a URL"),
    ("images", '["a.png"]', "its item 0 is no http(s) address"), ("images", "https://x.test/a", 'JSON list such as ["a", "b"]'),
    ("images", '["https://a/1","https://a/2","https://a/3"]', "has 3 items, 2 is the most"),
    ("tags", "a,b", 'is not a JSON list such as ["a", "b"]'), ("tags", '{"a": 1}', "is an object"),
    ("tags", "[null]", "item 0 is empty"),
    ("sizes", '["x"]', "its item 0 is not an integer"), ("sizes", "[NaN]", "JSON list"), ("sizes", "[" * 100_000, "JSON list"),
    ("extra", "[1]", "is a list, the model wants a JSON object"), ("maybe", "-1", "below 0"),
    ("tags", '["\\ud800"]', "half a character"),
    ("anything", float("inf"), "not a finite number"), ("anything", b"x", "of type bytes"),
    ("extra", {"a": {1, 2}}, "of type set"),
])
def test_what_does_not_fit_is_told(name: str, cell: Any, part: str) -> None:
    """A cell that does not fit gives one problem with row, input, column, value and reason."""
    value, problems = one(name, cell)
    assert value is None
    (problem,) = problems
    assert part in problem.reason
    assert (problem.index, problem.field) == (17, f"input {name!r} (column 'cell')")
    assert problem.value is not None
    assert len(problem.value) <= 60


def test_a_problem_reads_as_a_sentence() -> None:
    """The message of the contract: row, line, input, column, value, reason."""
    _, (problem,) = one("seed", "seven")
    assert str(problem) == "row 17, input 'seed' (column 'cell'), value 'seven': is not an integer"


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_cell_leaves_its_input_out(empty: Any) -> None:
    """The model's default applies, whatever the type; a required input must have its cell."""
    for name in ("seed", "scale", "fast", "ratio", "image", "tags", "extra", "anything"):
        assert one(name, empty) == ("missing", [])
    value, (problem,) = plan({"prompt": "{{ prompt }}"}).build({"prompt": empty}, index=1)
    assert value is None
    assert problem.reason == "is required but the cell is empty"


def test_all_problems_of_a_row_are_told() -> None:
    """Not the first: all."""
    mapping = {"prompt": "{{ prompt }}", "seed": "{{ cell }}", "fast": "{{ cell }}", "ratio": "{{ cell }}"}
    value, problems = plan(mapping).build({"prompt": "", "cell": "x"}, index=0)
    assert value is None
    assert [(problem.field or "").split("'")[1] for problem in problems] == ["prompt", "seed", "fast", "ratio"]


def test_secrets_are_not_shown() -> None:
    """A value of a secret input appears in no problem."""
    _, (problem,) = one("key", "hunter2")
    assert problem.value is None
    assert "hunter2" not in str(problem)
    assert "hunter2" not in wrong({"prompt": "x", "key": "hunter2"})


def test_constants_are_typed_once() -> None:
    """What is alike for every row is typed and checked when the job is compiled."""
    compiled = plan({"prompt": "{{ prompt }}", "ratio": "16:9", "count": "2", "scale": 1.5, "tags": ["a", 7], "seed": None,
                     "key": ""})
    assert compiled.constants == {"ratio": "16:9", "count": 2, "scale": 1.5, "tags": ["a", "7"]}
    assert compiled.fed == ("ratio", "count", "scale", "tags", "prompt")
    assert compiled.build({"prompt": "p"}, index=0) == ({**compiled.constants, "prompt": "p"}, [])


def test_templates_inside_lists_and_objects() -> None:
    """A list or object of the job file may hold columns; empty ones are left out of it."""
    compiled = plan({"prompt": "x", "images": ["{{ prompt }}", "{{ cell }}"], "extra": {"n": "{{ cell }}", "fixed": 1}})
    value, problems = compiled.build({"prompt": "https://x.test/a", "cell": ""}, index=0)
    assert problems == []
    assert value == {"prompt": "x", "images": ["https://x.test/a"], "extra": {"fixed": 1}}


def test_text_around_a_column_is_text_then_typed() -> None:
    """`-{{ cell }}` is text, and the schema makes a number of it."""
    assert plan({"prompt": "x", "seed": "1{{ cell }}"}).build({"cell": "2"}, index=0)[0] == {"prompt": "x", "seed": 12}


def test_a_failing_template_is_a_problem_of_its_row() -> None:
    """Other rows go on."""
    compiled = plan({"prompt": "{{ 10 // cell|int }}"})
    assert compiled.build({"cell": "5"}, index=0)[0] == {"prompt": "2"}
    value, (problem,) = compiled.build({"cell": "0"}, index=1)
    assert value is None
    assert "cannot be rendered" in problem.reason


def test_a_wrong_mapping_is_told_whole_with_places() -> None:
    """Unknown input, unknown column, wrong constant, missing required input: all at once, each with its place."""
    text = wrong({"promt": "{{ prompt }}", "seed": "{{ sed }}", "ratio": "4:4"},
                 places={"input": "jobs/x.yaml:5", "input.promt": "jobs/x.yaml:6", "input.ratio": "jobs/x.yaml:8"})
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("jobs/x.yaml:6: unknown input 'promt' (did you mean 'prompt'?); the model takes prompt, seed")
    assert lines[1].startswith("input 'seed': the source has no column 'sed'")
    assert lines[2].startswith("jobs/x.yaml:8: input 'ratio', value '4:4': is not one of 1:1")
    assert lines[3].startswith("jobs/x.yaml:5: the model requires 'prompt'")


def test_without_a_mapping_columns_feed_their_names() -> None:
    """Columns that are no inputs are carried along."""
    compiled = plan(None, columns=("sku", "seed", "prompt"))
    assert compiled.fed == ("prompt", "seed")
    assert compiled.build({"sku": "x", "seed": "7", "prompt": "p"}, index=0) == ({"prompt": "p", "seed": 7}, [])


def test_without_a_mapping_something_must_match() -> None:
    """A required input without a column is refused with both lists and the lines to add."""
    text = wrong(None, columns=("title", "seed"))
    assert "no column for the required prompt" in text
    assert "columns: title, seed" in text
    assert 'input: { prompt: "{{ title }}" }' in text
    free = InputSchema.from_openapi({"components": {"schemas": {"Input": {"properties": {"text": {"type": "string"}}}}}})
    with pytest.raises(BadInput, match="no column has the name of an input"):
        plan_inputs(None, columns=["title"], schema=free)


def test_the_id_column_must_exist() -> None:
    """source.id is checked whether there is a mapping or not."""
    assert "no column 'skuu'" in wrong(None, columns=("sku", "prompt"), row_id_column="skuu")
    assert "did you mean 'sku'?" in wrong({"prompt": "x"}, columns=("sku", "prompt"), row_id_column="skuu")


def test_a_row_without_a_column_has_an_empty_cell() -> None:
    """JSONL rows need not hold every key."""
    assert plan({"prompt": "x{{ cell }}", "seed": "{{ cell }}"}).build({}, index=0) == ({"prompt": "x"}, [])


@pytest.mark.parametrize("document", [{}, {"components": None}, {"components": {"schemas": {"Input": []}}},
                                      {"components": {"schemas": {"Input": {"$ref": "#/components/schemas/Input"}}}},
                                      {"components": {"schemas": {"Input": {"properties": {"a": None}, "required": "a"}}}}])
def test_strange_schemas_do_not_break(document: dict[str, Any]) -> None:
    """A schema that says little checks little; one that refers to itself ends."""
    assert InputSchema.from_openapi(document).required == ()
