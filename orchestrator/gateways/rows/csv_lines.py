"""Rows of CSV and TSV files: every cell text, only an empty cell empty (None).

CSV is RFC 4180: quotes, doubled quotes, newlines within quotes. Blank lines are no rows, in a file with one column too
(an empty cell there is written `""`). TSV has no quoting of its own: cells are what stands between tabs, so a cell that
merely begins with a quote stays intact; a cell wholly enclosed in quotes, whose inner quotes are all doubled, is what a
spreadsheet writes for a text with quotes, and is unwrapped. Tabs and newlines inside a cell need CSV.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.records import Row
from orchestrator.gateways.rows.lines import Lines, open_lines
from orchestrator.gateways.rows.sources import Format, format_of

MAX_CELL_CHARACTERS = 10_000_000
_Record = tuple[int, list[str], str | None]  # line where it begins, its fields, what is wrong


def header(path: Path) -> list[str]:
    """The column names. Raises BadInput for an empty file, an unreadable header or another delimiter."""
    with open_lines(path) as lines:
        return _header(_records(lines), lines=lines)


def rows(path: Path, *, first_index: int) -> Iterator[tuple[Row, int]]:
    """Each row with its size in characters. Raises BadInput as `header`, and for a cell of more than ten million."""
    with open_lines(path) as lines:
        records = _records(lines)
        columns = _header(records, lines=lines)
        width, before, index = len(columns), lines.characters, first_index
        for line, fields, problem in records:
            if lines.flaws:
                problem = _flaws(lines, first=line) or problem
            if len(fields) != width:
                problem = problem or _ragged(len(fields), width=width, tabs=format_of(path) is Format.TSV)
                fields = fields[:width] + [""] * (width - len(fields))
            cells: dict[str, Any] = dict(zip(columns, [field or None for field in fields], strict=True))
            yield Row(index, line, cells, problem), lines.characters - before
            before = lines.characters
            index += 1


def _records(lines: Lines) -> Iterator[_Record]:
    return _tsv_records(lines) if format_of(lines.path) is Format.TSV else _csv_records(lines)


def _csv_records(lines: Lines) -> Iterator[_Record]:
    # The limit belongs to the whole process; it is only ever raised here.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    reader = csv.reader(iter(lines), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _malformed(lines, first=first, error=error)
            continue
        if fields:
            yield first, fields, None


def _malformed(lines: Lines, *, first: int, error: csv.Error) -> _Record:
    if "field limit" in str(error):
        raise BadInput(f"source {lines.path}, line {first}: a cell of more than {MAX_CELL_CHARACTERS:,} characters "
                       "begins in this row; most likely a quote opened there is never closed") from error
    if "end of data" in str(error):
        swallowed = f"; the file's lines up to {lines.number} are part of it" if lines.number > first else ""
        problem = f"the quote opened in the row of line {first} is never closed{swallowed}"
        return first, [], problem
    place = f"line {first}" if lines.number == first else f"lines {first} to {lines.number}"
    problem = (f"{place}: text follows a closing quote; inside a quoted cell write a quote twice (\"\"), "
               "and close each quote that is opened")
    fields = next(csv.reader([lines.last]), []) if lines.number == first else []
    return first, fields, problem


def _tsv_records(lines: Lines) -> Iterator[_Record]:
    for line in lines:
        text = line.rstrip("\r\n")
        if not text:
            continue
        fields = text.split("\t")
        if '"' in text:
            fields = [_unwrapped(field) for field in fields]
        yield lines.number, fields, None


def _unwrapped(field: str) -> str:
    if len(field) < 2 or field[0] != '"' or field[-1] != '"':
        return field
    inner = field[1:-1]
    return field if '"' in inner.replace('""', "") else inner.replace('""', '"')


def _header(records: Iterator[_Record], *, lines: Lines) -> list[str]:
    line, columns, problem = next(records, (0, [], None))
    if line == 0:
        raise BadInput(f"source {lines.path}: the file is empty; its first line must name the columns")
    problem = _flaws(lines, first=line) or problem
    if problem:
        raise BadInput(f"source {lines.path}: the line of column names cannot be read: {problem}")
    if len(columns) == 1 and format_of(lines.path) is Format.CSV:
        _check_delimiter(columns[0], path=lines.path)
    return columns


def _check_delimiter(only: str, *, path: Path) -> None:
    if ";" in only:
        raise BadInput(f"source {path}: the columns are separated by semicolons; the delimiter must be a comma: "
                       "export it again with commas (or tabs, as .tsv)")
    if "\t" in only:
        raise BadInput(f"source {path}: the columns are separated by tabs; rename the file to .tsv")


def _flaws(lines: Lines, *, first: int) -> str | None:
    """What is wrong with the bytes of the row that begins at `first`; forgets it."""
    found = [lines.flaws.pop(number) for number in sorted(lines.flaws) if first <= number <= lines.number]
    return "; ".join(found[:3]) or None


def _ragged(count: int, *, width: int, tabs: bool) -> str:
    remedy = ("a TSV cell cannot hold tabs or newlines: use CSV for those" if tabs
              else "put quotes around cells that hold commas or newlines")
    return f"expected {width} cells, found {count}; {remedy}"
