"""Roles as processes: `up` beside `run`, batches that are left to it, roles that vanish, and the doctor's word on all of it."""

import asyncio
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import httpx
import pytest

from orchestrator.gateways.local import private_redis
from tests.e2e.desk import Desk, interrupt, wait_until

ECHO = "model: simulator/echo\nsource: { path: rows.csv }\ninput: { text: \"{{ text }}\" }\n"


@pytest.fixture
def house(desk: Desk, free_port: Callable[[], int]) -> Desk:
    """A desk with a job of 60 rows and a place for a web part."""
    desk.job(ECHO, name="echo", rows=[{"text": f"sentence {n}"} for n in range(60)])
    desk.env["ORCHESTRATOR_WEB_BIND"] = f"127.0.0.1:{free_port()}"
    return desk


@contextmanager
def up(desk: Desk, *args: str) -> Iterator[int]:
    """`orchestrator up` until the block ends; it must end by SIGTERM and leave nothing behind."""
    process = desk.start("up", *args)
    try:
        wait_until(lambda: "scheduler@" in desk("doctor", "--json").out and _answers(desk), timeout_s=30)
        yield process.pid
    finally:
        if process.poll() is None:
            interrupt(process, 15)
        process.communicate(timeout=30)
    wait_until(lambda: not desk.processes(), timeout_s=15)


