"""Rows that share what an equal row buys: found while a batch is loaded, counted with that row, told as it stands.

Such a row, a twin, has no life of its own: its state is `shared` for ever, and `twin_of` leads to its original. Whatever becomes
of that one is read from it, so nothing has to be carried over and nothing can be late."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import ItemState
from orchestrator.core.records import Earlier, NewItem
from orchestrator.gateways.ledger.bulk import each, write_many
from orchestrator.gateways.ledger.tables import COPIED, batches, items, outputs

SHARED = ItemState.SHARED.value
ORIGIN = items.alias("origin")  # the row that a twin shares; joined from outside, as most rows share none
IS_ORIGIN = ORIGIN.c.pk == items.c.twin_of
# Of rows grouped or filtered by what became of them: how many they are with those that share.
ROWS: ColumnElement[int] = cast(func.count() + func.coalesce(func.sum(items.c.copies), 0), BigInteger)
_NOTHING: ColumnElement[int] = literal_column("0")


def told(name: str) -> ColumnElement[Any]:
    """A column of a row as it is told: its own, or that of the row that it shares."""
    return case((items.c.twin_of.is_(None), items.c[name]), else_=ORIGIN.c[name])


async def split(connection: AsyncConnection, batch_pk: int, new: Sequence[NewItem]) -> tuple[list[NewItem], list[NewItem]]:
    """The rows of a chunk that are bought for themselves, and those that share: with one of them, of an earlier chunk, or of an
    earlier batch."""
    known = set(await originals(connection, batch_pk, (item.input_hash for item in new if item.shares and item.input_hash)))
    own: list[NewItem] = []
    twins: list[NewItem] = []
    for item in new:
        if item.twin_of is not None or (item.shares and item.input_hash in known):
            twins.append(item)
            continue
        own.append(item)
        if item.shares and item.input_hash is not None:
            known.add(item.input_hash)
    return own, twins


async def originals(connection: AsyncConnection, batch_pk: int, hashes: Iterable[str]) -> dict[str, int]:
    """By input hash, the row of this batch that is bought for all that have it, where there is one."""
    wanted = sorted(set(hashes))
    if not wanted:
        return {}
    rows = await connection.execute(ORIGINALS[connection.dialect.name], {"b_batch": batch_pk, "b_keys": wanted})
    return {row.share_key: row.pk for row in rows if row.pk is not None}


def _originals(dialect: str) -> Select[Any]:
    """A look into the index for each key. Asked for all keys at once, both engines walked through all rows of the batch: the one
    took the condition of the index for a range, the other knew nothing of a table that is just being filled."""
    key = each("b_keys", dialect=dialect)
    found = select(items.c.pk).where(items.c.batch_pk == bindparam("b_batch"), items.c.share_key == key).scalar_subquery()
    return select(key.label("share_key"), found.label("pk"))


ORIGINALS = {dialect: _originals(dialect) for dialect in ("sqlite", "postgresql")}


async def add_copies(connection: AsyncConnection, more: Mapping[int, int]) -> None:
    """So many rows more share with each of these."""
    await write_many(connection, _MORE, [{"b_pk": pk, "b_many": many} for pk, many in sorted(more.items())])


async def take_copies(connection: AsyncConnection, batch_pk: int, *, first: int) -> None:
    """The rows from `first` on are about to go: those of this batch that they share count them no longer. One of an earlier batch
    never counted them."""
    rows = await connection.execute(select(items.c.twin_of).select_from(items.join(ORIGIN, IS_ORIGIN)).where(
        items.c.batch_pk == batch_pk, items.c.idx >= first, items.c.state == SHARED, ORIGIN.c.batch_pk == batch_pk))
    fewer = Counter(row.twin_of for row in rows)
    await write_many(connection, _FEWER, [{"b_pk": pk, "b_many": many} for pk, many in sorted(fewer.items())])


_MORE = (update(items).where(items.c.pk == bindparam("b_pk"))
         .values(copies=func.coalesce(items.c.copies, _NOTHING) + bindparam("b_many")))
_FEWER = (update(items).where(items.c.pk == bindparam("b_pk"))
          .values(copies=func.nullif(items.c.copies - bindparam("b_many"), _NOTHING)))


async def by_state(connection: AsyncConnection, batch_pk: int) -> tuple[dict[ItemState, int], dict[ItemState, int], int]:
    """A batch's rows by state, those that share where their originals are; of these the ones that share; and of those the ones
    whose originals are of earlier batches: they have succeeded, and stay so.

    One statement on two indexes: the second has an entry only for a row that others share."""
    rows = select(items.c.state, func.count().label("many"), _NOTHING.label("twins")).where(
        items.c.batch_pk == batch_pk).group_by(items.c.state)
    twins = select(items.c.state, _NOTHING, cast(func.sum(items.c.copies), BigInteger)).where(
        items.c.batch_pk == batch_pk, text(f"items.{COPIED}")).group_by(items.c.state)
    own, shared = Counter[ItemState](), Counter[ItemState]()
    for state, many, more in await connection.execute(rows.union_all(twins)):
        own[ItemState(state)] += int(many)
        shared[ItemState(state)] += int(more)
    earlier = own.pop(ItemState.SHARED, 0) - shared.total()
    shared[ItemState.SUCCEEDED] += earlier
    return dict(own + shared), dict(+shared), earlier


def stands_in(state: ItemState) -> ColumnElement[bool]:
    """Rows that are told to be in this state; `shared`: all that share, wherever their originals are."""
    if state is ItemState.SHARED:
        return items.c.twin_of.is_not(None)
    at = items.alias("at")
    with_original = and_(items.c.state == SHARED, exists().where(at.c.pk == items.c.twin_of, at.c.state == state.value))
    return or_(items.c.state == state.value, with_original)


async def bought_before(connection: AsyncConnection, batch_pk: int, hashes: Sequence[str]) -> dict[str, Earlier]:
    """By input hash, a row that succeeded in an earlier batch of the same account and target, of the newest such batch."""
    own = (await connection.execute(select(batches).where(batches.c.pk == batch_pk))).one()
    same = [batches.c[name] == getattr(own, name) if getattr(own, name) is not None else batches.c[name].is_(None)
             for name in ("account", "target_endpoint", "target_name", "target_version")]
    alike = select(batches.c.pk, batches.c.id, batches.c.output_to).where(*same, batches.c.pk < batch_pk)
    found: dict[str, Earlier] = {}
    for batch in (await connection.execute(alike.order_by(batches.c.pk.desc()).limit(BATCHES_LOOKED_AT))).all():
        there = await originals(connection, batch.pk, set(hashes) - found.keys())
        rows = await _succeeded(connection, there.values())
        files = await _files(connection, {row.pk: row.attempt_id for row in rows.values()})
        found |= {key: Earlier(pk, batch.id, rows[pk].idx, batch.output_to, tuple(files.get(pk, ())))
                  for key, pk in there.items() if pk in rows}
    return found


BATCHES_LOOKED_AT = 100
_AT_ONCE = 400


async def _succeeded(connection: AsyncConnection, pks: Iterable[int]) -> dict[int, Any]:
    """Those of these rows that have succeeded."""
    wanted = sorted(pks)
    return {row.pk: row for start in range(0, len(wanted), _AT_ONCE) for row in await connection.execute(
        select(items.c.pk, items.c.idx, items.c.state, items.c.attempt_id).where(items.c.pk.in_(wanted[start:start + _AT_ONCE])))
        if row.state == ItemState.SUCCEEDED.value}


async def _files(connection: AsyncConnection, attempt_of: Mapping[int, str]) -> dict[int, list[tuple[str, int, str]]]:
    """Of each row what its attempt brought home."""
    found: dict[int, list[tuple[str, int, str]]] = {}
    pks = sorted(attempt_of)
    for start in range(0, len(pks), _AT_ONCE):
        rows = await connection.execute(select(outputs).where(
            outputs.c.item_pk.in_(pks[start:start + _AT_ONCE]), outputs.c.stored_at.is_not(None)).order_by(outputs.c.idx))
        for row in rows:
            if row.attempt_id == attempt_of[row.item_pk]:
                found.setdefault(row.item_pk, []).append((row.path, row.bytes, row.sha256))
    return found


async def shared_with(connection: AsyncConnection, batch_pk: int) -> dict[str, int]:
    """The earlier batches that bought what rows of this one share, the oldest first, and how many rows do."""
    some = (select(ORIGIN.c.batch_pk, func.count().label("many")).select_from(items.join(ORIGIN, ORIGIN.c.pk == items.c.twin_of))
            .where(items.c.batch_pk == batch_pk, items.c.state == SHARED, ORIGIN.c.batch_pk != batch_pk)
            .group_by(ORIGIN.c.batch_pk).subquery())
    rows = await connection.execute(
        select(batches.c.id, some.c.many).join(some, some.c.batch_pk == batches.c.pk).order_by(batches.c.pk))
    return {row.id: int(row.many) for row in rows}
