"""The main job with webhooks: told by them, found without them, and untouched by those that are false."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import orjson
import pytest

from orchestrator.core.callback import callback_url
from orchestrator.core.signature import secret_bytes, sign
from tests.e2e.desk import Desk, interrupt, wait_until

ECHO = "model: simulator/echo\nsource: { path: rows.csv }\ninput: { text: \"{{ text }}\" }\n"
ROWS = 120


@pytest.fixture
def house(desk: Desk, free_port: Callable[[], int]) -> Desk:
    """A desk whose web part the provider can reach."""
    desk.job(ECHO, name="echo", rows=[{"text": f"sentence {n}"} for n in range(ROWS)])
    bind = f"127.0.0.1:{free_port()}"
    desk.env |= {"ORCHESTRATOR_WEB_BIND": bind, "ORCHESTRATOR_PUBLIC_URL": f"http://{bind}"}
    return desk


def endings(desk: Desk) -> dict[str, int]:
    """Where the ends of the only batch's predictions were learned."""
    (batch,) = desk("status", "--json").json["batches"]
    found: dict[str, int] = desk("status", batch["batch"], "--json").json["ended_via"]
    return found


def test_told_by_webhooks(house: Desk):
    """With a public URL a run brings its own web part; nearly every end is told, and the list is hardly asked."""
    done = house("run", "echo", "--json")
    assert (done.code, done.json["items"]["succeeded"]) == (0, ROWS), done
    assert endings(house).get("webhook", 0) >= 0.95 * ROWS
    routes = house.provider.admin("calls")["routes"]
    assert sum(routes.get("list predictions", {}).values()) <= 3
    assert len(house.provider.purchases()) == ROWS


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_what_webhooks_miss_the_sweep_finds(house: Desk, share: float):
    """Dropped webhooks cost seconds, no rows."""
    house.provider.put("faults", {"webhook_dropped": share})
    done = house("run", "echo", "--json")
    assert (done.code, done.json["items"]["succeeded"]) == (0, ROWS), done
    found = endings(house)
    assert sum(found.values()) == ROWS
    assert found.get("list", 0) + found.get("get", 0) >= share * ROWS / 2
    assert len(house.provider.purchases()) == ROWS


def test_every_mischief_at_once(house: Desk):
    """Early, late, doubled, reordered, forged, stale and misaddressed webhooks, and lost answers: each row once, none wrong."""
    house.provider.put("faults", {
        "webhook_dropped": 0.1, "webhook_doubled": 0.2, "webhook_early": 0.2, "webhook_late": {"p": 0.1, "seconds": 1},
        "webhook_reordered": 0.2, "webhook_forged": 0.2, "webhook_old": 0.2, "webhook_two_signatures": 0.2,
        "webhook_misaddressed": 0.3, "lost_answer": 0.05})
    done = house("run", "echo", "--json")
    assert (done.code, done.json["items"]["succeeded"]) == (0, ROWS), done
    texts = [f"sentence {n}" for n in range(ROWS)]
    assert [(r["text"], r["prediction_output"]) for r in house.results()] == [(text, text) for text in texts]
    assert Counter(p["input"]["text"] for p in house.provider.purchases()) == dict.fromkeys(texts, 1)
    assert house.provider.admin("webhooks")["extra"] > 0


def test_a_lost_answer_is_found_by_its_webhook(house: Desk):
    """The webhook carries the attempt's id: a purchase whose answer was lost is adopted when it ends, with no list to look at."""
    house.provider.put("faults", {"lost_answer": 1.0, "list_error": {"p": 1.0, "status": 500}})
    done = house("run", "echo", "--json")
    assert (done.code, done.json["items"]["succeeded"]) == (0, ROWS), done
    assert len(house.provider.purchases()) == ROWS
    assert endings(house).get("webhook", 0) >= 0.9 * ROWS
    assert done.json["elapsed_s"] < 25


# Hostile traffic, generated. Each maker answers (url, headers, body) from a genuine delivery.
Delivery = tuple[str, dict[str, str], bytes]


