"""Reads for pages, commands and reports: straight SQL, each function named for the question it answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from statistics import quantiles
from typing import Any

from sqlalchemy import Row, and_, case, exists, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.caps import Bound, Cap, Scope
from orchestrator.core.caps import shared as shared_caps
from orchestrator.core.cost import to_usd
from orchestrator.core.errors import BadInput
from orchestrator.core.lifecycle import FINAL_ITEM, IN_AIR_ITEM, AttemptState, ItemState
from orchestrator.core.records import Batch, Counts, ItemResult, Surplus
from orchestrator.gateways.ledger.loading import batch_of
from orchestrator.gateways.ledger.money import bounds
from orchestrator.gateways.ledger.sharing import IS_ORIGIN, ORIGIN, by_state, stands_in, told
from orchestrator.gateways.ledger.tables import (
    FRESH_AT,
    PENDING,
    SURPLUS,
    UNPRICED,
    alive,
    attempts,
    batches,
    items,
    outputs,
    source_chunks,
)


@dataclass(frozen=True, slots=True)
class ItemView:
    """One line of `items`: where a row stands. `charge_units` as in `ItemResult`; `due_at` only of a row that waits; `shares_row`
    only of one that shares what another row buys, `shares_batch` where that is of an earlier batch."""

    index: int
    row_id: str
    state: ItemState
    prediction_id: str | None
    error: str | None
    error_class: str | None
    charge_units: int | None
    seconds: float | None
    attempts: int
    due_at: datetime | None
    shares_row: int | None = None
    shares_batch: str | None = None
    is_estimate: bool = False  # part of its charge is


@dataclass(frozen=True, slots=True)
class WaitingView:
    """Rows that wait: those that may go now, those that may not yet, and when the first of these may."""

    due: int
    later: int
    next_due_at: datetime | None


@dataclass(frozen=True, slots=True)
class LatencyView:
    """How long ended predictions took at the provider, seconds: half of them at most `p50_s`, nine in ten `p90_s`."""

    count: int
    p50_s: float
    p90_s: float


@dataclass(frozen=True, slots=True)
class CanceledView:
    """What canceling came to. Rows: never bought, or withdrawn while they waited for another attempt. Predictions that were
    ended: how many, what those with a price cost until then, and how many have none."""

    never_bought: int
    between: int
    ended: int
    ended_usd: Decimal
    ended_unknown: int


async def newest_batches(connection: AsyncConnection, *, limit: int) -> list[Batch]:
    """The latest batches, newest first."""
    rows = await connection.execute(select(batches).order_by(batches.c.pk.desc()).limit(limit))
    return [batch_of(row) for row in rows]


async def find(connection: AsyncConnection, name: str) -> Batch:
    """The batch meant by an id, by a unique beginning of one, or by a job's name (its latest). Raises BadInput."""
    exact = (await connection.execute(select(batches).where(batches.c.id == name))).one_or_none()
    if exact is not None:
        return batch_of(exact)
    of_job = (await connection.execute(
        select(batches).where(batches.c.job == name).order_by(batches.c.pk.desc()).limit(1))).one_or_none()
    if of_job is not None:
        return batch_of(of_job)
    begins = func.substr(batches.c.id, 1, len(name)) == name
    begin = (await connection.execute(select(batches).where(begins).order_by(batches.c.pk.desc()).limit(6))).all()
    if name and len(begin) == 1:
        return batch_of(begin[0])
    if name and begin:
        raise BadInput(f"{name!r} begins several batches: {', '.join(row.id for row in begin[:5])}"
                       f"{' and more' if len(begin) > 5 else ''}; type more of the id")
    raise BadInput(await _unknown(connection, name))


