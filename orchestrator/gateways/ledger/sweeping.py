"""What is out at the provider: reads and notes for the sweep, for unsure attempts and for canceling."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import Row, Select, bindparam, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import AttemptState, ItemState
from orchestrator.core.openapi import secret_inputs
from orchestrator.core.ports import OpenAttempt, OpenWindow
from orchestrator.gateways.ledger.session import insert
from orchestrator.gateways.ledger.tables import SURPLUS, accounts, alive, attempts, batches, gone_of, items

ENDED_LOOKED_AT = 50  # ended attempts behind the median
BATCHES_LOOKED_AT = 100  # newest batches of an account searched for echoes

_OPEN, _UNSURE, _RUNNING = (state.value for state in (AttemptState.OPEN, AttemptState.UNSURE, AttemptState.RUNNING))
_IS_ALIVE = alive("attempts")


async def expire_leases(connection: AsyncConnection, *, now: datetime, offset_s: float | None,
                        owner_not: str | None) -> list[str]:
    """Open attempts that nobody can still be sending. A lease is by the clock of who gave it, so both are brought to the
    provider's time where that is known."""
    rows = await connection.execute(
        select(attempts.c.id, attempts.c.lease_until, attempts.c.owner, attempts.c.offset_s)
        .where(_IS_ALIVE, attempts.c.state == _OPEN).order_by(attempts.c.created_at))
    return [row.id for row in rows if (owner_not is not None and row.owner != owner_not)
            or row.lease_until <= now + _ahead(offset_s, row.offset_s)]


def _ahead(ours_s: float | None, theirs_s: float | None) -> timedelta:
    """How much the clock of another machine is ahead of ours, by what each knew of the provider's."""
    return timedelta(seconds=0.0 if ours_s is None or theirs_s is None else ours_s - theirs_s)


# By the provider's clock where it said so. By our own, the oldest one out was a new one after a clock had been set back, and
# what had been bought before was not looked for.
_CREATED_AT = func.coalesce(attempts.c.provider_created_at, attempts.c.created_at)


async def open_window(connection: AsyncConnection, account: str) -> OpenWindow:
    """How much is out, since when, and how long the latest ones took."""
    mine = (_IS_ALIVE, attempts.c.account == account)
    states = await connection.execute(
        select(attempts.c.state, func.count().label("many")).where(*mine).group_by(attempts.c.state))
    counts = {row.state: int(row.many) for row in states}
    oldest = (await connection.execute(
        select(func.min(_CREATED_AT)).where(*mine, attempts.c.state == _RUNNING, attempts.c.next_check_at.is_(None)))).scalar()
    ended = await connection.execute(
        select(attempts.c.completed_at, attempts.c.provider_created_at)
        .where(attempts.c.account == account, attempts.c.completed_at.is_not(None))
        .order_by(attempts.c.completed_at.desc()).limit(ENDED_LOOKED_AT))
    took = [(row.completed_at - row.provider_created_at).total_seconds() for row in ended if row.provider_created_at]
    return OpenWindow(counts.get(_RUNNING, 0), counts.get(_UNSURE, 0), oldest, median(took) if took else None)


async def stragglers(connection: AsyncConnection, account: str, *, older_than: datetime, now: datetime,
                     count: int) -> list[OpenAttempt]:
    """Running attempts that have been out since before `older_than`, by the provider's clock; the oldest first."""
    due = or_(attempts.c.next_check_at.is_(None), attempts.c.next_check_at <= now)
    query = _open_attempts().where(_IS_ALIVE, attempts.c.account == account, attempts.c.state == _RUNNING,
                                   older_than > _CREATED_AT, due)
    rows = await connection.execute(query.order_by(attempts.c.created_at, attempts.c.id).limit(count))
    return [_open_attempt(row) for row in rows]


async def unsure(connection: AsyncConnection, account: str) -> list[OpenAttempt]:
    """Attempts in doubt."""
    query = _open_attempts().where(_IS_ALIVE, attempts.c.account == account, attempts.c.state == _UNSURE)
    return await _with_secrets(connection, query.order_by(attempts.c.created_at, attempts.c.id))


async def being_sent(connection: AsyncConnection, account: str) -> list[OpenAttempt]:
    """Attempts whose POST may be in the air, or answered and not yet recorded: a match needs enough predictions for these too."""
    query = _open_attempts().where(_IS_ALIVE, attempts.c.account == account, attempts.c.state == _OPEN)
    return await _with_secrets(connection, query.order_by(attempts.c.created_at, attempts.c.id))


async def gone(connection: AsyncConnection, account: str, *, since: datetime, now: datetime) -> list[OpenAttempt]:
    """Attempts made since then that were found absent or given up, and are due for another look."""
    due = or_(attempts.c.next_check_at.is_(None), attempts.c.next_check_at <= now)
    query = _open_attempts().where(gone_of("attempts"), attempts.c.account == account, attempts.c.created_at > since, due)
    return await _with_secrets(connection, query.order_by(attempts.c.created_at, attempts.c.id))


