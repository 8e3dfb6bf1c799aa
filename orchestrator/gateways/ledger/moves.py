"""The guarded writes behind every fact: read where things stand, under lock; let the rules decide; write their word."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import Delete, Row, Select, and_, bindparam, delete, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.caps import is_alarm
from orchestrator.core.cost import asks_input
from orchestrator.core.lifecycle import GONE_ATTEMPT, LIVE_BATCH, AttemptState, BatchState, Event, ItemState
from orchestrator.core.ports import Decide
from orchestrator.core.prediction import parse, seconds_of
from orchestrator.core.records import Change, ChargeLine, Fact, Prediction, Rules, Standing
from orchestrator.core.retry import contest, event_of, misled, untold
from orchestrator.gateways.ledger.bulk import among, write_many
from orchestrator.gateways.ledger.failing import lower_known
from orchestrator.gateways.ledger.loading import set_state
from orchestrator.gateways.ledger.money import note_money, utc_day
from orchestrator.gateways.ledger.steering import schedule
from orchestrator.gateways.ledger.tables import AGAIN_AT, KEPT, attempts, batches, deliveries, items
from orchestrator.gateways.ledger.text import LOGS_KEPT, as_json, clean

K = TypeVar("K", int, str)


@dataclass(slots=True)
class Scene:
    """What a call found, and how it changes while the facts are applied one after the other."""

    standings: dict[str, Standing]
    leases: dict[str, datetime]  # of attempts whose answer was lost
    owners: dict[str, str]  # prediction id -> attempt id
    siblings: dict[int, list[str]]  # item -> its attempts here
    attempt_values: dict[str, dict[str, Any]] = field(default_factory=dict)
    item_values: dict[int, dict[str, Any]] = field(default_factory=dict)
    money: dict[int, dict[str, tuple[int, int]]] = field(default_factory=dict)  # batch -> day -> more reserved, more spent
    alarms: dict[int, Change] = field(default_factory=dict)  # batch -> the first for which it is to be paused
    reopened: set[int] = field(default_factory=set)  # batches of which a failed row is none any more
    evicted: list[str] = field(default_factory=list)


async def move(connection: AsyncConnection, facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
    """Apply facts in their order; answers the changes that came of them."""
    return await play(connection, await scene_of(connection, facts), facts, decide=decide)


async def play(connection: AsyncConnection, scene: Scene, facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
    """The same on a scene that was looked at before, in this transaction."""
    before = dict(scene.standings)
    changes = [change for fact in facts for change in _apply(scene, fact, decide=decide)]
    answered = [i for i, standing in scene.standings.items() if standing.prediction_id and not before[i].prediction_id]
    early = await kept_facts(connection, answered) if answered else []
    changes += [change for fact in early for change in _apply(scene, fact, decide=decide)]
    if scene.evicted:  # first: a prediction has one attempt at every moment
        await connection.execute(_EVICT, [{"key": attempt_id} for attempt_id in sorted(scene.evicted)])
    await _write_attempts(connection, scene, before=before)
    await _write_items(connection, scene, before=before)
    await _write_batches(connection, scene)
    for wake in untold(changes):  # here, as nobody looks at an ended batch again should this process die now
        await schedule(connection, [wake], now=facts[0].at)
    return changes


async def scene_of(connection: AsyncConnection, facts: Sequence[Fact]) -> Scene:
    """Attempts that have one of the predictions, or are named; locked in one order, so that two calls cannot deadlock."""
    rows = await connection.execute(_STANDINGS[connection.dialect.name], {
        "predictions": list({fact.prediction.id for fact in facts if fact.prediction is not None}),
        "named": list({fact.attempt_id for fact in facts if fact.attempt_id is not None})})
    found = rows.all()
    revives = any(_ATTEMPT_STATES[row.state] in GONE_ATTEMPT for row in found)
    rules = await _rules(connection, {row.batch_pk for row in found}, stays=revives) if found else {}
    inputs = await _inputs(connection, found, rules)
    scene = Scene({}, await _leases(connection, facts), {}, {})
    for (attempt_id, state, prediction_id, item_pk, batch_pk, reserved, bound_by, surplus_at, day, item_state, current_id,
         failures, deaths, tries, row) in found:
        if prediction_id is not None:
            scene.owners[prediction_id] = attempt_id
        scene.siblings.setdefault(item_pk, []).append(attempt_id)
        scene.standings[attempt_id] = Standing(
            attempt_id, _ATTEMPT_STATES[state], prediction_id, item_pk, _ITEM_STATES[item_state], current_id == attempt_id,
            failures, batch_pk, reserved, rules[batch_pk], bound_by, surplus_at is not None, deaths or 0, tries,
            inputs.get(item_pk), row, day)
    return scene


async def _inputs(connection: AsyncConnection, found: Sequence[Row[Any]], rules: Mapping[int, Rules]) -> dict[int, str]:
    """The inputs of the rows whose price depends on them: most prices do not, and then nothing is read."""
    asking = {pk for pk, rule in rules.items() if asks_input(rule.price_json)}
    keys = sorted({row.item_pk for row in found if row.batch_pk in asking})
    if not keys:
        return {}
    return {row.pk: row.input_json for row in await connection.execute(_INPUTS, {"keys": keys})}


_INPUTS = select(items.c.pk, items.c.input_json).where(items.c.pk.in_(bindparam("keys", expanding=True)))
_ATTEMPT_STATES = {state.value: state for state in AttemptState}
_ITEM_STATES = {state.value: state for state in ItemState}


async def _leases(connection: AsyncConnection, facts: Sequence[Fact]) -> dict[str, datetime]:
    """Until when the attempts whose answer was lost could have been sent."""
    lost = [fact.attempt_id for fact in facts if fact.event is Event.ANSWER_LOST and fact.attempt_id is not None]
    if not lost:
        return {}
    rows = await connection.execute(_LEASES[connection.dialect.name], {"named": lost})
    return {row.id: row.lease_until for row in rows}


_LEASES = {dialect: select(attempts.c.id, attempts.c.lease_until).where(among(attempts.c.id, "named", dialect=dialect))
           for dialect in ("sqlite", "postgresql")}


async def _rules(connection: AsyncConnection, batch_pks: set[int], *, stays: bool) -> dict[int, Rules]:
    """`stays`: nobody may end the batches meanwhile. What turns up gives a settled row its life back, and who ends a batch would
    not see that before it is committed: a paid row was left in a finished batch."""
    rows = await connection.execute(_RULES.with_for_update(read=True, key_share=True) if stays else _RULES,
                                    {"pks": sorted(batch_pks)})
    return {pk: Rules(id_, state in LIVE_BATCH, state == BatchState.CANCELING, max_attempts, price_json, schema_json,
                      job_json)
            for pk, id_, state, max_attempts, price_json, schema_json, job_json in rows}


_RULES = select(batches.c.pk, batches.c.id, batches.c.state, batches.c.max_attempts, batches.c.price_json,
                batches.c.openapi_json, batches.c.job_json).where(batches.c.pk.in_(bindparam("pks", expanding=True)))


async def kept_facts(connection: AsyncConnection, attempt_ids: Sequence[str]) -> list[Fact]:
    """Webhooks that came before their attempt's own answer: facts now, and not kept any longer."""
    read, release = _WAITING[connection.dialect.name]
    rows = (await connection.execute(read, {"attempts": list(attempt_ids)})).all()
    if rows:
        await connection.execute(release, {"attempts": list(attempt_ids)})
    return [fact_of_webhook(row.attempt_id, parse(json.loads(row.payload_json)), at=row.received_at) for row in rows]


