"""Outputs on their way home: which are due, under which names, and what has arrived."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import count, islice
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, exists, func, null, or_, select, text, update
from sqlalchemy import insert as plain_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import RETRY, AttemptState, BatchState, ItemState
from orchestrator.core.poison import SUSPECT
from orchestrator.core.records import OutputName, StoredOutput, ToCollect
from orchestrator.gateways.ledger.bulk import write_many
from orchestrator.gateways.ledger.tables import AGAIN_AT, COLLECTING, attempts, batches, items, outputs
from orchestrator.gateways.ledger.text import URL_KEPT, clean

_COLLECTING = ItemState.COLLECTING.value


async def to_collect(connection: AsyncConnection, batch_pk: int, *, count: int, now: datetime,
                     lease_until: datetime) -> list[ToCollect]:
    """Oldest completion first, for it is deleted first; leased by moving its due time. Who leases may die: each counts as a
    death until he gives word."""
    due = (select(items.c.pk, items.c.batch_pk, items.c.idx, items.c.row_id, items.c.attempt_id, items.c.completed_at,
                  items.c.tries, items.c.deaths)
           .where(items.c.batch_pk == batch_pk, text(f"items.{COLLECTING}"), items.c.due_at <= now,
                  or_(items.c.deaths.is_(None), items.c.deaths < SUSPECT, _is_next_suspect(batch_pk, now=now)))
           .order_by(items.c.completed_at).limit(count).with_for_update(skip_locked=True))
    rows = (await connection.execute(due)).all()
    if not rows:
        return []
    await write_many(connection, _LEASE, [
        {"b_pk": row.pk, "b_due_at": lease_until, "b_deaths": (row.deaths or 0) + 1, "b_state": _COLLECTING} for row in rows])
    bought = await connection.execute(select(attempts.c.id, attempts.c.prediction_id, attempts.c.output_json).where(
        attempts.c.id.in_([row.attempt_id for row in rows])))
    found = {row.id: row for row in bought}
    return [ToCollect(row.attempt_id, row.pk, row.batch_pk, row.idx, row.row_id, found[row.attempt_id].prediction_id,
                      found[row.attempt_id].output_json or "null", row.completed_at, row.tries, row.deaths or 0) for row in rows]


def _is_next_suspect(batch_pk: int, *, now: datetime) -> ColumnElement[bool]:
    """Of the items that may end their worker one at a time is held; looked up only where there are such items."""
    held, first = items.alias("held"), items.alias("first")
    is_held = exists().where(held.c.batch_pk == batch_pk, held.c.state == _COLLECTING, held.c.deaths > SUSPECT,
                             held.c.due_at > now)
    return items.c.pk == (select(first.c.pk).where(
        first.c.batch_pk == batch_pk, first.c.state == _COLLECTING, first.c.deaths >= SUSPECT, first.c.due_at <= now, ~is_held
    ).order_by(first.c.completed_at, first.c.pk).limit(1).scalar_subquery())


_LEASE = (update(items).where(items.c.pk == bindparam("b_pk"), items.c.state == bindparam("b_state"))
          .values(due_at=bindparam("b_due_at"), deaths=bindparam("b_deaths"), error=null()))
_HAND_BACK = (update(items).where(items.c.pk == bindparam("b_pk"), items.c.state == bindparam("b_state"))
              .values(due_at=bindparam("b_due_at"), deaths=items.c.deaths - bindparam("b_one"), error=null()))
_HOLD = (update(items).where(items.c.pk == bindparam("b_pk"), items.c.state == bindparam("b_state"))
         .values(due_at=bindparam("b_due_at")))
_DELAY = (update(items).where(items.c.pk == bindparam("b_pk"), items.c.state == bindparam("b_state"))
          .values(due_at=bindparam("b_due_at"), deaths=bindparam("b_deaths"), tries=items.c.tries + bindparam("b_more"),
                  error=bindparam("b_error")))


async def lease_collect(connection: AsyncConnection, item_pks: Sequence[int], *, until: datetime) -> None:
    """Whoever holds these rows holds them until then."""
    await write_many(connection, _HOLD, [
        {"b_pk": pk, "b_due_at": until, "b_state": _COLLECTING} for pk in sorted(item_pks)])


async def hand_back(connection: AsyncConnection, item_pks: Sequence[int], *, now: datetime) -> None:
    """Anybody's again, and nobody died of them."""
    await write_many(connection, _HAND_BACK, [
        {"b_pk": pk, "b_due_at": now, "b_one": 1, "b_state": _COLLECTING} for pk in sorted(item_pks)])


