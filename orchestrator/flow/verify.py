"""Do files, documents and ledger agree? Reads only, in constant memory; a missing file may be fetched again where it is kept."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.core.errors import BadInput, CollectError, OutputBroken
from orchestrator.core.findings import Finding, Kind
from orchestrator.core.inputs import OutputShape, shape_of
from orchestrator.core.lifecycle import FINAL_ITEM, LIVE_BATCH, BatchState, ItemState
from orchestrator.core.ports import Rooms, Storage
from orchestrator.core.records import Batch
from orchestrator.core.results import result_row
from orchestrator.core.verify import (
    MANIFEST_FIELDS,
    RESULT_FIELDS,
    Document,
    HomeFile,
    HomeRow,
    Pairing,
    Report,
    judge_file,
    judge_open,
    judge_row,
    kept_until,
    line_of,
    result_line,
)
from orchestrator.flow.listing import provider_now
from orchestrator.flow.report import results_path
from orchestrator.flow.threads import in_threads
from orchestrator.flow.verify_charges import verify_charges

T = TypeVar("T")
FILES_AT_ONCE, BYTES_AT_ONCE = 64, 8 * 1024 * 1024  # of one errand to a thread
THREADS = 4
LINES_AT_ONCE = 1000
OWN_NAMES = ("manifest.jsonl", "summary.json")
UNFINISHED = ".incoming-"  # how the names of files begin that are being written

Errand = tuple[HomeRow, HomeFile]
Told = Callable[[Report], None]


async def verify_home(rooms: Rooms, batch: Batch, *, fetch: bool = False, told: Told = lambda _: None) -> Report:
    """Every file that came home against its hash, the documents against the ledger, and the names that nobody knows.

    `fetch`: what is missing is fetched again while the provider keeps it, and taken only if it is what came home. `told` hears
    of each thousand rows. Raises BadInput for a batch that is still loading."""
    if batch.state is BatchState.LOADING:
        raise BadInput(f"batch {batch.id} is still loading: there is nothing to verify yet")
    results = results_path(batch)
    report = Report(Document(str(Path(batch.output_to) / "manifest.jsonl")), Document(results))
    storage, shape = rooms.storage(batch.output_to), shape_of(batch.schema_json)
    async for rows in rooms.ledger.home(batch.pk):
        for row in rows:
            report.findings.add(judge_row(row, outputs=_outputs(shape, row)))
        await _files(rooms, batch, storage, rows, report, fetch=fetch)
        told(report)
    if batch.state not in LIVE_BATCH:
        by_state = (await rooms.ledger.counts(batch.pk)).by_state
        for finding in judge_open(by_state, remedy=f"orchestrator retry {batch.id}"):
            report.findings.add(finding)
    report.elsewhere = await rooms.ledger.shared_with(batch.pk)
    await verify_charges(rooms, batch, report)
    await _strangers(rooms, batch, storage, report)
    await _documents(rooms, batch, report)
    return report


def _outputs(shape: OutputShape, row: HomeRow) -> int:
    return 0 if row.output_json is None or row.state is not ItemState.SUCCEEDED else len(shape.files(json.loads(row.output_json)))


async def _files(rooms: Rooms, batch: Batch, storage: Storage, rows: Sequence[HomeRow], report: Report, *, fetch: bool) -> None:
    """The files of these rows, some errands at once; what is wrong is noted in their order."""
    groups = list(_groups((row, file) for row in rows for file in row.files))
    threads, there = asyncio.Semaphore(THREADS), await provider_now(rooms, batch.account)

    async def judged(group: list[Errand]) -> list[Finding | None]:
        async with threads:
            seen = await storage.measure([(file.path, file.bytes) for _, file in group])
        return [judge_file(row, file, found, remedy=_remedy(rooms, batch, row, file, there=there))
                for (row, file), found in zip(group, seen, strict=True)]

    for group, findings in zip(groups, await asyncio.gather(*(judged(group) for group in groups)), strict=True):
        report.files += len(group)
        report.bytes += sum(file.bytes for _, file in group)
        for (row, file), finding in zip(group, findings, strict=True):
            if fetch and finding is not None and finding.kind is Kind.MISSING:
                report.findings.add(await _fetched(rooms, storage, row, file, finding, report))
            else:
                report.findings.add(finding)


def _groups(errands: Iterable[Errand]) -> Iterator[list[Errand]]:
    """A few megabytes for each: one hop to a thread for many small files."""
    group: list[Errand] = []
    for errand in errands:
        group.append(errand)
        if len(group) >= FILES_AT_ONCE or sum(file.bytes for _, file in group) >= BYTES_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _remedy(rooms: Rooms, batch: Batch, row: HomeRow, file: HomeFile, *, there: datetime) -> str:
    """What brings a lost file back. `there`: the provider's time."""
    if row.state not in FINAL_ITEM and batch.state in LIVE_BATCH:
        return "its row is still on its way, and brings it"
    if row.state is not ItemState.SUCCEEDED:
        return f"its row failed, and comes back with: orchestrator retry {batch.id}"
    until = kept_until(row, now=there, retention_s=rooms.tempo.retention_s)
    if until is not None and file.source_url.startswith("http"):
        return f"orchestrator verify {batch.id} --fetch brings it back until {until:%H:%M} UTC, when the provider deletes it"
    return "the provider has deleted it: only buying this row again, in a new batch, brings such a file"


