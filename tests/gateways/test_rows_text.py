"""Rows of CSV, TSV and JSONL files, whole and broken."""

import csv
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.errors import BadInput
from orchestrator.core.records import Row
from orchestrator.gateways.rows.reading import columns_of, read
from orchestrator.gateways.rows.snapshot import open_blob

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def rows_of(path: Path, *, chunk_rows: int = 1000) -> list[Row]:
    """All rows of one file."""
    return [row for chunk in read([path], chunk_rows=chunk_rows) for row in chunk.rows]


def written(folder: Path, content: str | bytes, *, name: str = "a.csv") -> Path:
    """A file of this content."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_cells_are_text_and_only_empty_is_empty(tmp_path: Path) -> None:
    """007, NA, null and spaces stay what they are; an empty cell is None, quoted or not."""
    rows = rows_of(written(tmp_path, 'a,b,c\n007,NA,\nnull, ,""\n'))
    assert [row.cells for row in rows] == [{"a": "007", "b": "NA", "c": None}, {"a": "null", "b": " ", "c": None}]


def test_lines_are_where_rows_begin(tmp_path: Path) -> None:
    """Newlines in quotes and blank lines count as lines of the file, not as rows."""
    rows = rows_of(written(tmp_path, 'a,b\r\n"x\r\ny",1\r\n\r\n"say ""hi""",2\r\nz,3'))
    found = [(row.index, row.line, row.cells["a"]) for row in rows]
    assert found == [(0, 2, "x\r\ny"), (1, 5, 'say "hi"'), (2, 6, "z")]


@pytest.mark.parametrize("content", [
    "\ufeffa,b\né,2\n".encode(),
    "a,b\né,2\n".encode("utf-16"),
    "a,b\né,2\n".encode(),
])
def test_byte_order_marks_tell_the_encoding(tmp_path: Path, *, content: bytes) -> None:
    """UTF-8 with and without a mark and UTF-16 with one read the same."""
    path = written(tmp_path, content)
    assert columns_of([path]) == ["a", "b"]
    assert rows_of(path)[0].cells == {"a": "é", "b": "2"}


def test_bytes_that_are_not_utf8_are_the_rows_problem(tmp_path: Path) -> None:
    """A Latin-1 byte spoils its row only, and is named with line, byte and remedy."""
    rows = rows_of(written(tmp_path, b"a,b\nok,1\ncaf\xe9,2\nok,3\n"))
    assert [row.problem is None for row in rows] == [True, False, True]
    assert rows[1].problem == "line 3, byte 4 of the line (0xe9) is not UTF-8; save the file as UTF-8"
    assert rows[1].cells == {"a": "caf\ufffd", "b": "2"}


def test_nul_bytes_are_the_rows_problem(tmp_path: Path) -> None:
    """A NUL byte inside a row is named with its place."""
    rows = rows_of(written(tmp_path, b"a,b\nx\0y,1\nok,2\n"))
    assert "line 2 holds a NUL byte at character 2" in (rows[0].problem or "")
    assert rows[1].problem is None


@pytest.mark.parametrize(("line", "cells", "said"), [
    ("1", {"a": "1", "b": None}, "expected 2 cells, found 1"),
    ("1,2,3", {"a": "1", "b": "2"}, "expected 2 cells, found 3"),
    ('"x"y,2', {"a": "xy", "b": "2"}, "line 2: text follows a closing quote"),
])
def test_a_misshapen_row_is_a_problem_and_the_next_is_fine(tmp_path: Path, *, line: str, cells: dict[str, str],
                                                           said: str) -> None:
    """What is wrong with a row is said, its cells are kept as far as readable, and reading goes on."""
    rows = rows_of(written(tmp_path, f"a,b\n{line}\n8,9\n"))
    assert rows[0].cells == cells
    assert said in (rows[0].problem or "")
    assert rows[1] == Row(1, 3, {"a": "8", "b": "9"}, None)


def test_an_unclosed_quote_names_the_line_where_it_opened(tmp_path: Path) -> None:
    """A quote without end is the problem of the row that opened it."""
    rows = rows_of(written(tmp_path, 'a,b\n1,2\n"open,4\n5,6\n'))
    assert len(rows) == 2
    assert rows[1].problem == ("the quote opened in the row of line 3 is never closed; "
                               "the file's lines up to 4 are part of it")


def test_an_unclosed_quote_does_not_swallow_a_large_file(tmp_path: Path) -> None:
    """After ten million characters without a closing quote, reading stops with the line where it opened."""
    path = written(tmp_path, 'a,b\n1,2\n"open,4\n' + ("x" * 999_999 + "\n") * 11)
    with pytest.raises(BadInput, match=r"line 3: a cell of more than 10,000,000 characters"):
        rows_of(path)


@pytest.mark.parametrize(("content", "said"), [
    ("", "the file is empty"),
    ("\n\n", "the file is empty"),
    ("a;b\n1;2\n", "separated by semicolons"),
    ("a\tb\n1\t2\n", r"rename the file to \.tsv"),
    ("a,b,a\n", "columns 1 and 3 are both named 'a'"),
    ("a,,\n", "column 2, 3 of 3 has no name"),
    (b"caf\xe9,b\n", "column names cannot be read.*save the file as UTF-8"),
    ("a,b\n1,2\n".encode("utf-16-le"), "NUL byte"),
])
def test_headers_that_cannot_be_used_are_refused(tmp_path: Path, *, content: str | bytes, said: str) -> None:
    """Each unusable header is refused with its reason."""
    with pytest.raises(BadInput, match=said):
        columns_of([written(tmp_path, content)])


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    """Columns and no rows is not an error."""
    path = written(tmp_path, "a,b\n")
    assert columns_of([path]) == ["a", "b"]
    assert list(read([path])) == []


