"""Templates of a job file: sandboxed Jinja2, compiled once per job, rendered once per row.

A text that is exactly one `{{ column }}` answers the cell itself, with its type; anything else answers text. The usual
template, text with column names in it, never enters Jinja2 at run time.
"""

import re
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import did_you_mean, listed

MOST_TEMPLATE_CHARACTERS = 64_000
MOST_TEXT_CHARACTERS = 1_000_000
MOST_WIDTH = 1_000
_BUILT_IN = frozenset({"row", "index", "id"})
_REPEATING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "format", "format_map", "expandtabs", "join"})
_DROPPED_FILTERS = ("random", "center", "indent", "wordwrap", "pprint", "xmlattr", "urlize")
_SPAN = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)

Render = Callable[[Mapping[str, Any], int], Any]


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2 without what reads files, repeats without bound, or answers differently next time."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, finalize=text_of, autoescape=False)
        self.globals.clear()
        for name in _DROPPED_FILTERS:
            del self.filters[name]
        self.filters["format"] = _format

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply and format within bounds."""
        sized = next((side for side in (left, right) if isinstance(side, str | list | tuple)), None)
        if operator == "*" and sized is not None:
            times = right if sized is left else left
            if isinstance(times, int) and len(sized) * times > MOST_TEXT_CHARACTERS:
                raise SecurityError("the text would be too long")
        if operator == "%" and isinstance(left, str):
            return _format(left, *(right if isinstance(right, tuple) else (right,)))
        if operator == "**" and (abs(left) > MOST_WIDTH or abs(right) > MOST_WIDTH):
            raise SecurityError("the number would be too large")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No method that makes long texts out of short ones."""
        if isinstance(obj, str) and attr in _REPEATING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    text = str(value)
    if re.search(r"%[^a-zA-Z%]*(\d{4}|\*)", text):
        raise SecurityError("a width of more than three digits")
    return text % (kwargs or args)


