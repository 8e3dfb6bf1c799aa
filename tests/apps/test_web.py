"""The webhook route as ASGI: every answer it gives, group commit, keys and their rotation. The ledger is a real one elsewhere."""

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.apps.web import bodies
from orchestrator.apps.web import main as web_main
from orchestrator.apps.web.bodies import LARGEST_BODY
from orchestrator.apps.web.hook import Hook, Recent
from orchestrator.apps.web.intake import APART_S, LARGE_GROUP, LARGEST_GROUP, Intake
from orchestrator.apps.web.keys import LEARN_EVERY_S, OLD_KEY_LIVES_S, SigningKeys
from orchestrator.core.errors import Unreachable
from orchestrator.core.records import Delivery, Receipt
from orchestrator.core.signature import secret_bytes, sign
from orchestrator.gateways.testing import HandClock

OLD, NEW = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
ATTEMPT = "0123456789abcdefghijklmnop"
BODY = json.dumps({"id": "p0", "status": "succeeded", "output": "x"}).encode()


class Stand:
    """A route with a provider's secret, a clock, and a ledger that keeps what it is given."""

    def __init__(self) -> None:
        self.clock = HandClock(start_at=NOW)
        self.secret: str | Exception = OLD
        self.asked = 0
        self.groups: list[int] = []
        self.taken: list[Delivery] = []
        self.trouble: Exception | None = None
        self.keys = SigningKeys(self._fetch, boottime=self.clock.boottime)
        self.hook = Hook(keys=self.keys, intake=Intake(self._take), clock=self.clock)

    async def _fetch(self) -> str:
        self.asked += 1
        if isinstance(self.secret, Exception):
            raise self.secret
        return self.secret

    async def _take(self, group: Sequence[Delivery]) -> list[Receipt]:
        self.groups.append(len(group))
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        self.taken += group
        words = {"unknown": Receipt.UNKNOWN, "other": Receipt.MISADDRESSED}
        return [words.get(d.prediction.id, Receipt.RECORDED) for d in group]

    async def post(self, body: bytes = BODY, *, secret: str = OLD, query: str = f"attempt={ATTEMPT}", message: str = "msg_1",
                   method: str = "POST", parts: int = 1, **headers: str) -> tuple[int, str]:
        stamp = int(self.clock.now().timestamp())
        signature = sign(secret_bytes(secret), message_id=message, timestamp=stamp, body=body)
        sent = {"webhook-id": message, "webhook-timestamp": str(stamp), "webhook-signature": signature,
                "content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {"type": "http", "method": method, "path": "/webhooks/replicate", "query_string": query.encode(),
                 "headers": [(name.encode(), value.encode()) for name, value in sent.items()]}
        size = max(1, len(body) // parts + 1)
        pieces = [body[start:start + size] for start in range(0, len(body), size)] or [b""]
        messages = [{"type": "http.request", "body": piece, "more_body": n < len(pieces) - 1}
                    for n, piece in enumerate(pieces)] + [{"type": "http.disconnect"}]
        answer: list[Any] = []

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            answer.append(message)

        await self.hook(scope, receive, send)
        return answer[0]["status"], json.loads(answer[1]["body"])["detail"]


@pytest.fixture
def stand() -> Stand:
    """A fresh route."""
    return Stand()


async def test_a_genuine_one_is_taken(stand: Stand):
    """Signed, addressed, readable: 200, and the ledger has it with its message's id."""
    assert await stand.post() == (200, "recorded")
    (taken,) = stand.taken
    assert (taken.message_id, taken.attempt_id, taken.prediction.id, taken.received_at) == ("msg_1", ATTEMPT, "p0", NOW)


@pytest.mark.parametrize(("change", "answer"), [
    ({"webhook_signature": "v1,AAAA"}, (401, "forged")),
    ({"secret": NEW}, (401, "forged")),
    ({"webhook_timestamp": "1"}, (401, "stale")),
    ({"webhook_id": ""}, (400, "unreadable")),
    ({"query": ""}, (404, "the URL names no attempt")),
    ({"query": "attempt=1%20OR%201"}, (404, "the URL names no attempt")),
    ({"body": b"{"}, (400, "no prediction")),
    ({"body": b"[1]"}, (400, "no prediction")),
    ({"body": b'{"id":"p0"}'}, (400, "no prediction")),
    ({"body": b'{"id":"unknown","status":"succeeded"}'}, (404, "unknown attempt")),
    ({"body": b'{"id":"other","status":"succeeded"}'}, (404, "about another attempt")),
    ({"method": "GET"}, (405, "webhooks are POSTs")),
    ({"content_length": str(LARGEST_BODY + 1)}, (413, "larger than 64 MB")),
])
async def test_everything_else_is_told_so(stand: Stand, change: dict[str, Any], answer: tuple[int, str]):
    """Nothing but a genuine delivery about an attempt is taken, and nothing is answered 5xx."""
    assert await stand.post(**change) == answer
    assert not [d for d in stand.taken if d.prediction.id == "p0"]


async def test_large_and_in_pieces(stand: Stand):
    """Thirty megabytes in many pieces are a completion like any other."""
    body = json.dumps({"id": "p0", "status": "succeeded", "output": "data:," + "x" * 30_000_000}).encode()
    assert await stand.post(body, parts=400) == (200, "recorded")


async def test_longer_than_announced(stand: Stand):
    """A length that lies does not open the door to more."""
    assert await stand.post(b"x" * (LARGEST_BODY + 10), parts=20, content_length="10") == (413, "larger than 64 MB")


async def test_cut(stand: Stand):
    """A sender that goes away in the middle leaves nothing behind."""
    async def receive() -> Any:
        return parts.pop(0)

    parts = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    await stand.keys.learn()
    await stand.hook({"type": "http", "method": "POST", "path": "/webhooks/replicate", "query_string": b"", "headers": []},
                     receive, send)
    assert answers[0]["status"] == 400
    assert stand.taken == []


async def test_too_slow(stand: Stand, monkeypatch: pytest.MonkeyPatch):
    """A sender that stops in the middle is told so, and one that has just begun is left alone."""
    async def receive() -> Any:
        return parts.pop(0) if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        answers.append(message)

    parts = [{"type": "http.request", "body": b"{", "more_body": True}]
    answers: list[Any] = []
    await stand.keys.learn()
    scope = {"type": "http", "method": "POST", "path": "/webhooks/replicate", "query_string": b"", "headers": []}
    request = asyncio.create_task(stand.hook(scope, receive, send))
    await asyncio.sleep(0.01)
    stand.hook.bodies.cut_slow()
    await asyncio.sleep(0.01)
    assert not request.done()
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.0)
    stand.hook.bodies.cut_slow()
    await asyncio.wait_for(request, 1)
    assert (answers[0]["status"], stand.taken) == (408, [])