async def delay_collect(connection: AsyncConnection, item_pks: Sequence[int], *, due_at: datetime, error: str) -> None:
    """One more failed try, and when to try again. Whoever tried lives."""
    await write_many(connection, _DELAY, [
        {"b_pk": pk, "b_due_at": due_at, "b_more": 1, "b_deaths": 0, "b_error": clean(error), "b_state": _COLLECTING}
        for pk in sorted(item_pks)])


async def release_leases(connection: AsyncConnection) -> None:
    """Every collecting item is due now: whoever held some of them is gone."""
    await connection.execute(
        update(items).where(text(f"items.{COLLECTING}"), items.c.due_at > AGAIN_AT).values(due_at=AGAIN_AT))


async def grant_names(connection: AsyncConnection, names: Sequence[OutputName]) -> list[str]:
    """A stem for each, in their order. A name that another row has gets `~row` behind it, then further marks."""
    if not names:
        return []
    of_batches = select(batches.c.pk).where(batches.c.pk.in_({name.batch_pk for name in names}))
    await connection.execute(of_batches.with_for_update(read=True, key_share=True))  # from now on the folder stays: see `amend`
    granted = await _granted(connection, names)
    taken = await _taken(connection, names)
    new: list[dict[str, Any]] = []
    for name in names:
        at = (name.item_pk, name.index)
        if at not in granted:
            stem = next(stem for stem in _variants(name) if (name.batch_pk, _key(stem)) not in taken)
            taken.add((name.batch_pk, _key(stem)))
            granted[at] = stem
            new.append({"item_pk": name.item_pk, "idx": name.index, "batch_pk": name.batch_pk, "attempt_id": name.attempt_id,
                        "stem": stem, "name_key": _key(stem)})
    await write_many(connection, _GRANT, new)
    return [granted[(name.item_pk, name.index)] for name in names]


async def _granted(connection: AsyncConnection, names: Sequence[OutputName]) -> dict[tuple[int, int], str]:
    """Names these outputs have from before. What an earlier attempt stored under them counts no longer."""
    wanted = {(name.item_pk, name.index): name.attempt_id for name in names}
    pks = sorted({pk for pk, _ in wanted})
    rows = (await connection.execute(select(outputs.c.item_pk, outputs.c.idx, outputs.c.stem, outputs.c.attempt_id)
                                     .where(outputs.c.item_pk.in_(pks)))).all()
    stale = [{"b_pk": row.item_pk, "b_idx": row.idx, "b_attempt": wanted[(row.item_pk, row.idx)]}
             for row in rows if wanted.get((row.item_pk, row.idx), row.attempt_id) != row.attempt_id]
    if stale:
        await connection.execute(
            update(outputs).where(outputs.c.item_pk == bindparam("b_pk"), outputs.c.idx == bindparam("b_idx"))
            .values(attempt_id=bindparam("b_attempt"), stored_at=None), stale)
    return {(row.item_pk, row.idx): row.stem for row in rows}


_GRANT = plain_insert(outputs)


async def _taken(connection: AsyncConnection, names: Sequence[OutputName]) -> set[tuple[int, str]]:
    """Names that are given away: of all as they were asked for, and of further marks only where one has to be moved."""
    asked = Counter((name.batch_pk, _key(name.stem)) for name in names)
    taken = await _found(connection, set(asked))
    moved = [name for name in names if (name.batch_pk, _key(name.stem)) in taken or asked[name.batch_pk, _key(name.stem)] > 1]
    marked = {(name.batch_pk, _key(stem)) for name in moved for stem in islice(_variants(name), 1, 4)}
    return taken | await _found(connection, marked)


