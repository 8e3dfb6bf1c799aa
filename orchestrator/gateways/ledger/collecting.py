"""Outputs on their way home: which are due, under which names, and what has arrived."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import count, islice

from sqlalchemy import bindparam, select, text, tuple_, update
from sqlalchemy import insert as plain_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import ItemState
from orchestrator.core.records import OutputName, StoredOutput, ToCollect
from orchestrator.gateways.ledger.tables import AGAIN_AT, COLLECTING, attempts, items, outputs
from orchestrator.gateways.ledger.text import URL_KEPT, clean

_COLLECTING = ItemState.COLLECTING.value


async def to_collect(connection: AsyncConnection, batch_pk: int, *, count: int, now: datetime,
                     lease_until: datetime) -> list[ToCollect]:
    """Oldest completion first, for it is deleted first; leased by moving its due time."""
    due = (select(items.c.pk, items.c.batch_pk, items.c.idx, items.c.row_id, items.c.attempt_id, items.c.completed_at,
                  items.c.tries)
           .where(items.c.batch_pk == batch_pk, text(f"items.{COLLECTING}"), items.c.due_at <= now)
           .order_by(items.c.completed_at).limit(count).with_for_update(skip_locked=True))
    rows = (await connection.execute(due)).all()
    if not rows:
        return []
    await connection.execute(_DUE, [
        {"b_pk": row.pk, "b_due_at": lease_until, "b_more": 0, "b_error": None} for row in rows])
    bought = await connection.execute(select(attempts.c.id, attempts.c.prediction_id, attempts.c.output_json).where(
        attempts.c.id.in_([row.attempt_id for row in rows])))
    found = {row.id: row for row in bought}
    return [ToCollect(row.attempt_id, row.pk, row.batch_pk, row.idx, row.row_id, found[row.attempt_id].prediction_id,
                      found[row.attempt_id].output_json or "null", row.completed_at, row.tries) for row in rows]


_DUE = (update(items).where(items.c.pk == bindparam("b_pk"), items.c.state == _COLLECTING)
        .values(due_at=bindparam("b_due_at"), tries=items.c.tries + bindparam("b_more"), error=bindparam("b_error")))


async def delay_collect(connection: AsyncConnection, item_pks: Sequence[int], *, due_at: datetime, error: str) -> None:
    """One more failed try, and when to try again."""
    rows = [{"b_pk": pk, "b_due_at": due_at, "b_more": 1, "b_error": clean(error)} for pk in sorted(item_pks)]
    if rows:
        await connection.execute(_DUE, rows)


async def release_leases(connection: AsyncConnection) -> None:
    """Every collecting item is due now: whoever held some of them is gone."""
    await connection.execute(
        update(items).where(text(f"items.{COLLECTING}"), items.c.due_at > AGAIN_AT).values(due_at=AGAIN_AT))


async def grant_names(connection: AsyncConnection, names: Sequence[OutputName]) -> list[str]:
    """A stem for each, in their order. A name that another row has gets `~row` behind it, then further marks."""
    if not names:
        return []
    granted = await _granted(connection, names)
    taken = await _taken(connection, names)
    for name in names:
        at = (name.item_pk, name.index)
        if at not in granted:
            stem = next(stem for stem in _variants(name) if (name.batch_pk, _key(stem)) not in taken)
            taken.add((name.batch_pk, _key(stem)))
            granted[at] = stem
            await connection.execute(plain_insert(outputs).values(
                item_pk=name.item_pk, idx=name.index, batch_pk=name.batch_pk, attempt_id=name.attempt_id, stem=stem,
                name_key=_key(stem)))
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


async def _taken(connection: AsyncConnection, names: Sequence[OutputName]) -> set[tuple[int, str]]:
    keys = sorted({(name.batch_pk, _key(stem)) for name in names for stem in islice(_variants(name), 4)})
    taken: set[tuple[int, str]] = set()
    for start in range(0, len(keys), 400):
        rows = await connection.execute(select(outputs.c.batch_pk, outputs.c.name_key).where(
            tuple_(outputs.c.batch_pk, outputs.c.name_key).in_(keys[start:start + 400])))
        taken |= {(row.batch_pk, row.name_key) for row in rows}
    return taken


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
    if rows:
        await connection.execute(_STORE, rows)


_STORE = (update(outputs).where(outputs.c.item_pk == bindparam("b_pk"), outputs.c.idx == bindparam("b_idx"))
          .values(**{name: bindparam(f"b_{name}") for name in
                     ("path", "bytes", "sha256", "media_type", "source_url", "stored_at")}))