async def test_without_a_secret_503(stand: Stand):
    """No secret yet: the provider is asked to come again, never told that all is well."""
    stand.secret = Unreachable("away")
    assert await stand.post() == (503, "the signing secret is not known yet")
    assert stand.keys.trouble == "away"
    stand.secret = OLD
    stand.clock.advance(LEARN_EVERY_S)
    assert await stand.post() == (200, "recorded")


async def test_the_ledger_away_503(stand: Stand):
    """Never 200 before the commit."""
    stand.trouble = Unreachable("no database")
    assert await stand.post() == (503, "the ledger is away")


async def test_rotation(stand: Stand):
    """A new secret is learned from the first delivery that bears it; the old one lives on for an hour."""
    await stand.post()
    stand.secret = NEW
    stand.clock.advance(LEARN_EVERY_S)
    assert await stand.post(secret=NEW, message="m2") == (200, "recorded")
    assert await stand.post(secret=OLD, message="m3") == (200, "recorded")
    stand.clock.advance(OLD_KEY_LIVES_S)
    assert await stand.post(secret=OLD, message="m4") == (401, "forged")
    assert await stand.post(secret=NEW, message="m5") == (200, "recorded")


async def test_a_flood_of_forgeries_asks_the_provider_seldom(stand: Stand):
    """A thousand forgeries in ten seconds are one question."""
    await stand.post()
    stand.clock.advance(LEARN_EVERY_S)
    answers = await asyncio.gather(*(stand.post(webhook_signature="v1,AAAA", message=f"m{n}") for n in range(1000)))
    assert {status for status, _ in answers} == {401}
    assert stand.asked == 2