def text_of(value: Any) -> Any:
    """How a cell reads inside a text: an empty one as nothing, true and false in small letters, times in ISO 8601."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value


_ENVIRONMENT = _Environment()


class RowTemplateError(Exception):
    """A template could not be rendered for one row; the text says why."""


class Template:
    """One text of a job's `input`, compiled against the source's columns."""

    def __init__(self, text: str, *, columns: Collection[str], id_column: str | None = None, where: str) -> None:
        """Raises BadInput, beginning with `where`, for wrong syntax and for names that are no columns."""
        self.text = text
        tree = parse(text, where=where, columns=columns)
        _check_names(tree, text=text, columns=columns, where=where)
        parts = _parts(tree, columns)
        self.column = parts[0][0] if parts is not None and len(parts) == 1 and parts[0][0] is not None else None
        self.is_constant = parts is not None and all(column is None for column, _ in parts)
        self._render = _joined(parts) if parts is not None else _jinja(text, columns=columns, id_column=id_column)

    def render(self, cells: Mapping[str, Any], *, index: int) -> Any:
        """The value for one row: the cell itself for `{{ column }}`, else text. Raises RowTemplateError."""
        return self._render(cells, index)

    @property
    def for_row(self) -> Render:
        """The bare function behind `render`, for loops over many rows."""
        return self._render


def is_template(text: str) -> bool:
    """Whether Jinja2 has anything to do in this text."""
    return "{{" in text or "{%" in text or "{#" in text


def parse(text: str, *, where: str, columns: Collection[str] = ()) -> nodes.Template:
    """The syntax tree. Raises BadInput with `where` in front."""
    if len(text) > MOST_TEMPLATE_CHARACTERS:
        raise BadInput(f"{where}: the template has {len(text):,} characters, {MOST_TEMPLATE_CHARACTERS:,} is the most")
    try:
        tree = _ENVIRONMENT.parse(text)
        _ENVIRONMENT.compile(tree)
    except TemplateSyntaxError as error:
        spaces = "; a column whose name has spaces is written {{ row['Image URL'] }}" if "end of print" in str(error) else ""
        hint = _quoted_column(text, columns) or spaces
        raise BadInput(f"{where}: {error.message} in the template {_short(text)!r}{hint}") from error
    except (TemplateError, RecursionError) as error:
        raise BadInput(f"{where}: {error} in the template {_short(text)!r}") from error
    return _ENVIRONMENT.parse(text)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _quoted_column(text: str, columns: Collection[str]) -> str:
    """A hint for `{{ Image URL }}` where there is a column of that name."""
    for inside in _SPAN.findall(text):
        if inside in columns:
            return f"; write {{{{ row[{inside!r}] }}}}"
    return ""


def _check_names(tree: nodes.Template, *, text: str, columns: Collection[str], where: str) -> None:
    unknown = sorted(meta.find_undeclared_variables(tree) - set(columns) - _BUILT_IN)
    for node in tree.find_all((nodes.Getitem, nodes.Getattr)):
        name = _row_key(node)
        if name is not None and name not in columns:
            unknown.append(name)
    if not unknown:
        return
    name = unknown[0]
    hint = _quoted_column(text, columns) or did_you_mean(name, columns)
    raise BadInput(f"{where}: the source has no column {name!r}{hint}; its columns: {listed(columns)}")


def _row_key(node: nodes.Node) -> str | None:
    """The column that `row['x']` or `row.x` names."""
    if isinstance(node, nodes.Getitem | nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "row":
        if isinstance(node, nodes.Getattr):
            return None if node.attr in ("get", "items", "keys", "values") else node.attr
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return node.arg.value
    return None


def _parts(tree: nodes.Template, columns: Collection[str]) -> list[tuple[str | None, str]] | None:
    """The template as plain text and columns in turn, or None where it needs Jinja2."""
    parts: list[tuple[str | None, str]] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                parts.append((None, node.data))
                continue
            column = node.name if isinstance(node, nodes.Name) else _row_key(node)
            if column is None or column not in columns or (column == "row" and isinstance(node, nodes.Name)):
                return None
            parts.append((column, ""))
    return parts


def _joined(parts: list[tuple[str | None, str]]) -> Render:
    if len(parts) == 1 and parts[0][0] is not None:
        only = parts[0][0]
        return lambda cells, index: cells.get(only)

    def render(cells: Mapping[str, Any], index: int) -> str:
        get = cells.get
        texts = []
        for column, text in parts:
            if column is not None:
                cell = get(column)
                text = cell if cell.__class__ is str else str(text_of(cell))
            texts.append(text)
        return _bounded("".join(texts))

    return render


def _jinja(text: str, *, columns: Collection[str], id_column: str | None) -> Render:
    template = _ENVIRONMENT.from_string(text)
    own = _BUILT_IN - set(columns)

    def render(cells: Mapping[str, Any], index: int) -> str:
        names = {column: cells.get(column) for column in columns}
        built_in = {"index": index, "id": names.get(id_column, index) if id_column is not None else index}
        names.update({name: built_in[name] for name in own if name in built_in})
        names["row"] = {column: cells.get(column) for column in columns}
        try:
            return _bounded(template.render(names))
        except RowTemplateError:
            raise
        except Exception as error:  # a template may fail in any way that its expression can
            raise RowTemplateError(f"the template {_short(text)!r} cannot be rendered: {error}") from error

    return render


def _bounded(text: str) -> str:
    if len(text) > MOST_TEXT_CHARACTERS:
        raise RowTemplateError(f"the text has {len(text):,} characters, {MOST_TEXT_CHARACTERS:,} is the most")
    return text


_EXT = "\0ext"
_NAMES_OF_FILES = frozenset({"id", "index", "row", "batch", "ext"})
_NAMES_OF_FOLDERS = frozenset({"batch", "date"})


class OutputNamer:
    """`output.name` of a job, compiled: `{{ id }}-{{ index }}{{ ext }}` and the like.

    Names: `id` of the row, `index` of the output within its row, `row` number, `batch`, and `ext`, which comes last or not at
    all: it is always added.
    """

    def __init__(self, text: str) -> None:
        """Raises BadInput for wrong syntax, unknown names, and an `ext` that is not last."""
        _check_only(text, names=_NAMES_OF_FILES, where="output.name")
        self._template = _ENVIRONMENT.from_string(text)
        sample = self._rendered(id="a", index=0, row=0, batch="b")
        if _EXT in sample.removesuffix(_EXT):
            raise BadInput("output.name: {{ ext }} must come last; write \"{{ id }}-{{ index }}{{ ext }}\"")

    def stem(self, *, id: str, index: int, row: int, batch: str) -> str:
        """The name without its extension, not yet made safe for a file system. Raises BadInput if it cannot be rendered."""
        return self._rendered(id=id, index=index, row=row, batch=batch).removesuffix(_EXT)

    def _rendered(self, **names: Any) -> str:
        try:
            return self._template.render(names | {"ext": _EXT})
        except Exception as error:  # as above: any failure of an expression
            raise BadInput(f"output.name: cannot be rendered: {error}") from error


def output_folder(text: str, *, batch: str, date: str) -> str:
    """`output.to` with its names filled in; `date` as YYYY-MM-DD. Raises BadInput for wrong syntax and unknown names."""
    _check_only(text, names=_NAMES_OF_FOLDERS, where="output.to")
    try:
        return _ENVIRONMENT.from_string(text).render(batch=batch, date=date)
    except Exception as error:
        raise BadInput(f"output.to: cannot be rendered: {error}") from error


def check_output_folder(text: str) -> None:
    """Raises BadInput if `output.to` has wrong syntax or an unknown name."""
    output_folder(text, batch="b", date="2000-01-01")


def _check_only(text: str, *, names: frozenset[str], where: str) -> None:
    tree = parse(text, where=where)
    for name in sorted(meta.find_undeclared_variables(tree) - names):
        raise BadInput(f"{where}: unknown name {name!r}{did_you_mean(name, names)}; there are {listed(sorted(names))}")


_NAMES_OF_SOURCES = frozenset({"date"})


def with_date(text: str, *, date: str, where: str) -> str:
    """A path with `{{ date }}` (YYYY-MM-DD) filled in; one without braces stays as it is.

    Raises BadInput, beginning with `where`, for wrong syntax and unknown names."""
    if "{{" not in text:
        return text
    _check_only(text, names=_NAMES_OF_SOURCES, where=where)
    try:
        return _ENVIRONMENT.from_string(text).render(date=date)
    except Exception as error:  # as above: any failure of an expression
        raise BadInput(f"{where}: cannot be rendered: {error}") from error