async def _found(connection: AsyncConnection, keys: set[tuple[int, str]]) -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    for batch_pk in sorted({batch_pk for batch_pk, _ in keys}):
        wanted = sorted(key for of, key in keys if of == batch_pk)
        for start in range(0, len(wanted), 400):
            rows = await connection.execute(_NAMES, {"batch_pk": batch_pk, "keys": wanted[start:start + 400]})
            found |= {(batch_pk, row.name_key) for row in rows}
    return found


_NAMES = select(outputs.c.name_key).where(
    outputs.c.batch_pk == bindparam("batch_pk"), outputs.c.name_key.in_(bindparam("keys", expanding=True)))


def _variants(name: OutputName) -> Iterator[str]:
    """`dog`, `dog~7`, `dog~7-0`, `dog~7-0-2`, … The later ones are for rows that spell such names themselves."""
    own = f"{name.stem}~{name.row_index}"
    yield from (name.stem, own, f"{own}-{name.index}")
    yield from (f"{own}-{name.index}-{n}" for n in count(2))


def _key(stem: str) -> str:
    return stem.casefold()


async def store_outputs(connection: AsyncConnection, stored: Sequence[StoredOutput]) -> None:
    """Files that are home, under names granted before."""
    rows = [{"b_pk": one.item_pk, "b_idx": one.index, "b_path": one.path, "b_bytes": one.bytes, "b_sha256": one.sha256,
             "b_media_type": clean(one.media_type), "b_source_url": clean(one.source_url[:URL_KEPT]),
             "b_stored_at": one.stored_at} for one in stored]
    await write_many(connection, _STORE, rows)


_STORE = (update(outputs).where(outputs.c.item_pk == bindparam("b_pk"), outputs.c.idx == bindparam("b_idx"))
          .values(**{name: bindparam(f"b_{name}") for name in
                     ("path", "bytes", "sha256", "media_type", "source_url", "stored_at")}))


EXPIRED = "expired"
_REOPENED_AT_ONCE = 5000


def _expired(batch_pk: int) -> ColumnElement[bool]:
    return and_(items.c.batch_pk == batch_pk, items.c.state == ItemState.FAILED.value, items.c.error_class == EXPIRED)


async def expired(connection: AsyncConnection, batch_pk: int) -> int:
    """Rows that were paid for and whose outputs were deleted before they were fetched."""
    return int((await connection.execute(select(func.count()).select_from(items).where(_expired(batch_pk)))).scalar_one())


async def reopen_expired(connection: AsyncConnection, batch_pk: int) -> int:
    """Some of those that have succeeded there once only wait again, while their batch is alive and tries rows more than once.

    A purchase that came to nothing stays what it is, with its charge; failures are not forgotten, as no person asked."""
    state = (await connection.execute(select(batches.c.state, batches.c.max_attempts).where(batches.c.pk == batch_pk)
                                      .with_for_update())).one()
    if state.state not in (BatchState.RUNNING.value, BatchState.PAUSED.value) or state.max_attempts < 2:
        return 0
    bought = (select(func.count()).select_from(attempts).where(
        attempts.c.item_pk == items.c.pk, attempts.c.state == AttemptState.SUCCEEDED.value,
        attempts.c.surplus_at.is_(None)).scalar_subquery())
    some = select(items.c.pk).where(_expired(batch_pk), bought < 2).limit(_REOPENED_AT_ONCE)
    moved = await connection.execute(
        update(items).where(items.c.pk.in_(some), items.c.state == ItemState.FAILED.value)
        .values(state=RETRY.item_to.value, due_at=AGAIN_AT, tries=0, error=None, error_class=None))
    return moved.rowcount
