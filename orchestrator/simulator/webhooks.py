"""Webhooks as Replicate sends them: signed, four events, only the last one repeated, no redirect followed.

What is due lies in a heap under the world's clock; a prediction that asks for nothing but its completion costs one entry.
Bodies are rendered when they are sent, so a hundred thousand waiting webhooks hold no text.
"""

import asyncio
import heapq
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from hmac import digest
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from orchestrator.simulator.config import SimulatorConfig
from orchestrator.simulator.faults import Switch
from orchestrator.simulator.render import Renderer
from orchestrator.simulator.world import Prediction, World

THROTTLE_S = 0.5  # Replicate docs: output and logs at most once per 500 ms
TRIES_AFTER_S = (1.0, 3.0, 7.0, 15.0, 31.0, 60.0)  # the last about a minute after completion; the others are a guess
TIMEOUT_S = 5.0
AT_ONCE = 100
OLD_S = 600
ALL_EVENTS = ("start", "output", "logs", "completed")


class Secrets:
    """The signing secrets of the accounts, one each; with an overlap, deliveries are signed with the one before it too."""

    def __init__(self, seed: int) -> None:
        """Start with first secrets that depend on nothing but the seed and the account's name."""
        self._seed = seed
        self._turn = 0
        self._overlap = False

    def rotate(self, *, overlap: bool) -> None:
        """Give every account a new secret."""
        self._turn += 1
        self._overlap = overlap

    def served(self, account: str) -> str:
        """Return what the API tells: `whsec_…`."""
        return self._text(account, self._turn)

    def signature(self, account: str, *, message_id: str, stamp: int, body: bytes) -> str:
        """Return the header's value: one signature, or two in an overlap."""
        turns = [self._turn, self._turn - 1] if self._overlap else [self._turn]
        return " ".join(_signed(self._text(account, turn), message_id, stamp, body) for turn in turns)

    def _text(self, account: str, turn: int) -> str:
        return "whsec_" + b64encode(blake2b(f"{self._seed}:{turn}:{account}".encode(), digest_size=24).digest()).decode()


def _signed(secret: str, message_id: str, stamp: int, body: bytes) -> str:
    key = b64decode(secret.removeprefix("whsec_"))
    return "v1," + b64encode(digest(key, b"%s.%d.%s" % (message_id.encode(), stamp, body), "sha256")).decode()


@dataclass(slots=True, eq=False)
class Message:
    """One webhook: the same id however often it is tried."""

    id: str
    event: str
    prediction: Prediction
    tries: int = 0
    first_at: float = 0.0
    url: str | None = None  # another one's, if misaddressed
    stale: bool = False  # tells of the prediction as it was while it ran
    stamp_back_s: int = 0
    forged: bool = False
    noise: bool = False  # an unknown version and a wrong signature beside the right one
    extra: bool = False  # sent besides the genuine one, never repeated


