"""Routes under /_admin, without a token: the simulator's own ledger, and the levers of tests."""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from orchestrator.simulator import answers
from orchestrator.simulator.counting import Calls, invoice, ledger, purchases
from orchestrator.simulator.limits import Bucket, Limits
from orchestrator.simulator.webhooks import Dispatch
from orchestrator.simulator.wire import Reply, Request
from orchestrator.simulator.world import Account, World

RATES = {"creates_per_minute": "creates", "reads_per_minute": "reads", "polls_per_minute": "polls"}
WORDING = {"reduced": (None, "credit", "payment"), "dialect": ("now", "old"), "retry_after_header": (False, True)}


class Admin:
    """Answers the admin routes of one world."""

    def __init__(self, world: World, *, calls: Calls, dispatch: Dispatch, reset: Callable[[], None]) -> None:
        """Take the world, the calls counted so far, the sender of webhooks and the way to begin anew."""
        self._dispatch = dispatch
        self._world = world
        self._calls = calls
        self._reset = reset

    def answer(self, request: Request, name: str) -> Reply:
        """Answer one admin request; what cannot be done is a 400 that says why, and changes nothing."""
        self._world.settle(self._world.now())
        if request.method == "GET":
            return self._read(request, name)
        try:
            return self._turn(request.method, name, orjson.loads(request.body or b"{}"))
        except (ValueError, TypeError, KeyError, InvalidOperation) as error:
            return answers.problem(400, f"{request.method} /_admin/{name}: {error}")

    def _read(self, request: Request, name: str) -> Reply:
        if name == "ledger":
            return answers.json_reply(ledger(self._world, self._calls, webhooks=self._dispatch.as_json()))
        if name == "purchases":
            return Reply(200, purchases(self._world), "application/jsonl")
        if name == "invoice":
            return Reply(200, invoice(self._world, account=request.query.get("account")), "text/csv")
        if name == "calls":
            return answers.json_reply(self._calls.as_json(times=request.query.get("times") == "1"))
        if name == "webhooks":
            return answers.json_reply(self._dispatch.as_json())
        if name == "faults":
            return answers.json_reply(self._world.faults.as_json())
        if name == "struck":
            return answers.json_reply(self._world.faults.struck())
        return answers.not_found()

    def _turn(self, method: str, name: str, body: dict[str, Any]) -> Reply:
        lever = f"{method} {name}"
        if lever == "PUT faults":
            self._world.faults.put(body)
            return answers.json_reply(self._world.faults.as_json())
        if lever == "PUT limits":
            for account in self._accounts(body.pop("account", None)):
                set_limits(account.limits, body)
        elif lever == "PUT credit":
            usd = body["usd"]
            for account in self._accounts(body.get("account")):
                account.credit_usd = None if usd is None else account.spent_usd + Decimal(str(usd))
        elif lever == "POST advance":
            self._world.advance(float(body["seconds"]))
            self._world.settle(self._world.now())
        elif lever == "PUT clock":
            self._world.clock_offset_s = float(body["offset_s"])
        elif lever == "POST webhooks":
            if body.get("rotate") is not True:
                raise ValueError('say {"rotate": true}, with "overlap": true to sign with the old secret as well')
            self._dispatch.secrets.rotate(overlap=body.get("overlap") is True)
        elif lever == "POST reset":
            self._reset()
        else:
            return answers.not_found()
        return answers.json_reply({"now": self._world.now(), "clock_offset_s": self._world.clock_offset_s})

    def _accounts(self, name: str | None) -> list[Account]:
        return list(self._world.accounts.values()) if name is None else [self._world.accounts[name]]


def set_limits(limits: Limits, settings: dict[str, Any]) -> None:
    """Change rates per minute (with an optional burst) and the wording of refusals; buckets that change start full.

    Raises ValueError on a setting that does not exist.
    """
    unknown = set(settings) - set(RATES) - set(WORDING) - {"burst"}
    wrong = [name for name in WORDING if name in settings and settings[name] not in WORDING[name]]
    if unknown or wrong:
        known = ", ".join([*RATES, "burst", *WORDING])
        raise ValueError(f"cannot set {', '.join([*sorted(unknown), *wrong])}; there are {known}")
    for name, attribute in RATES.items():
        if name in settings:
            setattr(limits, attribute, Bucket(float(settings[name]), 0))
    if "burst" in settings:
        limits.creates = Bucket(limits.creates.per_minute, float(settings["burst"]))
    for name in WORDING:
        if name in settings:
            setattr(limits, name, settings[name])
