"""A batch's way into the ledger: opened, filled chunk by chunk, sealed, or forgotten again."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Row, bindparam, case, delete, func, select, text, update
from sqlalchemy import insert as plain_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.errors import Discarded, NameTaken
from orchestrator.core.lifecycle import LIVE_BATCH, BatchState, ItemState
from orchestrator.core.records import Batch, NewBatch, NewChunk, NewItem, Target
from orchestrator.gateways.ledger import sharing
from orchestrator.gateways.ledger.bulk import write_many
from orchestrator.gateways.ledger.money import hold_terms, note_money, reserve_up_to
from orchestrator.gateways.ledger.session import insert, is_postgresql
from orchestrator.gateways.ledger.tables import FRESH_AT, PENDING, batches, items, outputs, source_chunks
from orchestrator.gateways.ledger.text import clean

ITEM_COLUMNS = ("batch_pk", "idx", "row_id", "input_json", "input_hash", "state", "due_at", "failures", "attempts",
                "tries", "error", "error_class", "share_key", "twin_of")


def batch_of(row: Row[Any]) -> Batch:
    """A row of `batches` as the rest of the program knows it."""
    return Batch(
        pk=row.pk, id=row.id, job=row.job, run_key=row.run_key, account=row.account, state=BatchState(row.state),
        reason=row.reason, created_at=row.created_at, finished_at=row.finished_at,
        target=Target(row.target_endpoint, row.target_name, row.target_version), job_json=row.job_json,
        schema_json=row.openapi_json, source_json=row.source_json, price_json=row.price_json,
        source_schema_json=row.source_schema_json, output_to=row.output_to, in_flight=row.in_flight,
        max_attempts=row.max_attempts, start_limit=row.start_limit, total=row.total, cap_units=row.cap_units,
        spent_units=row.spent_units, reserved_units=row.reserved_units, estimate_json=row.estimate_json,
        attended=bool(row.attended))


async def open_batch(connection: AsyncConnection, new: NewBatch) -> tuple[Batch, bool]:
    """The batch of this run key, made if there is none. Raises NameTaken where another batch has this id."""
    values = {
        "id": new.id, "job": new.job, "run_key": new.run_key, "account": new.account, "state": BatchState.LOADING.value,
        "created_at": new.created_at, "target_endpoint": new.target.endpoint, "target_name": new.target.name,
        "target_version": new.target.version, "job_json": clean(new.job_json), "openapi_json": clean(new.schema_json),
        "source_json": clean(new.source_json), "price_json": new.price_json, "output_to": new.output_to,
        "in_flight": new.in_flight, "max_attempts": new.max_attempts, "cap_units": new.cap_units, "started": 0,
        "spent_units": 0, "reserved_units": 0, "attended": new.attended}
    made = await connection.execute(
        insert(connection, batches).values(values).on_conflict_do_nothing())
    row = (await connection.execute(select(batches).where(batches.c.run_key == new.run_key))).one_or_none()
    if row is None:
        raise NameTaken(f"there is a batch {new.id} already")
    return batch_of(row), made.rowcount == 1


async def batch(connection: AsyncConnection, batch_id: str) -> Batch | None:
    """One batch by its full id."""
    row = (await connection.execute(select(batches).where(batches.c.id == batch_id))).one_or_none()
    return None if row is None else batch_of(row)


async def known(connection: AsyncConnection, run_key: str) -> bool:
    """Whether there is a batch of this run key."""
    return (await connection.execute(select(batches.c.pk).where(batches.c.run_key == run_key))).first() is not None


async def left(connection: AsyncConnection, run_key: str, *, limit: int | None) -> int | None:
    """Rows never started, as far as a limit lets them start."""
    of_key = select(batches.c.pk, batches.c.state, batches.c.started).where(batches.c.run_key == run_key)
    found = (await connection.execute(of_key)).one_or_none()
    if found is None or found.state == BatchState.LOADING.value:
        return None
    rows = int((await connection.execute(select(func.count()).select_from(items).where(
        items.c.batch_pk == found.pk, text(f"items.{PENDING}"), items.c.due_at == FRESH_AT))).scalar_one())
    return rows if limit is None else min(rows, max(0, limit - found.started))


async def live_batches(connection: AsyncConnection) -> list[Batch]:
    """Batches that have not ended, oldest first."""
    rows = await connection.execute(select(batches).where(batches.c.state.in_(sorted(LIVE_BATCH))).order_by(batches.c.pk))
    return [batch_of(row) for row in rows]


async def loaded_rows(connection: AsyncConnection, batch_pk: int) -> int:
    """Rows already in; chunks are whole and come in order."""
    end = (source_chunks.c.first_index + source_chunks.c.rows).label("end")
    last = select(end).where(source_chunks.c.batch_pk == batch_pk).order_by(source_chunks.c.first_index.desc()).limit(1)
    return int((await connection.execute(last)).scalar() or 0)  # not the maximum: it would walk past every chunk's content


async def add_chunk(connection: AsyncConnection, batch_pk: int, chunk: NewChunk) -> None:
    """Snapshot and items. Chunks of one batch enter one after the other, each behind the last: of two runs that load the same
    batch one may take it out again, and a chunk of the other would be a row of no batch, or leave a hole before it."""
    if not await _is_loading(connection, batch_pk) or chunk.first_index < (end := await loaded_rows(connection, batch_pk)):
        return
    if chunk.first_index > end:
        raise Discarded(f"row {end} of the batch and those behind it were taken out while it was loaded")
    snapshot = {"batch_pk": batch_pk, "first_index": chunk.first_index, "rows": len(chunk.items), "blob": chunk.blob}
    await connection.execute(source_chunks.insert().values(snapshot))
    own, twins = await sharing.split(connection, batch_pk, chunk.items)
    await _insert(connection, (_item_values(batch_pk, item) for item in own))
    if twins:
        here = [item for item in twins if item.twin_of is None]
        bought = await sharing.originals(connection, batch_pk, [item.input_hash or "" for item in here])
        await _insert(connection, (_item_values(batch_pk, item, twin_of=item.twin_of or bought[item.input_hash or ""])
                                   for item in twins))
        await sharing.add_copies(connection, Counter(bought[item.input_hash or ""] for item in here))


async def _is_loading(connection: AsyncConnection, batch_pk: int) -> bool:
    """Whether rows may still come in, and nobody else brings or takes some until the transaction ends."""
    state = (await connection.execute(
        select(batches.c.state).where(batches.c.pk == batch_pk).with_for_update())).scalar_one_or_none()
    if state is None:
        raise Discarded("the batch was taken out while it was loaded")
    return bool(state == BatchState.LOADING.value)


async def _insert(connection: AsyncConnection, rows: Iterator[tuple[Any, ...]]) -> None:
    if is_postgresql(connection):
        await _copy(connection, rows)
    else:
        await write_many(connection, _LOAD, [dict(zip(ITEM_COLUMNS, row, strict=True)) for row in rows])


_LOAD = plain_insert(items)


def _item_values(batch_pk: int, item: NewItem, *, twin_of: int | None = None) -> tuple[Any, ...]:
    is_bad = item.error is not None or item.input_json is None
    state = ItemState.FAILED if is_bad else ItemState.PENDING if twin_of is None else ItemState.SHARED
    share_key = item.input_hash if item.shares and twin_of is None else None
    return (batch_pk, item.index, clean(item.row_id), clean(item.input_json), item.input_hash, state.value, FRESH_AT,
            0, 0, 0, clean(item.error), "invalid_input" if is_bad else None, share_key, twin_of)


async def _copy(connection: AsyncConnection, rows: Iterator[tuple[Any, ...]]) -> None:
    """COPY, on the driver's own connection and in the transaction that is already open there."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    async with driver.cursor() as cursor:
        async with cursor.copy(f"COPY items ({', '.join(ITEM_COLUMNS)}) FROM STDIN") as copy:
            for row in rows:
                await copy.write_row(row)