def _waiting(dialect: str) -> tuple[Select[Any], Delete]:
    of_these = and_(among(deliveries.c.attempt_id, "attempts", dialect=dialect), text(KEPT))
    return (select(deliveries).where(of_these).order_by(deliveries.c.received_at),
            delete(deliveries).where(of_these))


_WAITING = {dialect: _waiting(dialect) for dialect in ("sqlite", "postgresql")}


def fact_of_webhook(attempt_id: str, prediction: Prediction, *, at: datetime) -> Fact:
    """What a webhook says, as a fact."""
    return Fact(event_of(prediction), at, attempt_id=attempt_id, prediction=prediction, via="webhook")


def _standings(dialect: str) -> Select[Any]:
    return (
        select(attempts.c.id, attempts.c.state, attempts.c.prediction_id, attempts.c.item_pk, attempts.c.batch_pk,
               attempts.c.reserved_units, attempts.c.bound_by, attempts.c.surplus_at,
               utc_day(attempts.c.created_at, dialect=dialect).label("day"),
               items.c.state.label("item_state"), items.c.attempt_id.label("current_id"), items.c.failures, items.c.deaths,
               items.c.tries, items.c.idx)
        .join(items, items.c.pk == attempts.c.item_pk)
        .where(or_(among(attempts.c.prediction_id, "predictions", dialect=dialect),
                   among(attempts.c.id, "named", dialect=dialect)))
        .order_by(items.c.pk, attempts.c.id)
        .with_for_update(of=[attempts, items]))


