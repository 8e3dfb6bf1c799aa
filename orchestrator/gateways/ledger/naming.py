"""Names for the files of a batch, each given once, and which of these files are home."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy import insert as plain_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.records import OutputName, StoredOutput
from orchestrator.core.verify import HomeFile
from orchestrator.gateways.ledger.bulk import write_many
from orchestrator.gateways.ledger.tables import batches, items, outputs
from orchestrator.gateways.ledger.text import URL_KEPT, clean


async def grant_names(connection: AsyncConnection, names: Sequence[OutputName]) -> list[str | None]:
    """A stem for each, in their order. A name that another row has, or an earlier purchase of this one, gets `~row` behind it,
    then further marks. None: the row has been bought again since, and this purchase gets no name any more."""
    if not names:
        return []
    of_batches = select(batches.c.pk).where(batches.c.pk.in_({name.batch_pk for name in names}))
    await connection.execute(of_batches.with_for_update(read=True, key_share=True))  # from now on the folder stays: see `amend`
    latest = await _latest(connection, {name.item_pk for name in names})
    wanted = [name for name in names if _is_latest(latest, name)]
    granted, taken = await _granted(connection, wanted)
    taken |= await _taken(connection, names)
    new: list[dict[str, Any]] = []
    for name in wanted:
        at = (name.item_pk, name.index)
        if at not in granted:
            stem = next(stem for stem in _variants(name) if (name.batch_pk, _key(stem)) not in taken)
            taken.add((name.batch_pk, _key(stem)))
            granted[at] = stem
            new.append({"item_pk": name.item_pk, "idx": name.index, "batch_pk": name.batch_pk, "attempt_id": name.attempt_id,
                        "stem": stem, "name_key": _key(stem)})
    await write_many(connection, _GRANT, new)
    return [granted[name.item_pk, name.index] if _is_latest(latest, name) else None for name in names]


async def _latest(connection: AsyncConnection, item_pks: Iterable[int]) -> dict[int, str | None]:
    """The latest attempt of each item."""
    pks = sorted(item_pks)
    return {row.pk: row.attempt_id for start in range(0, len(pks), _AT_ONCE)
            for row in await connection.execute(_LATEST, {"pks": pks[start:start + _AT_ONCE]})}


def _is_latest(latest: dict[int, str | None], of: OutputName | StoredOutput) -> bool:
    return latest.get(of.item_pk) in (None, of.attempt_id)


_LATEST = select(items.c.pk, items.c.attempt_id).where(items.c.pk.in_(bindparam("pks", expanding=True)))
_AT_ONCE = 400


async def _granted(connection: AsyncConnection,
                   names: Sequence[OutputName]) -> tuple[dict[tuple[int, int], str], set[tuple[int, str]]]:
    """Names that these purchases have from before, and those that earlier purchases of their rows keep.

    An earlier one keeps its names for good, below zero: whoever still writes under them, woken late, harms nobody."""
    purchases = {name.item_pk: name.attempt_id for name in names}
    rows = (await connection.execute(select(outputs).where(outputs.c.item_pk.in_(sorted(purchases)))
                                     .order_by(outputs.c.item_pk, outputs.c.idx))).all()
    earlier = [row for row in rows if row.attempt_id != purchases[row.item_pk]]
    lowest: dict[int, int] = {}
    aside: list[dict[str, Any]] = []
    for row in earlier:  # of each item those below zero come first
        lowest.setdefault(row.item_pk, min(0, row.idx))
        if row.idx >= 0:
            lowest[row.item_pk] -= 1
            aside.append({"b_pk": row.item_pk, "b_idx": row.idx, "b_aside": lowest[row.item_pk], "b_attempt": row.attempt_id,
                          "b_never": None})
    await write_many(connection, _PUT_ASIDE, aside)
    own = {(row.item_pk, row.idx): row.stem for row in rows if row.attempt_id == purchases[row.item_pk]}
    return own, {(row.batch_pk, row.name_key) for row in earlier}


_PUT_ASIDE = (update(outputs).where(outputs.c.item_pk == bindparam("b_pk"), outputs.c.idx == bindparam("b_idx"),
                                    outputs.c.attempt_id == bindparam("b_attempt"))
              .values(idx=bindparam("b_aside"), stored_at=bindparam("b_never")))
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


async def store_outputs(connection: AsyncConnection, stored: Sequence[StoredOutput]) -> list[StoredOutput]:
    """Files that are home, under names granted before. Those of rows that have been bought again since are not noted, and
    answered."""
    latest = await _latest(connection, {one.item_pk for one in stored})
    wanted = [one for one in stored if _is_latest(latest, one)]
    rows = [{"b_pk": one.item_pk, "b_idx": one.index, "b_attempt": one.attempt_id, "b_path": one.path, "b_bytes": one.bytes,
             "b_sha256": one.sha256, "b_media_type": clean(one.media_type), "b_source_url": clean(one.source_url[:URL_KEPT]),
             "b_stored_at": one.stored_at} for one in wanted]
    await write_many(connection, _STORE, rows)
    return [one for one in stored if not _is_latest(latest, one)]


_STORE = (update(outputs).where(outputs.c.item_pk == bindparam("b_pk"), outputs.c.idx == bindparam("b_idx"),
                                outputs.c.attempt_id == bindparam("b_attempt"))
          .values(**{name: bindparam(f"b_{name}") for name in
                     ("path", "bytes", "sha256", "media_type", "source_url", "stored_at")}))


async def superseded(connection: AsyncConnection, item_pks: Sequence[int]) -> list[HomeFile]:
    """Files that earlier purchases of these rows had at home when their latest one got its names."""
    rows = await connection.execute(select(outputs).where(
        outputs.c.item_pk.in_(sorted(item_pks)), outputs.c.idx < 0, outputs.c.path.is_not(None)))
    return [HomeFile(row.path, row.bytes, row.sha256, row.media_type, row.source_url, row.idx) for row in rows]
