import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.core.errors import Unreachable
from orchestrator.core.records import Wake
from orchestrator.gateways.limiter import redis_client
from orchestrator.gateways.local import private_redis
from orchestrator.gateways.processes import spawn
from orchestrator.gateways.queue import KEY_PREFIX, QUEUE_NAME, CeleryQueue, broker_url, celery_app

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from orchestrator.gateways.queue import STATIONS, WORKER_OPTIONS, celery_app, task_name
app = celery_app(sys.argv[1])
for station in STATIONS:
    def look(key, lane, station=station):
        print(station, key, lane, flush=True)
    app.task(look, name=task_name(station))
app.worker_main(["worker", "--pool", "threads", "--concurrency", "2", "--loglevel", "ERROR", *WORKER_OPTIONS])
"""


@pytest.fixture
async def redis_url(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a Redis of this test's own."""
    async with private_redis(tmp_path / "home") as redis:
        yield redis.url


async def until_printed(log: Path, words: str) -> None:
    """Wait for words in a log."""
    end = time.monotonic() + 20
    while words not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


async def test_message_is_a_nudge(redis_url: str) -> None:
    """A message holds the station's task, key and lane, in JSON, and no due time, expiry or place for a result."""
    queue, client = CeleryQueue(celery_app(redis_url)), redis_client(redis_url)
    await queue.send([Wake("submit", "b1", 3, datetime(2030, 1, 1, tzinfo=UTC)), Wake("sweep", "acme")])
    letters = [json.loads(letter) for letter in await client.lrange(KEY_PREFIX + QUEUE_NAME, 0, -1)]
    heads = [letter["headers"] for letter in letters]
    assert [head["task"] for head in heads] == ["orchestrator.sweep", "orchestrator.submit"]
    assert {(head["eta"], head["expires"], head["ignore_result"]) for head in heads} == {(None, None, True)}
    assert json.loads(base64.b64decode(letters[1]["body"]))[0] == ["b1", 3]
    assert all(key.startswith(KEY_PREFIX) for key in await client.keys("*"))
    await queue.aclose()
    await client.aclose()


async def test_nothing_to_send() -> None:
    """No wakes need no broker."""
    await CeleryQueue(celery_app("redis://127.0.0.1:1/0")).send([])


async def test_unknown_station(redis_url: str) -> None:
    """A wake for a station that nobody serves is refused before anything is sent."""
    with pytest.raises(ValueError, match="no such station: colect"):
        await CeleryQueue(celery_app(redis_url)).send([Wake("submit", "b1"), Wake("colect", "b1")])


@pytest.mark.parametrize("url", ["redis://:hunter2@127.0.0.1:1/0", "unix:///no/such/r.sock"])
async def test_broker_away(url: str) -> None:
    """Without a broker sending fails within two seconds, says where, and gives no password away."""
    queue, began = CeleryQueue(celery_app(url)), time.monotonic()
    with pytest.raises(Unreachable, match=r"(127\.0\.0\.1:1|socket /no/such/r\.sock) ") as caught:
        await queue.send([Wake("submit", "b1")])
    assert time.monotonic() - began < 2.0
    assert "hunter2" not in str(caught.value)
    await queue.aclose()


async def test_sends_again_after_a_restart(tmp_path: Path) -> None:
    """A sender outlives its broker: what fails while Redis is away works when it is back."""
    async with private_redis(tmp_path) as redis:
        queue = CeleryQueue(celery_app(redis.url))
        await queue.send([Wake("submit", "b1")])
    with pytest.raises(Unreachable):
        await queue.send([Wake("submit", "b2")])
    async with private_redis(tmp_path) as redis:
        await queue.send([Wake("submit", "b3")])
        client = redis_client(redis.url)
        assert await client.llen(KEY_PREFIX + QUEUE_NAME) == 1
        await client.aclose()
        await queue.aclose()


async def test_worker_gets_every_station_and_survives_a_flush(redis_url: str, tmp_path: Path) -> None:
    """A real worker on the same factory runs each station's task, also after FLUSHALL, and ends in order."""
    log = tmp_path / "log"
    worker = await spawn([sys.executable, "-c", WORKER, redis_url], log_path=log,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
    queue, client = CeleryQueue(celery_app(redis_url)), redis_client(redis_url)
    try:
        await queue.send([Wake(station, "key", 1) for station in ("submit", "sweep", "collect", "report")])
        for station in ("submit", "sweep", "collect", "report"):
            await until_printed(log, f"{station} key 1")
        await client.flushall()
        await queue.send([Wake("submit", "after")])
        await until_printed(log, "submit after 0")
    finally:
        await client.aclose()
        await queue.aclose()
        code = await worker.terminate(grace_s=15)
    assert code == 0, log.read_text()


def test_broker_urls() -> None:
    """A socket is spelled Celery's way; other addresses stay."""
    assert broker_url("unix:///tmp/r.sock") == "redis+socket:///tmp/r.sock"
    assert broker_url("rediss://h:1/0") == "rediss://h:1/0"
