"""The simulated Replicate as one handler: a request comes in, an answer or its fate goes out."""

import asyncio
import html
from collections.abc import Awaitable, Callable
from importlib.resources import files as resources
from itertools import islice
from random import SystemRandom

import orjson

from orchestrator.simulator import answers, listing
from orchestrator.simulator.admin import Admin
from orchestrator.simulator.config import SimulatorConfig
from orchestrator.simulator.counting import Calls, ledger
from orchestrator.simulator.creating import Creating
from orchestrator.simulator.files import Files
from orchestrator.simulator.models import catalogue
from orchestrator.simulator.outputs import MEDIA_TYPES, drawing
from orchestrator.simulator.pictures import Album, padded
from orchestrator.simulator.render import Renderer
from orchestrator.simulator.shop import Shop
from orchestrator.simulator.webhooks import Dispatch
from orchestrator.simulator.wire import Fate, Reply, Request
from orchestrator.simulator.world import Account, World

Answer = Reply | Awaitable[Reply]
LATEST = 24


class Simulator:
    """A whole simulated Replicate, answering requests of a connection."""

    def __init__(self, config: SimulatorConfig, *, clock: Callable[[], float]) -> None:
        """Open with an empty world; `clock` gives Unix seconds."""
        self.config = config
        self._clock = clock
        self._seed = SystemRandom().getrandbits(63) if config.seed is None else config.seed
        self._catalogue = catalogue()
        self._shop = Shop(self._catalogue)
        self._tokens = {
            token: account or "simulator" for token, _, account in (given.partition("=") for given in config.tokens)
        }
        self.dispatch = Dispatch(config, seed=self._seed)
        self.reset()

    def reset(self) -> None:
        """Begin anew: no predictions, no faults, full buckets, real time."""
        self.world = World(self.config, clock=self._clock, seed=self._seed)
        self._seed += 1
        self._calls = Calls()
        self._renderer = Renderer(self.world)
        self._creating = Creating(self.world, catalogue=self._catalogue, renderer=self._renderer)
        self._files = Files(self.world)
        self._album = Album()
        self.dispatch.enter(self.world, self._renderer)
        self._admin = Admin(self.world, calls=self._calls, dispatch=self.dispatch, reset=self.reset)

    def told_now(self) -> float:
        """Return the time the provider believes it is, Unix seconds: what its Date header says."""
        return self.world.told_now()

    def handle(self, request: Request) -> Answer:
        """Answer one request and count it."""
        parts = request.path.strip("/").split("/")
        self.world.settle(self.world.now())
        if parts[0] == "v1":
            return self._api(request, parts[1:])
        if parts[0] == "_admin" and len(parts) == 2:
            return self._admin.answer(request, parts[1])
        if parts[0] == "files" and len(parts) == 3:
            return self._output(parts[1], parts[2])
        if parts[0] in ("", "p"):
            return self._page()
        return answers.not_found()

    def _api(self, request: Request, parts: list[str]) -> Answer:
        route = _route(request.method, parts)
        if route.startswith("create"):
            self._calls.receive_create()
        account = self._account(request)
        if account is None:
            answer: Answer = answers.unauthenticated()
        elif route.startswith("create"):
            place = None if len(parts) == 1 else (parts[0], f"{parts[1]}/{parts[2]}")
            answer = self._creating.answer(request, account=account, place=place)
        else:
            answer = self._read(request, parts, route=route, account=account)
        if route.startswith("create"):
            status = answer.status if isinstance(answer, Reply) else 201  # one that is answered later was accepted
            self._calls.decide(self.world.now(), status=status, client=self._client(request))
        return self._counted(route, answer)

    def _counted(self, route: str, answer: Answer) -> Answer:
        if not isinstance(answer, Reply):
            return self._count_later(route, answer)
        self._calls.count(route, answer.status if answer.fate is Fate.SEND else 0)
        return answer

    async def _count_later(self, route: str, answer: Awaitable[Reply]) -> Reply:
        reply = await answer
        self._calls.count(route, reply.status if reply.fate is Fate.SEND else 0)
        return reply

    def _account(self, request: Request) -> Account | None:
        name = self._tokens.get(_token(request))
        return None if name is None else self.world.account(name)

    def _client(self, request: Request) -> int:
        """Return the place of the request's token among the known ones, -1 for a token that is none of them."""
        return next((place for place, token in enumerate(self._tokens) if token == _token(request)), -1)

    def _read(self, request: Request, parts: list[str], *, route: str, account: Account) -> Reply:
        """Answer anything but a create; the files API neither counts against the limits nor shows them."""
        if parts[:1] == ["files"]:
            return self._files.answer(request, account=account.name, file_id=parts[1] if len(parts) > 1 else None)
        refused, headers = account.limits.check_read(self.world.now(), poll=route == "get prediction")
        if refused is not None:
            return refused
        reply = self._ailing(route) or self._found(request, parts, route=route, account=account)
        reply.headers.extend(headers)
        return reply

    def _ailing(self, route: str) -> Reply | None:
        """Return the error of a failing read, if its switch strikes."""
        name = {"list predictions": "list_error", "get prediction": "get_error"}.get(route)
        switch = self.world.faults.strike(name) if name else None
        if switch is None:
            return None
        if switch.status == 502:
            return Reply(502, answers.bad_gateway(), "text/html")
        return answers.problem(switch.status, "Internal server error")

    def _found(self, request: Request, parts: list[str], *, route: str, account: Account) -> Reply:
        if route == "list predictions":
            return listing.page(request, world=self.world, renderer=self._renderer, account=account)
        if route in ("get prediction", "cancel prediction"):
            return self._prediction(request, parts[1], account=account, cancel=route.startswith("cancel"))
        if parts == ["webhooks", "default", "secret"]:
            return answers.json_reply({"key": self.dispatch.secrets.served(account.name)})
        document = self._shop.find(parts, base_url=request.base_url, account=account.name)
        if document is None or request.method != "GET":
            return answers.not_found()
        return answers.json_reply(document)

    def _prediction(self, request: Request, prediction_id: str, *, account: Account, cancel: bool) -> Reply:
        now = self.world.now()
        known = self.world.predictions.get(prediction_id)
        if known is None or known.account != account.name:
            return answers.not_found()
        if cancel:
            self.world.cancel(known, now=now)
        return answers.json_reply(self._renderer.stored(known, base_url=request.base_url, now=now))

    def _output(self, prediction_id: str, name: str) -> Answer:
        """Serve an output file to anybody who knows its URL, as replicate.delivery does, until it is deleted."""
        now = self.world.now()
        known = self.world.predictions.get(prediction_id)
        if known is None or known.status(now) != "succeeded" or self.world.removed(known, now):
            return Reply(404, b"Not Found", "text/plain")
        picture = drawing(known, name)
        if picture is None:
            return Reply(404, b"Not Found", "text/plain")
        size = self.config.file_bytes
        mark = f"{prediction_id}-{name}"
        body = self._album.picture(picture) if size is None else padded(picture.extension, size, mark=mark)
        reply = Reply(200, body, MEDIA_TYPES[picture.extension], [("etag", f'"{mark}"')])
        return self._spoiled(reply)

    def _spoiled(self, reply: Reply) -> Answer:
        faults = self.world.faults
        if faults.strike("output_404"):
            return Reply(404, b"Not Found", "text/plain")
        if (switch := faults.strike("output_error")) is not None:
            return Reply(switch.status, b"Internal Error", "text/plain")
        if faults.strike("output_reset"):
            reply.fate = Fate.RESET
        if faults.strike("output_truncated"):
            reply.fate = Fate.CUT
        if faults.strike("output_wrong_type"):
            reply.content_type = "text/html"
        slow = faults.strike("output_slow")
        return reply if slow is None else _later(reply, seconds=slow.seconds)

    def _page(self) -> Reply:
        """Return the page for people: counts, and the pictures made last."""
        now = self.world.now()
        totals = ledger(self.world, self._calls, webhooks=self.dispatch.as_json())
        totals.pop("by_input")
        shown = []
        for known in islice(reversed(self.world.predictions.values()), LATEST):
            if known.status(now) == "succeeded" and not self.world.removed(known, now):
                names = [f"out-0.{ending}" for ending in ("webp", "jpg", "png")]
                shown += [f"/files/{known.id}/{name}" for name in names if drawing(known, name)]
        pictures = "\n".join(f'<img src="{html.escape(url)}" alt="" loading="lazy">' for url in shown)
        counts = html.escape(orjson.dumps(totals, option=orjson.OPT_INDENT_2).decode())
        page = resources("orchestrator.simulator").joinpath("page.html").read_text()
        body = page.replace("{counts}", counts).replace("{pictures}", pictures)
        return Reply(200, body.encode(), "text/html; charset=utf-8")


def _token(request: Request) -> str:
    """Return the token a request carries, empty if none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() in ("bearer", "token") else ""


async def _later(reply: Reply, *, seconds: float) -> Reply:
    await asyncio.sleep(seconds)
    return reply


def _route(method: str, parts: list[str]) -> str:
    """Return the name under which a call is counted."""
    if parts[-1:] == ["predictions"] and len(parts) in (1, 4):
        if method == "POST" and (len(parts) == 1 or parts[0] in ("models", "deployments")):
            return "create prediction" if len(parts) == 1 else f"create prediction ({parts[0]})"
        return "list predictions" if method == "GET" and len(parts) == 1 else "other"
    if parts[:1] == ["predictions"]:
        if len(parts) == 2 and method == "GET":
            return "get prediction"
        return "cancel prediction" if len(parts) == 3 and parts[2] == "cancel" and method == "POST" else "other"
    return f"{method.lower()} {parts[0]}" if parts else "other"