class Dispatch:
    """Sends the webhooks of one world at a time, from the server's own loop."""

    def __init__(self, config: SimulatorConfig, *, seed: int) -> None:
        """Start idle; `enter` names the world, `run` does the sending."""
        self._config = config
        self._seed = seed
        self._nudge = asyncio.Event()
        self._drawn = 0
        self.base_url = "http://127.0.0.1"
        self.secrets = Secrets(seed)

    def enter(self, world: World, renderer: Renderer) -> None:
        """Serve this world from now on; what was due in another one is forgotten."""
        self._world = world
        self._renderer = renderer
        self._due: list[tuple[float, int, Message]] = []
        self._open: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.by_event: Counter[str] = Counter()
        self.by_status: Counter[str] = Counter()
        self.secrets = Secrets(self._seed)
        world.dispatch = self
        self._nudge.set()

    # What is to be sent when

    def created(self, prediction: Prediction) -> None:
        """Plan the events of a new prediction that asks for some."""
        events = ALL_EVENTS if prediction.events is None else prediction.events
        if prediction.webhook is None or not events:
            return
        if "start" in events and prediction.start_at < prediction.end_at:
            self._plan(prediction.start_at, "start", prediction)
        for name in ("output", "logs"):
            if name in events:
                self._plan(prediction.start_at + THROTTLE_S, name, prediction)
                break  # one body tells both
        if "completed" in events and prediction.end_at != float("inf"):
            self._open.add(prediction.id)
            self._plan(prediction.end_at, "completed", prediction)

    def canceled(self, prediction: Prediction) -> None:
        """The end has come sooner than planned."""
        events = ALL_EVENTS if prediction.events is None else prediction.events
        if prediction.webhook is not None and "completed" in events:
            self._open.add(prediction.id)
            self._plan(prediction.end_at, "completed", prediction)

    async def early(self, prediction: Prediction, *, within_s: float) -> None:
        """Deliver the completion before the create is answered."""
        self._open.discard(prediction.id)
        async with aiohttp.ClientSession() as http:
            try:
                async with asyncio.timeout(within_s):
                    await self._try(http, self._message("completed", prediction))
            except TimeoutError:
                self.counts["failed"] += 1

    def nudge(self) -> None:
        """Time has been moved: look again."""
        self._nudge.set()

    def as_json(self) -> dict[str, Any]:
        """Return what was sent, and what became of it."""
        names = ("sent", "delivered", "redirected", "failed", "retried", "given_up", "dropped", "refused_host", "extra")
        return {name: self.counts[name] for name in names} | {
            "waiting": len(self._due), "by_event": dict(self.by_event), "by_status": dict(self.by_status)}

    def _plan(self, at: float, event: str, prediction: Prediction) -> None:
        self._push(at, self._message(event, prediction))

    def _push(self, at: float, message: Message) -> None:
        self._drawn += 1
        heapq.heappush(self._due, (at, self._drawn, message))
        if self._due[0][2] is message:
            self._nudge.set()

    def _message(self, event: str, prediction: Prediction) -> Message:
        self._drawn += 1
        return Message("msg_" + blake2b(b"%d:%d" % (self._seed, self._drawn), digest_size=14).hexdigest()[:27], event, prediction)

    # Sending

    async def run(self) -> None:
        """Send what is due until canceled."""
        free = asyncio.Semaphore(AT_ONCE)
        sending: set[asyncio.Task[None]] = set()
        connector = aiohttp.TCPConnector(limit=AT_ONCE)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as http:
            try:
                while True:
                    message = await self._next()
                    await free.acquire()
                    task = asyncio.create_task(self._send(http, message))
                    sending.add(task)
                    task.add_done_callback(sending.discard)
                    task.add_done_callback(lambda _: free.release())
            finally:
                for task in sending:
                    task.cancel()
                await asyncio.gather(*sending, return_exceptions=True)

    async def _next(self) -> Message:
        """The next message whose time has come."""
        while True:
            self._nudge.clear()
            now = self._world.now()
            if self._due and self._due[0][0] <= now:
                return heapq.heappop(self._due)[2]
            wait_s = self._due[0][0] - now if self._due else 3600.0
            try:
                async with asyncio.timeout(wait_s):
                    await self._nudge.wait()
            except TimeoutError:
                continue

    async def _send(self, http: aiohttp.ClientSession, message: Message) -> None:
        world, prediction, now = self._world, message.prediction, self._world.now()
        world.settle(now)
        if message.event in ("output", "logs"):
            if now >= prediction.end_at:
                return
            if prediction.target.model.kind == "tokens":
                self._plan(now + THROTTLE_S, message.event, prediction)
        elif message.event == "completed" and message.tries == 0 and not message.extra:
            if prediction.id not in self._open or now < prediction.end_at:
                return  # told already, or its end was moved
            self._open.discard(prediction.id)
            if prediction.end_status == "aborted" and not self._config.webhook_aborted:
                return
            if not self._with_faults(message, now=now):
                return
        await self._try(http, message)

    def _with_faults(self, message: Message, *, now: float) -> bool:
        """Whatever the switches do to a completion; False: it is not sent now."""
        strike = self._world.faults.strike
        if strike("webhook_dropped"):
            self.counts["dropped"] += 1
            return False
        if (late := strike("webhook_late")) is not None:
            message.tries, message.first_at = 1, now + late.seconds
            self._push(now + late.seconds, message)
            return False
        for name, build in _EXTRAS.items():
            if (switch := strike(name)) is not None:
                self._extra(build(self, message, switch), at=now)
        message.noise = strike("webhook_two_signatures") is not None
        return True

    def _extra(self, message: Message | None, *, at: float) -> None:
        if message is not None:
            message.extra = True
            self._push(at, message)

    def _doubled(self, message: Message, _: Switch) -> Message:
        return Message(message.id, "completed", message.prediction)

    def _forged(self, message: Message, _: Switch) -> Message:
        return Message(self._message("completed", message.prediction).id, "completed", message.prediction, forged=True)

    def _old(self, message: Message, _: Switch) -> Message:
        return Message(self._message("completed", message.prediction).id, "completed", message.prediction, stamp_back_s=OLD_S)

    def _reordered(self, message: Message, _: Switch) -> Message:
        return Message(self._message("start", message.prediction).id, "start", message.prediction, stale=True)

    def _misaddressed(self, message: Message, _: Switch) -> Message | None:
        """The same words, genuinely signed, to the address of another prediction of the account that is not over."""
        mine = message.prediction
        now = self._world.now()
        for other in reversed(self._world.account(mine.account).predictions[-200:]):
            if other is not mine and other.webhook not in (None, mine.webhook) and now < other.end_at:
                return Message(self._message("completed", mine).id, "completed", mine, url=other.webhook)
        return None

    async def _try(self, http: aiohttp.ClientSession, message: Message) -> None:
        url = message.url or message.prediction.webhook or ""
        if self._config.webhook_hosts != "any" and not _is_loopback(url):
            self.counts["refused_host"] += 1
            return
        message.tries += 1
        message.first_at = message.first_at or self._world.now()
        self.counts["extra" if message.extra else "sent"] += 1
        if message.tries == 1:
            self.by_event[message.event] += 1
        status = await self._post(http, url, message)
        self.by_status[str(status or "no answer")] += 1
        if 200 <= status < 300:
            self.counts["delivered"] += 1
        elif 300 <= status < 400:  # replicate-javascript#195: a redirect loses the webhook, silently
            self.counts["redirected"] += 1
        else:
            self.counts["failed"] += 1
            self._again(message)

    def _again(self, message: Message) -> None:
        """Only the completion is tried again, until about a minute after it."""
        if message.event != "completed" or message.extra:
            return
        if message.tries > len(TRIES_AFTER_S):
            self.counts["given_up"] += 1
            return
        self.counts["retried"] += 1
        self._push(message.first_at + TRIES_AFTER_S[message.tries - 1] * self._config.webhook_retry_scale, message)

    async def _post(self, http: aiohttp.ClientSession, url: str, message: Message) -> int:
        """One POST; 0 where nobody answered."""
        body = self._body(message)
        stamp = int(self._world.told_now()) - message.stamp_back_s
        signature = self.secrets.signature(message.prediction.account, message_id=message.id, stamp=stamp, body=body)
        if message.forged:
            signature = "v1," + b64encode(b"somebody else's signature 012345").decode()
        if message.noise:
            signature = f"v1,{b64encode(bytes(32)).decode()} v2,unknown {signature}"
        headers = {"content-type": "application/json", "webhook-id": message.id, "webhook-timestamp": str(stamp),
                   "webhook-signature": signature}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                async with http.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                    await answer.read()
                    return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0

    def _body(self, message: Message) -> bytes:
        now = self._world.now()
        document = self._renderer.stored(message.prediction, base_url=self.base_url, now=now)
        if message.stale:
            document |= {"status": "processing", "output": None, "completed_at": None, "metrics": {}, "error": None}
        if message.forged:
            document |= {"status": "succeeded", "output": "https://replicate.delivery/forged.png"}
        return orjson.dumps(document)


_EXTRAS: dict[str, Callable[[Dispatch, Message, Switch], Message | None]] = {
    "webhook_doubled": Dispatch._doubled,
    "webhook_forged": Dispatch._forged,
    "webhook_old": Dispatch._old,
    "webhook_reordered": Dispatch._reordered,
    "webhook_misaddressed": Dispatch._misaddressed,
}


def _is_loopback(url: str) -> bool:
    """A stand-in must not send traffic into the world."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