_STANDINGS = {dialect: _standings(dialect) for dialect in ("sqlite", "postgresql")}


def _apply(scene: Scene, fact: Fact, *, decide: Decide) -> Iterator[Change]:
    """One fact: routed, decided, noted for writing. An attempt keeps its prediction, unless that was adopted for its input and
    better evidence names another."""
    if fact.bound_by is not None:
        evicted, fact = _contested(scene, fact)
        for one in evicted:
            if (change := _decided(scene, one, decide=decide)) is not None:
                yield change
    change = _decided(scene, fact, decide=decide)
    if change is not None:
        yield change
        if change.event in _BOUND_ONLY and (end := _decided(scene, fact, decide=decide)) is not None:
            yield end


_BOUND_ONLY = frozenset({Event.SURFACED, Event.SURPLUS})


def _decided(scene: Scene, fact: Fact, *, decide: Decide) -> Change | None:
    named = fact.prediction.id if fact.prediction is not None else None
    attempt_id = scene.owners.get(named, fact.attempt_id) if named is not None else fact.attempt_id
    standing = scene.standings.get(attempt_id) if attempt_id is not None else None
    if standing is None or (named is not None and standing.prediction_id not in (None, named)):
        return None
    change = decide(standing, fact)
    if change is not None:
        _note(scene, change, prediction_id=named)
    return change


def _contested(scene: Scene, fact: Fact) -> tuple[list[Fact], Fact]:
    """What a fact that binds means for who was bound for an equal input: those who lose their prediction first, and what the fact
    is then."""
    claimant = scene.standings.get(fact.attempt_id or "")
    if claimant is None or fact.prediction is None:
        return [], fact
    evicted = [_taken_back(claimant, fact)] if misled(claimant, fact) else []
    owner = scene.standings.get(scene.owners.get(fact.prediction.id, ""))
    if owner is None or owner.attempt_id == claimant.attempt_id:
        return evicted, fact
    verdict = contest(owner, claimant._replace(prediction_id=None) if evicted else claimant, fact)
    if verdict is Event.EVICTED:
        return [*evicted, _taken_back(owner, fact)], fact
    if verdict is Event.ANSWER_LOST and not evicted:
        return [], Fact(Event.ANSWER_LOST, fact.at, fact.attempt_id, error=CHANGED_PLACES, error_class="unsure")
    return [], fact


def _taken_back(standing: Standing, fact: Fact) -> Fact:
    return Fact(Event.EVICTED, fact.at, standing.attempt_id, error=TAKEN_BACK, error_class="unsure")


_OF_PREDICTION = frozenset({"prediction_id", "answered_at", "bound_by", "provider_created_at"})
TAKEN_BACK = "its prediction, found by its input, is that of another row with the same input"
CHANGED_PLACES = "its prediction had been given to another row with the same input, whose own is looked for"