async def _unknown(connection: AsyncConnection, name: str) -> str:
    newest = select(batches.c.id, batches.c.job).order_by(batches.c.pk.desc()).limit(1000)
    rows = (await connection.execute(newest)).all()
    if not rows:
        return f"there is no batch {name!r}: this ledger is empty; `orchestrator run JOB` starts one"
    known = list(dict.fromkeys([row.job for row in rows] + [row.id for row in rows]))
    near = get_close_matches(name, known, n=3) or [rows[0].id]
    return f"there is no batch or job {name!r} in this ledger; the nearest: {', '.join(near)}"


async def counts(connection: AsyncConnection, batch_pk: int) -> Counts:
    """Items by state, and money. Unknown: what ended at the provider without a price, and what may have been bought."""
    states, shared, earlier = await by_state(connection, batch_pk)
    money = (await connection.execute(
        select(batches.c.spent_units, batches.c.reserved_units, batches.c.started).where(batches.c.pk == batch_pk))).one()
    unknown = (await connection.execute(select(func.count(attempts.c.item_pk.distinct())).where(
        attempts.c.batch_pk == batch_pk, text(UNPRICED)))).scalar_one()
    tried_before = (await connection.execute(select(func.count()).where(
        items.c.batch_pk == batch_pk, text(f"items.{PENDING}"), items.c.due_at > FRESH_AT, items.c.attempts > 0))).scalar_one()
    return Counts(states, to_usd(money.spent_units), to_usd(money.reserved_units), int(unknown), shared, earlier,
                  int(money.started), int(tried_before))


async def items_of(connection: AsyncConnection, batch_pk: int, *, state: ItemState | None, after_idx: int,
                   limit: int) -> list[ItemView]:
    """A page of rows in order, those behind `after_idx` (-1: from the first)."""
    query = _with_attempt().where(items.c.batch_pk == batch_pk, items.c.idx > after_idx)
    if state is not None:
        query = query.where(stands_in(state))
    rows = (await connection.execute(query.order_by(items.c.idx).limit(limit))).all()
    pks = [row.pk for row in rows]
    charges, estimated = await _charges(connection, pks), await _estimated(connection, pks)
    earlier = {pk: batch_id for pk, (batch_id, _) in (await _earlier(connection, rows, batch_pk=batch_pk)).items()}
    return [ItemView(row.idx, row.row_id, ItemState(row.state), row.prediction_id, row.error, row.error_class,
                     _charge(row, charges), row.seconds, row.attempts,
                     row.due_at if row.state == ItemState.PENDING.value and row.due_at > FRESH_AT else None,
                     row.origin_idx, earlier.get(row.origin_batch), row.pk in estimated) for row in rows]


async def _estimated(connection: AsyncConnection, item_pks: Sequence[int]) -> set[int]:
    """The rows of which some charge is only an estimate."""
    found: set[int] = set()
    for start in range(0, len(item_pks), 1000):
        rows = await connection.execute(select(attempts.c.item_pk).distinct().where(
            attempts.c.item_pk.in_(item_pks[start:start + 1000]), attempts.c.charge_basis == "estimate"))
        found |= set(rows.scalars())
    return found


async def _earlier(connection: AsyncConnection, rows: Sequence[Row[Any]], *, batch_pk: int) -> dict[int, tuple[str, str]]:
    """Id and output folder of the other batches that bought what these rows share."""
    pks = sorted({row.origin_batch for row in rows} - {batch_pk, None})
    if not pks:
        return {}
    found = await connection.execute(select(batches.c.pk, batches.c.id, batches.c.output_to).where(batches.c.pk.in_(pks)))
    return {row.pk: (row.id, row.output_to) for row in found}


# Attempts that reached nobody, or bought nothing for a reason that was not the row's own: a deploy, an outage, a 429.
_IDLE = attempts.alias("idle")
_NOT_COUNTED = select(func.count()).where(_IDLE.c.item_pk == items.c.pk, or_(
    _IDLE.c.state.in_([AttemptState.NOT_SENT.value, AttemptState.ABSENT.value]),
    _IDLE.c.error_class.in_(["throttled", "credit", "token"]))).correlate(items).scalar_subquery()
