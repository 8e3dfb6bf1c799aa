"""YAML 1.2 as plain values, with the line of every mapping entry.

Text stays as written wherever reading it as a number would change how it reads: `007`, `16:9`, `1_000`, `0x1F` and `25.00`
are text, `7`, `0.5` and `-3` are numbers, `true` and `false` are truth values, `null`, `~` and nothing are empty, `no`, `on`
and dates are text.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_NODES = 20_000
LONGEST_NUMBER = 40  # characters; what is longer is text
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
_OWN_TAG = "tag:yaml.org,2002:"
_QUOTES = 'a value with {{ … }} needs quotes around it: name: "{{ column }}"'


class YamlProblem(Exception):
    """What is wrong with a document: (line from 1, sentence) for each problem."""

    def __init__(self, problems: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(sentence for _, sentence in problems))
        self.problems = problems


@dataclass(slots=True)
class Document:
    """A mapping, and the line of each of its entries by dotted name (`limits.per_minute`)."""

    values: dict[str, Any]
    lines: dict[str, int]

    def by_place(self, shown: str) -> list[tuple[str, int]]:
        """Each `file:line` with its line, to sort messages by."""
        return [(f"{shown}:{line}", line) for line in self.lines.values()]


@dataclass(slots=True)
class _Reading:
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    nodes: int = 0
    open: set[int] = field(default_factory=set)


def read_document(text: str) -> Document:
    """The mapping that a document holds. Raises YamlProblem."""
    node = _composed(text)
    if node is None:
        raise YamlProblem([(1, "the file is empty; a job needs at least `model:` and `source: { path: … }`")])
    if not isinstance(node, MappingNode):
        raise YamlProblem([(_line(node), "the file does not hold fields; a job begins like `model: owner/name`")])
    reading = _Reading()
    values = _value(node, path="", reading=reading)
    if reading.problems:
        raise YamlProblem(reading.problems)
    return Document(values, reading.lines)


def read_scalar(text: str) -> Any:
    """One value as a command line gives it. Text that YAML cannot read, or reads as a mapping, is text. Raises YamlProblem."""
    if not text.lstrip().startswith("[") and (text.lstrip().startswith("{") or ": " in text or " #" in text or "\n" in text):
        return text
    try:
        node = _composed(text)
    except YamlProblem:
        return text
    if node is None:
        return "" if text.strip() == "" else text
    reading = _Reading()
    value = _value(node, path="", reading=reading)
    return text if reading.problems or isinstance(value, dict) else value


def _composed(text: str) -> Node | None:
    try:
        found: Node | None = YAML(typ="rt").compose(text)
    except MarkedYAMLError as error:
        raise _syntax(error, text) from error
    except (YAMLError, RecursionError, ValueError) as error:
        raise YamlProblem([(1, f"not valid YAML: {str(error).splitlines()[0]}")]) from error
    return found


def _syntax(error: MarkedYAMLError, text: str) -> YamlProblem:
    """Where the parser gave up, in the words of the likeliest cause."""
    mark = error.problem_mark or error.context_mark
    at = mark.line if mark is not None else 0
    lines = text.splitlines()
    source = lines[at] if at < len(lines) else ""
    problem = str(error.problem or "not valid YAML")
    if "{{" in source:
        sentence = _QUOTES
    elif "'\\t'" in problem or source[: len(source) - len(source.lstrip())].count("\t"):
        sentence = "a tab cannot indent a line in YAML; use spaces"
    elif "another document" in problem:
        sentence = "a second document begins here (`---`); a job file holds one"
    elif "mapping values are not allowed" in problem:
        sentence = "a second `: ` on this line, or wrong indentation; put quotes around a text with `: ` in it"
    else:
        sentence = f"not valid YAML: {problem}"
    return YamlProblem([(min(at, max(0, len(lines) - 1)) + 1, sentence)])


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _value(node: Node, *, path: str, reading: _Reading) -> Any:
    reading.nodes += 1
    if reading.nodes > MOST_NODES or id(node) in reading.open:
        raise YamlProblem([(_line(node), "too much, or a reference (*name) to what contains it")])
    tag = str(node.tag or "")
    if not tag.startswith(_OWN_TAG):
        reading.problems.append((_line(node), f"the tag {tag} is not known here; leave it out"))
        return None
    reading.open.add(id(node))
    try:
        if isinstance(node, MappingNode):
            return _mapping(node, path=path, reading=reading)
        if isinstance(node, SequenceNode):
            return [_value(member, path=f"{path}[{place}]", reading=reading) for place, member in enumerate(node.value)]
        return _scalar(node)
    finally:
        reading.open.discard(id(node))


def _mapping(node: MappingNode, *, path: str, reading: _Reading) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, member in node.value:
        if not isinstance(key, ScalarNode):
            sentence = _QUOTES if isinstance(key, MappingNode) else "a field's name must be plain text"
            reading.problems.append((_line(key), sentence))
            continue
        name = str(key.value)
        if name in values:
            first = reading.lines[f"{path}{name}"]
            reading.problems.append((_line(key), f"{name!r} is here a second time; the first is in line {first}"))
            continue
        reading.lines[f"{path}{name}"] = _line(key)
        values[name] = _value(member, path=f"{path}{name}.", reading=reading)
    return values


def _scalar(node: Node) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) is not None or node.tag == f"{_OWN_TAG}str":
        return text
    if node.tag == f"{_OWN_TAG}null":
        return None
    if node.tag == f"{_OWN_TAG}bool":
        return text.lower() == "true"
    if len(text) <= LONGEST_NUMBER and _NUMBER.fullmatch(text):
        number = json.loads(text)
        if json.dumps(number) == text:
            return number
    return text
