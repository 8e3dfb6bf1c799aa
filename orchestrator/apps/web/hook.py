"""The webhook route, bare ASGI: raw bytes in, judged by their signature, committed, then 200. The hot path of the web part.

Answers: 200 taken in (or taken in before), 400 not readable, 401 not genuine or not of now, 404 about no attempt of this
ledger, 405, 408, 413, and 503 while the signing secret or the ledger is away: then the provider tries again.
"""

import asyncio
import logging
from collections import Counter
from functools import lru_cache

import orjson

from orchestrator.apps.web.bodies import LARGEST_BODY, Bodies, Message, Receive, Refused, Scope, Send
from orchestrator.apps.web.intake import Intake
from orchestrator.apps.web.keys import SigningKeys
from orchestrator.core.callback import PATH, attempt_in
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.ports import Clock
from orchestrator.core.prediction import parse
from orchestrator.core.records import Delivery, Receipt
from orchestrator.core.signature import Verdict, check

LARGE_BODY = 1024 * 1024
LARGE_AT_ONCE = 4
REMEMBERED = 50_000  # messages, and up to as many older ones: minutes of deliveries at any rate
log = logging.getLogger("orchestrator.web")

_READ = {name.encode(): name for name in (
    "content-length", "transfer-encoding", "webhook-id", "webhook-timestamp", "webhook-signature")}
_OF_RECEIPT = {Receipt.UNKNOWN: (404, "unknown attempt"), Receipt.MISADDRESSED: (404, "about another attempt")}


@lru_cache(maxsize=64)
def _messages(status: int, word: str) -> tuple[Message, Message]:
    """An answer as ASGI sends it. There are some twenty."""
    body = b'{"detail":"%s"}\n' % word.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return ({"type": "http.response.start", "status": status, "headers": headers},
            {"type": "http.response.body", "body": body})


class Hook:
    """One route as an ASGI application. `counts` says how often each answer was given; `bodies.cut_slow` is to be called now
    and then."""

    def __init__(self, *, keys: SigningKeys, intake: Intake, clock: Clock) -> None:
        self._keys = keys
        self._intake = intake
        self._clock = clock
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._recent = Recent()
        self.bodies = Bodies()
        self.counts: Counter[str] = Counter()

    @staticmethod
    def is_for(scope: Scope) -> bool:
        """Whether a request is a webhook's; a proxy may have put a prefix before the path."""
        return bool(scope["type"] == "http" and scope["path"].endswith(PATH))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            status, word = await self._answer(scope, receive)
        except Refused as refused:
            status, word = refused.status, refused.word
        except OrchestratorError as error:
            log.warning("a webhook could not be taken in, the provider will try again: %s", error)
            status, word = 503, "the ledger is away"
        except Exception:  # a defect of ours: said in full once, or a flood of deliveries would be a flood of tracebacks
            status, word = 500, "failed"
            log.error("a webhook could not be taken in", exc_info=not self.counts[word])
        self.counts[word] += 1
        for message in _messages(status, word):
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, str]:
        if scope["method"] != "POST":
            return 405, "webhooks are POSTs"
        attempt_id = attempt_in(scope["query_string"].decode("latin-1"))
        headers = {_READ[name]: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        length = headers.get("content-length", "0")
        announced = int(length) if length.isdigit() else 0
        if announced > LARGEST_BODY:
            return 413, "larger than 64 MB"
        if not self._keys.live() and not await self._keys.learn():
            return 503, "the signing secret is not known yet"
        if announced <= LARGE_BODY and "transfer-encoding" not in headers:
            return await self._judged(attempt_id, headers, await self.bodies.read(receive))
        async with self._large:  # a few of these fit into memory at once
            return await self._judged(attempt_id, headers, await self.bodies.read(receive))

    async def _judged(self, attempt_id: str | None, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        now = self._clock.now()
        verdict = check(headers, secrets=self._keys.live(), body=body, now_s=now.timestamp())
        if verdict is Verdict.FORGED and await self._keys.learn():  # perhaps the secret was rotated
            verdict = check(headers, secrets=self._keys.live(), body=body, now_s=now.timestamp())
        if verdict is not Verdict.GENUINE:
            return (400 if verdict is Verdict.UNREADABLE else 401), verdict.value
        if attempt_id is None:
            return 404, "the URL names no attempt"
        try:
            prediction = parse(orjson.loads(body))
        except (ValueError, AttributeError):
            return 400, "no prediction"
        message_id = headers["webhook-id"]
        if self._recent.has(message_id, attempt_id):
            return 200, Receipt.DOUBLED.value
        receipt = await self._intake.offer(Delivery(message_id, attempt_id, prediction, now))
        if receipt in _OF_RECEIPT:
            return _OF_RECEIPT[receipt]
        self._recent.add(message_id, attempt_id)
        return 200, receipt.value


class Recent:
    """Messages that were committed just now, so that what is told again costs no transaction.

    Only a saving: a message that is not remembered, as after a restart, is a fact told twice, and changes nothing."""

    def __init__(self) -> None:
        self._new: set[tuple[str, str]] = set()
        self._old: set[tuple[str, str]] = set()

    def has(self, message_id: str, attempt_id: str) -> bool:
        """Whether this message, sent to this attempt, is among the last ones."""
        key = (message_id, attempt_id)
        return key in self._new or key in self._old

    def add(self, message_id: str, attempt_id: str) -> None:
        """Remember one, and forget the oldest half when there are many."""
        self._new.add((message_id, attempt_id))
        if len(self._new) >= REMEMBERED:
            self._old, self._new = self._new, set()