async def seal(connection: AsyncConnection, batch_pk: int, *, total: int, source_schema_json: str,
               estimate_json: str | None = None) -> None:
    """Loading has ended: the batch runs, and what it is expected to cost stays as it is now."""
    if await _is_loading(connection, batch_pk) and (end := await loaded_rows(connection, batch_pk)) != total:
        raise Discarded(f"{total} rows were read, and {end} of them are in the batch")
    await connection.execute(
        update(batches).where(batches.c.pk == batch_pk, batches.c.state == BatchState.LOADING.value)
        .values(state=BatchState.RUNNING.value, total=total, source_schema_json=clean(source_schema_json),
                estimate_json=estimate_json))


async def analyze(connection: AsyncConnection) -> None:
    """Fresh statistics after a load; without them PostgreSQL may walk all of a large batch for one claim."""
    if not is_postgresql(connection):
        await connection.execute(text("PRAGMA analysis_limit = 400"))
    await connection.execute(text("ANALYZE items"))


async def discard_last(connection: AsyncConnection, batch_pk: int) -> bool:
    """Take out the last chunk of a batch that is loading, or the empty batch itself; whether anything is left.

    From the end, and one chunk at a time: transactions stay short, and a death in between leaves a loadable batch."""
    state = (await connection.execute(
        select(batches.c.state).where(batches.c.pk == batch_pk).with_for_update())).scalar_one_or_none()
    if state != BatchState.LOADING.value:
        return False
    last = (await connection.execute(
        select(func.max(source_chunks.c.first_index)).where(source_chunks.c.batch_pk == batch_pk))).scalar()
    if last is None:
        await connection.execute(delete(batches).where(batches.c.pk == batch_pk))
        return False
    await sharing.take_copies(connection, batch_pk, first=last)
    await connection.execute(delete(items).where(items.c.batch_pk == batch_pk, items.c.idx >= last))
    await connection.execute(
        delete(source_chunks).where(source_chunks.c.batch_pk == batch_pk, source_chunks.c.first_index == last))
    return True


