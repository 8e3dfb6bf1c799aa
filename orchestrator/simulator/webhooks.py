"""Webhooks as Replicate sends them: signed, four events, only the last one repeated, no redirect followed.

What is due lies in a heap under the world's clock; a prediction that asks for nothing but its completion costs one
entry and one POST. Bodies are rendered when they are sent, so a hundred thousand waiting webhooks hold no text.
"""

import asyncio
import heapq
import traceback
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from orchestrator.simulator.config import SimulatorConfig
from orchestrator.simulator.messages import Message, body_of, fate_of
from orchestrator.simulator.render import Renderer
from orchestrator.simulator.signing import Secrets
from orchestrator.simulator.world import Prediction, World

THROTTLE_S = 0.5  # Replicate docs: output and logs at most once per 500 ms
# Replicate docs: the last about a minute after completion; the others are a guess.
TRIES_AFTER_S = (1.0, 3.0, 7.0, 15.0, 31.0, 60.0)
TIMEOUT_S = 5.0  # Replicate docs: answer "within a few seconds"
KEPT_ALIVE_S = 2.0  # shorter than any receiver's: a POST on a connection just closed would count as a failed try
AT_ONCE = 100
HANDED_OVER = 200
NAMES = ("sent", "delivered", "redirected", "failed", "retried", "given_up", "dropped", "refused_host", "extra")


@dataclass(slots=True)
class Receiver:
    """One address (host and port) that webhooks go to: what is due for it, and how many workers send there."""

    due: deque[Message] = field(default_factory=deque)
    workers: int = 0


