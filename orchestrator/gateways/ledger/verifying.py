"""What `verify` asks of the ledger: files as they came home, attempts as the provider should show them, owners of predictions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, func, literal, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import AttemptState, ItemState
from orchestrator.core.reckoning import Booked, Unpriced
from orchestrator.core.verify import Bought, HomeFile, HomeRow, Owner
from orchestrator.gateways.ledger.tables import UNPRICED, UtcTime, alive, attempts, batches, items, outputs

AT_ONCE = 400
_UNANSWERED = [state.value for state in (AttemptState.OPEN, AttemptState.UNSURE)]
_FOLDER = "files/"


async def home_of_chunk(connection: AsyncConnection, batch_pk: int, *, first: int, end: int) -> list[HomeRow]:
    """The rows of one chunk that succeeded or have files at home, in order."""
    here = and_(items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.idx < end)
    files: dict[int, list[HomeFile]] = {}
    stored = (select(outputs).join(items, items.c.pk == outputs.c.item_pk)
              .where(here, outputs.c.stored_at.is_not(None), outputs.c.attempt_id == items.c.attempt_id))
    for row in await connection.execute(stored.order_by(items.c.idx, outputs.c.idx)):
        files.setdefault(row.item_pk, []).append(
            HomeFile(row.path, row.bytes, row.sha256, row.media_type, row.source_url, row.idx))
    rows = await connection.execute(
        select(items.c.pk, items.c.idx, items.c.row_id, items.c.state, items.c.completed_at, attempts.c.prediction_id,
               attempts.c.output_json)
        .outerjoin(attempts, attempts.c.id == items.c.attempt_id).where(here).order_by(items.c.idx))
    return [HomeRow(row.idx, row.row_id, ItemState(row.state), row.prediction_id, row.output_json, row.completed_at,
                    tuple(files.get(row.pk, ())))
            for row in rows if row.state == ItemState.SUCCEEDED.value or row.pk in files]


async def known_paths(connection: AsyncConnection, batch_pk: int, paths: Sequence[str]) -> set[str]:
    """Which of these paths are files of the batch. Looked for by the names granted, which have an index."""
    known: set[str] = set()
    for start in range(0, len(paths), AT_ONCE):
        some = paths[start:start + AT_ONCE]
        rows = await connection.execute(select(outputs.c.path).join(items, items.c.pk == outputs.c.item_pk).where(
            outputs.c.batch_pk == batch_pk, outputs.c.name_key.in_(sorted({_key(path) for path in some})),
            outputs.c.stored_at.is_not(None), outputs.c.attempt_id == items.c.attempt_id))
        known |= {row.path for row in rows}
    return known.intersection(paths)


def _key(path: str) -> str:
    """The name that was granted for a path: without folder and extension."""
    return path.removeprefix(_FOLDER).rpartition(".")[0].casefold()


async def bought_of_chunk(connection: AsyncConnection, batch_pk: int, *, first: int, end: int) -> list[Bought]:
    """The attempts of one chunk's rows, in order."""
    rows = await connection.execute(
        select(attempts.c.id, items.c.idx, items.c.row_id, attempts.c.n, attempts.c.state, attempts.c.prediction_id,
               attempts.c.created_at, attempts.c.offset_s)
        .join(items, items.c.pk == attempts.c.item_pk)
        .where(items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.idx < end).order_by(items.c.idx, attempts.c.n))
    return [Bought(*row) for row in rows]


async def owners(connection: AsyncConnection, *, prediction_ids: Sequence[str], attempt_ids: Sequence[str]) -> list[Owner]:
    """Attempts by prediction and by their own id."""
    found: list[Owner] = []
    for column, wanted in ((attempts.c.prediction_id, prediction_ids), (attempts.c.id, attempt_ids)):
        for start in range(0, len(wanted), AT_ONCE):
            rows = await connection.execute(_owners().where(column.in_(wanted[start:start + AT_ONCE])))
            found += [Owner(*row) for row in rows]
    return found


