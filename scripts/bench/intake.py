"""Webhooks taken in, ours beside a plain FastAPI route: one core for the server, the other for who sends."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from urllib.request import urlopen

import uvloop
from processes import ROOT, StandIn, client_env

from orchestrator.core.callback import PATH
from orchestrator.core.lifecycle import Event
from orchestrator.core.ports import ClaimTerms
from orchestrator.core.records import Fact, NewBatch, NewChunk, NewItem, Prediction, Target
from orchestrator.core.retry import Policy, decide
from orchestrator.gateways.ledger import Database, SqlLedger

SECRET = "whsec_" + base64.b64encode(b"a secret for the bench..").decode()
SCHEMA = json.dumps({"components": {"schemas": {
    "Input": {"type": "object", "properties": {"prompt": {"type": "string"}}},
    "Output": {"type": "array", "items": {"type": "string", "format": "uri"}}}}})


@dataclass
class Rate:
    """What a receiver managed."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the server, for each webhook


def ours(simulator: StandIn, folder: Path, *, count: int, at_once: int, offered_per_s: float = 0) -> Rate:
    """`orchestrator web` on a ledger with as many predictions out; `offered_per_s`: as `_send`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asyncio.run(_fill(f"sqlite:///{folder / 'ledger.db'}", count))
    env = client_env(simulator) | {"ORCHESTRATOR_HOME": str(folder), "ORCHESTRATOR_WEB_BIND": "127.0.0.1:0",
                                   "ORCHESTRATOR_LOG_LEVEL": "INFO"}
    secret = json.load(urlopen(_with_token(f"{simulator.url}/v1/webhooks/default/secret")))["key"]
    argv = [sys.executable, "-m", "orchestrator", "web"]
    with _server(argv, env=env, folder=folder, word="listens on http://") as (process, place):
        rate = _measured(process, f"http://{place}{PATH}", secret, count=count, at_once=at_once, offered_per_s=offered_per_s)
    with closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        (done,) = ledger.execute("SELECT count(*) FROM attempts WHERE ended_via = 'webhook'").fetchone()
    assert done == count, f"{done} of {count} recorded"
    return rate


def theirs(_: StandIn, folder: Path, *, count: int, at_once: int, route: str = "replicate") -> Rate:
    """The same webhooks into FastAPI with a SQLModel session and a commit each; route `replicate` or `async`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = client_env(_) | {"BENCH_DATABASE": f"sqlite:///{folder / 'plain.db'}", "BENCH_SECRET": SECRET,
                           "PYTHONPATH": str(Path(__file__).resolve().parent / "baselines")}
    make = ("from webhook_app import *\nSQLModel.metadata.create_all(engine)\nwith Session(engine) as s:\n"
            f"    s.add_all(Attempt(id=f'{{n:026d}}', prediction_id=f'p{{n:026d}}', status='running') for n in range({count}))\n"
            "    s.commit()")
    subprocess.run([sys.executable, "-c", make], env=env, check=True)
    argv = [sys.executable, "-m", "uvicorn", "webhook_app:app", "--port", "0", "--no-access-log"]
    with _server(argv, env=env, folder=folder, word="running on http://") as (process, place):
        rate = _measured(process, f"http://{place}/webhooks/{route}", SECRET, count=count, at_once=at_once)
    with closing(sqlite3.connect(folder / "plain.db")) as book:
        (done,) = book.execute("SELECT count(*) FROM attempt WHERE status = 'succeeded'").fetchone()
    assert done == count, f"{done} of {count} recorded"
    return rate


def _with_token(url: str) -> object:
    from urllib.request import Request

    return Request(url, headers={"authorization": "Bearer r8_simulator"})


