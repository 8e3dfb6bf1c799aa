"""Builds the gateways from Settings and introduces them to flow and apps. Takes no decision."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from orchestrator.core.errors import BadInput, Unreachable
from orchestrator.core.ports import Clock, Queue, Rooms, Storage
from orchestrator.core.pricebook import read_book
from orchestrator.core.prices import Book
from orchestrator.core.records import Batch
from orchestrator.gateways import jobfile
from orchestrator.gateways.beat import Beat
from orchestrator.gateways.clock import SystemClock
from orchestrator.gateways.jobfile import LoadedJob
from orchestrator.gateways.ledger import CanceledView, Database, SqlLedger
from orchestrator.gateways.limiter import RedisLimiter
from orchestrator.gateways.local import hold_home, private_redis, redis_server
from orchestrator.gateways.outputs import HttpOutputs
from orchestrator.gateways.probe import free_bytes, is_writable, ping_redis, post, redis_facts, sqlite_version
from orchestrator.gateways.processes import Child, is_gone, spawn
from orchestrator.gateways.queue import WORKER_OPTIONS, CeleryQueue, celery_app
from orchestrator.gateways.replicate import ReplicateApi
from orchestrator.gateways.rows.durable import write_json
from orchestrator.gateways.rows.files import FileTables
from orchestrator.gateways.storage import LocalFolder
from orchestrator.settings import Settings, config_folder, home_of, read_settings, read_toml

__all__ = ["WORKER_OPTIONS", "CanceledView", "LedgerViews", "LoadedJob", "Settings", "free_bytes", "home_of", "is_gone",
           "is_writable", "post", "read_settings", "redis_facts", "redis_server", "sqlite_version"]

LedgerViews = SqlLedger  # the ledger with its views, for who only looks

WHO_ARE_YOU = (
    "no API token: set REPLICATE_API_TOKEN (from https://replicate.com/account/api-tokens), in the environment or in a file "
    ".env beside jobs/. To rehearse without an account: orchestrator demo")
NO_REDIS = "unix:///nowhere"  # for commands that neither buy nor pace: asking it is Unreachable
FOLDER_NOTE = ".orchestrator.json"


@asynccontextmanager
async def ledger(settings: Settings) -> AsyncIterator[SqlLedger]:
    """The ledger alone: enough to look at batches and to steer them."""
    settings.home.mkdir(parents=True, exist_ok=True)
    async with Database.open(settings.ledger_url) as database:
        yield SqlLedger(database)


@asynccontextmanager
async def rooms(settings: Settings, *, redis_url: str = NO_REDIS, token_needed: bool = True, ledger_needed: bool = True,
                stopping: Callable[[], bool] = lambda: False) -> AsyncIterator[Rooms]:
    """All gateways, open; closed again at the end. A ledger that is not needed is neither made nor migrated."""
    async with AsyncExitStack() as stack:
        book = await stack.enter_async_context(ledger(settings) if ledger_needed else _as_it_is(settings))
        api = await stack.enter_async_context(_replicate(settings, token_needed=token_needed))
        outputs = await stack.enter_async_context(HttpOutputs(extra_hosts=settings.extra_hosts))
        limiter = RedisLimiter(redis_url)
        stack.push_async_callback(limiter.aclose)
        yield Rooms(
            ledger=book, predictions=api, limiter=limiter, outputs=outputs, storage=_folders(), tables=FileTables(),
            clock=SystemClock(), tempo=settings.tempo, owner=f"{socket.gethostname()}:{os.getpid()}",
            public_url=settings.public_url, budget=settings.budget, stopping=stopping)


@asynccontextmanager
async def _as_it_is(settings: Settings) -> AsyncIterator[SqlLedger]:
    """A ledger that is perhaps not there, or of another version: only for who asks whether it is."""
    database = Database(settings.ledger_url)
    try:
        yield SqlLedger(database)
    finally:
        await database.close()


def _replicate(settings: Settings, *, token_needed: bool) -> ReplicateApi:
    if settings.api_token is None and token_needed:
        raise BadInput(WHO_ARE_YOU)
    token = settings.api_token.get_secret_value() if settings.api_token else ""
    return ReplicateApi(base_url=settings.base_url, token=token, request_timeout_s=settings.tempo.request_timeout_s)


def _folders() -> Callable[[str], Storage]:
    made: dict[str, LocalFolder] = {}

    def folder(root: str) -> Storage:
        if root not in made:
            made[root] = LocalFolder(Path(root))
        return made[root]

    return folder


def beat(calls: Mapping[str, tuple[float, Callable[[], object]]]) -> Beat:
    """The metronome, to be used as a context manager: calls by name, with the seconds between."""
    return Beat(calls)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The fastest event loop there is here."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def listening(settings: Settings) -> socket.socket:
    """The socket of the web part, bound. Raises BadInput with the remedy where it is taken."""
    host, port = settings.web_address
    try:
        return socket.create_server((host, port), backlog=2048, family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BadInput(f"the web part cannot listen on {settings.web_bind} ({error.strerror or error}): end what listens "
                       "there, or set ORCHESTRATOR_WEB_BIND to another address, such as 127.0.0.1:8001") from error


def own_settings() -> Settings:
    """The settings of a role: of the home it was given, or the nearest one."""
    return read_settings(home_of(None, cwd=Path.cwd()))


def write_table(path: str, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    """A small table of texts, whole numbers and decimals, named .parquet or .csv. Raises OSError."""
    from orchestrator.gateways.rows.reports import write

    write(Path(path), rows, columns=columns)


def views(rooms: Rooms) -> LedgerViews:
    """The ledger of these rooms, with its views."""
    assert isinstance(rooms.ledger, SqlLedger)
    return rooms.ledger


def clock() -> Clock:
    """The real time."""
    return SystemClock()


@dataclass(frozen=True, slots=True)
class Hold:
    """A home that is held, and the Redis to use.

    `alone`: no other command holds this home, and home and ledger are on this machine. Unless a role that was started by itself
    is at work for the ledger, whoever held a lease before is dead.
    `lock_fd` is handed to workers, which hold the home until they end."""

    redis_url: str
    alone: bool
    lock_fd: int


@asynccontextmanager
async def redis(settings: Settings) -> AsyncIterator[Hold]:
    """Hold the home, with its private Redis unless another is named. Raises Unreachable where that one does not answer."""
    if settings.redis_url is None:
        async with private_redis(settings.home) as own:
            yield Hold(own.url, own.first_in and _is_local(settings), own.lock_fd)
    else:
        await _ask(settings.redis_url.get_secret_value())
        async with hold_home(settings.home) as home:
            yield Hold(settings.redis_url.get_secret_value(), home.first_in and _is_local(settings), home.lock_fd)


def _is_local(settings: Settings) -> bool:
    return settings.ledger_url.startswith("sqlite")


def is_new(settings: Settings) -> bool:
    """Whether this home has no ledger yet."""
    return settings.database_url is None and not (settings.home / "ledger.db").exists()


def queue(redis_url: str) -> Queue:
    """The sender of messages."""
    return CeleryQueue(celery_app(redis_url))


def shared_redis(settings: Settings) -> str:
    """The Redis that all roles share. Raises BadInput where none is named."""
    if settings.redis_url is None:
        raise BadInput("a role of its own needs ORCHESTRATOR_REDIS_URL: the Redis that all roles share. On one machine, "
                       "`orchestrator up` starts all roles, and `orchestrator run` what it needs itself.")
    return settings.redis_url.get_secret_value()


async def ready_redis(settings: Settings) -> str:
    """The shared Redis, before a role that buys begins. Raises BadInput without one or a token, Unreachable if it is silent."""
    redis_url = shared_redis(settings)
    if settings.api_token is None:
        raise BadInput(WHO_ARE_YOU)
    await _ask(redis_url)
    return redis_url


async def _ask(redis_url: str) -> None:
    try:
        await ping_redis(redis_url)
    except Unreachable as error:
        raise Unreachable(f"{error}: make it reachable, or set ORCHESTRATOR_REDIS_URL to one that is") from error


def celery(redis_url: str) -> Celery:
    """The Celery app of a worker."""
    return celery_app(redis_url)


@dataclass(frozen=True, slots=True)
class Role:
    """What a child process is started with."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log_path: Path
    keep_fds: tuple[int, ...] = ()


