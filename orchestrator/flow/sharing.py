"""With `duplicates: { once: ledger }`: what earlier batches bought for an equal input serves again, if its files are in place."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch, Earlier, NewChunk


async def with_earlier(rooms: Rooms, batch: Batch, chunk: NewChunk) -> tuple[NewChunk, dict[int, Earlier]]:
    """The chunk, its rows sharing with those of earlier batches where they can; and by number which rows do."""
    hashes = {item.input_hash for item in chunk.items if item.shares and item.input_hash is not None}
    found = await _in_place(rooms, await rooms.ledger.bought_before(batch.pk, sorted(hashes)))
    by_row = {item.index: found[item.input_hash] for item in chunk.items if item.shares and item.input_hash in found}
    items = [replace(item, twin_of=by_row[item.index].item_pk) if item.index in by_row else item for item in chunk.items]
    return replace(chunk, items=items), by_row


async def _in_place(rooms: Rooms, found: Mapping[str, Earlier]) -> dict[str, Earlier]:
    """Those whose files all lie where they came home, with the bytes that came home. A row of text alone has none to look for."""
    folders: dict[str, list[tuple[str, Earlier]]] = {}
    for input_hash, earlier in found.items():
        folders.setdefault(earlier.folder, []).append((input_hash, earlier))
    looked_at = await asyncio.gather(*(_whole(rooms, folder, pairs) for folder, pairs in folders.items()))
    return {input_hash: earlier for pairs in looked_at for input_hash, earlier in pairs}


async def _whole(rooms: Rooms, folder: str, pairs: Iterable[tuple[str, Earlier]]) -> list[tuple[str, Earlier]]:
    pairs = list(pairs)
    wanted = [(path, size) for _, earlier in pairs for path, size, _ in earlier.files]
    seen = iter(await rooms.storage(folder).measure(wanted) if wanted else [])
    whole = []
    for input_hash, earlier in pairs:
        there = [(next(seen), size, sha256) for _, size, sha256 in earlier.files]
        if all(one is not None and (one.bytes, one.sha256) == (size, sha256) for one, size, sha256 in there):
            whole.append((input_hash, earlier))
    return whole