@contextmanager
def _server(argv: list[str], *, env: dict[str, str], folder: Path, word: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server on the first core, once its log says where it listens."""
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(["taskset", "--cpu-list", "0", *argv], env=env, cwd=ROOT, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 30
        while word not in log.read_text():
            assert time.monotonic() < until and process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.05)
        time.sleep(1.0)
        yield process, log.read_text().partition(word)[2].split()[0].rstrip(";")
    finally:
        process.terminate()
        process.wait()


def _measured(process: subprocess.Popen[bytes], url: str, secret: str, *, count: int, at_once: int,
              offered_per_s: float = 0) -> Rate:
    before_s = _cpu_s(process.pid)
    other_core = str(max(os.sched_getaffinity(0)))
    argv = [sys.executable, __file__, url, secret, str(count), str(at_once), str(offered_per_s)]
    sent = subprocess.run(["taskset", "--cpu-list", other_core, *argv],
                          cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    told = json.loads(sent.stdout)
    return Rate(told["per_s"], told["p50_ms"], told["p99_ms"], (_cpu_s(process.pid) - before_s) * 1e6 / count)


def _cpu_s(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


async def _fill(url: str, count: int) -> None:
    """A batch whose predictions are all out, in a new ledger."""
    now = datetime.now(UTC)
    later = now + timedelta(hours=1)
    async with Database.open(url) as database:
        ledger = SqlLedger(database)
        batch, _ = await ledger.open_batch(NewBatch(
            id="bench", job="bench", run_key="bench", account="simulator", created_at=now, target=Target("models", "a/b", None),
            job_json='{"model":"a/b","source":{"path":"x.csv"}}', schema_json=SCHEMA, source_json="[]",
            price_json='{"price":{"id":"x","unit":"output","usd":"0.003"},"most_outputs":1}', output_to="/nowhere",
            in_flight=count, max_attempts=3))
        policy = Policy(3, 2.0, canceling=False, price=None, count_files=lambda _: 0)
        for first in range(0, count, 1000):
            numbers = range(first, min(count, first + 1000))
            items = [NewItem(n, str(n), json.dumps({"prompt": f"teapot {n}"}), f"h{n}") for n in numbers]
            await ledger.add_chunk(batch.pk, NewChunk(first, items, b""))
        await ledger.seal(batch.pk, total=count, source_schema_json="", now=now)
        for first in range(0, count, 1000):
            ids = [f"{n:026d}" for n in range(first, min(count, first + 1000))]
            await ledger.claim(batch.pk, attempt_ids=ids, terms=ClaimTerms(now, later, later, "bench", 0))
            facts = [Fact(Event.ANSWERED, now, i, Prediction("p" + i, "starting", created_at=now)) for i in ids]
            await ledger.move(facts, decide=lambda standing, fact: decide(standing, fact, policy=policy, jitter=0.5))


# The sender, a process of its own

def _deliveries(url: str, key: bytes, count: int) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Completions of about a kilobyte, signed."""
    stamp = str(int(time.time()))
    for n in range(count):
        attempt = f"{n:026d}"
        body = json.dumps({
            "id": f"p{attempt}", "status": "succeeded", "model": "a/b", "version": "hidden", "input": {"prompt": "x" * 400},
            "output": [f"https://replicate.delivery/xx/{attempt}/out-0.png"], "error": None, "logs": "step\n" * 20,
            "metrics": {"predict_time": 1.2, "total_time": 2.0}, "created_at": "2026-11-21T01:00:00.000000Z",
            "completed_at": "2026-11-21T01:00:02.000000Z",
            "urls": {"get": f"https://api.replicate.com/v1/predictions/p{attempt}"}}).encode()
        signature = hmac.new(key, f"msg_{attempt}.{stamp}.".encode() + body, hashlib.sha256).digest()
        yield f"{url}?attempt={attempt}", body, {
            "content-type": "application/json", "webhook-id": f"msg_{attempt}", "webhook-timestamp": stamp,
            "webhook-signature": "v1," + base64.b64encode(signature).decode()}


class _Sender(asyncio.Protocol):
    """One connection that sends what is next, as soon as it is answered or, where a rate is offered, as soon as it is due.

    Bytes made before, and answers looked at no closer than needed: a client library took as much CPU as the server, and
    with it the memory and the caches that the two cores share."""

    def __init__(self, todo: Iterator[tuple[int, bytes]], *, start: float, offered_per_s: float) -> None:
        self.answers: Counter[bytes] = Counter()
        self.took: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self._todo, self._start, self._offered_per_s = todo, start, offered_per_s
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first one."""
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def _next(self) -> None:
        n, self._request = next(self._todo, (0, b""))
        if not self._request:
            self._transport.close()
            self.done.set_result(None)
            return
        due = self._start + n / self._offered_per_s if self._offered_per_s else 0.0
        if (early_s := due - time.perf_counter()) > 0:
            asyncio.get_running_loop().call_later(early_s, self._send, due)
        else:
            self._send(due)

    def _send(self, due: float) -> None:
        self._began = due or time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """An answer has two parts, and all of ours end alike."""
        self._seen += data
        if self._seen.endswith((b"}\n", b"}")):
            self.took.append(time.perf_counter() - self._began)
            self.answers[self._seen.split(b" ", 2)[1]] += 1
            self._seen = b""
            self._next()


async def _send(url: str, secret: str, count: int, at_once: int, offered_per_s: float) -> None:
    """As fast as answers come; or `offered_per_s`, evenly, whether or not answers come, as a provider sends: how long one
    takes is then counted from when it was due."""
    prepared = [_request(*delivery) for delivery in _deliveries(url, base64.b64decode(secret.removeprefix("whsec_")), count)]
    todo, place, loop = enumerate(prepared), urlsplit(url), asyncio.get_running_loop()
    start = time.perf_counter()
    make = partial(_Sender, todo, start=start, offered_per_s=offered_per_s)
    made = [await loop.create_connection(make, place.hostname, place.port) for _ in range(at_once)]
    senders = [sender for _, sender in made]
    await asyncio.gather(*(sender.done for sender in senders))
    wall_s = time.perf_counter() - start
    answers = sum((sender.answers for sender in senders), Counter())
    assert answers == {b"200": count}, answers
    took = sorted(seconds for sender in senders for seconds in sender.took)
    print(json.dumps({"per_s": count / wall_s, "p50_ms": took[count // 2] * 1e3, "p99_ms": took[int(count * 0.99)] * 1e3}))


def _request(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    place = urlsplit(url)
    lines = [f"POST {place.path}?{place.query} HTTP/1.1", f"host: {place.netloc}", f"content-length: {len(body)}",
             "user-agent: bench", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


if __name__ == "__main__":
    uvloop.run(_send(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
