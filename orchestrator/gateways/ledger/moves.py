"""The guarded writes behind every fact: read where things stand, under lock; let the rules decide; write their word."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, func, null, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.lifecycle import AttemptState, Event, ItemState
from orchestrator.core.ports import Decide
from orchestrator.core.prediction import parse
from orchestrator.core.records import Change, Fact, Prediction, Standing
from orchestrator.core.retry import event_of
from orchestrator.gateways.ledger.bulk import write_many
from orchestrator.gateways.ledger.tables import AGAIN_AT, KEPT, attempts, batches, deliveries, items
from orchestrator.gateways.ledger.text import LOGS_KEPT, as_json, clean


@dataclass(slots=True)
class Scene:
    """What a call found, and how it changes while the facts are applied one after the other."""

    standings: dict[str, Standing]
    leases: dict[str, datetime]
    owners: dict[str, str]  # prediction id -> attempt id
    siblings: dict[int, list[str]]  # item -> its attempts here
    attempt_values: dict[str, dict[str, Any]] = field(default_factory=dict)
    item_values: dict[int, dict[str, Any]] = field(default_factory=dict)
    money: dict[int, tuple[int, int]] = field(default_factory=dict)  # batch -> released, spent


async def move(connection: AsyncConnection, facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
    """Apply facts in their order; answers the changes that came of them."""
    return await play(connection, await scene_of(connection, facts), facts, decide=decide)


async def play(connection: AsyncConnection, scene: Scene, facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
    """The same on a scene that was looked at before, in this transaction."""
    before = dict(scene.standings)
    changes = [change for fact in facts if (change := _apply(scene, fact, decide=decide)) is not None]
    answered = [i for i, standing in scene.standings.items() if standing.prediction_id and not before[i].prediction_id]
    early = await kept_facts(connection, answered) if answered else []
    changes += [change for fact in early if (change := _apply(scene, fact, decide=decide)) is not None]
    await _write_attempts(connection, scene, before=before)
    await _write_items(connection, scene, before=before)
    await _write_money(connection, scene)
    return changes


async def scene_of(connection: AsyncConnection, facts: Sequence[Fact]) -> Scene:
    """By prediction id first, by attempt id second; locked in one order, so that two calls cannot deadlock."""
    predictions = sorted({fact.prediction.id for fact in facts if fact.prediction is not None})
    owners: dict[str, str] = {}
    for part in _parts(predictions):
        rows = await connection.execute(
            select(attempts.c.prediction_id, attempts.c.id).where(attempts.c.prediction_id.in_(part)))
        owners |= {row.prediction_id: row.id for row in rows}
    named = {fact.attempt_id for fact in facts if fact.attempt_id is not None}
    scene = Scene({}, {}, owners, {})
    for part in _parts(sorted(named | set(owners.values()))):
        for row in await connection.execute(_STANDINGS, {"ids": part}):
            scene.leases[row.id] = row.lease_until
            scene.siblings.setdefault(row.item_pk, []).append(row.id)
            scene.standings[row.id] = Standing(
                attempt_id=row.id, attempt_state=AttemptState(row.attempt_state), prediction_id=row.prediction_id,
                item_pk=row.item_pk, item_state=ItemState(row.item_state), is_current=row.current_id == row.id,
                failures=row.failures, batch_pk=row.batch_pk, reserved_units=row.reserved_units)
    return scene


async def kept_facts(connection: AsyncConnection, attempt_ids: Sequence[str]) -> list[Fact]:
    """Webhooks that came before their attempt's own answer: facts now, and not kept any longer."""
    facts: list[Fact] = []
    for part in _parts(sorted(attempt_ids)):
        is_kept = and_(deliveries.c.attempt_id.in_(part), text(KEPT))
        rows = (await connection.execute(select(deliveries).where(is_kept).order_by(deliveries.c.received_at))).all()
        if rows:
            await connection.execute(update(deliveries).where(is_kept).values(payload_json=None))
        facts += [fact_of_webhook(row.attempt_id, parse(json.loads(row.payload_json)), at=row.received_at) for row in rows]
    return facts