def _note(scene: Scene, change: Change, *, prediction_id: str | None) -> None:
    standing, attempt_id = change.standing, change.standing.attempt_id
    keeps = standing.prediction_id or prediction_id
    if prediction_id is not None:
        scene.owners[prediction_id] = attempt_id
    if change.event is Event.EVICTED and standing.prediction_id is not None:
        del scene.owners[standing.prediction_id]
        scene.evicted.append(attempt_id)
        for name in _OF_PREDICTION & scene.attempt_values.get(attempt_id, {}).keys():
            del scene.attempt_values[attempt_id][name]
        keeps = None
    if change.attempt_to is not standing.attempt_state or change.prediction is not None or change.final_charge:
        noted = scene.attempt_values.setdefault(attempt_id, {})
        noted |= _attempt_values(change, lease_until=scene.leases.get(attempt_id))
    takes_over = change.event is Event.SURFACED and change.item_to is not standing.item_state
    moves_item = takes_over or (standing.is_current and change.item_to is not standing.item_state)
    if moves_item:
        scene.item_values.setdefault(standing.item_pk, {}).update(_item_values(change))
        if standing.item_state is ItemState.FAILED:
            scene.reopened.add(standing.batch_pk)
    if takes_over:
        scene.item_values[standing.item_pk]["attempt_id"] = attempt_id
    if change.releases:
        days = scene.money.setdefault(standing.batch_pk, {})
        reserved, spent = days.get(standing.day, (0, 0))
        days[standing.day] = (reserved - standing.reserved_units, spent + (change.charge_units or 0))
    if change.alarm is not None:
        scene.alarms.setdefault(standing.batch_pk, change)
    scene.standings[attempt_id] = standing._replace(
        attempt_state=change.attempt_to, prediction_id=keeps,
        item_state=change.item_to if moves_item else standing.item_state, is_current=standing.is_current or takes_over,
        bound_by=None if keeps is None else standing.bound_by or change.bound_by,
        is_surplus=standing.is_surplus or change.event is Event.SURPLUS,
        failures=standing.failures if change.failures is None else change.failures,
        deaths=standing.deaths if change.deaths is None else change.deaths,
        reserved_units=0 if change.releases else standing.reserved_units)
    if moves_item:
        for sibling in scene.siblings[standing.item_pk]:
            if sibling != attempt_id:
                beside = scene.standings[sibling]
                scene.standings[sibling] = beside._replace(
                    item_state=change.item_to, is_current=beside.is_current and not takes_over)


def _attempt_values(change: Change, *, lease_until: datetime | None) -> dict[str, Any]:
    """What a change says of its attempt, by column."""
    values: dict[str, Any] = {"state": change.attempt_to.value, "error": clean(change.error), "error_class": change.error_class,
                              "next_check_at": None}
    if change.event is Event.ANSWER_LOST and lease_until is not None:
        # The request cannot have lasted beyond its lease, however late somebody noticed.
        values["sent_until_at"] = min(change.at, lease_until)
    if change.prediction is not None:
        values |= _prediction_values(change.prediction, has_ended=change.event is Event.SUCCEEDED)
        if change.standing.prediction_id is None:
            values |= {"prediction_id": change.prediction.id, "answered_at": change.at, "bound_by": change.bound_by}
    if change.event is Event.SURPLUS:
        values["surplus_at"] = change.at
    if change.event in _BOUND_ONLY:  # that it was never bought is no longer so, and what it costs is not known yet
        values |= {"charge_units": None, "charge_basis": None}
    if change.final_charge:
        values |= {"charge_units": change.charge_units, "charge_basis": change.charge_basis, "ended_via": change.via}
    if change.releases:
        values["reserved_units"] = 0
    if change.charge_line is not None:
        values |= _charge_values(change.charge_line)
    return values


def _charge_values(line: ChargeLine) -> dict[str, str | None]:
    """What a charge was reckoned from, by column: decimals as text, as SQLite has none."""
    return {"charge_unit": line.unit, "charge_quantity": _plain(line.quantity), "charge_price": _plain(line.usd),
            "charge_price_id": clean(line.price_id), "charge_quantity_out": _plain(line.quantity_out),
            "charge_price_out": _plain(line.usd_out)}


