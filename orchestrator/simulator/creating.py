"""The three create endpoints: from request to purchase, with everything that can go wrong in between."""

import asyncio
import re
from collections.abc import Awaitable
from time import monotonic
from typing import Any

import orjson

from orchestrator.simulator import answers
from orchestrator.simulator.faults import AFTER, BEFORE, Switch
from orchestrator.simulator.models import Catalogue
from orchestrator.simulator.render import Renderer
from orchestrator.simulator.schema import Problem, refusal
from orchestrator.simulator.wire import Fate, Reply, Request
from orchestrator.simulator.world import Account, Order, Prediction, Target, World

KNOWN = frozenset(("version", "input", "webhook", "webhook_events_filter", "stream"))
EVENTS = frozenset(("start", "output", "logs", "completed"))
LIFETIME = re.compile(r"^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?$")
PREFER = re.compile(r"^wait(?:=([1-9]|[1-5][0-9]|60))?$")
SHORTEST_LIFETIME_S = 5.0
_STATUS = {"reset_before": Fate.RESET, "close_before": Fate.CLOSE, "late_creation": Fate.CLOSE}
_SPOILED = {
    "lost_answer": Fate.CLOSE,
    "lost_answer_reset": Fate.RESET,
    "cut_answer": Fate.CUT,
    "garbage_answer": Fate.GARBAGE,
}


class Refused(Exception):
    """A create is answered with an error; nothing was bought."""

    def __init__(self, reply: Reply) -> None:
        """Carry the answer."""
        super().__init__(reply.status)
        self.reply = reply


class Creating:
    """Answers creates in one world."""

    def __init__(self, world: World, *, catalogue: Catalogue, renderer: Renderer) -> None:
        """Take the world, what it offers and how it writes."""
        self._world = world
        self._catalogue = catalogue
        self._renderer = renderer

    def answer(self, request: Request, *, account: Account, place: tuple[str, str] | None) -> Reply | Awaitable[Reply]:
        """Answer one create; `place` is None for /predictions, else (`models` or `deployments`, `owner/name`)."""
        now = self._world.now()
        storm = self._world.faults.strike("storm_429")
        if storm is not None:
            return account.limits.refusal(storm.seconds, why=None)
        refused, headers = account.limits.check_create(now, low_credit=account.low)
        if refused is not None:
            return refused
        try:
            order = self._order(request, account=account, place=place)
            wait_s = _wait_s(request.headers.get("prefer"))
        except Refused as error:
            error.reply.headers.extend(headers)
            return error.reply
        before = self._world.faults.first(BEFORE)
        if before is not None:
            return self._fail_before(before, order=order, now=now)
        prediction = self._world.create(order, at=now)
        early = self._world.faults.strike("webhook_early") if prediction.tells("completed") else None
        if early is not None:
            return self._overtaken(request, prediction=prediction, within_s=early.seconds, headers=headers)
        answer = self._answer(request, prediction=prediction, wait_s=wait_s, headers=headers)
        after = self._world.faults.first(AFTER)
        return answer if after is None else self._spoil(after, answer=answer)

    def _order(self, request: Request, *, account: Account, place: tuple[str, str] | None) -> Order:
        left = account.left_usd
        if left is not None and left <= 0:
            raise Refused(answers.no_credit())
        body = _body(request.body)
        target = self._target(body, place=place)
        given = body.get("input")
        if not isinstance(given, dict):
            missing = Problem("required", "(root)", "input is required")
            wrong = Problem("invalid_type", "input", "Invalid type. Expected: object, given: " + type(given).__name__)
            raise Refused(_invalid([missing if "input" not in body else wrong]))
        problems = target.version.validator.at_the_door(given)
        if problems:
            raise Refused(_invalid(problems))
        return Order(
            account=account.name,
            target=target,
            input=given,
            cancel_after_s=_lifetime_s(request.headers.get("cancel-after")),
            webhook=body.get("webhook") or None,
            events=_events(body.get("webhook_events_filter")),
            base_url=request.base_url,
        )

    def _target(self, body: dict[str, Any], *, place: tuple[str, str] | None) -> Target:
        if place is None:
            return self._by_version(body.get("version"))
        kind, slug = place
        if kind == "deployments":
            deployment = self._catalogue.deployments.get(slug)
            if deployment is None:
                raise Refused(answers.not_found())
            return Target(deployment.model, deployment.model.versions[0], deployment)
        model = self._catalogue.models.get(slug)
        if model is None or not model.official:
            raise Refused(answers.not_found())
        return Target(model, model.versions[0])

    def _by_version(self, version: Any) -> Target:
        """Resolve 64 hex digits, owner/name:64 hex digits, or owner/name of an official model (Replicate changelog, 2025-08)."""
        if version is None:
            raise Refused(_invalid([Problem("required", "(root)", "version is required")]))
        slug, _, wanted = str(version).rpartition(":")
        found = self._catalogue.versions.get(wanted)
        if found is not None and slug in ("", found[0].slug):
            return Target(*found)
        model = self._catalogue.models.get(str(version))
        if model is None or not model.official:
            raise Refused(answers.wrong_version())
        return Target(model, model.versions[0])

    def _answer(
        self, request: Request, *, prediction: Prediction, wait_s: float | None, headers: list[tuple[str, str]]
    ) -> Reply | Awaitable[Reply]:
        if wait_s is not None:
            return self._waited(request, prediction=prediction, wait_s=wait_s, headers=headers)
        document = self._renderer.created(prediction, base_url=request.base_url)
        return Reply(201, orjson.dumps(document), headers=headers)

    async def _overtaken(
        self, request: Request, *, prediction: Prediction, within_s: float, headers: list[tuple[str, str]]
    ) -> Reply:
        """Answer only after the completion was told: the answer still says `starting`."""
        document = self._renderer.created(prediction, base_url=request.base_url)
        self._world.end_at_once(prediction, now=self._world.now())
        self._world.settle(self._world.now())
        if self._world.dispatch is not None:
            await self._world.dispatch.early(prediction, within_s=within_s)
        return Reply(201, orjson.dumps(document), headers=headers)

    async def _waited(
        self, request: Request, *, prediction: Prediction, wait_s: float, headers: list[tuple[str, str]]
    ) -> Reply:
        """Hold the answer until the prediction ends: 201 with its output, or 202 if the wait ends first."""
        until = monotonic() + wait_s
        while (left := prediction.end_at - self._world.now()) > 0 and monotonic() < until:  # noqa: ASYNC110 - time may jump
            await asyncio.sleep(min(left, 0.05, max(0.0, until - monotonic())))
        done = left <= 0
        document = self._renderer.created(prediction, base_url=request.base_url, waited=done)
        applied = [("preference-applied", request.headers["prefer"])] if done else []
        return Reply(201 if done else 202, orjson.dumps(document), headers=headers + applied)

    def _fail_before(self, struck: tuple[str, Switch], *, order: Order, now: float) -> Reply:
        name, switch = struck
        if name == "error_before":
            return _edge_error(switch)
        if name == "late_creation":
            self._world.create_later(order, at=now + switch.seconds)
        return Reply(0, fate=_STATUS[name])

    def _spoil(self, struck: tuple[str, Switch], *, answer: Reply | Awaitable[Reply]) -> Reply | Awaitable[Reply]:
        name, switch = struck
        if name == "slow_answer":
            return _slowly(answer, seconds=switch.seconds)
        if name == "error_after":
            _forget(answer)
            return _edge_error(switch)
        if isinstance(answer, Reply):
            answer.fate = _SPOILED[name]
            return answer
        _forget(answer)
        return Reply(0, b"spoiled", fate=_SPOILED[name])