def fact_of_webhook(attempt_id: str, prediction: Prediction, *, at: datetime) -> Fact:
    """What a webhook says, as a fact."""
    return Fact(event_of(prediction), at, attempt_id=attempt_id, prediction=prediction, via="webhook")


def _parts(values: Sequence[str], size: int = 1000) -> Iterable[Sequence[str]]:
    return (values[start:start + size] for start in range(0, len(values), size))


_STANDINGS = (
    select(attempts.c.id, attempts.c.state.label("attempt_state"), attempts.c.prediction_id, attempts.c.lease_until,
           attempts.c.item_pk, attempts.c.batch_pk, attempts.c.reserved_units, items.c.state.label("item_state"),
           items.c.attempt_id.label("current_id"), items.c.failures)
    .join(items, items.c.pk == attempts.c.item_pk)
    .where(attempts.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(items.c.pk, attempts.c.id)
    .with_for_update(of=[attempts, items]))


def _apply(scene: Scene, fact: Fact, *, decide: Decide) -> Change | None:
    """One fact: routed, decided, noted for writing. No prediction changes hands, nor an attempt its prediction."""
    named = fact.prediction.id if fact.prediction is not None else None
    attempt_id = scene.owners.get(named, fact.attempt_id) if named is not None else fact.attempt_id
    standing = scene.standings.get(attempt_id) if attempt_id is not None else None
    if standing is None or (named is not None and standing.prediction_id not in (None, named)):
        return None
    change = decide(standing, fact)
    if change is not None:
        _note(scene, change, prediction_id=named)
    return change


def _note(scene: Scene, change: Change, *, prediction_id: str | None) -> None:
    standing, attempt_id = change.standing, change.standing.attempt_id
    if prediction_id is not None:
        scene.owners[prediction_id] = attempt_id
    if change.attempt_to is not standing.attempt_state or change.prediction is not None or change.final_charge:
        noted = scene.attempt_values.setdefault(attempt_id, {})
        noted |= _attempt_values(change, lease_until=scene.leases[attempt_id])
    if standing.is_current:
        scene.item_values.setdefault(standing.item_pk, {}).update(_item_values(change))
    if change.final_charge:
        released, spent = scene.money.get(standing.batch_pk, (0, 0))
        scene.money[standing.batch_pk] = (released + standing.reserved_units, spent + (change.charge_units or 0))
    scene.standings[attempt_id] = replace(
        standing, attempt_state=change.attempt_to, prediction_id=standing.prediction_id or prediction_id,
        item_state=change.item_to if standing.is_current else standing.item_state,
        failures=standing.failures if change.failures is None else change.failures,
        reserved_units=0 if change.final_charge else standing.reserved_units)
    if standing.is_current:
        for sibling in scene.siblings[standing.item_pk]:
            if sibling != attempt_id:
                scene.standings[sibling] = replace(scene.standings[sibling], item_state=change.item_to)


def _attempt_values(change: Change, *, lease_until: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {
        "state": change.attempt_to.value, "error": clean(change.error), "error_class": change.error_class}
    if change.event is Event.ANSWER_LOST:
        # The request cannot have lasted beyond its lease, however late somebody noticed.
        values["sent_until_at"] = min(change.at, lease_until)
    if change.prediction is not None:
        values |= _prediction_values(change.prediction, at=change.at, has_ended=change.event is Event.SUCCEEDED)
    if change.final_charge:
        values |= {"charge_units": change.charge_units, "charge_basis": change.charge_basis, "reserved_units": 0,
                   "ended_via": change.via}
    return values


def _prediction_values(prediction: Prediction, *, at: datetime, has_ended: bool) -> dict[str, Any]:
    seconds = prediction.metrics.get("predict_time")
    values = {
        "prediction_id": prediction.id, "status": prediction.status, "model": clean(prediction.model),
        "version": clean(prediction.version), "answered_at": at, "provider_created_at": prediction.created_at,
        "completed_at": prediction.completed_at,
        "output_json": as_json(prediction.output) if has_ended or prediction.output is not None else None,
        "metrics_json": as_json(prediction.metrics) if prediction.metrics else None,
        "logs_tail": clean(prediction.logs_tail[-LOGS_KEPT:]) if prediction.logs_tail else None,
        "seconds": float(seconds) if isinstance(seconds, int | float) else None}
    return {name: value for name, value in values.items() if value is not None}


def _item_values(change: Change) -> dict[str, Any]:
    values: dict[str, Any] = {
        "state": change.item_to.value, "error": clean(change.error), "error_class": change.error_class}
    if change.failures is not None:
        values["failures"] = change.failures
    if change.item_to is ItemState.PENDING:
        values["due_at"] = change.due_at or AGAIN_AT
    if change.item_to is ItemState.COLLECTING:
        completed_at = change.prediction.completed_at if change.prediction is not None else None
        values |= {"due_at": AGAIN_AT, "tries": 0, "completed_at": completed_at or change.at}
    return values


# Columns that keep their value where a fact has none to give.
_KEPT = ("prediction_id", "status", "model", "version", "provider_created_at", "completed_at", "output_json",
         "metrics_json", "logs_tail", "seconds", "sent_until_at", "charge_units", "charge_basis", "reserved_units", "ended_via")
_WRITE_ATTEMPT = update(attempts).where(
    attempts.c.id == bindparam("b_id"), attempts.c.state == bindparam("b_from"),
).values(
    state=bindparam("b_state"), error=bindparam("b_error"), error_class=bindparam("b_error_class"), next_check_at=null(),
    answered_at=func.coalesce(attempts.c.answered_at, bindparam("b_answered_at", type_=attempts.c.answered_at.type)),
    **{name: func.coalesce(bindparam(f"b_{name}", type_=attempts.c[name].type), attempts.c[name]) for name in _KEPT})
_WRITE_ITEM = update(items).where(
    items.c.pk == bindparam("b_pk"), items.c.state == bindparam("b_from"),
).values(
    state=bindparam("b_state"), error=bindparam("b_error"), error_class=bindparam("b_error_class"),
    **{name: func.coalesce(bindparam(f"b_{name}", type_=items.c[name].type), items.c[name])
       for name in ("due_at", "failures", "tries", "completed_at")})


_ATTEMPT_NAMES = tuple((f"b_{name}", name) for name in ("state", "error", "error_class", "answered_at", *_KEPT))
_ITEM_NAMES = tuple((f"b_{name}", name)
                    for name in ("state", "error", "error_class", "due_at", "failures", "tries", "completed_at"))


def _bound(names: Sequence[tuple[str, str]], values: dict[str, Any]) -> dict[str, Any]:
    return {bound: values.get(name) for bound, name in names}


async def _write_attempts(connection: AsyncConnection, scene: Scene, *, before: dict[str, Standing]) -> None:
    rows = [_bound(_ATTEMPT_NAMES, values) | {"b_id": i, "b_from": before[i].attempt_state.value}
            for i, values in sorted(scene.attempt_values.items())]
    await write_many(connection, _WRITE_ATTEMPT, rows)


async def _write_items(connection: AsyncConnection, scene: Scene, *, before: dict[str, Standing]) -> None:
    came_from = {standing.item_pk: standing.item_state.value for standing in before.values()}
    rows = [_bound(_ITEM_NAMES, values) | {"b_pk": pk, "b_from": came_from[pk]}
            for pk, values in sorted(scene.item_values.items())]
    await write_many(connection, _WRITE_ITEM, rows)


async def _write_money(connection: AsyncConnection, scene: Scene) -> None:
    """In the order of batches, and only where something changes: everybody who claims waits for this row."""
    for batch_pk, (released, spent) in sorted(scene.money.items()):
        if released or spent:
            await connection.execute(update(batches).where(batches.c.pk == batch_pk).values(
                reserved_units=batches.c.reserved_units - released, spent_units=batches.c.spent_units + spent))