def worker_role(settings: Settings, hold: Hold, *, number: int = 1) -> Role:
    """The command and environment of a worker for this home."""
    return _role(settings, hold, "worker", log=f"worker{'' if number == 1 else number}")


def web_role(settings: Settings, hold: Hold) -> Role:
    """The same of a web part."""
    return _role(settings, hold, "web", log="web")


def scheduler_role(settings: Settings, hold: Hold) -> Role:
    """The same of a scheduler."""
    return _role(settings, hold, "scheduler", log="scheduler")


def _role(settings: Settings, hold: Hold, name: str, *, log: str) -> Role:
    env = {"MALLOC_ARENA_MAX": "2"} | dict(os.environ) | {  # glibc keeps an arena per thread, and the worker has many
        "ORCHESTRATOR_HOME": str(settings.home),
        "ORCHESTRATOR_REDIS_URL": hold.redis_url,
        "ORCHESTRATOR_DATABASE_URL": settings.ledger_url,
        "REPLICATE_BASE_URL": settings.base_url,
        "ORCHESTRATOR_OUTPUT_HOSTS": settings.output_hosts,
    }
    if settings.api_token is not None:
        env["REPLICATE_API_TOKEN"] = settings.api_token.get_secret_value()
    return Role(name, (sys.executable, "-m", "orchestrator", name), env, settings.home / "logs" / f"{log}.log",
                (hold.lock_fd,))


