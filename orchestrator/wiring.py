"""Builds the gateways from Settings and introduces them to flow and apps. Takes no decision."""

import os
import socket
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.ports import Rooms, Storage
from orchestrator.gateways.clock import SystemClock
from orchestrator.gateways.ledger import Database, SqlLedger
from orchestrator.gateways.limiter import RedisLimiter
from orchestrator.gateways.outputs import HttpOutputs
from orchestrator.gateways.replicate import ReplicateApi
from orchestrator.gateways.rows import FileTables
from orchestrator.gateways.storage import LocalFolder
from orchestrator.settings import Settings, config_folder

NO_TOKEN = ("no API token: set REPLICATE_API_TOKEN (from https://replicate.com/account/api-tokens), in the environment or in "
            "a file .env beside jobs/. To rehearse without an account: orchestrator demo")


@asynccontextmanager
async def ledger(settings: Settings) -> AsyncIterator[SqlLedger]:
    """The ledger alone: enough to look at batches and to steer them."""
    settings.home.mkdir(parents=True, exist_ok=True)
    async with Database.open(settings.ledger_url) as database:
        yield SqlLedger(database)


@asynccontextmanager
async def rooms(settings: Settings, *, redis_url: str, stopping: Callable[[], bool] = lambda: False) -> AsyncIterator[Rooms]:
    """All gateways, open; closed again at the end."""
    async with AsyncExitStack() as stack:
        book = await stack.enter_async_context(ledger(settings))
        api = await stack.enter_async_context(predictions(settings))
        limiter = await stack.enter_async_context(RedisLimiter.open(redis_url))
        outputs = await stack.enter_async_context(HttpOutputs(extra_hosts=output_hosts(settings)))
        yield Rooms(
            ledger=book, predictions=api, limiter=limiter, outputs=outputs, storage=_folders(), tables=FileTables(),
            clock=SystemClock(), tempo=settings.tempo, owner=f"{socket.gethostname()}:{os.getpid()}", stopping=stopping)


def predictions(settings: Settings) -> ReplicateApi:
    """Replicate, as an async context manager."""
    if settings.api_token is None:
        raise BadInput(NO_TOKEN)
    return ReplicateApi(base_url=settings.base_url, token=settings.api_token.get_secret_value(),
                        request_timeout_s=settings.tempo.request_timeout_s)


def output_hosts(settings: Settings) -> frozenset[str]:
    """Hosts that outputs may come from besides the provider's own, as the user named them."""
    return settings.extra_hosts


def _folders() -> Callable[[str], Storage]:
    made: dict[str, LocalFolder] = {}

    def folder(root: str) -> Storage:
        if root not in made:
            made[root] = LocalFolder(Path(root))
        return made[root]

    return folder


def price_book(settings: Settings) -> dict[str, Any]:
    """The shipped price book with the project's own laid over it, entry by entry."""
    book: dict[str, Any] = {"hardware": {}, "models": {}}
    for path in (config_folder() / "prices.toml", settings.home.parent / "config" / "prices.toml"):
        if not path.is_file():
            continue
        try:
            layer = tomllib.loads(path.read_text("utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise BadInput(f"{path}: not valid TOML: {error}") from error
        for section in ("hardware", "models"):
            book[section] |= layer.get(section, {})
    return book


@dataclass(frozen=True, slots=True)
class Roles:
    """What a worker process is started with."""

    argv: tuple[str, ...]
    env: dict[str, str]
    log_path: Path


def worker_role(settings: Settings, *, redis_url: str) -> Roles:
    """The command and environment of a worker for this home."""
    import sys

    env = dict(os.environ) | {
        "ORCHESTRATOR_HOME": str(settings.home),
        "ORCHESTRATOR_REDIS_URL": redis_url,
        "ORCHESTRATOR_DATABASE_URL": settings.ledger_url,
        "REPLICATE_BASE_URL": settings.base_url,
        "ORCHESTRATOR_OUTPUT_HOSTS": settings.output_hosts,
    }
    if settings.api_token is not None:
        env["REPLICATE_API_TOKEN"] = settings.api_token.get_secret_value()
    return Roles((sys.executable, "-m", "orchestrator", "worker"), env, settings.home / "logs" / "worker.log")