_ENDED_AT_ONCE = and_(items.c.attempts == 1, items.c.state == ItemState.SUCCEEDED.value)  # nearly all rows: nothing to look up
_TRIED = case((or_(items.c.attempts == 0, _ENDED_AT_ONCE), items.c.attempts), else_=items.c.attempts - _NOT_COUNTED)


def _with_attempt() -> Any:
    """Rows as they are told: one that shares has the state of its original, and what that one's attempt gave."""
    return select(
        items.c.pk, items.c.idx, items.c.row_id, items.c.twin_of, _TRIED.label("attempts"), ORIGIN.c.idx.label("origin_idx"),
        ORIGIN.c.batch_pk.label("origin_batch"), *(told(name).label(name) for name in _TOLD), attempts.c.prediction_id,
        attempts.c.output_json, attempts.c.seconds, attempts.c.version,
    ).select_from(items.outerjoin(ORIGIN, IS_ORIGIN)).outerjoin(attempts, attempts.c.id == told("attempt_id"))


_TOLD = ("state", "error", "error_class", "due_at", "attempt_id")


def _charge(row: Row[Any], charges: dict[int, int | None]) -> int | None:
    """A row that shares is known to cost nothing, once it is known how it ended."""
    if row.twin_of is None:
        return charges.get(row.pk)
    return 0 if ItemState(row.state) in FINAL_ITEM else None


async def _charges(connection: AsyncConnection, item_pks: Sequence[int]) -> dict[int, int | None]:
    """Per item the sum over its attempts; None where one of them has no price (yet)."""
    found: dict[int, int | None] = {}
    for start in range(0, len(item_pks), 1000):
        rows = await connection.execute(
            select(attempts.c.item_pk, func.sum(attempts.c.charge_units).label("units"),
                   (func.count() - func.count(attempts.c.charge_units)).label("unknown"))
            .where(attempts.c.item_pk.in_(item_pks[start:start + 1000])).group_by(attempts.c.item_pk))
        found |= {row.item_pk: None if row.unknown else int(row.units) for row in rows}
    return found


async def chunk_places(connection: AsyncConnection, batch_pk: int) -> list[tuple[int, int]]:
    """(first index, one behind the last) of every chunk of the source, in order."""
    rows = await connection.execute(
        select(source_chunks.c.first_index, source_chunks.c.rows).where(source_chunks.c.batch_pk == batch_pk)
        .order_by(source_chunks.c.first_index))
    return [(row.first_index, row.first_index + row.rows) for row in rows]


async def results_of_chunk(connection: AsyncConnection, batch_pk: int, *, first: int,
                           end: int) -> tuple[bytes, list[ItemResult]]:
    """One chunk's snapshot, and how its items stand."""
    blob = (await connection.execute(select(source_chunks.c.blob).where(
        source_chunks.c.batch_pk == batch_pk, source_chunks.c.first_index == first))).scalar_one()
    here = and_(items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.idx < end)
    rows = (await connection.execute(_with_attempt().where(here).order_by(items.c.idx))).all()
    charges = await _charges(connection, [row.pk for row in rows])
    earlier = await _earlier(connection, rows, batch_pk=batch_pk)
    of_attempt = {row.pk: row.attempt_id for row in rows}
    files: dict[int, list[str]] = {}
    for row in await connection.execute(_STORED.where(here)):
        if row.attempt_id == of_attempt[row.pk]:
            folder = earlier[row.batch_pk][1] + "/" if row.batch_pk in earlier else ""
            files.setdefault(row.pk, []).append(folder + row.path)
    return bytes(blob), [_result(row, files=files, charges=charges) for row in rows]


