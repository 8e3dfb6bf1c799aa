"""Webhooks of the simulator, received on a real socket and checked by code of its own."""

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import orjson
import pytest

from orchestrator.simulator.serve import SimulatorConfig, running
from tests.simulator.conftest import Rig


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

    def wait(self, count: int, *, within_s: float = 10.0) -> list[Heard]:
        """The first `count` deliveries, and a moment to notice one too many."""
        until = time.monotonic() + within_s
        while len(self.heard) < count and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.05)
        return list(self.heard)

    def statuses(self, count: int) -> list[str]:
        return [heard.status for heard in self.wait(count)]


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A receiver on a port of its own."""
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            ear.heard.append(Heard(self.path, {k.lower(): v for k, v in self.headers.items()}, body, time.monotonic()))
            code = ear.codes.pop(0) if ear.codes else 200
            self.send_response(code)
            if 300 <= code < 400:
                self.send_header("location", ear.url + "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    ear = Ear(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield ear
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


def is_signed(heard: Heard, secret: str) -> bool:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    text = f"{heard.headers['webhook-id']}.{heard.headers['webhook-timestamp']}.".encode() + heard.body
    wanted = "v1," + base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return wanted in heard.headers["webhook-signature"].split()


def secret_of(rig: Rig) -> str:
    return str(rig.http.get("/v1/webhooks/default/secret").json()["key"])


def test_a_completion(quick: Rig, ear: Ear):
    """One POST to the URL as given, the body what GET shows, signed with the served secret, of this very minute."""
    made = order(quick, ear)
    (heard,) = ear.wait(1)
    assert heard.path == "/hook?row=7"
    assert orjson.loads(heard.body) == quick.see(made["id"])
    assert is_signed(heard, secret_of(quick))
    assert not is_signed(heard, "whsec_" + base64.b64encode(b"another").decode())
    assert abs(int(heard.headers["webhook-timestamp"]) - time.time()) < 5
    assert counts(quick)["delivered"] == 1


def test_no_webhook_no_post(quick: Rig, ear: Ear):
    """Who asks for none gets none, and neither does who filters everything out."""
    quick.buy(text="quiet")
    order(quick, ear, events=())
    order(quick, ear)
    assert len(ear.wait(1)) == 1


def test_all_events_of_a_model_with_tokens(ear: Ear):
    """Start, output at most twice a second, completed, in this order, all four where no filter is given."""
    with running(SimulatorConfig(port=0, seed=5, latency_s=4, creates_per_minute=0)) as url:
        rig = Rig(url)
        order(rig, ear, events=None, version="meta/meta-llama-3-8b-instruct", prompt="tell me")
        until = time.monotonic() + 30
        while (not ear.heard or ear.heard[-1].status != "succeeded") and time.monotonic() < until:
            time.sleep(0.05)
        rig.http.close()
    statuses = [heard.status for heard in ear.heard]
    assert statuses == ["processing"] * (len(statuses) - 1) + ["succeeded"]
    gaps = [later.at - earlier.at for earlier, later in zip(ear.heard[:-2], ear.heard[1:-1], strict=True)]
    assert gaps, "no output on the way"
    assert min(gaps) > 0.4


def test_a_filter_is_kept(quick: Rig, ear: Ear):
    """Start alone is start alone."""
    order(quick, ear, events=("start",))
    assert ear.statuses(1) == ["processing"]
    time.sleep(1.5)
    assert len(ear.heard) == 1


@pytest.mark.parametrize("code", [500, 503, 404, 429])
def test_the_end_is_tried_again(quick: Rig, ear: Ear, code: int):
    """Whatever 4xx or 5xx it meets: the same message id, signed anew, until it is taken."""
    ear.codes = [code, code]
    order(quick, ear)
    heard = ear.wait(3)
    assert len(heard) == 3
    assert len({h.headers["webhook-id"] for h in heard}) == 1
    assert all(is_signed(h, secret_of(quick)) for h in heard)
    assert (counts(quick)["retried"], counts(quick)["delivered"]) == (2, 1)


def test_and_given_up(quick: Rig, ear: Ear):
    """After six more tries, about a minute (scaled here), it is lost."""
    ear.codes = [500] * 20
    order(quick, ear)
    assert len(ear.wait(7)) == 7
    assert counts(quick)["given_up"] == 1


def test_intermediate_ones_are_not(quick: Rig, ear: Ear):
    """A start that is not taken is lost at once."""
    ear.codes = [500]
    order(quick, ear, events=("start",))
    ear.wait(1)
    time.sleep(0.3)
    assert len(ear.heard) == 1


def test_redirects_lose(quick: Rig, ear: Ear):
    """A 301 is not followed and not repeated."""
    ear.codes = [301]
    order(quick, ear)
    ear.wait(1)
    time.sleep(0.3)
    assert len(ear.heard) == 1
    assert counts(quick)["redirected"] == 1


def test_nobody_there(quick: Rig, ear: Ear):
    """A receiver that is away is tried again like one that fails."""
    dead = Ear("http://127.0.0.1:9")
    order(quick, dead)
    until = time.monotonic() + 5
    while counts(quick)["given_up"] == 0 and time.monotonic() < until:
        time.sleep(0.05)
    assert counts(quick)["by_status"] == {"no answer": 7}


def test_not_into_the_world(quick: Rig):
    """A stand-in sends to this machine only."""
    order(quick, Ear("https://example.com"))
    until = time.monotonic() + 5
    while counts(quick)["refused_host"] == 0 and time.monotonic() < until:
        time.sleep(0.05)
    assert counts(quick)["sent"] == 0


def test_cancel_and_abort(rig: Rig, ear: Ear):
    """A canceled one is told; one aborted by its deadline is not, unless the switch says so."""
    made = order(rig, ear)
    rig.http.post(f"/v1/predictions/{made['id']}/cancel").raise_for_status()
    assert ear.statuses(1) == ["canceled"]
    body = {"version": "simulator/echo", "input": {"text": "x"}, "webhook": ear.url, "webhook_events_filter": ["completed"]}
    rig.put("faults", stuck=1)
    rig.http.post("/v1/predictions", json=body, headers={"cancel-after": "5s"}).raise_for_status()
    rig.advance(6)
    time.sleep(0.2)
    assert len(ear.heard) == 1


def test_time_that_is_moved(rig: Rig, ear: Ear):
    """Webhooks follow the admin's clock."""
    order(rig, ear)
    time.sleep(0.1)
    assert ear.heard == []
    rig.advance(1900)
    assert ear.statuses(1) == ["succeeded"]


