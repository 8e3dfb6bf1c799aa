"""Webhooks into the ledger: bound to their attempt, and their effect in the same transaction.

A message told twice is one fact told twice, and the guarded move makes nothing of the second. A row is written only for what
has to wait."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.ports import Decide, KeptDelivery
from orchestrator.core.records import Change, Delivery, Prediction, Receipt
from orchestrator.gateways.ledger.bulk import write_many
from orchestrator.gateways.ledger.moves import Scene, fact_of_webhook, play, scene_of
from orchestrator.gateways.ledger.tables import KEPT, attempts, deliveries
from orchestrator.gateways.ledger.text import as_json


async def receive(connection: AsyncConnection, given: Sequence[Delivery], *,
                  decide: Decide) -> tuple[list[Receipt], list[Change]]:
    """Take in deliveries, in their order; a receipt for each, and the changes that came of them.

    The signature does not cover the URL: a body about another prediction than the attempt's changes nothing. An attempt
    without a prediction yet may be about to learn of this one or of another, so its deliveries are kept."""
    told = [fact_of_webhook(delivery.attempt_id, delivery.prediction, at=delivery.received_at) for delivery in given]
    scene = await scene_of(connection, told)
    receipts = [_place(delivery, scene) for delivery in given]
    await _keep(connection, [d for d, receipt in zip(given, receipts, strict=True) if receipt is Receipt.KEPT])
    facts = [fact for fact, receipt in zip(told, receipts, strict=True) if receipt is Receipt.RECORDED]
    return receipts, await play(connection, scene, facts, decide=decide) if facts else []


def _place(delivery: Delivery, scene: Scene) -> Receipt:
    """Read under lock, so that an answer recorded meanwhile cannot pass a delivery that is just being kept for it."""
    standing = scene.standings.get(delivery.attempt_id)
    if standing is None:
        return Receipt.UNKNOWN
    if standing.prediction_id is None:
        return Receipt.KEPT
    return Receipt.RECORDED if standing.prediction_id == delivery.prediction.id else Receipt.MISADDRESSED


async def _keep(connection: AsyncConnection, given: Sequence[Delivery]) -> None:
    """In the order of their ids, so that two web parts cannot deadlock; what is kept already stays as it is."""
    rows = [{"id": d.message_id, "attempt_id": d.attempt_id, "prediction_id": d.prediction.id, "received_at": d.received_at,
             "payload_json": _payload(d.prediction)} for d in sorted(given, key=lambda delivery: delivery.message_id)]
    await write_many(connection, _KEEP[connection.dialect.name], rows)


_KEEP = {"sqlite": sqlite_insert(deliveries).on_conflict_do_nothing(index_elements=["id"]),
         "postgresql": postgresql_insert(deliveries).on_conflict_do_nothing(index_elements=["id"])}


def _payload(prediction: Prediction) -> str:
    """What `core.prediction.parse` reads again; the input is ours already."""
    values = prediction._asdict() | {"input": None, "logs": prediction.logs_tail, "metrics": dict(prediction.metrics)}
    return as_json({name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()})


async def kept(connection: AsyncConnection, *, before: datetime, account: str) -> list[KeptDelivery]:
    """Deliveries received before `before` that still wait for their attempt's own answer, oldest first."""
    rows = await connection.execute(
        select(deliveries.c.id, deliveries.c.attempt_id, deliveries.c.prediction_id, deliveries.c.received_at)
        .join(attempts, attempts.c.id == deliveries.c.attempt_id)
        .where(text(f"deliveries.{KEPT}"), deliveries.c.received_at < before, attempts.c.account == account)
        .order_by(deliveries.c.received_at).limit(100))
    return [KeptDelivery(row.id, row.attempt_id, row.prediction_id, row.received_at) for row in rows]


async def drop_kept(connection: AsyncConnection, message_ids: Sequence[str]) -> None:
    """These say nothing about their attempt: not kept any longer."""
    if message_ids:
        await connection.execute(delete(deliveries).where(deliveries.c.id.in_(message_ids)))