async def _fetched(rooms: Rooms, storage: Storage, row: HomeRow, file: HomeFile, finding: Finding,
                   report: Report) -> Finding | None:
    """A missing file fetched again; what is wrong if that did not work."""
    if not file.source_url.startswith("http"):
        return finding
    try:
        async with rooms.outputs.fetch(file.source_url) as fetched:
            await storage.put(file.path, _the_same(fetched.chunks, file), length=fetched.length)
    except (CollectError, OSError) as error:
        return Finding(finding.kind, f"is missing, and could not be fetched: {error}", row.row, row.row_id, file.path,
                       row.prediction_id, finding.remedy)
    report.fetched += 1
    return None


async def _the_same(chunks: AsyncIterator[bytes], file: HomeFile) -> AsyncIterator[bytes]:
    """The bytes as they come; other bytes than came home before are refused before their file appears."""
    found = hashlib.sha256()
    async for chunk in chunks:
        found.update(chunk)
        yield chunk
    if found.hexdigest() != file.sha256:
        raise OutputBroken("what the provider has there now is not what came home")


async def _strangers(rooms: Rooms, batch: Batch, storage: Storage, report: Report) -> None:
    """Names in the output folder that this batch does not know. They are named, and no error."""
    own = {*OWN_NAMES, Path(results_path(batch)).name}
    async for names in storage.names():
        candidates = [name for name in names if name not in own and not _is_being_written(name, batch)]
        known = await rooms.ledger.known_paths(batch.pk, candidates)
        report.add_strangers(name for name in candidates if name not in known)


def _is_being_written(name: str, batch: Batch) -> bool:
    return batch.state in LIVE_BATCH and name.rpartition("/")[2].startswith(UNFINISHED)


async def _documents(rooms: Rooms, batch: Batch, report: Report) -> None:
    """Manifest and results of a batch that has ended; of one that goes on they tell of an earlier moment."""
    if batch.state in LIVE_BATCH:
        report.manifest.why_not = report.results.why_not = "the batch goes on: it is written when it ends"
        return
    shape, hidden = shape_of(batch.schema_json), batch.target.version is None
    rows = ([line_of(result_row(item, shape=shape, hidden=hidden)) for item in items]
            async for _, items in rooms.ledger.results(batch.pk))
    written = ([{name: line.get(name) for name in MANIFEST_FIELDS} for line in lines]
               async for lines in in_threads(lambda: rooms.tables.entries(report.manifest.path)))
    cells = ([result_line(line) for line in lines]
             async for lines in in_threads(lambda: rooms.tables.cells(report.results.path, columns=RESULT_FIELDS)))
    await _document(batch, report, report.manifest, Kind.MANIFEST, "path", written=written,
                    known=_chunks(rooms.ledger.manifest(batch.pk)))
    await _document(batch, report, report.results, Kind.RESULTS, "prediction_index", written=cells, known=rows)


async def _document(batch: Batch, report: Report, document: Document, kind: Kind, key: str, *,
                    written: AsyncIterator[list[dict[str, Any]]], known: AsyncIterator[list[dict[str, Any]]]) -> None:
    remedy, name = f"orchestrator export {batch.id} writes it anew", Path(document.path).name

    def found(text: str, line: Any = None) -> None:
        about = (line or {}).get("path") if kind is Kind.MANIFEST else None
        row = line[key] if line and kind is Kind.RESULTS and isinstance(line[key], int) else None
        report.findings.add(Finding(kind, f"{name} {text}", row, path=about, remedy=remedy))

    try:
        pairing = await _paired(document, key, found, written=written, known=known)
    except FileNotFoundError:
        found("is missing")
    except (BadInput, OSError) as error:
        found(f"cannot be read: {error}")
    else:
        _leftovers(pairing, found)


def _leftovers(pairing: Pairing[Hashable], found: Callable[..., None]) -> None:
    """Lines that are on one side only."""
    if pairing.gave_up:
        found("is of another moment than the ledger")
        return
    for line in pairing.written.values():
        found("has a line that the ledger does not have", line)
    for line in pairing.known.values():
        found("lacks a line that the ledger has", line)


async def _paired(document: Document, key: str, found: Callable[..., None], *, written: AsyncIterator[list[dict[str, Any]]],
                  known: AsyncIterator[list[dict[str, Any]]]) -> Pairing[Hashable]:
    """Both read in step, some lines of the one and some of the other."""
    pairing, sides = Pairing[Hashable](), [written, known]
    adders = {id(written): pairing.add_written, id(known): pairing.add_known}
    while sides and not pairing.gave_up:
        for side in list(sides):
            lines = await anext(side, None)
            if lines is None:
                sides.remove(side)
                continue
            document.lines += len(lines) if side is written else 0
            for line in lines:
                if differing := adders[id(side)](line[key], line):
                    found(f"says another {', '.join(differing)} than the ledger", line)
    return pairing


async def _chunks(lines: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    some: list[T] = []
    async for line in lines:
        some.append(line)
        if len(some) >= LINES_AT_ONCE:
            yield some
            some = []
    if some:
        yield some