def _plain(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")


def _prediction_values(prediction: Prediction, *, has_ended: bool) -> dict[str, Any]:
    """What the prediction has to tell, by column; what it leaves out stays as it was."""
    values = {
        "status": prediction.status, "model": clean(prediction.model), "version": clean(prediction.version),
        "provider_created_at": prediction.created_at, "completed_at": prediction.completed_at,
        "output_json": as_json(prediction.output) if has_ended or prediction.output is not None else None,
        "metrics_json": as_json(prediction.metrics) if prediction.metrics else None,
        "logs_tail": clean(prediction.logs_tail[-LOGS_KEPT:]) if prediction.logs_tail else None,
        "seconds": seconds_of(prediction.metrics)}
    return {name: value for name, value in values.items() if value is not None}


def _item_values(change: Change) -> dict[str, Any]:
    """What a change says of its item, by column."""
    values: dict[str, Any] = {"state": change.item_to.value, "error": clean(change.error), "error_class": change.error_class}
    if change.failures is not None:
        values["failures"] = change.failures
    if change.deaths is not None:
        values["deaths"] = change.deaths
    if change.event is Event.ABSENT:
        values["tries"] = change.standing.absences + 1
    elif change.event in (Event.ANSWERED, Event.SURFACED):
        values["tries"] = 0
    if change.item_to is ItemState.PENDING:
        values["due_at"] = change.due_at or AGAIN_AT
    if change.item_to is ItemState.COLLECTING:
        completed_at = change.prediction.completed_at if change.prediction is not None else None
        values |= {"due_at": AGAIN_AT, "tries": 0, "completed_at": completed_at or change.at}
    return values


_EVICT = update(attempts).where(attempts.c.id == bindparam("key")).values(
    prediction_id=None, answered_at=None, bound_by=None, provider_created_at=None)
_WRITE_ATTEMPT = update(attempts).where(attempts.c.id == bindparam("key"), attempts.c.state == bindparam("was"))
_WRITE_ITEM = update(items).where(items.c.pk == bindparam("key"), items.c.state == bindparam("was"))


async def _write_attempts(connection: AsyncConnection, scene: Scene, *, before: dict[str, Standing]) -> None:
    was = {attempt_id: standing.attempt_state.value for attempt_id, standing in before.items()}
    for rows in _alike(scene.attempt_values, was):
        await write_many(connection, _WRITE_ATTEMPT, rows)


async def _write_items(connection: AsyncConnection, scene: Scene, *, before: dict[str, Standing]) -> None:
    was = {standing.item_pk: standing.item_state.value for standing in before.values()}
    for rows in _alike(scene.item_values, was):
        await write_many(connection, _WRITE_ITEM, rows)


def _alike(noted: Mapping[K, dict[str, Any]], was: Mapping[K, str]) -> Iterable[list[dict[str, Any]]]:
    """Rows that set the same columns, a statement for each such group.

    A column that is set to what it was before still costs its indexes."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, values in sorted(noted.items()):
        groups.setdefault(tuple(values), []).append(values | {"key": key, "was": was[key]})
    return groups.values()


async def _write_batches(connection: AsyncConnection, scene: Scene) -> None:
    """In their order, each with its days, and only where something changes: everybody who claims waits for this row."""
    for batch_pk in sorted(scene.money.keys() | scene.alarms.keys() | scene.reopened):
        if changed := {day: money for day, money in scene.money.get(batch_pk, {}).items() if any(money)}:
            await note_money(connection, batch_pk, changed)
        if batch_pk in scene.reopened:
            await lower_known(connection, batch_pk)
        if (alarming := scene.alarms.get(batch_pk)) is not None:
            await _pause_for(connection, batch_pk, alarming)


async def _pause_for(connection: AsyncConnection, batch_pk: int, alarming: Change) -> None:
    """Also where it is paused for something else: whoever resumes it has to know. The first of several alarms stands."""
    reason = (await connection.execute(select(batches.c.reason).where(batches.c.pk == batch_pk))).scalar_one()
    if not is_alarm(reason):
        await set_state(connection, batch_pk, to=BatchState.PAUSED, allowed=_CAN_GO_ON, reason=alarming.alarm, now=alarming.at)


_CAN_GO_ON = frozenset({BatchState.RUNNING, BatchState.PAUSED})