async def amend(connection: AsyncConnection, batch_pk: int, *, in_flight: int, max_attempts: int, cap_units: int | None,
                price_json: str, start_limit: int | None, job_json: str, output_to: str | None = None,
                estimate_json: str | None = None, reserve_units: int | None = None) -> None:
    """What may change between two runs of one batch; the output folder only until the first file of it has a name. What was
    bought before reserves no less than what is bought from now on: a cap that comes later counts it."""
    raised: dict[str, tuple[int, int]] = {}
    if reserve_units:
        await hold_terms(connection, batch_pk, changes=True)
        raised = await reserve_up_to(connection, batch_pk, units=reserve_units)
    values: dict[str, Any] = {"in_flight": in_flight, "max_attempts": max_attempts, "cap_units": cap_units,
                              "price_json": price_json, "start_limit": start_limit, "job_json": clean(job_json)}
    if estimate_json is not None:
        values["estimate_json"] = estimate_json
    if output_to is not None:
        await connection.execute(select(batches.c.pk).where(batches.c.pk == batch_pk).with_for_update())
        named = select(outputs.c.item_pk).where(outputs.c.batch_pk == batch_pk)
        values["output_to"] = case((named.exists(), batches.c.output_to), else_=output_to)
    if raised:
        await note_money(connection, batch_pk, raised)
    await connection.execute(update(batches).where(batches.c.pk == batch_pk).values(**values))


async def attend(connection: AsyncConnection, batch_pk: int, *, attended: bool) -> None:
    """Who goes on with the batch (`core.records.Batch`)."""
    await connection.execute(update(batches).where(batches.c.pk == batch_pk).values(attended=attended))


async def lift_limit(connection: AsyncConnection, batch_pk: int, *, start_limit: int) -> None:
    """No start limit any more, if it is still this one."""
    await connection.execute(update(batches).where(batches.c.pk == batch_pk, batches.c.start_limit == start_limit)
                             .values(start_limit=None))


async def note_reason(connection: AsyncConnection, batch_pk: int, reason: str | None) -> None:
    """Why the batch waits. Only of a running one: a pause has its own reason, which says how it ends."""
    await connection.execute(update(batches).where(
        batches.c.pk == batch_pk, batches.c.state == BatchState.RUNNING.value).values(reason=clean(reason)))


async def set_state(connection: AsyncConnection, batch_pk: int, *, to: BatchState, allowed: frozenset[BatchState],
                    reason: str | None, now: datetime) -> bool:
    """A guarded move of the batch itself; an ended batch knows when it ended."""
    is_end = to in (BatchState.FINISHED, BatchState.CANCELED)
    moved = await connection.execute(
        update(batches).where(batches.c.pk == batch_pk, batches.c.state.in_(bindparam("allowed", expanding=True)))
        .values(state=to.value, reason=clean(reason), finished_at=now if is_end else None),
        {"allowed": [state.value for state in allowed]})
    return moved.rowcount == 1
