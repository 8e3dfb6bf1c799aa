"""Webhooks into the ledger: bound to their attempt, taken in once, and their effect in the same transaction."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.ports import Decide, KeptDelivery
from orchestrator.core.records import Change, Delivery, Prediction, Receipt
from orchestrator.gateways.ledger.moves import Scene, fact_of_webhook, play, scene_of
from orchestrator.gateways.ledger.tables import KEPT, attempts, deliveries, sqlite_time
from orchestrator.gateways.ledger.text import as_json

FORGET_ROWS = 5000


async def receive(connection: AsyncConnection, given: Sequence[Delivery], *,
                  decide: Decide) -> tuple[list[Receipt], list[Change]]:
    """Take in deliveries, in their order; a receipt for each, and the changes that came of them.

    The signature does not cover the URL: a body about another prediction than the attempt's changes nothing. An attempt
    without a prediction yet may be about to learn of this one or of another, so its deliveries are kept."""
    told = [fact_of_webhook(delivery.attempt_id, delivery.prediction, at=delivery.received_at) for delivery in given]
    scene = await scene_of(connection, told)
    places = [_place(delivery, scene) for delivery in given]
    wanted = {d.message_id: _row(d, keep=place is Receipt.KEPT) for d, place in zip(given, places, strict=True)
              if place in (Receipt.RECORDED, Receipt.KEPT)}
    new = await _note(connection, wanted.values())
    receipts: list[Receipt] = []
    facts = []
    for delivery, fact, place in zip(given, told, places, strict=True):
        if place not in (Receipt.RECORDED, Receipt.KEPT):
            receipts.append(place)
        elif delivery.message_id not in new:
            receipts.append(Receipt.DOUBLED)
        else:
            new.remove(delivery.message_id)  # a second one of the same message in this very call is a double
            receipts.append(place)
            if place is Receipt.RECORDED:
                facts.append(fact)
    return receipts, await play(connection, scene, facts, decide=decide) if facts else []


def _place(delivery: Delivery, scene: Scene) -> Receipt:
    """Read under lock, so that an answer recorded meanwhile cannot pass a delivery that is just being kept for it."""
    standing = scene.standings.get(delivery.attempt_id)
    if standing is None:
        return Receipt.UNKNOWN
    if standing.prediction_id is None:
        return Receipt.KEPT
    return Receipt.RECORDED if standing.prediction_id == delivery.prediction.id else Receipt.MISADDRESSED


def _row(delivery: Delivery, *, keep: bool) -> tuple[str, str, str, str, str | None]:
    """As `_NOTE` wants it."""
    return (delivery.message_id, delivery.attempt_id, delivery.prediction.id, sqlite_time(delivery.received_at),
            _payload(delivery.prediction) if keep else None)


def _payload(prediction: Prediction) -> str:
    """What `core.prediction.parse` reads again; the input is ours already."""
    values = prediction._asdict() | {"input": None, "logs": prediction.logs_tail, "metrics": dict(prediction.metrics)}
    return as_json({name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()})


async def _note(connection: AsyncConnection, rows: Iterable[tuple[str, str, str, str, str | None]]) -> set[str]:
    """Insert what is not known by its message id, in one order for all web parts; the ids that were new."""
    given = sorted(rows)
    if not given:
        return set()
    return set((await connection.execute(_NOTE[connection.dialect.name], {"rows": as_json(given)})).scalars())


_NOTE = {
    "sqlite": text(
        "INSERT INTO deliveries (id, attempt_id, prediction_id, received_at, payload_json) "
        "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'), "
        "json_extract(value, '$[3]'), json_extract(value, '$[4]') FROM json_each(:rows) WHERE true "
        "ON CONFLICT (id) DO NOTHING RETURNING id"),
    "postgresql": text(
        "INSERT INTO deliveries (id, attempt_id, prediction_id, received_at, payload_json) "
        "SELECT r->>0, r->>1, r->>2, CAST(r->>3 || '+00' AS timestamptz), r->>4 "
        "FROM jsonb_array_elements(CAST(:rows AS jsonb)) AS r ON CONFLICT (id) DO NOTHING RETURNING id")}


async def kept(connection: AsyncConnection, *, before: datetime, account: str) -> list[KeptDelivery]:
    """Deliveries received before `before` that still wait for their attempt's own answer, oldest first."""
    rows = await connection.execute(
        select(deliveries.c.id, deliveries.c.attempt_id, deliveries.c.prediction_id, attempts.c.state)
        .join(attempts, attempts.c.id == deliveries.c.attempt_id)
        .where(text(f"deliveries.{KEPT}"), deliveries.c.received_at < before, attempts.c.account == account)
        .order_by(deliveries.c.received_at).limit(100))
    return [KeptDelivery(row.id, row.attempt_id, row.prediction_id) for row in rows]


async def drop_kept(connection: AsyncConnection, message_ids: Sequence[str]) -> None:
    """These say nothing about their attempt: not kept any longer."""
    if message_ids:
        await connection.execute(deliveries.update().where(deliveries.c.id.in_(message_ids)).values(payload_json=None))


async def forget(connection: AsyncConnection, *, before: datetime) -> int:
    """Remove what is too old to come again: its signature would be stale. A bounded number at a time; how many."""
    old = select(deliveries.c.id).where(deliveries.c.received_at < before, deliveries.c.payload_json.is_(None))
    gone = await connection.execute(delete(deliveries).where(deliveries.c.id.in_(old.limit(FORGET_ROWS))))
    return gone.rowcount