async def start(role: Role) -> Child:
    """Start a child that cannot outlive this process."""
    role.log_path.parent.mkdir(parents=True, exist_ok=True)
    return await spawn(role.argv, env=role.env, log_path=role.log_path, keep_fds=role.keep_fds)


def simulator_role(folder: Path, *, arguments: tuple[str, ...]) -> tuple[Role, Path]:
    """The command of a stand-in for Replicate on a free port, and the file where it says its URL."""
    ready = folder / "simulator.json"
    ready.unlink(missing_ok=True)
    argv = (sys.executable, "-m", "orchestrator.simulator", "--port", "0", "--ready-file", str(ready), *arguments)
    return Role("simulator", argv, dict(os.environ), folder / "simulator.log"), ready


def price_book(settings: Settings) -> Book:
    """The project's own price book, then the shipped one, which it wins over entry by entry. Raises BadInput with all places."""
    shipped, own = config_folder() / "prices.toml", settings.home.parent / "config" / "prices.toml"
    layers = [(str(shipped), "", read_toml(shipped))]
    if own.is_file() and own.resolve() != shipped.resolve():
        layers.insert(0, (str(own), "project:", read_toml(own)))
    return read_book(layers)


def find_job(name_or_path: str, *, cwd: Path) -> Path:
    """The job file meant. Raises BadInput with the nearest names."""
    return jobfile.find(name_or_path, cwd=cwd)


def load_job(path: Path, *, changes: Mapping[str, str], source: str | None = None) -> LoadedJob:
    """A job file, read and validated, with the command line's changes. Raises BadInput with all places."""
    return jobfile.load(path, overrides=changes, source=source)


def discover_jobs(cwd: Path) -> list[Path]:
    """The job files that can be found from a folder."""
    return jobfile.discover(cwd)


def demo_job() -> Path:
    """The demo's job file: in a checkout's jobs/, or shipped with the package."""
    here = Path(__file__).resolve().parent
    return next(p for p in (here / "jobs" / "demo.yaml", here.parent / "jobs" / "demo.yaml") if p.is_file())


async def tidy(batch: Batch, *, alone: bool) -> None:
    """Sweep out what a killed worker left half-written: all of it when nobody else can be writing, else what is old."""
    folder = LocalFolder(Path(batch.output_to))
    await (folder.clean(older_than_s=0.0) if alone else folder.clean())


def check_folder(folder: str, *, run_key: str) -> None:
    """Before a batch is written: outputs can be. Raises BadInput where the folder is another batch's, or cannot be one."""
    if not is_writable(Path(folder)):
        raise BadInput(f"the output folder {folder} cannot be used: nothing can be written there. Choose another --output")
    _noted(folder, run_key=run_key)


def claim_folder(batch: Batch, settings: Settings) -> None:
    """Note in the output folder whose it is. Raises BadInput where it belongs to another batch."""
    mine = {"batch": batch.id, "run_key": batch.run_key, "ledger": str(settings.home)}
    if _noted(batch.output_to, run_key=batch.run_key) == mine:
        return
    try:
        write_json(Path(batch.output_to) / FOLDER_NOTE, mine)
    except OSError as error:
        raise BadInput(f"the output folder {batch.output_to} cannot be used: {error}") from error


def _noted(folder: str, *, run_key: str) -> Any:
    """Whose a folder is, None: nobody's. Raises BadInput where it belongs to another run key."""
    note = Path(folder) / FOLDER_NOTE
    try:
        noted = json.loads(note.read_text("utf-8")) if note.is_file() else None
    except (OSError, ValueError) as error:
        raise BadInput(f"the output folder {folder} cannot be used: {error}") from error
    if noted is not None and noted.get("run_key") != run_key:
        raise BadInput(f"{folder} holds the outputs of batch {noted.get('batch')} (ledger {noted.get('ledger')}). "
                       "Choose another --output, or put {{ batch }} into output.to")
    return noted


def _announced(ready: Path) -> str | None:
    return str(json.loads(ready.read_text("utf-8"))["url"]) if ready.is_file() else None


async def ready_url(ready: Path, child: Child, *, clock: Clock) -> str:
    """The URL that a stand-in announces. Raises Unreachable when it ends before."""
    for _ in range(300):
        if (url := _announced(ready)) is not None:
            return url
        if child.returncode is not None:
            break
        await clock.sleep(0.05)
    raise Unreachable(f"the simulator did not start; its log is {ready.with_suffix('.log')}")
