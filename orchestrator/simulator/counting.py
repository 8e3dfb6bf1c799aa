"""What the simulator remembers about the calls it got and the money it took: the oracle of tests."""

from array import array
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import sha256
from itertools import islice
from typing import Any

import orjson

from orchestrator.simulator.world import Prediction, World

CHUNK = 500


class Calls:
    """Counts of calls by route and status, and the moments of creates."""

    def __init__(self) -> None:
        """Start at zero."""
        self._counts: Counter[tuple[str, int]] = Counter()
        self._creates = array("d")
        self._decided = (array("d"), array("H"), array("h"))  # every create: moment, status, client
        self._received = 0

    @property
    def creates_received(self) -> int:
        """Return the creates read, whatever became of them."""
        return self._received

    def receive_create(self) -> None:
        """Count a create that was read, before its fate is known."""
        self._received += 1

    def count(self, route: str, status: int) -> None:
        """Count an answered call; status 0 is an answer that was never sent."""
        self._counts[route, status] += 1

    def decide(self, at: float, *, status: int, client: int) -> None:
        """Remember when whose create was accepted (a status below 400) or refused."""
        if status < 400:
            self._creates.append(at)
        self._decided[0].append(at)
        self._decided[1].append(status)
        self._decided[2].append(client)

    def as_json(self, *, times: bool) -> dict[str, Any]:
        """Return counts by route and status, and the largest number of accepted creates in any 60 and any 1 seconds.

        With `times` also the moments of accepted creates, and every create in columns: its moment in Unix seconds, the status
        it was given (0: no answer), and whose it was, as the place of its token among those known (-1: none of them)."""
        routes: dict[str, dict[str, int]] = {}
        for (route, status), count in sorted(self._counts.items()):
            routes.setdefault(route, {})[str(status)] = count
        report: dict[str, Any] = {
            "routes": routes,
            "creates_received": self._received,
            "creates_accepted": len(self._creates),
            "max_creates_in_60_s": busiest(self._creates, 60.0),
            "max_creates_in_1_s": busiest(self._creates, 1.0),
        }
        if not times:
            return report
        at, statuses, clients = self._decided
        creates = {"at": list(at), "status": list(statuses), "client": list(clients)}
        return report | {"create_times": list(self._creates), "creates": creates}


def busiest(moments: "array[float]", span_s: float) -> int:
    """Return the largest number of moments, given in order, within any half-open span."""
    most, first = 0, 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - span_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def ledger(world: World, calls: Calls, *, webhooks: dict[str, Any]) -> dict[str, Any]:
    """Return what was bought, billed and told: counts by status, model and input, USD as a decimal string, webhooks sent."""
    now = world.now()
    by_status: Counter[str] = Counter()
    by_model: Counter[str] = Counter()
    by_input: Counter[str] = Counter()
    for prediction in world.predictions.values():
        by_status[prediction.status(now)] += 1
        by_model[prediction.target.model.slug] += 1
        by_input[input_hash(prediction)] += 1
    return {
        "creates_received": calls.creates_received,
        "created": len(world.predictions),
        "by_status": dict(by_status),
        "by_model": dict(by_model),
        "by_input": dict(by_input),
        "inputs_bought": len(by_input),
        "inputs_bought_more_than_once": sum(count > 1 for count in by_input.values()),
        "billed_usd": str(sum((account.spent_usd for account in world.accounts.values()), Decimal(0))),
        "accounts": {
            account.name: {
                "billed_usd": str(account.spent_usd),
                "left_usd": None if account.left_usd is None else str(account.left_usd),
            }
            for account in world.accounts.values()
        },
        "webhooks": webhooks,
    }


def purchases(world: World) -> Iterator[bytes]:
    """Yield every prediction, oldest first, as JSON lines in pieces of a few hundred."""
    now = world.now()
    known = iter(list(world.predictions.values()))
    while piece := list(islice(known, CHUNK)):
        yield b"".join(orjson.dumps(_purchase(prediction, now=now)) + b"\n" for prediction in piece)


def invoice(world: World, *, account: str | None) -> Iterator[bytes]:
    """Yield a bill as CSV, in order of creation: a line for each prediction that cost something, with the day (UTC) on which it
    ended as the provider tells it.

    What a bill of the real one looks like is not documented; the names of the columns are ours.
    """
    yield b"date,model,prediction_id,amount_usd\n"
    known = iter([one for one in world.predictions.values() if one.billed and account in (None, one.account)])
    while piece := list(islice(known, CHUNK)):
        yield "".join(_billed(prediction, offset_s=world.clock_offset_s) for prediction in piece).encode()


def _billed(prediction: Prediction, *, offset_s: float) -> str:
    day = datetime.fromtimestamp(prediction.end_at + offset_s, UTC).date().isoformat()
    model = (prediction.target.deployment or prediction.target.model).slug
    return f"{day},{model},{prediction.id},{prediction.billed:f}\n"


def input_hash(prediction: Prediction) -> str:
    """Return a short hash of model and input that ignores the order of keys and the spelling of whole numbers."""
    canonical = orjson.dumps(_plain(orjson.loads(prediction.input)), option=orjson.OPT_SORT_KEYS)
    return sha256(prediction.target.model.slug.encode() + b"\n" + canonical).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _purchase(prediction: Prediction, *, now: float) -> dict[str, Any]:
    deployment = prediction.target.deployment
    return {
        "id": prediction.id,
        "account": prediction.account,
        "model": prediction.target.model.slug,
        "deployment": deployment.slug if deployment else None,
        "input": orjson.Fragment(prediction.input),
        "input_hash": input_hash(prediction),
        "created_at": datetime.fromtimestamp(prediction.created_at, UTC).isoformat(),
        "status": prediction.status(now),
        "billed_usd": None if prediction.billed is None else str(prediction.billed),
        "webhook": prediction.webhook,
    }
