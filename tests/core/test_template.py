"""Templates: native cells, text, wrong names, and bounds."""

from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.template import OutputNamer, RowTemplateError, Template, output_folder

COLUMNS = ("title", "seed", "Image URL", "live")


def rendered(text: str, *, columns: tuple[str, ...] = COLUMNS, id_column: str | None = None, index: int = 3, **cells: Any) -> Any:
    return Template(text, columns=columns, id_column=id_column, where="input 'x'").render(cells, index=index)


def refusal(text: str, *, columns: tuple[str, ...] = COLUMNS) -> str:
    with pytest.raises(BadInput) as caught:
        Template(text, columns=columns, where="jobs/x.yaml:4: input 'prompt'")
    return str(caught.value)


@pytest.mark.parametrize("cell", ["7", 7, 0.5, True, None, ["a"], {"a": 1}])
@pytest.mark.parametrize("text", ["{{ seed }}", "{{seed}}", "{{ row['seed'] }}", "{{ row.seed }}"])
def test_one_column_alone_answers_the_cell(text: str, cell: Any) -> None:
    """Exactly one column keeps the cell's own value and type."""
    value = rendered(text, seed=cell)
    assert value == cell
    assert type(value) is type(cell)


@pytest.mark.parametrize(("cell", "text"), [(7, "7"), (None, ""), (True, "true"), (datetime(2026, 1, 2, tzinfo=UTC),
                                                                                  "2026-01-02T00:00:00+00:00")])
@pytest.mark.parametrize("template", ["<{{ seed }}>", "<{{ seed if true }}>"])
def test_cells_inside_text(template: str, cell: Any, text: str) -> None:
    """The quick path and Jinja2 itself write a cell alike: empty as nothing, true small, times in ISO 8601."""
    assert rendered(template, seed=cell) == f"<{text}>"


def test_a_space_makes_it_text() -> None:
    """`{{ seed }} ` is no longer exactly one column."""
    assert rendered("{{ seed }} ", seed=7) == "7 "


def test_cells_are_never_templates() -> None:
    """What a row holds is data, whatever it looks like."""
    assert rendered("{{ title }}!", title="{{ 7 * 7 }}") == "{{ 7 * 7 }}!"
    assert rendered("{{ title|trim }}!", title="{% for x in y %}") == "{% for x in y %}!"


def test_a_trailing_newline_stays() -> None:
    """A block of text in the job file is sent as written."""
    assert rendered("a {{ title }}\n", title="b") == "a b\n"


@pytest.mark.parametrize(("text", "value"), [("{{ title|upper }} {{ index }}", "SHOE 3"), ("{{ index }}/{{ id }}", "3/3"),
                                             ("{% if live %}on{% else %}off{% endif %}", "off"),
                                             ("{{ row['Image URL'] }}?w=1", "u?w=1"), ("{{ '%03d'|format(index) }}", "003")])
def test_expressions(text: str, value: str) -> None:
    """Filters, conditions, the row's number and columns with spaces work."""
    assert rendered(text, title="shoe", live=None, **{"Image URL": "u"}) == value


def test_id_is_the_id_column() -> None:
    """`id` is the cell of source.id, unless a column has that name."""
    assert rendered("{{ id }}.", id_column="title", title="x") == "x."
    assert rendered("{{ id }}.", columns=("id", "title"), id_column="title", title="x", id="y") == "y."


def test_unknown_columns_name_the_nearest() -> None:
    """A wrong name is told with place, nearest column and all columns."""
    text = refusal("{{ titel }}, studio")
    assert text.startswith("jobs/x.yaml:4: input 'prompt': the source has no column 'titel' (did you mean 'title'?)")
    assert "its columns: title, seed, Image URL, live" in text
    assert "no column 'image url'" in refusal("{{ row['image url'] }}")


def test_columns_with_spaces_get_the_right_spelling() -> None:
    """`{{ Image URL }}` and `{{ image-url }}` are answered with the spelling that works."""
    assert "write {{ row['Image URL'] }}" in refusal("{{ Image URL }}")
    assert "write {{ row['image-url'] }}" in refusal("a {{ image-url }}", columns=("image-url",))


@pytest.mark.parametrize("text", ["{{ title", "{{ title | nofilter }}", "{% for %}", "{{ }}", "{% include 'x' %}{{"])
def test_wrong_syntax_is_bad_input(text: str) -> None:
    """Wrong syntax is found when the job is compiled."""
    assert refusal(text).startswith("jobs/x.yaml:4: input 'prompt': ")


@pytest.mark.parametrize("text", [
    "{{ 'a' * 2000000 }}", "{{ 2 ** 99999 }}", "{{ '%9999999d' % 1 }}", "{{ '%*d'|format(9999999, 1) }}",
    "{{ 'a'.ljust(99999999) }}", "{{ '{:>99999999}'.format(1) }}", "{{ title.__class__.__mro__ }}",
    "{% set x = 'abcdefghij' * 90000 %}{{ x }}{{ x }}", "{% include 'x' %}", "{{ 1 // 0 }}", "{{ title.nothing.more }}",
])
def test_no_template_escapes_or_explodes(text: str) -> None:
    """What would reach outside, or grow without bound, is a problem of the row."""
    with pytest.raises(RowTemplateError):
        rendered(text, title="x")


def test_ranges_do_not_exist() -> None:
    """Jinja2's own functions are gone, so a name of theirs is an unknown column."""
    assert "no column 'range'" in refusal("{% for i in range(10) %}x{% endfor %}")


def test_output_names() -> None:
    """The extension is left to whoever knows the file; all names are there."""
    namer = OutputNamer("{{ batch }}/{{ row }}/{{ id }}-{{ index }}{{ ext }}")
    assert namer.stem(id="a.b", index=1, row=7, batch="B") == "B/7/a.b-1"
    assert OutputNamer("{{ id }}").stem(id="x", index=0, row=0, batch="b") == "x"


def test_output_folder() -> None:
    """`output.to` knows batch and date, and nothing else."""
    assert output_folder("out/{{ date }}/{{ batch }}", batch="b-1", date="2026-11-20") == "out/2026-11-20/b-1"
    with pytest.raises(BadInput, match="unknown name 'id'"):
        output_folder("out/{{ id }}", batch="b", date="d")