async def surplus(connection: AsyncConnection, account: str) -> list[tuple[str, str]]:
    """Attempt and prediction of what was bought beyond need and has not ended."""
    rows = await connection.execute(
        select(attempts.c.id, attempts.c.prediction_id).where(
            text(f"attempts.{SURPLUS}"), attempts.c.account == account, attempts.c.state == _RUNNING).order_by(attempts.c.id))
    return [(row.id, row.prediction_id) for row in rows]


async def attempts_of(connection: AsyncConnection, attempt_ids: Sequence[str]) -> list[OpenAttempt]:
    """Attempts by their ids, whatever their state."""
    return await _with_secrets(connection, _open_attempts().where(attempts.c.id.in_(attempt_ids)))


async def _with_secrets(connection: AsyncConnection, query: Select[Any]) -> list[OpenAttempt]:
    """Attempts, with the names of the inputs that their model's schema calls secret."""
    rows = (await connection.execute(query)).all()
    schemas = await connection.execute(
        select(batches.c.pk, batches.c.openapi_json).where(batches.c.pk.in_({row.batch_pk for row in rows})))
    secrets = {row.pk: secret_inputs(row.openapi_json) for row in schemas}
    return [_open_attempt(row, secrets=secrets[row.batch_pk]) for row in rows]


def _open_attempts() -> Select[Any]:
    return select(
        attempts.c.id, attempts.c.batch_pk, attempts.c.state, attempts.c.prediction_id, attempts.c.target_key,
        items.c.input_json, attempts.c.input_hash, attempts.c.created_at, attempts.c.answered_at,
        attempts.c.sent_until_at, attempts.c.next_check_at, attempts.c.offset_s, attempts.c.owner,
    ).join(items, items.c.pk == attempts.c.item_pk)


def _open_attempt(row: Row[Any], *, secrets: frozenset[str] = frozenset()) -> OpenAttempt:
    return OpenAttempt(
        attempt_id=row.id, batch_pk=row.batch_pk, state=row.state, prediction_id=row.prediction_id,
        target_key=row.target_key, input_json=row.input_json, input_hash=row.input_hash, created_at=row.created_at,
        answered_at=row.answered_at, sent_until_at=row.sent_until_at, next_check_at=row.next_check_at,
        offset_s=row.offset_s, owner=row.owner, secrets=secrets)


async def checked(connection: AsyncConnection, attempt_ids: Sequence[str], *, next_check_at: datetime) -> None:
    """When to ask again. An attempt that has moved on in the meantime needs no asking."""
    if attempt_ids:
        is_open = or_(_IS_ALIVE, gone_of("attempts"))
        await connection.execute(
            update(attempts).where(attempts.c.id == bindparam("b_id"), is_open).values(next_check_at=next_check_at),
            [{"b_id": attempt_id} for attempt_id in sorted(attempt_ids)])


async def echoes(connection: AsyncConnection, account: str) -> dict[str, tuple[str | None, str | None]]:
    """Per target, what the provider called model and version when it last answered."""
    newest = await connection.execute(
        select(batches).where(batches.c.account == account).order_by(batches.c.pk.desc()).limit(BATCHES_LOOKED_AT))
    latest: dict[str, tuple[datetime, tuple[str | None, str | None]]] = {}
    for batch in newest.all():
        found = (await connection.execute(
            select(attempts.c.target_key, attempts.c.model, attempts.c.version, attempts.c.answered_at)
            .where(attempts.c.batch_pk == batch.pk, attempts.c.answered_at.is_not(None))
            .order_by(attempts.c.answered_at.desc()).limit(1))).one_or_none()
        if found is not None and (found.target_key not in latest or latest[found.target_key][0] < found.answered_at):
            latest[found.target_key] = (found.answered_at, (found.model, found.version))
    return {target_key: echo for target_key, (_, echo) in latest.items()}


async def owned(connection: AsyncConnection, prediction_ids: Sequence[str]) -> set[str]:
    """Which of these are ours."""
    ours: set[str] = set()
    for start in range(0, len(prediction_ids), 1000):
        rows = await connection.execute(select(attempts.c.prediction_id).where(
            attempts.c.prediction_id.in_(prediction_ids[start:start + 1000])))
        ours |= {row.prediction_id for row in rows}
    return ours


async def in_air(connection: AsyncConnection, batch_pk: int, *, count: int) -> list[tuple[str, str]]:
    """Predictions of this batch that are still alive at the provider, in row order."""
    rows = await connection.execute(
        select(attempts.c.id, attempts.c.prediction_id).join(items, items.c.attempt_id == attempts.c.id)
        .where(items.c.batch_pk == batch_pk, items.c.state == ItemState.RUNNING.value,
               attempts.c.prediction_id.is_not(None))
        .order_by(items.c.idx).limit(count))
    return [(row.id, row.prediction_id) for row in rows]


async def note_offset(connection: AsyncConnection, account: str, *, offset_s: float, now: datetime) -> None:
    """The provider's clock minus ours."""
    values = {"offset_s": offset_s, "noted_at": now}
    await connection.execute(insert(connection, accounts).values(name=account, **values)
                             .on_conflict_do_update(index_elements=["name"], set_=values))


async def offset(connection: AsyncConnection, account: str) -> float | None:
    """The offset last noted."""
    return (await connection.execute(select(accounts.c.offset_s).where(accounts.c.name == account))).scalar()