class Dispatch:
    """Sends the webhooks of one world at a time, from the server's own loop.

    Those of one prediction go out one after the other, those of different ones side by side, up to AT_ONCE a receiver.
    """

    def __init__(self, config: SimulatorConfig, *, seed: int) -> None:
        """Start idle; `enter` names the world, `run` does the sending."""
        self._config = config
        self._seed = seed
        self._drawn = 0
        self._nudged = asyncio.Event()
        self._http: aiohttp.ClientSession | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._receivers: dict[str, Receiver] = {}
        self._telling: dict[str, deque[Message]] = {}

    def enter(self, world: World, renderer: Renderer) -> None:
        """Serve this world from now on, counting from zero; what another one owed is forgotten."""
        self._world = world
        self._renderer = renderer
        self._due: list[tuple[float, int, str | Message, Prediction]] = []
        self._under_way = 0
        self._counts: Counter[str] = Counter()
        self._by_event: Counter[str] = Counter()
        self._by_status: Counter[str] = Counter()
        self.secrets = Secrets(self._seed)
        world.dispatch = self
        self._nudged.set()

    def as_json(self) -> dict[str, Any]:
        """Return what was sent and what became of it.

        `sent` counts POSTs, each of which is in the end delivered, redirected or failed; `extra` are those among them
        that a switch added. `by_event` counts genuine messages, `waiting` those planned or under way.
        """
        waiting = len(self._due) + self._under_way
        return {name: self._counts[name] for name in NAMES} | {
            "waiting": waiting, "by_event": dict(self._by_event), "by_status": dict(self._by_status)}

    # What is to be sent when

    def created(self, prediction: Prediction) -> None:
        """Plan the events of a new prediction that asks for some."""
        starts = prediction.start_at < prediction.end_at
        if starts and prediction.tells("start"):
            self._plan(prediction.start_at, "start", prediction)
        if prediction.tells("output") and prediction.target.model.kind == "tokens":
            self._plan(prediction.start_at + THROTTLE_S, "more", prediction)
        elif starts and (prediction.tells("logs") or prediction.tells("output")):
            self._plan_once(prediction)
        if prediction.tells("completed"):
            self._plan(prediction.end_at, "completed", prediction)

    def canceled(self, prediction: Prediction) -> None:
        """Plan the end that has come sooner; what was planned for the old one lapses."""
        if prediction.tells("completed"):
            self._plan(prediction.end_at, "completed", prediction)

    async def early(self, prediction: Prediction, *, within_s: float) -> None:
        """Tell the end of a prediction now, and wait for the receiver's answer, so long at most."""
        self._under_way += 1
        told = self._spawn(self._tell(self._message("completed", prediction, at=prediction.end_at)))
        await asyncio.wait({told}, timeout=within_s)

    def nudge(self) -> None:
        """Look again at what is due: time has been moved, or the world has."""
        self._nudged.set()

    def _plan_once(self, prediction: Prediction) -> None:
        """Plan logs and output of a model that has but one of each: what it logs at its start, the output at its end."""
        logs_at = prediction.start_at + THROTTLE_S
        logs = prediction.tells("logs") and logs_at < prediction.end_at
        if logs:
            self._plan(logs_at, "logs", prediction)
        if prediction.tells("output") and not (logs and prediction.end_at < logs_at + THROTTLE_S):
            self._plan(prediction.end_at, "output", prediction)

    def _plan(self, at: float, what: str | Message, prediction: Prediction) -> None:
        """Remember what is due when; infinity is never."""
        if at == float("inf"):
            return
        self._drawn += 1
        heapq.heappush(self._due, (at, self._drawn, what, prediction))
        if self._due[0][1] == self._drawn:
            self._nudged.set()

    def _still_so(self, event: str, prediction: Prediction, *, at: float) -> bool:
        """Say whether what was planned has come true: a cancellation may have moved the end."""
        if event == "start":
            return at == prediction.start_at < prediction.end_at
        if event == "output":
            return at == prediction.end_at and prediction.end_status == "succeeded"
        if event == "completed":
            told = prediction.end_status != "aborted" or self._config.webhook_aborted
            return told and at == prediction.end_at
        return prediction.start_at <= at < prediction.end_at

    def _message(self, event: str, prediction: Prediction, *, at: float) -> Message:
        assert prediction.webhook is not None
        return Message(
            id=self._new_id(), event=event, prediction=prediction, at=at, world=self._world, url=prediction.webhook
        )

    def _new_id(self) -> str:
        self._drawn += 1
        return "msg_" + blake2b(b"%d:%d" % (self._seed, self._drawn), digest_size=14).hexdigest()[:27]

    # Sending

    async def run(self) -> None:
        """Send what is due until canceled."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE_S)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as self._http:
            try:
                while True:
                    self._nudged.clear()
                    self._world.settle(self._world.now())
                    self._hand_over(self._world.now())
                    await self._rest()
            finally:
                self._http = None
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _rest(self) -> None:
        """Wait until something is due, or somebody nudges."""
        next_at = min(self._due[0][0] if self._due else float("inf"), self._world.late_at)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(next_at - self._world.now(), 0.0), 3600.0)):
                await self._nudged.wait()

    def _hand_over(self, now: float) -> None:
        """Give what is due to the workers of its receiver, a handful at once, lest the server stand still meanwhile."""
        for _ in range(HANDED_OVER):
            if not self._due or self._due[0][0] > now:
                return
            at, _, what, prediction = heapq.heappop(self._due)
            if isinstance(what, Message):
                self._enqueue(what)
            elif what == "more":
                self._hand_over_more(prediction, at=at, now=now)
            elif self._still_so(what, prediction, at=at):
                self._enqueue(self._message(what, prediction, at=at))

    def _hand_over_more(self, prediction: Prediction, *, at: float, now: float) -> None:
        """Tell what a language model has said so far, and half a second later again; a jump of the clock skips some."""
        if not self._still_so("more", prediction, at=now):
            return
        if prediction.id not in self._telling:
            self._enqueue(self._message("output", prediction, at=now))
        self._plan(now + THROTTLE_S, "more", prediction)

    def _enqueue(self, message: Message) -> None:
        host_and_port = message.url.partition("?")[0].split("/", 3)[2]
        self._under_way += 1
        receiver = self._receivers.setdefault(host_and_port, Receiver())
        receiver.due.append(message)
        if receiver.workers < AT_ONCE:
            receiver.workers += 1
            self._spawn(self._work(receiver))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self, receiver: Receiver) -> None:
        try:
            while receiver.due:
                await self._tell(receiver.due.popleft())
        finally:
            receiver.workers -= 1

    async def _tell(self, message: Message) -> None:
        """Send a message after those of the same prediction that are being sent."""
        before = self._telling.get(message.prediction.id)
        if before is not None:
            before.append(message)
            return
        line = self._telling[message.prediction.id] = deque([message])
        try:
            while line:
                await self._finish(line.popleft())
        finally:
            del self._telling[message.prediction.id]

    async def _finish(self, message: Message) -> None:
        """Send a message of this world, and count it off."""
        if message.world is not self._world:
            return
        try:
            await self._send(message)
        except Exception:  # a fault of the simulator must show as one, and not as a lost webhook
            traceback.print_exc()
        if message.world is self._world:
            self._under_way -= 1

    async def _send(self, message: Message) -> None:
        """Send a message with all that befalls it, drawn once; late ones are planned anew."""
        if message.fate is None:
            message.fate = fate_of(message, new_id=self._new_id)
            if message.fate.dropped:
                self._counts["dropped"] += 1
                return
            if message.fate.late_s > 0:
                self._plan(self._world.now() + message.fate.late_s, message, message.prediction)
                return
        first = message.tries == 0
        for part in (*message.fate.before, message, *message.fate.after) if first else (message,):
            await self._try(part)

    async def _try(self, message: Message) -> None:
        if self._config.webhook_hosts != "any" and not _is_loopback(message.url):
            self._counts["refused_host"] += 1
            return
        message.tries += 1
        message.first_try_at = message.first_try_at or self._world.now()
        self._counts["sent"] += 1
        if message.copy:
            self._counts["extra"] += 1
        elif message.tries == 1:
            self._by_event[message.event] += 1
        status = await self._post(message)
        if message.world is self._world:
            self._note(message, status)

    def _note(self, message: Message, status: int | None) -> None:
        """Count an answer, None where nobody gave one; only the genuine completion is tried again."""
        self._by_status["no answer" if status is None else str(status)] += 1
        if status is not None and 200 <= status < 300:
            self._counts["delivered"] += 1
        elif status is not None and 300 <= status < 400:  # replicate-javascript#195: silently lost
            self._counts["redirected"] += 1
        else:
            self._counts["failed"] += 1
            if message.event == "completed" and not message.copy:
                self._try_again(message)

    def _try_again(self, message: Message) -> None:
        if message.tries > len(TRIES_AFTER_S):
            self._counts["given_up"] += 1
            return
        self._counts["retried"] += 1
        wait_s = TRIES_AFTER_S[message.tries - 1] * self._config.webhook_retry_scale
        self._plan(message.first_try_at + wait_s, message, message.prediction)

    async def _post(self, message: Message) -> int | None:
        """Make one POST and return the status answered, None if there was no answer in time."""
        if self._http is None:
            return None
        body = body_of(message, renderer=self._renderer)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                sent = self._http.post(message.url, data=body, headers=self._headers(message, body), allow_redirects=False)
                async with sent as answer:
                    await answer.read()
                    return answer.status
        except (aiohttp.ClientError, OSError, ValueError):
            return None

    def _headers(self, message: Message, body: bytes) -> dict[str, str]:
        """Return the headers of one try: a timestamp of its own, and the signature over it."""
        stamp = int(self._world.told_now()) - message.back_s
        signature = self.secrets.signature(message.prediction.account, message_id=message.id, stamp=stamp, body=body)
        if message.forged:
            signature = "v1," + b64encode(b"somebody else's signature 012345").decode()
        if message.noise:
            signature = f"v1,{b64encode(bytes(32)).decode()} v2,unknown {signature}"
        return {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(stamp),
            "webhook-signature": signature,
        }


def _is_loopback(url: str) -> bool:
    """Say whether a URL leads to this machine: a stand-in must not send traffic into the world."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
