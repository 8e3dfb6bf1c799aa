"""An invoice laid beside the ledger. Reads only, in bounded memory, whatever the length of the file."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC

from orchestrator.core.beside import NO_MODEL, Beside, Pile
from orchestrator.core.cost import to_units
from orchestrator.core.errors import BadInput
from orchestrator.core.invoice import PREDICTION, Columns, InvoiceLine, columns_of, line_of, model_in
from orchestrator.core.nearest import did_you_mean, listed
from orchestrator.core.ports import Rooms
from orchestrator.core.reckoning import Booked
from orchestrator.core.records import RowChunk
from orchestrator.core.spending import BatchNames
from orchestrator.flow.threads import in_threads

LINES_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be laid beside what: a file, its columns as the user says them, and of the ledger days (None: those that the
    file has, or all) and an account (None: the only one)."""

    path: str
    said: Mapping[str, str] = field(default_factory=dict)
    first: str | None = None
    last: str | None = None
    account: str | None = None


@dataclass(frozen=True, slots=True)
class Laid:
    """Both sides, how the file was read, and of which days and account the ledger's is."""

    beside: Beside
    columns: Columns
    first: str | None
    last: str | None
    account: str | None


@dataclass(slots=True)
class _Table:
    """What is at hand while both sides are read."""

    rooms: Rooms
    request: Request
    columns: Columns
    batches: dict[int, BatchNames]
    models: dict[str, str]  # of the ledger, by folded name
    beside: Beside = field(default_factory=Beside)


async def lay_beside(rooms: Rooms, request: Request) -> Laid:
    """Read the invoice, then the ledger. Raises BadInput, with the line, for a file that cannot be read for certain."""
    account = await _account(rooms, request.account)
    batches = {names.pk: names for names in await rooms.ledger.batch_names()}
    try:
        columns = columns_of(await asyncio.to_thread(rooms.tables.columns, [request.path]), request.said)
        table = _Table(rooms, request, columns, batches, {names.model.casefold(): names.model for names in batches.values()})
        async for chunk in in_threads(lambda: rooms.tables.read([request.path], chunk_rows=LINES_AT_ONCE)):
            await _lines(table, chunk)
    except BadInput as error:
        raise BadInput(f"invoice {request.path}: {str(error).removeprefix(f'source {request.path}: ')}") from error
    first, last = request.first or table.beside.first, request.last or table.beside.last
    await _bought(table, account=account, first=first, last=last)
    return Laid(table.beside, columns, first, last, account)


async def _account(rooms: Rooms, named: str | None) -> str | None:
    """Whose purchases are meant: an invoice is one account's."""
    known = await rooms.ledger.accounts()
    if named is not None and named not in known:
        raise BadInput(f"--account {named}: nothing here was bought by it{did_you_mean(named, known)}; there are {listed(known)}")
    if named is None and len(known) > 1:
        raise BadInput(f"this ledger has purchases of several accounts; say whose invoice it is: --account {known[0]} (there are "
                       f"{listed(known)})")
    return named or next(iter(known), None)


async def _lines(table: _Table, chunk: RowChunk) -> None:
    """Some lines of the invoice, each under its model; those that name a prediction of the ledger under that one's."""
    beside, lines = table.beside, _read(table, chunk)
    booked = await table.rooms.ledger.booked_of([line.prediction_id for line in lines if line.prediction_id is not None])
    booked = {id_: one for id_, one in booked.items() if one.batch_pk in table.batches}  # else of a batch begun just now
    for line in lines:
        known = booked.get(line.prediction_id or "")
        model = _model(table, line) if known is None else table.batches[known.batch_pk].model
        beside.add_line(line, model)
        if known is not None:
            beside.billed.add(known, line.usd)
        elif line.prediction_id is not None:
            beside.add_stranger(line, model)


def _read(table: _Table, chunk: RowChunk) -> list[InvoiceLine]:
    lines, beside = [], table.beside
    for row in chunk.rows:
        number = row.index + 1 if row.line is None else row.line
        if row.problem is not None:
            raise BadInput(f"line {number}: {row.problem}")
        line = line_of(row.cells, table.columns, line=number)
        if line is None:
            beside.empty += 1
        elif _is_outside(line, table.request):
            beside.outside += 1
        else:
            lines.append(line)
    return lines


def _is_outside(line: InvoiceLine, request: Request) -> bool:
    if line.day is None:
        return False
    return (request.first is not None and line.day < request.first) or (request.last is not None and line.day > request.last)


def _model(table: _Table, line: InvoiceLine) -> str:
    if line.model is None:
        return NO_MODEL
    found = model_in(line.model, table.models)
    if found is not None:
        table.beside.rename(line.model, found)
    return found or line.model


async def _bought(table: _Table, *, account: str | None, first: str | None, last: str | None) -> None:
    """The ledger's side: sums where the invoice has sums, else attempt by attempt."""
    spent = await table.rooms.ledger.spent_by_batch_and_day(account=account, first=first, last=last)
    spent = [one for one in spent if one[0] in table.batches]
    if PREDICTION not in table.columns.taken:
        for pk, day, some in spent:
            names = table.batches[pk]
            table.beside.add_bought(names.model, day, _pile(
                names, units=some.units, predictions=some.predictions, unknown_rows=some.unknown_rows))
        return
    for pk in sorted({pk for pk, _, _ in spent} | set(table.beside.billed.seen)):
        async for chunk in table.rooms.ledger.booked(pk):
            _compare(table, chunk, first=first, last=last)


def _compare(table: _Table, chunk: Sequence[Booked], *, first: str | None, last: str | None) -> None:
    """What was billed counts whenever it ended; of the rest, what ended on the days that are asked for."""
    unknown_row: int | None = None  # of whose attempts one was counted already
    for booked in chunk:
        names, day = table.batches[booked.batch_pk], booked.at.astimezone(UTC).date().isoformat()
        is_in = (first is None or day >= first) and (last is None or day <= last)
        if not is_in and table.beside.billed.of(booked) is None:
            continue
        is_unknown = booked.units is None and booked.is_over and booked.row != unknown_row
        unknown_row = booked.row if is_unknown else unknown_row
        table.beside.add_bought(names.model, day, _pile(
            names, units=booked.units or 0, predictions=booked.prediction_id is not None, unknown_rows=int(is_unknown)))
        table.beside.compare(booked, model=names.model, batch=names.id)


def _pile(names: BatchNames, *, units: int, predictions: int, unknown_rows: int) -> Pile:
    """Some of a batch: what is known, the rows of unknown cost, and what such rows were expected to cost, where somebody said."""
    per_row = None if names.expected is None else names.expected.expected.usd
    expected = (0, 0) if per_row is None else (to_units(per_row * unknown_rows), unknown_rows)
    return Pile(ledger_units=units, predictions=predictions, unknown_rows=unknown_rows, expected_units=expected[0],
                expected_rows=expected[1])
