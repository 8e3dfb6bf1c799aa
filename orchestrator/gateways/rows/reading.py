"""Source files as a stream of chunks of rows, in constant memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.core.errors import BadInput
from orchestrator.core.records import Row, RowChunk
from orchestrator.gateways.rows import csv_lines, json_lines, parquet_batches
from orchestrator.gateways.rows.snapshot import CHUNK_BYTES, chunk_of
from orchestrator.gateways.rows.sources import Format, one_format

_HEADERS = {
    Format.CSV: csv_lines.header,
    Format.TSV: csv_lines.header,
    Format.JSONL: json_lines.header,
    Format.PARQUET: parquet_batches.header,
}


def columns_of(paths: Sequence[Path]) -> list[str]:
    """The source's column names, in order of appearance; of JSONL, the keys of each file's first thousand rows.

    Raises BadInput for duplicate or empty names, for files whose columns differ (JSONL files may), and for files that
    cannot be read or mix formats.
    """
    kind = one_format(paths)
    first: list[str] = []
    for path in paths:
        names = _HEADERS[kind](path) if kind is Format.JSONL else _checked(_HEADERS[kind](path), path=path)
        if path is not paths[0] and kind is not Format.JSONL:
            _check_alike(first, names, paths=(paths[0], path))
        first = list(dict.fromkeys([*first, *names]))
    return first


def read(paths: Sequence[Path], *, chunk_rows: int = 1000) -> Iterator[RowChunk]:
    """All rows of all files, in chunks of at most `chunk_rows`; reading the same files again gives the same chunks.

    A row that cannot be read properly is a row with a `problem`. Raises BadInput where no row can be told from the
    next: a damaged file, a header that is wrong, a cell without end.
    """
    kind, columns = one_format(paths), columns_of(paths)
    if kind is Format.PARQUET:
        return _parquet_chunks(paths, chunk_rows=chunk_rows)
    return _text_chunks(paths, columns=columns, chunk_rows=chunk_rows)


def _parquet_chunks(paths: Sequence[Path], *, chunk_rows: int) -> Iterator[RowChunk]:
    index = 0
    for path in paths:
        for chunk in parquet_batches.chunks(path, first_index=index, chunk_rows=chunk_rows):
            index += len(chunk.rows)
            yield chunk


def _text_chunks(paths: Sequence[Path], *, columns: list[str], chunk_rows: int) -> Iterator[RowChunk]:
    as_text = one_format(paths) is not Format.JSONL
    rows: list[Row] = []
    size = 0
    for row, characters in _text_rows(paths, columns=columns):
        rows.append(row)
        size += characters
        if len(rows) >= chunk_rows or size >= CHUNK_BYTES:
            yield chunk_of(rows, columns=columns, as_text=as_text)
            rows, size = [], 0
    if rows:
        yield chunk_of(rows, columns=columns, as_text=as_text)


def _text_rows(paths: Sequence[Path], *, columns: list[str]) -> Iterator[tuple[Row, int]]:
    index = 0
    for path in paths:
        found = (json_lines.rows(path, first_index=index, columns=columns) if one_format([path]) is Format.JSONL
                 else csv_lines.rows(path, first_index=index))
        for row, size in found:
            index = row.index + 1
            yield row, size


def _checked(names: list[str], *, path: Path) -> list[str]:
    empty = [str(place) for place, name in enumerate(names, start=1) if not name.strip()]
    if empty:
        raise BadInput(f"source {path}: column {', '.join(empty)} of {len(names)} has no name; name it or remove it")
    seen: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name in seen:
            raise BadInput(f"source {path}: columns {seen[name]} and {place} are both named {name!r}; rename one")
        seen[name] = place
    return names


def _check_alike(first: list[str], other: list[str], *, paths: tuple[Path, Path]) -> None:
    missing, extra = [name for name in first if name not in other], [name for name in other if name not in first]
    if not missing and not extra:
        return
    said = [f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("adds", extra)) if names]
    raise BadInput(f"the files of one source must have the same columns: {paths[1]} {' and '.join(said)}, "
                   f"compared with {paths[0]}")