async def test_natural_groups(stand: Stand):
    """What comes in while one commit runs is the next one: few commits, bounded in size, a receipt for everybody."""
    await stand.keys.learn()
    answers = await asyncio.gather(*(stand.post(message=f"m{n}") for n in range(1000)))
    assert set(answers) == {(200, "recorded")}
    assert len(stand.taken) == 1000
    assert max(stand.groups) <= LARGEST_GROUP
    assert len(stand.groups) <= 20


async def test_one_that_the_ledger_cannot_take(stand: Stand):
    """A delivery that breaks its group's commit is alone in its failure."""
    taken: list[str] = []

    async def take(group: Sequence[Delivery]) -> list[Receipt]:
        if any(d.message_id == "bad" for d in group):
            raise ValueError("indigestible")
        taken.extend(d.message_id for d in group)
        return [Receipt.RECORDED for _ in group]

    intake = Intake(take)
    given = [Delivery(name, ATTEMPT, None, NOW) for name in ("a", "bad", "c")]  # type: ignore[arg-type]
    outcomes = await asyncio.gather(*(intake.offer(d) for d in given), return_exceptions=True)
    assert [type(o) for o in outcomes] == [Receipt, ValueError, Receipt]
    assert taken == ["a", "c"]


async def test_a_sender_that_left(stand: Stand):
    """Its delivery is committed all the same, and the others get their receipts."""
    await stand.keys.learn()
    gone = asyncio.create_task(stand.post(message="gone"))
    stays = asyncio.create_task(stand.post(message="stays"))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == (200, "recorded")


async def test_told_twice(stand: Stand):
    """A message that was committed is answered from memory; under another attempt's address it is judged anew."""
    assert await stand.post() == (200, "recorded")
    assert await stand.post() == (200, "doubled")
    assert await stand.post(query=f"attempt={'b' * 26}") == (200, "recorded")
    assert await stand.post(message="msg_2") == (200, "recorded")
    assert len(stand.taken) == 3


async def test_a_refusal_is_not_remembered(stand: Stand):
    """What was not committed is tried again by the provider, and judged again."""
    stand.trouble = Unreachable("the ledger is away")
    assert (await stand.post())[0] == 503
    stand.trouble = None
    assert await stand.post() == (200, "recorded")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """The oldest messages are forgotten, the newest are not."""
    monkeypatch.setattr("orchestrator.apps.web.hook.REMEMBERED", 10)
    recent = Recent()
    for n in range(35):
        recent.add(f"m{n}", ATTEMPT)
    assert [n for n in range(35) if recent.has(f"m{n}", ATTEMPT)] == list(range(20, 35))


async def test_a_chore_goes_on(monkeypatch: pytest.MonkeyPatch):
    """A chore that fails in a way nobody foresaw is begun again."""
    monkeypatch.setattr(web_main, "AFTER_DEFECT_S", 0.0)
    begun: list[int] = []

    async def chore() -> None:
        begun.append(1)
        if len(begun) < 3:
            raise RuntimeError("odd")
        await asyncio.Event().wait()

    task = asyncio.create_task(web_main._for_ever(chore))
    await asyncio.sleep(0.05)
    assert (len(begun), task.done()) == (3, False)
    task.cancel()


async def test_small_groups_keep_their_distance():
    """A trickle shares transactions, while the first of it waits for nothing; a large group waits no longer than it grows."""
    groups: list[int] = []

    async def take(group: Sequence[Delivery]) -> list[Receipt]:
        groups.append(len(group))
        return [Receipt.RECORDED for _ in group]

    intake = Intake(take)
    delivery = Delivery("m", ATTEMPT, None, NOW)  # type: ignore[arg-type]
    began = time.monotonic()
    await intake.offer(delivery)
    first_s = time.monotonic() - began
    waiting = []
    for _ in range(5):
        waiting.append(asyncio.create_task(intake.offer(delivery)))
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert groups == [1, 5]
    assert time.monotonic() - began >= APART_S * 0.9 > first_s
    await asyncio.gather(*(intake.offer(delivery) for _ in range(LARGE_GROUP)))
    assert groups == [1, 5, LARGE_GROUP]
