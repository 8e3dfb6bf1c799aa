"""`core.ports.Tables` on local files.

What reads and writes tables is imported when it is first called: pyarrow is a tenth of a process's start, and most of the
processes of a run never touch a table.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestrator.core.ports import ResultsTable
from orchestrator.core.records import RowChunk, SourceFile
from orchestrator.gateways.rows.durable import ManifestWriter, write_json
from orchestrator.gateways.rows.sources import fingerprint, resolve

if TYPE_CHECKING:
    from orchestrator.gateways.rows.results import ResultFormat


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
        from orchestrator.gateways.rows.reading import columns_of

        return columns_of([Path(path) for path in paths])

    def read(self, paths: Sequence[str], *, chunk_rows: int) -> Iterator[RowChunk]:
        """All rows, in bounded chunks."""
        from orchestrator.gateways.rows.reading import read

        return read([Path(path) for path in paths], chunk_rows=chunk_rows)

    def merge_schema(self, source_schema_json: str | None, blob: bytes) -> str:
        """The schema so far, widened by one more chunk."""
        from orchestrator.gateways.rows.schema import SourceSchema

        known = None if source_schema_json is None else SourceSchema.from_json(source_schema_json)
        return SourceSchema.merge(known, blob).to_json()

    def empty_schema(self, columns: Sequence[str]) -> str:
        """The schema of a source without rows."""
        from orchestrator.gateways.rows.schema import SourceSchema

        return SourceSchema.of_columns(columns).to_json()

    def results(self, path: str, *, kind: str, source_schema_json: str) -> ResultsTable:
        """A new results file."""
        from orchestrator.gateways.rows.results import ResultsWriter
        from orchestrator.gateways.rows.schema import SourceSchema

        return ResultsWriter(Path(path), format=cast("ResultFormat", kind), schema=SourceSchema.from_json(source_schema_json))

    @contextmanager
    def lines(self, path: str) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A new JSON-lines file."""
        with ManifestWriter(Path(path)) as manifest:
            yield manifest.write

    def document(self, path: str, value: dict[str, Any]) -> None:
        """A JSON document, written atomically."""
        write_json(Path(path), value)

    def column(self, blob: bytes, name: str) -> list[str | None]:
        """One column of a chunk's snapshot, as text."""
        from orchestrator.gateways.rows.reports import column

        return column(blob, name)

    def entries(self, path: str) -> Iterator[list[dict[str, Any]]]:
        """A JSON-lines file, read back."""
        from orchestrator.gateways.rows import written

        return written.entries(Path(path))

    def cells(self, path: str, *, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """A results file, read back."""
        from orchestrator.gateways.rows import written

        return written.cells(Path(path), columns)