# Files at home, of rows and of those that rows share, in order; also of attempts that are not the latest.
_STORED = (select(items.c.pk, outputs.c.path, outputs.c.batch_pk, outputs.c.attempt_id)
           .join_from(items, outputs, outputs.c.item_pk == func.coalesce(items.c.twin_of, items.c.pk))
           .where(outputs.c.stored_at.is_not(None)).order_by(items.c.idx, outputs.c.idx))


def _files(*columns: Any) -> Any:
    """Files at home that the current attempt of their item brought, in order."""
    return (select(*columns).select_from(outputs).join(items, items.c.pk == outputs.c.item_pk)
            .where(outputs.c.stored_at.is_not(None), outputs.c.attempt_id == items.c.attempt_id)
            .order_by(items.c.idx, outputs.c.idx))


def _result(row: Row[Any], *, files: dict[int, list[str]], charges: dict[int, int | None]) -> ItemResult:
    return ItemResult(
        index=row.idx, prediction_id=row.prediction_id, state=ItemState(row.state), output_json=row.output_json,
        files=tuple(files.get(row.pk, ())), error=row.error, error_class=row.error_class,
        charge_units=_charge(row, charges), seconds=row.seconds, attempts=row.attempts, version=row.version)


async def manifest_of_chunk(connection: AsyncConnection, batch_pk: int, *, first: int,
                            end: int) -> list[dict[str, Any]]:
    """The manifest's lines for the rows of one chunk: a file belongs to the row that was bought, whoever shares it."""
    query = _files(outputs.c.path, items.c.row_id.label("id"), outputs.c.idx.label("index"), outputs.c.bytes,
                   outputs.c.sha256, outputs.c.media_type, attempts.c.prediction_id, outputs.c.source_url)
    rows = await connection.execute(query.join(attempts, attempts.c.id == outputs.c.attempt_id).where(
        items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.idx < end))
    return [dict(row) for row in rows.mappings()]


async def recent_rate(connection: AsyncConnection, batch_pk: int, *, since: datetime) -> int:
    """Predictions of this batch that were created since then."""
    return int((await connection.execute(select(func.count()).select_from(attempts).where(
        attempts.c.batch_pk == batch_pk, attempts.c.answered_at > since))).scalar_one())


async def caps_standing(connection: AsyncConnection, batch_pk: int, caps: Sequence[Cap], *, now: datetime) -> list[Bound]:
    """How these caps stand: a batch's own by its row, those that batches share by all of these."""
    money = select(batches.c.job, batches.c.account, batches.c.spent_units, batches.c.reserved_units)
    row: Any = (await connection.execute(money.where(batches.c.pk == batch_pk))).one()
    own = [Bound(cap, row.spent_units, row.reserved_units) for cap in caps if cap.scope is Scope.BATCH]
    return own + await bounds(connection, row, shared_caps(caps), now=now)


async def waiting(connection: AsyncConnection, batch_pk: int, *, now: datetime) -> WaitingView:
    """Rows that wait to be bought, by whether they may be by now."""
    is_due = items.c.due_at <= now
    row = (await connection.execute(
        select(func.count(case((is_due, 1))).label("due"), func.count(case((~is_due, 1))).label("later"),
               func.min(case((~is_due, items.c.due_at), else_=None)).label("next_due_at"))
        .where(items.c.batch_pk == batch_pk, text(f"items.{PENDING}")))).one()
    return WaitingView(int(row.due), int(row.later), row.next_due_at)


async def latencies(connection: AsyncConnection, batch_pk: int, *, limit: int = 1000) -> LatencyView | None:
    """Provider time of the predictions answered last; None where none has ended."""
    rows = await connection.execute(
        select(attempts.c.completed_at, attempts.c.provider_created_at)
        .where(attempts.c.batch_pk == batch_pk, attempts.c.answered_at.is_not(None),
               attempts.c.completed_at.is_not(None), attempts.c.provider_created_at.is_not(None))
        .order_by(attempts.c.answered_at.desc()).limit(limit))
    took = [(row.completed_at - row.provider_created_at).total_seconds() for row in rows]
    if not took:
        return None
    tenths = quantiles(took, n=10, method="inclusive") if len(took) > 1 else took * 9
    return LatencyView(len(took), tenths[4], tenths[8])