def _owners() -> Any:
    return (select(attempts.c.id, batches.c.id, items.c.idx, items.c.row_id, attempts.c.n, attempts.c.state,
                   attempts.c.prediction_id, attempts.c.input_hash)
            .join(items, items.c.pk == attempts.c.item_pk).join(batches, batches.c.pk == attempts.c.batch_pk))


async def rows_of_inputs(connection: AsyncConnection, batch_pk: int, hashes: Sequence[str]) -> dict[str, tuple[int, str]]:
    """A row for each of these inputs, where there is one. Reads through all rows: there is no index of inputs."""
    found: dict[str, tuple[int, str]] = {}
    for start in range(0, len(hashes), AT_ONCE):
        rows = await connection.execute(
            select(items.c.input_hash, items.c.idx, items.c.row_id).order_by(items.c.idx.desc())
            .where(items.c.batch_pk == batch_pk, items.c.input_hash.in_(hashes[start:start + AT_ONCE])))
        found |= {row.input_hash: (row.idx, row.row_id) for row in rows}
    return found


async def unanswered_since(connection: AsyncConnection, account: str) -> datetime | None:
    """Since when an answer has been out, or in doubt."""
    found: datetime | None = (await connection.execute(select(func.min(attempts.c.created_at)).where(
        alive("attempts"), attempts.c.account == account, attempts.c.state.in_(_UNANSWERED)))).scalar()
    return found



def _booked(*, with_input: bool) -> Any:
    """What the charge of an attempt is, and what it was reckoned from. The input only where no price is kept beside it: it may be
    long, and is asked for where the charge is to be reckoned at the batch's price."""
    given: Any = case((attempts.c.charge_unit.is_(None), items.c.input_json)) if with_input else literal(None)
    ended_at = func.coalesce(attempts.c.completed_at, attempts.c.answered_at, attempts.c.created_at, type_=UtcTime)
    return (select(attempts.c.batch_pk, items.c.idx, items.c.row_id, attempts.c.n, attempts.c.state, attempts.c.prediction_id,
                   ended_at, attempts.c.charge_units, attempts.c.charge_basis, attempts.c.charge_unit, attempts.c.charge_quantity,
                   attempts.c.charge_price, attempts.c.charge_price_id, attempts.c.charge_quantity_out,
                   attempts.c.charge_price_out, given)
            .join(items, items.c.pk == attempts.c.item_pk))


async def unpriced(connection: AsyncConnection, batch_pk: int, *, after: tuple[int, int], limit: int) -> list[Unpriced]:
    """Predictions that ended at a cost nobody knows, in the order of their rows, those behind this row and try."""
    of = attempts.c
    rows = await connection.execute(
        select(of.item_pk, of.n, of.prediction_id, of.status, of.output_json, of.metrics_json, items.c.input_json)
        .join(items, items.c.pk == of.item_pk)
        .where(of.batch_pk == batch_pk, text(UNPRICED.replace("state", "attempts.state")), of.status.is_not(None),
               of.prediction_id.is_not(None), or_(of.item_pk > after[0], and_(of.item_pk == after[0], of.n > after[1])))
        .order_by(of.item_pk, of.n).limit(limit))
    return [Unpriced(*row) for row in rows]


async def booked_of_chunk(connection: AsyncConnection, batch_pk: int, *, first: int, end: int) -> list[Booked]:
    """The charges of one chunk's attempts, in order."""
    here = and_(items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.idx < end)
    return [Booked(*row) for row in await connection.execute(
        _booked(with_input=False).where(here).order_by(items.c.idx, attempts.c.n))]


async def booked_of(connection: AsyncConnection, prediction_ids: Sequence[str], *, with_input: bool) -> dict[str, Booked]:
    """The charges of these predictions, of whichever batch."""
    found: dict[str, Booked] = {}
    for start in range(0, len(prediction_ids), AT_ONCE):
        some = prediction_ids[start:start + AT_ONCE]
        rows = await connection.execute(_booked(with_input=with_input).where(attempts.c.prediction_id.in_(some)))
        found |= {row.prediction_id: Booked(*row) for row in rows}
    return found
