"""docker-compose.yml without Docker: each service's own command in its own environment, on real PostgreSQL and Redis."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from ruamel.yaml import YAML

from orchestrator.gateways.local import redis_server
from orchestrator.settings import Settings, read_settings
from tests.conftest import administer
from tests.e2e.desk import Desk, wait_until

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "replicate-orchestrator")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def filled(text: str, env: dict[str, str]) -> str:
    """A value as compose would give it: ${NAME:-default} and ${NAME:?message}."""
    def value(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2], match[3]
        if env.get(name):
            return env[name]
        assert kind == ":-", f"{name} must be set: {rest}"
        return rest

    return re.sub(r"\$\{(\w+)(:-|:\?)([^}]*)\}", value, str(text))


def test_every_setting_is_one():
    """Compose and .env.example name only settings that the program knows."""
    aliases = {str(field.validation_alias) for field in Settings.model_fields.values() if field.validation_alias}
    known = aliases | {f"ORCHESTRATOR_{name}".upper() for name in Settings.model_fields}
    named = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    for name in OURS:
        named |= set(SERVICES[name]["environment"])
    assert {name.split("__")[0] for name in named} - {"POSTGRES_PASSWORD"} <= known


def test_env_example_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Copied and filled in with no more than a token, it is a valid .env for a run without Docker too."""
    for name in [n for n in os.environ if n.startswith(("ORCHESTRATOR_", "REPLICATE_"))]:
        monkeypatch.delenv(name)
    text = (ROOT / ".env.example").read_text("utf-8").replace("REPLICATE_API_TOKEN=", "REPLICATE_API_TOKEN=r8_x")
    (tmp_path / ".env").write_text(text, "utf-8")
    settings = read_settings(tmp_path / ".orchestrator")
    assert settings.api_token == SecretStr("r8_x")
    assert settings.public_url is None


def test_the_image_holds_what_it_copies():
    """Every COPY names something that is there and that .dockerignore lets through; the entry point is ours."""
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.removeprefix('./')}" in ignored, source
    assert 'ENTRYPOINT ["orchestrator"]' in DOCKERFILE
    assert re.search(r'^orchestrator = "orchestrator\.', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)


def test_what_starts_before_what():
    """No role before the tables are there; Redis never evicts; nothing listens to the world by itself."""
    for name in OURS:
        assert set(SERVICES[name]["depends_on"]) <= set(SERVICES), name
    assert SERVICES["worker"]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES["redis"]["command"][-2:] == ["--maxmemory-policy", "noeviction"]
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", []))


class House:
    """The services as processes of this machine."""

    def __init__(self, desk: Desk, *, database: str, redis_port: int, web_port: int) -> None:
        self.desk = desk
        self.web = f"http://127.0.0.1:{web_port}"
        self._given = desk.env | {"POSTGRES_PASSWORD": "secret", "ORCHESTRATOR_PUBLIC_URL": self.web,
                                  "ORCHESTRATOR_TEMPO__CREATES_PER_MINUTE": "0"}
        self._places = {
            "postgresql://orchestrator:secret@postgres:5432/orchestrator": database,
            "redis://redis:6379/0": f"redis://127.0.0.1:{redis_port}/0", "0.0.0.0:8000": f"127.0.0.1:{web_port}"}

    def env(self, service: str) -> dict[str, str]:
        """What compose would set, with the names of its network replaced by places of this machine."""
        plain = {name: self.desk.env[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in self.desk.env}
        plain |= {name: value for name, value in self.desk.env.items() if name.startswith("ORCHESTRATOR_TEMPO__")}
        told = {name: filled(value, self._given) for name, value in SERVICES[service]["environment"].items()}
        return plain | {name: self._places.get(value, value) for name, value in told.items()} | {
            "ORCHESTRATOR_HOME": str(self.desk.folder / service)}

    def start(self, service: str, *args: str) -> subprocess.Popen[str]:
        """A service's own command (or other arguments, as `docker compose run` gives them)."""
        command = list(args) or SERVICES[service]["command"]
        with (self.desk.folder / f"{service}.log").open("a") as log:
            return subprocess.Popen([sys.executable, "-m", "orchestrator", *command], cwd=self.desk.folder,
                                    env=self.env(service), text=True, stdout=subprocess.PIPE if args else log, stderr=log)

    @contextmanager
    def up(self, *services: str) -> Iterator[None]:
        """These services, until the block ends; then each must end by SIGTERM, within its grace time."""
        processes = [(name, self.start(name)) for name in services]
        try:
            yield
            for name, process in processes:
                assert process.poll() is None, (name, (self.desk.folder / f"{name}.log").read_text())
        finally:
            for _, process in processes:
                process.terminate()
            for _, process in processes:
                process.wait(timeout=60)


@pytest.fixture
def redis_port(free_port: Callable[[], int]) -> Iterator[int]:
    """The compose file's own redis-server command, on a port of this machine."""
    _, *arguments = SERVICES["redis"]["command"]
    port = free_port()
    process = subprocess.Popen([redis_server(), *arguments, "--port", str(port), "--bind", "127.0.0.1"],
                               stdout=subprocess.DEVNULL)
    yield port
    process.terminate()
    process.wait(timeout=10)


def test_a_batch_passes_through_all_services(desk: Desk, redis_port: int, free_port: Callable[[], int],
                                             postgresql_url: Callable[[str], str]):
    """Migrated, two workers, scheduler and web up, a batch from the cli service: all home, each row bought once."""
    administer(postgresql_url, "CREATE DATABASE composed")
    house = House(desk, database=postgresql_url("composed"), redis_port=redis_port, web_port=free_port())
    desk.job("model: black-forest-labs/flux-schnell\nsource: { path: rows.csv }\nretry: { attempts: 3 }\n",
             rows=[{"prompt": f"a house with {n} windows"} for n in range(150)])
    assert house.start("migrate").wait(timeout=60) == 0
    with house.up("worker", "worker", "scheduler", "web"):
        wait_until(lambda: _healthy(house.web))
        cli = house.start("cli", "run", "jobs/shots.yaml", "--json")
        out, _ = cli.communicate(timeout=120)
        log = (desk.folder / "cli.log").read_text()
        assert cli.returncode == 0, log
        assert '"succeeded": 150' in out
        assert len(desk.provider.purchases()) == 150
        assert len(desk.results()) == 150
        assert not (desk.folder / "cli" / "logs").exists(), "the cli started a worker of its own beside those at work"
        assert "in the air" not in log


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False
