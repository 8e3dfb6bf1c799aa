"""Webhooks of the simulator, received on a real socket and checked by code of its own."""

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import orjson
import pytest

from orchestrator.simulator.serve import SimulatorConfig, running
from orchestrator.simulator.signing import signed
from orchestrator.simulator.webhooks import TRIES_AFTER_S
from tests.simulator.conftest import Rig

HANG = 0  # instead of a status: no answer at all


def eventually(so: Callable[[], bool], *, within_s: float = 10.0) -> bool:
    """Say whether it came to be so in time."""
    until = time.monotonic() + within_s
    while not so() and time.monotonic() < until:
        time.sleep(0.005)
    return so()


@dataclass
class Heard:
    """One POST that came in."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def status(self) -> str:
        return str(orjson.loads(self.body)["status"])


@dataclass
class Ear:
    """A receiver that answers with the codes it is told, then 200."""

    url: str
    heard: list[Heard] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    hung: threading.Event = field(default_factory=threading.Event)

    def wait(self, count: int, *, within_s: float = 10.0) -> list[Heard]:
        """Every delivery once there are `count`, after a moment to notice one too many."""
        eventually(lambda: len(self.heard) >= count, within_s=within_s)
        time.sleep(0.05)
        return list(self.heard)

    def statuses(self, count: int) -> list[str]:
        return [heard.status for heard in self.wait(count)]


class Server(ThreadingHTTPServer):
    """With a backlog for every connection that may come at once: the usual five lose some for seconds."""

    daemon_threads = True
    request_queue_size = 512


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A receiver on a port of its own."""
    yield from listening()


@pytest.fixture
def other_ear() -> Iterator[Ear]:
    """Another receiver."""
    yield from listening()


