"""`core.ports.Tables` on local files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from orchestrator.core.ports import ResultsTable
from orchestrator.core.records import RowChunk, SourceFile
from orchestrator.gateways.rows.durable import ManifestWriter, write_json
from orchestrator.gateways.rows.reading import columns_of, read
from orchestrator.gateways.rows.results import ResultFormat, ResultsWriter
from orchestrator.gateways.rows.schema import SourceSchema
from orchestrator.gateways.rows.sources import fingerprint, resolve


class FileTables:
    """Sources and results as files on this machine. Everything blocks; call it in a thread."""

    def resolve(self, pattern: str, *, base: str) -> list[str]:
        """The files meant by a path or glob, relative to `base`, sorted. Raises BadInput."""
        return [str(path) for path in resolve(pattern, base=Path(base))]

    def fingerprint(self, paths: Sequence[str]) -> list[SourceFile]:
        """Size and sha256 of each, streamed."""
        return fingerprint([Path(path) for path in paths])

    def columns(self, paths: Sequence[str]) -> list[str]:
        """The columns' names. Raises BadInput."""
        return columns_of([Path(path) for path in paths])

    def read(self, paths: Sequence[str], *, chunk_rows: int) -> Iterator[RowChunk]:
        """All rows, in bounded chunks."""
        return read([Path(path) for path in paths], chunk_rows=chunk_rows)

    def merge_schema(self, source_schema_json: str | None, blob: bytes) -> str:
        """The schema so far, widened by one more chunk."""
        known = None if source_schema_json is None else SourceSchema.from_json(source_schema_json)
        return SourceSchema.merge(known, blob).to_json()

    def empty_schema(self, columns: Sequence[str]) -> str:
        """The schema of a source without rows."""
        return SourceSchema.of_columns(columns).to_json()

    def results(self, path: str, *, kind: str, source_schema_json: str) -> ResultsTable:
        """A new results file."""
        schema = SourceSchema.from_json(source_schema_json)
        return ResultsWriter(Path(path), format=cast(ResultFormat, kind), schema=schema)

    @contextmanager
    def lines(self, path: str) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A new JSON-lines file."""
        with ManifestWriter(Path(path)) as manifest:
            yield manifest.write

    def document(self, path: str, value: dict[str, Any]) -> None:
        """A JSON document, written atomically."""
        write_json(Path(path), value)