async def _slowly(answer: Reply | Awaitable[Reply], *, seconds: float) -> Reply:
    await asyncio.sleep(seconds)
    return answer if isinstance(answer, Reply) else await answer


def _forget(answer: Reply | Awaitable[Reply]) -> None:
    if asyncio.iscoroutine(answer):
        answer.close()


def _edge_error(switch: Switch) -> Reply:
    """Return a 5xx: an HTML body for 502 as the edge sends it, a plain problem otherwise; `body` overrides both."""
    if switch.body or switch.status == 502:
        return Reply(switch.status, switch.body.encode() or answers.bad_gateway(), "text/html")
    return answers.problem(switch.status, "Internal server error")


def _invalid(problems: list[Problem]) -> Reply:
    return Reply(422, orjson.dumps(refusal(problems)) + b"\n", answers.PROBLEM)


def _body(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Refused(answers.problem(400, "The request body is not valid JSON", title="Bad request")) from None
    if not isinstance(body, dict):
        raise Refused(answers.problem(400, "The request body is not a JSON object", title="Bad request"))
    unknown = sorted(set(body) - KNOWN)
    if unknown:
        words = "Additional property {} is not allowed"
        raise Refused(
            _invalid([Problem("additional_property_not_allowed", "(root)", words.format(name)) for name in unknown])
        )
    if body.get("webhook") is not None and not str(body["webhook"]).startswith(("http://", "https://")):
        raise Refused(_invalid([Problem("format", "webhook", "Does not match format 'uri'")]))
    return body


def _events(names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not set(map(str, names)) <= EVENTS:
        options = ", ".join(f'"{name}"' for name in sorted(EVENTS))
        words = f"webhook_events_filter must be some of the following: {options}"
        raise Refused(_invalid([Problem("enum", "webhook_events_filter", words)]))
    return tuple(names)


def _lifetime_s(header: str | None) -> float | None:
    """Return the seconds of a Cancel-After header: h, m and s in that order, a bare number is seconds, at least 5 s."""
    if header is None:
        return None
    match = LIFETIME.match(header.strip())
    parts = [int(part or 0) for part in match.groups()] if match and header.strip() else [0, 0, 0]
    seconds = float(parts[0] * 3600 + parts[1] * 60 + parts[2])
    if seconds < SHORTEST_LIFETIME_S:
        detail = f"Cancel-After {header!r} is not a duration of at least 5 seconds, such as 30s, 5m or 1h30m45s"
        raise Refused(answers.problem(422, detail, title="Invalid Cancel-After header"))
    return seconds


def _wait_s(header: str | None) -> float | None:
    """Return the seconds of a `Prefer: wait` header, None for other preferences or none."""
    if header is None or not header.startswith("wait"):
        return None
    match = PREFER.match(header)
    if match is None:
        raise Refused(answers.problem(422, "Prefer must be wait or wait=n with n from 1 to 60", title="Invalid header"))
    return float(match[1] or 60)