def _answers(desk: Desk) -> bool:
    try:
        return httpx.get(f"http://{desk.env['ORCHESTRATOR_WEB_BIND']}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_run_uses_a_live_up(house: Desk):
    """Beside `up`, a run starts no worker of its own, and its batch ends all the same; a detached one too."""
    with up(house, "--workers", "2"):
        done = house("run", "echo", "--json")
        assert done.code == 0, done
        detached = house("run", "echo", "--fresh", "--detach", "--json")
        assert (detached.code, detached.json["state"]) == (0, "running"), detached
        watched = house("watch", detached.json["batch"], "--json")
        assert (watched.code, watched.json["items"]["succeeded"]) == (0, 60), watched
        assert len(list((house.folder / ".orchestrator" / "logs").glob("worker*.log"))) == 2
        api = httpx.get(f"http://{house.env['ORCHESTRATOR_WEB_BIND']}/api/batches").json()
        assert [batch["items"]["succeeded"] for batch in api] == [60, 60]
    assert len(house.provider.purchases()) == 120


def test_up_dies_and_run_goes_on(house: Desk):
    """When everything else is killed, the command that follows its batch brings it home by itself."""
    house.env |= {"ORCHESTRATOR_TEMPO__CREATES_PER_MINUTE": "400", "ORCHESTRATOR_TEMPO__CREATE_BURST": "2"}
    with up(house) as pid:
        process = house.start("run", "echo", "--json")
        wait_until(lambda: len(house.provider.purchases()) > 5)

        os.kill(pid, 9)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert '"succeeded": 60' in out
    assert "goes on by itself" in err
    assert len(house.provider.purchases()) == 60


def test_a_slot_is_started_once_and_brought_home(house: Desk):
    """A nightly job whose night nobody was there for: `up` starts the newest slot, once, and `jobs` tells of it."""
    assert house("run", "echo", "--json").code == 0  # by hand, and so there is a ledger
    schedule = ('schedule: { cron: "*/5 * * * *", timezone: Europe/Berlin, missed: run-once }\n'
                'output: { to: "out/{{ date }}/{{ batch }}" }\n')
    house.job(ECHO + schedule, name="nightly")
    with closing(sqlite3.connect(house.folder / ".orchestrator" / "ledger.db")) as ledger, ledger:
        ledger.execute("INSERT INTO schedules VALUES (?, ?, ?)",
                       ("jobs/nightly.yaml", "*/5 * * * * Europe/Berlin", "2026-11-01 02:00:00.000000"))
    with up(house):
        wait_until(lambda: _last_slot(house) == "done", timeout_s=40)
    batches = [b for b in house("status", "--json").json["batches"] if b["job"] == "nightly"]
    assert len(batches) <= 2, "a slot of this very minute may have come as well"
    assert batches[-1]["run_key"].startswith("jobs/nightly.yaml@20")
    assert batches[-1]["items"]["succeeded"] == 60
    assert list(house.folder.glob("out/20??-??-??/nightly-*/results.parquet"))


def _last_slot(house: Desk) -> str | None:
    (job,) = [job for job in house("jobs", "--json").json["jobs"] if job["job"] == "nightly"]
    last = job["schedule"]["last"]
    return last and last["state"]


def test_detach_with_nobody_at_work(house: Desk):
    """Nothing would move the batch: exit 2, nothing bought, and what to start is said."""
    done = house("run", "echo", "--detach")
    assert done.code == 2
    assert "orchestrator up" in done.err
    assert house.provider.purchases() == []


@pytest.mark.parametrize("command", ["run", "up", "web"])
def test_the_web_part_s_address_is_taken(house: Desk, command: str):
    """A busy port is exit 2 with the remedy, before anything is bought."""
    host, port = house.env["ORCHESTRATOR_WEB_BIND"].split(":")
    with socket.create_server((host, int(port))):
        done = house(*(["run", "echo"] if command == "run" else [command]), ORCHESTRATOR_PUBLIC_URL="http://127.0.0.1:9")
    assert done.code == 2, done
    assert "ORCHESTRATOR_WEB_BIND" in done.err
    assert house.provider.purchases() == []


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_a_role_without_redis(house: Desk, role: str):
    """A lone role says what it needs, and what to type instead on one machine."""
    done = house(role)
    assert done.code == 2
    assert "ORCHESTRATOR_REDIS_URL" in done.err
    assert "orchestrator up" in done.err


async def test_lone_roles_say_that_they_are_at_work(house: Desk, tmp_path_factory: pytest.TempPathFactory):
    """One line each, on stderr: what it is and where; nothing of Celery's."""
    async with private_redis(tmp_path_factory.mktemp("redis")) as redis:
        await asyncio.to_thread(_at_work_one_by_one, house, redis.url)


def _at_work_one_by_one(house: Desk, redis_url: str) -> None:
    for role, words in (("web", f"web listens on http://{house.env['ORCHESTRATOR_WEB_BIND']}"),
                        ("scheduler", "scheduler at work for sqlite"), ("worker", "worker at work for sqlite")):
        process = house.start(role, ORCHESTRATOR_REDIS_URL=redis_url)
        wait_until(lambda role=role: f"{role}@" in house("doctor", "--json").out, timeout_s=30)
        done = interrupt(process, 15)
        assert done.err.startswith(words), done
        assert "celery@" not in done.err + done.out
        assert "--uid" not in done.err


def test_a_worker_without_a_token(house: Desk):
    """It ends with exit 2 and its sentence before it takes any message."""
    done = house("worker", ORCHESTRATOR_REDIS_URL="redis://127.0.0.1:9", REPLICATE_API_TOKEN="")
    assert done.code == 2, done
    assert "no API token" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", [["run", "echo"], ["up"], ["worker"], ["scheduler"]])
def test_a_redis_that_is_away(house: Desk, command: list[str]):
    """At the start that is exit 4 at once, and leaves no batch behind."""
    done = house(*command, ORCHESTRATOR_REDIS_URL="redis://:secret@127.0.0.1:9/0")
    assert done.code == 4, done
    assert "Redis at 127.0.0.1:9 does not answer" in done.err
    assert "ORCHESTRATOR_REDIS_URL" in done.err
    assert "secret" not in done.err
    assert not (house.folder / ".orchestrator" / "ledger.db").exists()


def test_a_setting_that_is_none(house: Desk):
    """Settings that cannot be read are named, not dumped."""
    done = house("doctor", ORCHESTRATOR_PUBLIC_URL="me.example", ORCHESTRATOR_TEMPO__SLICE_S="long")
    assert done.code == 2
    assert "ORCHESTRATOR_PUBLIC_URL: must look like https://" in done.err
    assert "ORCHESTRATOR_TEMPO__SLICE_S" in done.err
    assert "Traceback" not in done.err


def test_the_doctor_s_visits(house: Desk):
    """Without a token 2, without a provider 4, and when all is well 0 with the next thing to type."""
    nobody = house("doctor", "--json", REPLICATE_API_TOKEN="")
    assert nobody.code == 2
    assert "export REPLICATE_API_TOKEN" in nobody.json["next"]
    away = house("doctor", "--json", REPLICATE_BASE_URL="http://127.0.0.1:9")
    assert away.code == 4
    refused = house("doctor", REPLICATE_API_TOKEN="r8_wrong")
    assert refused.code == 4
    assert "does not accept the token" in refused.out
    well = house("doctor", "--json")
    assert (well.code, well.json["next"]) == (0, "orchestrator plan echo"), well
    assert not (house.folder / ".orchestrator").exists(), "a doctor only looks"
    nowhere = house("doctor", "--json", ORCHESTRATOR_DATABASE_URL="sqlite:///nowhere/ledger.db")
    assert (nowhere.code, "ORCHESTRATOR_DATABASE_URL" in nowhere.json["next"]) == (4, True), nowhere


def test_the_doctor_tries_the_webhook_loop(house: Desk):
    """A signed probe goes out to the public URL and comes home through the web part."""
    house.env["ORCHESTRATOR_PUBLIC_URL"] = f"http://{house.env['ORCHESTRATOR_WEB_BIND']}"
    lonely = house("doctor")
    assert "orchestrator up" in lonely.out
    with up(house):
        assert "a signed probe came home" in house("doctor").out
