"""Rows of JSONL files: one object per line; numbers, texts, true and false keep their type."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from orchestrator.core.records import Row
from orchestrator.gateways.rows.lines import Lines, open_lines

SAMPLE_ROWS = 1000


def header(path: Path) -> list[str]:
    """The keys of the file's first thousand rows, in order of appearance. Raises BadInput when it cannot be opened."""
    names: dict[str, None] = {}
    with open_lines(path) as lines:
        for _, cells, _ in islice(_records(lines), SAMPLE_ROWS):
            names.update(dict.fromkeys(cells))
    return list(names)


def rows(path: Path, *, first_index: int, columns: Sequence[str]) -> Iterator[tuple[Row, int]]:
    """Each row with its size in characters; every one of `columns` is in its cells, missing keys as None."""
    empty: dict[str, Any] = dict.fromkeys(columns)
    with open_lines(path) as lines:
        before = 0
        for index, (line, cells, problem) in enumerate(_records(lines), start=first_index):
            yield Row(index, line, empty | cells, problem), lines.characters - before
            before = lines.characters


def _records(lines: Lines) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    for line in lines:
        if line.isspace():
            continue
        cells, problem = _parsed(line)
        flaw = lines.flaws.pop(lines.number, None)
        yield lines.number, cells, flaw or problem


def _parsed(line: str) -> tuple[dict[str, Any], str | None]:
    try:
        value = json.loads(line, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        return {}, f"not valid JSON: {error.msg} at character {error.pos + 1}; write one JSON object per line"
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON: {error}"
    if not isinstance(value, dict):
        return {}, f"expected a JSON object, found {_kind(value)}; write one object per line"
    if "" in value:
        del value[""]
        return value, "an empty key; every key must be a column's name"
    return _without_surrogates(value) if "\\u" in line else (value, None)


def _without_surrogates(value: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        repaired: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
        return repaired, "half of a surrogate pair (\\ud800 to \\udfff) is not a character"
    return value, None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
