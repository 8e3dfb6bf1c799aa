"""What rows of one target came to before, for estimates; and what was spent just now. Reads that stay small in a large ledger."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Row, Select, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.history import PastAttempt
from orchestrator.core.lifecycle import AttemptState, ItemState
from orchestrator.core.records import Target
from orchestrator.gateways.ledger.session import revision
from orchestrator.gateways.ledger.tables import COMPLETED, HEAD, attempts, batches, items, outputs

MOST = 1000  # attempts that are looked at
MOST_BATCHES = 20
# What an operator canceled was cut short, and tells nothing of what is not; what a deadline ended is `aborted` here.
_ENDED = frozenset(state.value for state in (AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.ABORTED))


async def newest(connection: AsyncConnection, account: str, target: Target) -> list[PastAttempt]:
    """Ended attempts of the newest batches of this target, newest first. A ledger of another version tells of none."""
    if await revision(connection) != HEAD:
        return []
    found: list[PastAttempt] = []
    for batch_pk in (await connection.execute(_batches(account, target))).scalars().all():
        rows = [row for row in await connection.execute(last(batch_pk, MOST - len(found)))
                if row.state in _ENDED and row.surplus_at is None]
        files = await _files(connection, [row.item_pk for row in rows])
        failed, done = await _endings(connection, [row.item_pk for row in rows])
        found += [_past(row, files.get(row.id, (0, 0 if row.id in done else None)), is_home=row.id not in failed) for row in rows]
        if len(found) >= MOST:
            break
    return found


def _batches(account: str, target: Target) -> Select[Any]:
    """By batches, for however much else was bought since, they say where the attempts of this target are."""
    version = batches.c.target_version
    return select(batches.c.pk).where(
        batches.c.account == account, batches.c.target_endpoint == target.endpoint, batches.c.target_name == target.name,
        version.is_(None) if target.version is None else version == target.version,
    ).order_by(batches.c.pk.desc()).limit(MOST_BATCHES)


def last(batch_pk: int, most: int) -> Select[Any]:
    """The attempts of a batch that were answered last, so many at most, ended or not."""
    of = attempts.c
    return (select(of.id, of.item_pk, of.state, of.status, of.surplus_at, of.charge_unit, of.charge_quantity,
                   of.charge_quantity_out, of.seconds, of.provider_created_at, of.completed_at)
            .where(of.batch_pk == batch_pk, of.answered_at.is_not(None)).order_by(of.answered_at.desc()).limit(most))


async def _files(connection: AsyncConnection, item_pks: list[int]) -> dict[str, tuple[int, int]]:
    """Of each attempt of these items: files at home, and their bytes."""
    rows = await connection.execute(
        select(outputs.c.attempt_id, func.count().label("files"), func.sum(outputs.c.bytes).label("bytes"))
        .where(outputs.c.item_pk.in_(item_pks), outputs.c.stored_at.is_not(None)).group_by(outputs.c.attempt_id))
    return {row.attempt_id: (int(row.files), int(row.bytes or 0)) for row in rows}


async def _endings(connection: AsyncConnection, item_pks: list[int]) -> tuple[set[str], set[str]]:
    """The attempts by which these items failed, and those by which they are done. A download that was refused or failed for good
    fails its row."""
    rows = (await connection.execute(select(items.c.attempt_id, items.c.state).where(
        items.c.pk.in_(item_pks), items.c.attempt_id.is_not(None)))).all()
    failed, done = ({row.attempt_id for row in rows if row.state == state.value}
                    for state in (ItemState.FAILED, ItemState.SUCCEEDED))
    return failed, done


def _past(row: Row[Any], files: tuple[int, int | None], *, is_home: bool) -> PastAttempt:
    """Of a row that failed with a part of its files at home their bytes tell nothing."""
    count, size = files
    known = row.provider_created_at is not None and row.completed_at is not None
    return PastAttempt(
        row.item_pk, row.status, row.charge_unit, _decimal(row.charge_quantity), _decimal(row.charge_quantity_out),
        None if row.seconds is None else Decimal(str(row.seconds)),
        (row.completed_at - row.provider_created_at).total_seconds() if known else None, count, size if is_home else None)


def _decimal(stored: str | None) -> Decimal | None:
    return None if stored is None else Decimal(stored)


async def spent_since(connection: AsyncConnection, account: str, batch_pk: int, *, since: datetime) -> int:
    """In units: what predictions of this batch cost that ended after `since`, by the provider's clock."""
    return int((await connection.execute(just_ended(account, batch_pk, since))).scalar_one())


def just_ended(account: str, batch_pk: int, since: datetime) -> Select[Any]:
    """The sum of their charges. By account, as the index of ends is; among minutes of it, the batch's own."""
    return select(func.coalesce(func.sum(attempts.c.charge_units), 0)).where(
        attempts.c.account == account, text(f"attempts.{COMPLETED}"), attempts.c.completed_at > since,
        attempts.c.batch_pk == batch_pk)