def hostile(genuine: list[Delivery], *, secret: bytes, count: int, chance: random.Random) -> list[Delivery]:
    """So many forged, replayed, stale or misaddressed deliveries."""
    def changed_body(url: str, headers: dict[str, str], body: bytes) -> Delivery:
        return url, headers, body[:-1] + b" }"

    def other_secret(url: str, headers: dict[str, str], body: bytes) -> Delivery:
        return url, signed(chance.randbytes(24), body, message=new_id()), body

    def no_signature(url: str, headers: dict[str, str], body: bytes) -> Delivery:
        lost = chance.choice(sorted(headers))
        return url, {name: value for name, value in headers.items() if name != lost}, body

    def stale(url: str, headers: dict[str, str], body: bytes) -> Delivery:
        at_s = time.time() + chance.choice([-1, 1]) * chance.uniform(310, 9e6)
        return url, signed(secret, body, message=new_id(), at_s=at_s), body

    def noise(url: str, headers: dict[str, str], body: bytes) -> Delivery:
        return url, {"webhook-id": "x" * chance.randint(0, 300), "webhook-timestamp": chance.choice(["", "NaN", "-1", "9" * 40]),
                     "webhook-signature": chance.choice(["", "v1,", "v1," + "A" * 5000, "v1,~"])}, chance.randbytes(50)

    def elsewhere(url: str, headers: dict[str, str], body: bytes) -> Delivery:
        """Genuine words, signed as the provider signs, for an attempt that has another prediction, or for none."""
        other = chance.choice([u for u, _, _ in genuine if u != url] + [url[:-26] + new_id()[4:30], url.partition("?")[0]])
        return other, signed(secret, body, message=new_id()), body

    def stranger(url: str, headers: dict[str, str], body: bytes) -> Delivery:
        """Another program's prediction of the same account."""
        mine = orjson.dumps(orjson.loads(body) | {"id": new_id()[4:]})
        return url, signed(secret, mine, message=new_id()), mine

    def new_id() -> str:
        return "msg_" + "".join(chance.choices("0123456789abcdefghjkmnpqrstvwxyz", k=27))

    makers = [changed_body, other_secret, no_signature, stale, noise, elsewhere, stranger]
    return [chance.choice(makers)(*chance.choice(genuine)) for _ in range(count)]


def signed(secret: bytes, body: bytes, *, message: str, at_s: float | None = None) -> dict[str, str]:
    stamp = int(at_s if at_s is not None else time.time())
    return {"webhook-id": message, "webhook-timestamp": str(stamp),
            "webhook-signature": sign(secret, message_id=message, timestamp=stamp, body=body)}


async def post_all(deliveries: list[Delivery], *, at_once: int = 64) -> Counter[int]:
    """All of them, so many at once; how often each status was answered."""
    answers: Counter[int] = Counter()
    todo = iter(deliveries)

    async def post(http: aiohttp.ClientSession) -> None:
        for url, headers, body in todo:
            async with http.post(url, headers=headers, data=body) as answer:
                await answer.read()
                answers[answer.status] += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=at_once)) as http:
        await asyncio.gather(*(post(http) for _ in range(at_once)))
    return answers


def test_ten_thousand_false_ones(house: Desk):
    """Forged, replayed, stale and misaddressed webhooks against live attempts: none is taken, none is answered 5xx."""
    house.provider.put("faults", {"stuck": 1.0})
    house.job(ECHO, name="echo", rows=[{"text": f"sentence {n}"} for n in range(40)])
    process = house.start("run", "echo", "--json")
    wait_until(lambda: _all_out(house, 40))
    key = httpx.get(f"{house.provider.url}/v1/webhooks/default/secret", headers={"authorization": "Bearer r8_simulator"}).json()
    secret = secret_bytes(key["key"])
    rows = [(p["webhook"], p["id"]) for p in house.provider.purchases()]
    assert all(url.startswith(callback_url(house.env["ORCHESTRATOR_PUBLIC_URL"], "")) for url, _ in rows)
    genuine: list[Delivery] = []
    for url, prediction_id in rows:
        body = orjson.dumps({"id": prediction_id, "status": "succeeded", "output": "done", "metrics": {"predict_time": 1.0}})
        genuine.append((url, signed(secret, body, message="msg_" + prediction_id), body))
    chance = random.Random(20261121)
    answers = asyncio.run(post_all(hostile(genuine, secret=secret, count=10_000, chance=chance)))
    assert set(answers) <= {400, 401, 404}, answers
    assert _states(house) == {"running": 40}
    # The same attempts still take what is genuine, once.
    assert asyncio.run(post_all(genuine)) == {200: 40}
    assert asyncio.run(post_all(genuine)) == {200: 40}
    wait_until(lambda: _states(house) == {"succeeded": 40})
    assert endings(house) == {"webhook": 40}
    assert process.wait(timeout=60) == 0
    process.communicate()


def _all_out(desk: Desk, count: int) -> bool:
    return _states(desk) == {"running": count} and _answers(desk)


def _answers(desk: Desk) -> bool:
    try:
        return httpx.get(f"http://{desk.env['ORCHESTRATOR_WEB_BIND']}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def _states(desk: Desk) -> dict[str, Any]:
    batches = desk("status", "--json").json.get("batches", [])
    if not batches:
        return {}
    by_state: dict[str, int] = desk("status", batches[0]["batch"], "--json").json["by_state"]
    return {state: count for state, count in by_state.items() if count}


def test_the_web_part_ends_with_its_run(house: Desk):
    """Ctrl-C takes the web part down with the rest, and the next run finds what was told to nobody."""
    house.provider.put("limits", {"creates_per_minute": 0})
    process = house.start("run", "echo")
    wait_until(lambda: len(house.provider.purchases()) > 20)
    assert interrupt(process).code == 130
    wait_until(lambda: not house.processes(), timeout_s=15)
    done = house("run", "echo", "--json")
    assert (done.code, done.json["items"]["succeeded"]) == (0, ROWS), done
    assert len(house.provider.purchases()) == ROWS