async def endings(connection: AsyncConnection, batch_pk: int) -> dict[str, int]:
    """Ended predictions by where their end was learned first."""
    rows = await connection.execute(
        select(attempts.c.ended_via, func.count().label("many"))
        .where(attempts.c.batch_pk == batch_pk, attempts.c.ended_via.is_not(None)).group_by(attempts.c.ended_via))
    return {row.ended_via: int(row.many) for row in rows}


_WITH_TWINS = 1 + func.coalesce(items.c.copies, 0)


async def canceled(connection: AsyncConnection, batch_pk: int) -> CanceledView:
    """What canceling came to so far."""
    of_item = attempts.c.item_pk == items.c.pk
    is_ended = and_(attempts.c.state == AttemptState.CANCELED.value, attempts.c.surplus_at.is_(None))  # surplus is told apart
    was_bought = exists().where(of_item, attempts.c.prediction_id.is_not(None))
    was_ended = exists().where(of_item, is_ended)
    rows = (await connection.execute(
        select(func.sum(case((~was_bought, _WITH_TWINS), else_=0)).label("never"),
               func.sum(case((and_(was_bought, ~was_ended), _WITH_TWINS), else_=0)).label("between"))
        .select_from(items).where(items.c.batch_pk == batch_pk, items.c.state == ItemState.CANCELED.value))).one()
    money = (await connection.execute(
        select(func.count().label("many"), func.coalesce(func.sum(attempts.c.charge_units), 0).label("units"),
               func.count(attempts.c.charge_units).label("priced"))
        .where(attempts.c.batch_pk == batch_pk, is_ended))).one()
    return CanceledView(int(rows.never or 0), int(rows.between or 0), int(money.many), to_usd(int(money.units)),
                        int(money.many - money.priced))


async def bought_beyond_need(connection: AsyncConnection, batch_pk: int) -> Surplus:
    """How many, what those of known price came to, and how many are of unknown price or not ended."""
    return await _money_of(connection, attempts.c.batch_pk == batch_pk, text(f"attempts.{SURPLUS}"))


async def ended_by_deadline(connection: AsyncConnection, batch_pk: int) -> Surplus:
    """Predictions that the provider ended at their deadline, or before they began, likewise."""
    return await _money_of(connection, attempts.c.batch_pk == batch_pk, attempts.c.state == AttemptState.ABORTED.value,
                           attempts.c.surplus_at.is_(None))


async def _money_of(connection: AsyncConnection, *some: Any) -> Surplus:
    row = (await connection.execute(
        select(func.count().label("many"), func.sum(attempts.c.charge_units).label("units"),
               func.count(attempts.c.charge_units).label("priced")).where(*some))).one()
    return Surplus(int(row.many), to_usd(int(row.units or 0)), int(row.many - row.priced))


async def oldest_out_at(connection: AsyncConnection, batch_pk: int) -> datetime | None:
    """Since when the oldest paid prediction of this batch is out: alive there, or ended and not yet home.

    Of an ended one it is the time of completion, as the provider keeps outputs for an hour from then."""
    oldest_alive = (await connection.execute(
        select(func.min(attempts.c.created_at)).join(items, items.c.attempt_id == attempts.c.id)
        .where(items.c.batch_pk == batch_pk, items.c.state.in_([state.value for state in IN_AIR_ITEM]),
               alive("attempts")))).scalar()
    ended = (await connection.execute(select(func.min(items.c.completed_at)).where(
        items.c.batch_pk == batch_pk, items.c.state == ItemState.COLLECTING.value))).scalar()
    return min((at for at in (oldest_alive, ended) if at is not None), default=None)