def listening() -> Iterator[Ear]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            ear.heard.append(Heard(self.path, {k.lower(): v for k, v in self.headers.items()}, body, time.monotonic()))
            code = ear.codes.pop(0) if ear.codes else 200
            if code == HANG:
                ear.hung.wait(20)
                return
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("location", ear.url + "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    ear = Ear(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield ear
    ear.hung.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def quick_url() -> Iterator[str]:
    """Predictions of half a second, retries within half a second."""
    config = SimulatorConfig(port=0, seed=5, latency_s=0.5, creates_per_minute=0, webhook_retry_scale=0.008)
    with running(config) as url:
        yield url


@pytest.fixture
def quick(quick_url: str) -> Iterator[Rig]:
    """The same, with an empty world."""
    rig = Rig(quick_url)
    rig.http.post("/_admin/reset").raise_for_status()
    yield rig
    rig.http.close()


def order(rig: Rig, ear: Ear, *, events: Any = ("completed",), version: str = "simulator/echo", path: str = "/hook?row=7",
          **given: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"version": version, "input": given or {"text": "hello"}, "webhook": ear.url + path}
    if events is not None:
        body["webhook_events_filter"] = list(events)
    return dict(rig.http.post("/v1/predictions", json=body).raise_for_status().json())


def counts(rig: Rig) -> dict[str, Any]:
    return dict(rig.http.get("/_admin/webhooks").json())


def signature(secret: str, *, message_id: str, stamp: str, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{message_id}.{stamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()


def is_signed(heard: Heard, secret: str) -> bool:
    given = {name: heard.headers["webhook-" + name] for name in ("id", "timestamp", "signature")}
    wanted = signature(secret, message_id=given["id"], stamp=given["timestamp"], body=heard.body)
    return wanted in given["signature"].split()


def world_now(rig: Rig) -> float:
    return float(rig.http.post("/_admin/advance", json={"seconds": 0}).json()["now"])


def secret_of(rig: Rig) -> str:
    return str(rig.http.get("/v1/webhooks/default/secret").json()["key"])


def test_the_documented_vector():
    """The vector of Replicate's own client tests comes out of the simulator and of the check used here."""
    secret, stamp, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "1614265330", b'{"test": 2432232314}'
    vector = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(secret, message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", stamp=stamp, body=body) == vector
    assert signed(secret, message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", stamp=int(stamp), body=body) == vector


def test_a_completion(quick: Rig, ear: Ear):
    """One POST to the URL as given, the body what GET shows, signed with the served secret, of this very minute."""
    made = order(quick, ear)
    (heard,) = ear.wait(1)
    assert heard.path == "/hook?row=7"
    assert orjson.loads(heard.body) == quick.see(made["id"])
    assert is_signed(heard, secret_of(quick))
    assert not is_signed(heard, "whsec_" + base64.b64encode(b"another").decode())
    assert heard.headers["webhook-id"].startswith("msg_")
    assert abs(int(heard.headers["webhook-timestamp"]) - time.time()) < 5


def test_counts(quick: Rig, ear: Ear):
    """What was sent is told by a route of its own and in the ledger."""
    order(quick, ear)
    ear.wait(1)
    assert eventually(lambda: counts(quick)["waiting"] == 0)
    told = counts(quick)
    assert {name: count for name, count in told.items() if count} == {
        "sent": 1, "delivered": 1, "by_event": {"completed": 1}, "by_status": {"200": 1}}
    assert quick.ledger()["webhooks"] == told


def test_no_webhook_no_post(quick: Rig, ear: Ear):
    """Who asks for none gets none, and neither does who filters everything out."""
    quick.buy(text="quiet")
    order(quick, ear, events=(), path="/none")
    order(quick, ear, path="/one")
    ear.wait(1)
    assert eventually(lambda: quick.ledger()["by_status"] == {"succeeded": 3})
    assert [heard.path for heard in ear.wait(1)] == ["/one"]


def test_all_events_of_a_model_with_tokens(ear: Ear):
    """Without a filter: the start, output that grows, twice a second at most, and the end, in this order."""
    with running(SimulatorConfig(port=0, seed=5, latency_s=4, creates_per_minute=0)) as url:
        rig = Rig(url)
        order(rig, ear, events=None, version="meta/meta-llama-3-8b-instruct", prompt="tell me")
        assert eventually(lambda: bool(ear.heard) and ear.heard[-1].status == "succeeded", within_s=30)
        rig.http.close()
    statuses = [heard.status for heard in ear.heard]
    assert statuses == ["processing"] * (len(statuses) - 1) + ["succeeded"]
    lengths = [len(orjson.loads(heard.body)["output"] or []) for heard in ear.heard]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0 < lengths[1] < lengths[-1]
    gaps = [later.at - earlier.at for earlier, later in zip(ear.heard[:-2], ear.heard[1:-1], strict=True)]
    assert min(gaps) > 0.45


def test_all_events_of_an_image(rig: Rig, ear: Ear):
    """Start and logs while it runs, the output while it still says `processing`, the end: one each."""
    order(rig, ear, events=None, version="black-forest-labs/flux-schnell", prompt="a boat")
    rig.advance(1900)
    told = [orjson.loads(heard.body) for heard in ear.wait(4)]
    assert [(body["status"], bool(body["output"])) for body in told] == [
        ("processing", False), ("processing", False), ("processing", True), ("succeeded", True)]
    assert counts(rig)["by_event"] == {"start": 1, "logs": 1, "output": 1, "completed": 1}


@pytest.mark.parametrize("event", ["start", "logs", "output", "completed"])
def test_a_filter_is_kept(rig: Rig, ear: Ear, event: str):
    """One event alone is one event alone."""
    order(rig, ear, events=(event,))
    rig.advance(1900)
    ear.wait(1)
    assert counts(rig)["by_event"] == {event: 1}


def test_a_prediction_canceled_in_the_queue_never_starts(rig: Rig, ear: Ear):
    """It tells its end and nothing else, and what was planned for later lapses."""
    made = order(rig, ear, events=None)
    rig.http.post(f"/v1/predictions/{made['id']}/cancel").raise_for_status()
    rig.advance(1900)
    assert ear.statuses(1) == ["canceled"]
    assert (len(ear.heard), counts(rig)["waiting"]) == (1, 0)


def test_failed_is_told(rig: Rig, ear: Ear):
    """A failure is an end like another."""
    rig.put("faults", fail={"next": 1, "text": "no such luck"})
    order(rig, ear)
    rig.advance(1900)
    (heard,) = ear.wait(1)
    assert (heard.status, orjson.loads(heard.body)["error"]) == ("failed", "no such luck")


@pytest.mark.parametrize("told", [False, True])
def test_aborted_is_told_only_under_the_switch(ear: Ear, told: bool):
    """Whether Replicate tells of a deadline met in the queue is not known; by default the simulator does not."""
    with running(SimulatorConfig(port=0, seed=5, webhook_aborted=told)) as url:
        rig = Rig(url)
        rig.put("faults", stuck={"next": 1})
        body = {"version": "simulator/echo", "input": {"text": "x"}, "webhook": ear.url}
        rig.http.post("/v1/predictions", json=body, headers={"cancel-after": "5s"}).raise_for_status()
        order(rig, ear, path="/next")
        rig.advance(1900)
        statuses = ear.statuses(2 if told else 1)
        rig.http.close()
    assert sorted(statuses) == (["aborted", "succeeded"] if told else ["succeeded"])


@pytest.mark.parametrize("code", [500, 503, 404, 429])
def test_the_end_is_tried_again(quick: Rig, ear: Ear, code: int):
    """Whatever 4xx or 5xx it meets: the same message id and body, signed anew, until it is taken."""
    ear.codes = [code, code]
    order(quick, ear)
    heard = ear.wait(3)
    assert len(heard) == 3
    assert len({(h.headers["webhook-id"], h.body) for h in heard}) == 1
    assert all(is_signed(h, secret_of(quick)) for h in heard)
    assert [counts(quick)[name] for name in ("sent", "retried", "failed", "delivered")] == [3, 2, 2, 1]


def test_and_given_up_after_a_minute(rig: Rig, ear: Ear):
    """Tried again after 1, 3, 7, 15, 31 and 60 seconds, each with a timestamp of its own; then it is lost."""
    ear.codes = [500] * 20
    order(rig, ear)
    rig.advance(1900)
    ear.wait(1)
    first_at = world_now(rig)
    for tries, after_s in enumerate(TRIES_AFTER_S, start=1):
        rig.advance(first_at + after_s - 0.5 - world_now(rig))
        assert len(ear.wait(tries)) == tries
        rig.advance(0.5)
        assert len(ear.wait(tries + 1)) == tries + 1
    assert eventually(lambda: counts(rig)["given_up"] == 1)
    assert len({h.headers["webhook-id"] for h in ear.heard}) == 1
    assert [int(h.headers["webhook-timestamp"]) - int(first_at) for h in ear.heard] == pytest.approx([0, *TRIES_AFTER_S], abs=1.5)
    rig.advance(600)
    assert (len(ear.wait(7)), counts(rig)["waiting"]) == (7, 0)


def test_intermediate_ones_are_not(rig: Rig, ear: Ear):
    """A start that is not taken is lost at once."""
    ear.codes = [500]
    order(rig, ear, events=("start",))
    rig.advance(1900)
    ear.wait(1)
    rig.advance(60)
    assert len(ear.wait(1)) == 1
    assert (counts(rig)["failed"], counts(rig)["waiting"]) == (1, 0)


@pytest.mark.parametrize("code", [301, 302, 307])
def test_redirects_lose(rig: Rig, ear: Ear, code: int):
    """A redirect is neither followed nor repeated (replicate-javascript#195)."""
    ear.codes = [code]
    order(rig, ear)
    rig.advance(1900)
    ear.wait(1)
    rig.advance(60)
    assert len(ear.wait(1)) == 1
    assert (counts(rig)["redirected"], counts(rig)["waiting"]) == (1, 0)


def test_nobody_there(quick: Rig):
    """A receiver that is away is tried again like one that fails."""
    order(quick, Ear("http://127.0.0.1:9"))
    assert eventually(lambda: counts(quick)["given_up"] == 1)
    assert counts(quick)["by_status"] == {"no answer": 7}


def test_one_that_hangs_keeps_nobody_else_waiting(rig: Rig, ear: Ear, other_ear: Ear):
    """Webhooks to one receiver do not queue behind those to another that never answers."""
    ear.codes = [HANG] * 150
    rig.put("limits", creates_per_minute=0)
    for _ in range(150):
        order(rig, ear)
    order(rig, other_ear)
    rig.advance(1900)
    assert len(other_ear.wait(1, within_s=3)) == 1
    assert counts(rig)["delivered"] == 1


@pytest.mark.parametrize("url", ["https://example.com/hook", "http://192.0.2.1:80?x=1", "http://[half", "http://"])
def test_not_into_the_world(rig: Rig, ear: Ear, url: str):
    """A stand-in sends to this machine only, and an address that is none harms nobody."""
    order(rig, Ear(url), path="")
    order(rig, ear)
    rig.advance(1900)
    ear.wait(1)
    assert eventually(lambda: counts(rig)["refused_host"] == 1)
    assert (counts(rig)["sent"], counts(rig)["waiting"]) == (1, 0)


def test_time_that_is_moved(rig: Rig, ear: Ear):
    """Webhooks follow the admin's clock, and one that a jump made late still tells what was true at its time."""
    order(rig, ear, events=("start", "completed"))
    time.sleep(0.1)
    assert ear.heard == []
    rig.advance(9000)
    told = [orjson.loads(heard.body) for heard in ear.wait(2)]
    assert [(body["status"], body["output"], body["data_removed"]) for body in told] == [
        ("processing", None, False), ("succeeded", "hello", False)]


def test_a_stuck_create_tells_its_end_too(ear: Ear):
    """A prediction that came into being after its create was given up sends webhooks, though nobody asks for it."""
    with running(SimulatorConfig(port=0, seed=5, latency_s=0.2)) as url:
        rig = Rig(url)
        rig.put("faults", late_creation={"next": 1, "seconds": 0.3})
        with pytest.raises(httpx.RemoteProtocolError):
            order(rig, ear)
        assert ear.statuses(1) == ["succeeded"]
        rig.http.close()


def test_rotation(rig: Rig, ear: Ear):
    """A new secret is served and used; in an overlap both sign, the new one first, until the next rotation."""
    before = secret_of(rig)
    rig.http.post("/_admin/webhooks", json={"rotate": True, "overlap": True}).raise_for_status()
    after = secret_of(rig)
    assert after != before
    order(rig, ear)
    rig.advance(1900)
    (heard,) = ear.wait(1)
    assert is_signed(heard, before)
    assert is_signed(heard, after)
    rig.http.post("/_admin/webhooks", json={"rotate": True}).raise_for_status()
    order(rig, ear)
    rig.advance(1900)
    assert [is_signed(ear.wait(2)[1], secret) for secret in (before, after, secret_of(rig))] == [False, False, True]


def test_a_rotation_must_be_said(rig: Rig):
    """The admin's lever without its word turns nothing."""
    before = secret_of(rig)
    assert rig.http.post("/_admin/webhooks", json={"overlap": True}).status_code == 400
    assert secret_of(rig) == before


def test_two_accounts_two_secrets(rig: Rig):
    """Each account has its own, of 24 bytes, and the same again from the same seed."""
    keys = [rig.http.get("/v1/webhooks/default/secret", headers={"authorization": f"Bearer {token}"}).json()["key"]
            for token in ("r8_simulator", "r8_other", "r8_simulator")]
    assert keys[0] == keys[2] != keys[1]
    assert {len(base64.b64decode(key.removeprefix("whsec_"))) for key in keys} == {24}


def test_dropped(rig: Rig, ear: Ear):
    """Never sent, nor tried again."""
    rig.put("faults", webhook_dropped={"next": 1})
    order(rig, ear)
    rig.advance(1900)
    assert eventually(lambda: counts(rig)["dropped"] == 1)
    order(rig, ear, path="/second")
    rig.advance(1900)
    assert [heard.path for heard in ear.wait(1)] == ["/second"]


def test_doubled(rig: Rig, ear: Ear):
    """Twice the same message, word for word."""
    rig.put("faults", webhook_doubled={"next": 1})
    order(rig, ear)
    rig.advance(1900)
    heard = ear.wait(2)
    assert len(heard) == 2
    assert len({(h.headers["webhook-id"], h.body) for h in heard}) == 1
    assert (counts(rig)["sent"], counts(rig)["extra"]) == (2, 1)


def test_late(rig: Rig, ear: Ear):
    """Later than the end by so many seconds, and tried again like any other."""
    rig.put("faults", webhook_late={"next": 1, "seconds": 100})
    ear.codes = [500] * 6
    order(rig, ear)
    rig.advance(1900)
    assert eventually(lambda: counts(rig)["waiting"] == 1)
    rig.advance(95)
    time.sleep(0.1)
    assert ear.heard == []
    rig.advance(5)
    for tries, after_s in enumerate((1, 2, 4, 8, 16, 29), start=1):
        assert len(ear.wait(tries)) == tries
        rig.advance(after_s)
    assert len(ear.wait(7)) == 7
    assert counts(rig)["delivered"] == 1


def test_early(rig: Rig, ear: Ear):
    """The end is told while the create is still unanswered; its answer then says `starting`, and nothing follows."""
    rig.put("faults", webhook_early={"next": 1})
    made = order(rig, ear, events=None)
    assert [heard.status for heard in ear.heard] == ["succeeded"]
    assert made["status"] == "starting"
    rig.advance(1900)
    assert len(ear.wait(1)) == 1


def test_early_waits_so_long(rig: Rig, ear: Ear):
    """A receiver that does not answer holds the create's answer for the switch's seconds, and no longer."""
    rig.put("faults", webhook_early={"next": 1, "seconds": 0.3})
    ear.codes = [HANG]
    began = time.monotonic()
    order(rig, ear)
    assert 0.3 <= time.monotonic() - began < 3
    assert len(ear.heard) == 1


def test_early_needs_a_completion_to_tell(rig: Rig, ear: Ear):
    """A prediction that tells no end is left alone, and the switch keeps for the next."""
    rig.put("faults", webhook_early={"next": 1})
    order(rig, ear, events=("start",))
    assert ear.wait(0) == []
    order(rig, ear)
    assert ear.statuses(1) == ["succeeded"]


def test_reordered(rig: Rig, ear: Ear):
    """A stale `processing` comes after the end, even where only ends were asked for."""
    rig.put("faults", webhook_reordered={"next": 1})
    order(rig, ear)
    rig.advance(1900)
    assert ear.statuses(2) == ["succeeded", "processing"]
    assert all(is_signed(heard, secret_of(rig)) for heard in ear.heard)
    assert len({heard.headers["webhook-id"] for heard in ear.heard}) == 2


def test_forged(rig: Rig, ear: Ear):
    """Before the genuine one: false words under a false signature."""
    rig.put("faults", webhook_forged={"next": 1})
    order(rig, ear)
    rig.advance(1900)
    forged, genuine = ear.wait(2)
    assert (is_signed(forged, secret_of(rig)), is_signed(genuine, secret_of(rig))) == (False, True)
    assert orjson.loads(forged.body)["output"] != orjson.loads(genuine.body)["output"]


def test_old(rig: Rig, ear: Ear):
    """A copy of ten minutes ago, signed as it would have been then."""
    rig.put("faults", webhook_old={"next": 1})
    order(rig, ear)
    rig.advance(1900)
    heard = ear.wait(2)
    assert all(is_signed(h, secret_of(rig)) for h in heard)
    old, genuine = (int(h.headers["webhook-timestamp"]) for h in heard)
    assert genuine - old == pytest.approx(600, abs=2)


def test_two_signatures(rig: Rig, ear: Ear):
    """The right signature stands last, behind a wrong one and one of an unknown version."""
    rig.put("faults", webhook_two_signatures={"next": 1})
    order(rig, ear)
    rig.advance(1900)
    (heard,) = ear.wait(1)
    wrong, unknown, right = heard.headers["webhook-signature"].split()
    assert (wrong[:3], unknown[:3], right[:3]) == ("v1,", "v2,", "v1,")
    heard.headers["webhook-signature"] = wrong
    assert not is_signed(heard, secret_of(rig))
    heard.headers["webhook-signature"] = right
    assert is_signed(heard, secret_of(rig))


def test_misaddressed(rig: Rig, ear: Ear):
    """The same genuine words also reach the address of a prediction that still runs; without one the switch keeps."""
    rig.put("faults", webhook_misaddressed={"next": 1})
    order(rig, ear, path="/alone")
    rig.advance(1900)
    assert [h.path for h in ear.wait(1)] == ["/alone"]
    order(rig, ear, path="/a")
    ended = order(rig, ear, path="/b")
    rig.http.post(f"/v1/predictions/{ended['id']}/cancel").raise_for_status()
    heard = ear.wait(3)[1:]
    assert [h.path for h in heard] == ["/b", "/a"]
    assert {orjson.loads(h.body)["id"] for h in heard} == {ended["id"]}
    assert all(is_signed(h, secret_of(rig)) for h in heard)


def test_a_reset_forgets(rig: Rig, ear: Ear):
    """A new world owes nothing of the old one, not even the second try of what is under way."""
    ear.codes = [HANG]
    order(rig, ear, path="/under-way")
    rig.advance(1900)
    ear.wait(1)
    order(rig, ear, path="/planned")
    rig.http.post("/_admin/reset").raise_for_status()
    ear.hung.set()
    order(rig, ear, path="/new")
    rig.advance(1900)
    rig.advance(1900)
    assert [heard.path for heard in ear.wait(2)] == ["/under-way", "/new"]
    assert counts(rig)["sent"] == 1


def test_thousands(rig: Rig, ear: Ear):
    """Two thousand that end at once are each told once, within seconds."""
    rig.put("limits", creates_per_minute=0)
    body = orjson.dumps({"version": "simulator/echo", "input": {"text": "x"}, "webhook": ear.url,
                         "webhook_events_filter": ["completed"]})
    wire = HTTPConnection(rig.url.removeprefix("http://"))
    for _ in range(2000):
        wire.request("POST", "/v1/predictions", body, {"authorization": "Bearer r8_simulator"})
        assert wire.getresponse().read()
    wire.close()
    rig.advance(1900)
    heard = ear.wait(2000, within_s=30)
    assert len({orjson.loads(h.body)["id"] for h in heard}) == len(heard) == 2000
    assert heard[-1].at - heard[0].at < 15