def test_rotation(quick: Rig, ear: Ear):
    """A new secret is served and used; in an overlap both sign, the new one first."""
    before = secret_of(quick)
    quick.http.post("/_admin/webhooks", json={"rotate": True, "overlap": True}).raise_for_status()
    after = secret_of(quick)
    assert after != before
    order(quick, ear)
    (heard,) = ear.wait(1)
    assert is_signed(heard, before)
    assert is_signed(heard, after)
    quick.http.post("/_admin/webhooks", json={"rotate": True}).raise_for_status()
    order(quick, ear)
    assert [is_signed(ear.wait(2)[1], secret) for secret in (before, after, secret_of(quick))] == [False, False, True]


def test_two_accounts_two_secrets():
    """Each account signs with its own."""
    with running(SimulatorConfig(port=0, seed=1, tokens=("r8_a=a", "r8_b=b"))) as url:
        keys = {httpx.get(f"{url}/v1/webhooks/default/secret", headers={"authorization": f"Bearer r8_{name}"}).json()["key"]
                for name in "ab"}
    assert len(keys) == 2


def test_dropped(quick: Rig, ear: Ear):
    """Never sent, nor tried again."""
    quick.put("faults", webhook_dropped={"next": 1})
    order(quick, ear)
    order(quick, ear, path="/second")
    ear.wait(1)
    time.sleep(0.5)
    assert len(ear.heard) == 1
    assert counts(quick)["dropped"] == 1


def test_doubled(quick: Rig, ear: Ear):
    """Twice the same message."""
    quick.put("faults", webhook_doubled={"next": 1})
    order(quick, ear)
    heard = ear.wait(2)
    assert len(heard) == 2
    assert len({h.headers["webhook-id"] for h in heard}) == 1


def test_late(quick: Rig, ear: Ear):
    """Later than the end by so much."""
    quick.put("faults", webhook_late={"next": 1, "seconds": 1.0})
    made = order(quick, ear)
    (heard,) = ear.wait(1)
    assert heard.status == "succeeded"
    assert made["id"]
    assert counts(quick)["sent"] == 1


def test_early(quick: Rig, ear: Ear):
    """The end is told while the create is still unanswered, and the answer then says `starting`."""
    quick.put("faults", webhook_early={"next": 1})
    made = order(quick, ear)
    assert [heard.status for heard in ear.heard] == ["succeeded"]
    assert made["status"] == "starting"
    assert len(ear.wait(2, within_s=1)) == 1


def test_reordered(quick: Rig, ear: Ear):
    """An old `processing` comes as well, in whatever order."""
    quick.put("faults", webhook_reordered={"next": 1})
    order(quick, ear)
    assert sorted(ear.statuses(2)) == ["processing", "succeeded"]


def test_forged_old_and_two_signatures(quick: Rig, ear: Ear):
    """A copy with a false signature and false words; a copy from ten minutes ago; a genuine one amid noise."""
    quick.put("faults", webhook_forged={"next": 1}, webhook_old={"next": 1}, webhook_two_signatures={"next": 1})
    order(quick, ear)
    heard = ear.wait(3)
    secret = secret_of(quick)
    (forged,) = [h for h in heard if not is_signed(h, secret)]
    assert b"forged.png" in forged.body
    stamps = sorted(int(h.headers["webhook-timestamp"]) - time.time() for h in heard)
    assert stamps[0] < -590
    assert any(len(h.headers["webhook-signature"].split()) == 3 for h in heard if is_signed(h, secret))


def test_misaddressed(rig: Rig, ear: Ear):
    """The same genuine words also reach the address of a prediction that is still running."""
    rig.put("faults", webhook_misaddressed={"next": 1})
    order(rig, ear, path="/a")
    ended = order(rig, ear, path="/b")
    rig.http.post(f"/v1/predictions/{ended['id']}/cancel").raise_for_status()
    heard = ear.wait(2)
    assert sorted(h.path for h in heard) == ["/a", "/b"]
    assert {orjson.loads(h.body)["id"] for h in heard} == {ended["id"]}


def test_a_reset_forgets(quick: Rig, ear: Ear):
    """A new world owes nothing of the old one."""
    order(quick, ear)
    quick.http.post("/_admin/reset").raise_for_status()
    time.sleep(1.5)
    assert ear.heard == []
    assert counts(quick)["sent"] == 0