def test_blank_lines_are_no_rows_in_one_column_either(tmp_path: Path) -> None:
    """In a one-column file an empty cell is written as two quotes; a blank line is nothing."""
    assert [row.cells["a"] for row in rows_of(written(tmp_path, 'a\nx\n\n""\ny\n'))] == ["x", None, "y"]


def test_tsv_keeps_quotes_that_only_decorate(tmp_path: Path) -> None:
    """Quotes in and at the start of TSV cells stay; a cell wholly enclosed is unwrapped; a tab always separates."""
    content = 'p\tn\n"GIGGLE" in paint\t\n"say ""hi"""\t"x"\nan "F1" car\t"A" and "B"\n"a\tb"\t3\n'
    rows = rows_of(written(tmp_path, content, name="a.tsv"))
    assert [list(row.cells.values()) for row in rows[:3]] == [
        ['"GIGGLE" in paint', None], ['say "hi"', "x"], ['an "F1" car', '"A" and "B"']]
    assert "expected 2 cells, found 3; a TSV cell cannot hold tabs" in (rows[3].problem or "")


@pytest.mark.parametrize("name", ["a.csv.gz", "A.TSV.GZ", "a.jsonl.gz", "a.ndjson"])
def test_packed_files_read_like_plain_ones(tmp_path: Path, *, name: str) -> None:
    """A .gz of every text format is unpacked on the way."""
    content = b'{"a": "1"}\n' if "json" in name else b"a\n1\n"
    path = written(tmp_path, gzip.compress(content) if name.lower().endswith("gz") else content, name=name)
    assert [row.cells for row in rows_of(path)] == [{"a": "1"}]


def test_a_damaged_gz_is_named(tmp_path: Path) -> None:
    """Gzip data cut short is a BadInput with the file's name, not a traceback."""
    rows = "".join(f"{number},{number * 7919}\n" for number in range(20_000))
    path = written(tmp_path, gzip.compress(b"a,b\n" + rows.encode())[:-2000], name="a.csv.gz")
    with pytest.raises(BadInput, match=r"a\.csv\.gz: the gzip data is damaged or cut short"):
        rows_of(path)


def test_jsonl_keeps_types_and_names_bad_lines(tmp_path: Path) -> None:
    """Values keep their type, missing keys are None, and each bad line is a row with a problem and its line."""
    lines = ['\ufeff{"a": 1, "b": "x"}', "", '{"a": 2.5, "c": [1]}', "[1]", '{"a": NaN}', "{oops", '{"a": "\\ud800"}']
    rows = rows_of(written(tmp_path, "\n".join(lines), name="a.jsonl"))
    assert [row.line for row in rows] == [1, 3, 4, 5, 6, 7]
    assert rows[0].cells == {"a": 1, "b": "x", "c": None}
    assert rows[1].cells == {"a": 2.5, "b": None, "c": [1]}
    said = ["found a list", "NaN is not a JSON number", "not valid JSON", "surrogate"]
    assert all(text in (row.problem or "") for text, row in zip(said, rows[2:], strict=True))


def test_chunks_end_at_their_size_and_count_over_files(tmp_path: Path) -> None:
    """Rows are numbered over all files, chunks hold what was asked, and large rows end a chunk early."""
    one, two = written(tmp_path, "a\n1\n2\n3\n", name="1.csv"), written(tmp_path, "a\n4\n5\n", name="2.csv")
    chunks = list(read([one, two], chunk_rows=2))
    assert [(chunk.first_index, [row.cells["a"] for row in chunk.rows]) for chunk in chunks] == [
        (0, ["1", "2"]), (2, ["3", "4"]), (4, ["5"])]
    large = written(tmp_path, "a\n" + ("x" * 3_000_000 + "\n") * 5, name="3.csv")
    assert [len(chunk.rows) for chunk in read([large])] == [3, 2]


def test_the_blob_holds_the_cells(tmp_path: Path) -> None:
    """A snapshot opened again gives the chunk's cells, problem rows included."""
    chunk = next(read([written(tmp_path, "a,b\n007,\nragged\n\ufeff,x\n")]))
    assert open_blob(chunk.blob).to_pylist() == [row.cells for row in chunk.rows]


@given(st.lists(st.lists(TEXTS, min_size=2, max_size=2), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_csv_cells_arrive_as_written(tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]) -> None:
    """Whatever text the csv module writes quoted is read back exactly, and is in the snapshot."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *cells])
    chunk = next(read([written(tmp_path_factory.mktemp("any"), text.getvalue())]))
    assert [[row.cells["a"] or "", row.cells["b"] or ""] for row in chunk.rows] == cells
    assert [row.problem for row in chunk.rows] == [None] * len(cells)
    assert open_blob(chunk.blob).to_pylist() == [row.cells for row in chunk.rows]


def test_reading_holds_one_chunk_at_a_time(tmp_path: Path) -> None:
    """Fifty thousand rows, 25 MB if all were held, peak below four megabytes of Python memory."""
    path = written(tmp_path, "a,b\n" + "".join(f"{number},{'x' * 100}\n" for number in range(50_000)))
    tracemalloc.start()
    try:
        assert sum(len(chunk.rows) for chunk in read([path])) == 50_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
