"""Connections and transactions: how to reach the database, and what its errors mean for the program."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.postgresql.dml import Insert as PostgresqlInsert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.dialects.sqlite.dml import Insert as SqliteInsert
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from orchestrator.core.errors import BadInput, Unreachable
from orchestrator.gateways.ledger.inline import InlineEngine
from orchestrator.gateways.ledger.tables import HEAD, METADATA

BUSY_S = 30  # how long a transaction waits for another one's lock
TRIES = 5
# serialization failure, deadlock, and a unique key that another transaction took meanwhile: read again, decide again
AGAIN = frozenset({"40001", "40P01", "23505"})
CROWDED = AGAIN - {"23505"}  # after so many tries it is the database that cannot be used now, not the step that is wrong
AGAIN_S = 0.02  # before the second try, twice as long before each further one

P = ParamSpec("P")
T = TypeVar("T")


def insert(connection: AsyncConnection, table: Table) -> PostgresqlInsert | SqliteInsert:
    """An INSERT that knows ON CONFLICT, in this connection's dialect."""
    made = postgresql_insert(table) if is_postgresql(connection) else sqlite_insert(table)
    return made.execution_options(preserve_rowcount=True)  # without it `rowcount` is -1 on some drivers


def is_postgresql(connection: AsyncConnection) -> bool:
    """Which of the two engines this is."""
    return connection.dialect.name == "postgresql"


class Database:
    """A ledger's database: `write` and `read` run a function in one transaction each.

    On SQLite every write transaction is BEGIN IMMEDIATE, for a transaction that reads first and writes later loses
    updates silently; writers of one process queue in its one writing thread, as SQLite's waiting is a blind sleep.
    """

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self.where = _where(self._url)
        self._is_postgresql = self._url.get_backend_name() == "postgresql"
        self._engine: _Postgresql | InlineEngine = _Postgresql(self._url) if self._is_postgresql else _sqlite(self._url)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Database"]:
        """Connect, create or migrate the tables, and disconnect at the end.

        `url`: `sqlite:////absolute/path` or `postgresql://user:password@host/name`. Raises BadInput for another URL or
        a ledger of a newer program, Unreachable when there is no connection."""
        database = cls(url)
        try:
            await database.prepare()
            yield database
        finally:
            await database.close()

    async def close(self) -> None:
        """Disconnect."""
        await self._engine.close()

    async def prepare(self) -> None:
        """Tables as this program knows them: a new SQLite from the metadata, anything older by migration."""
        if await self.read(revision) == HEAD:
            return
        if not self._is_postgresql and await self.write(_create):
            return
        await self.migrate()

    async def migrate(self) -> None:
        """Bring the tables to this program's revision. Raises BadInput for a ledger newer than the program."""
        from orchestrator.gateways.ledger.migrations import upgrade

        try:
            await self.write(_upgraded, upgrade)
        except LookupError as error:
            raise BadInput(f"the ledger at {self.where} was written by a newer version of this program ({error}); "
                           "install that version, or name another ledger with ORCHESTRATOR_DATABASE_URL") from None

    async def write(self, step: Callable[Concatenate[AsyncConnection, P], Coroutine[Any, Any, T]], *args: P.args,
                    **kwargs: P.kwargs) -> T:
        """Run `step(connection, …)` in one write transaction; it may run again if another transaction was in its way.

        Once begun it is brought to its end, even when the caller is canceled. Raises Unreachable."""
        return await _whole(self._repeated(lambda connection: step(connection, *args, **kwargs), writes=True))

    async def read(self, step: Callable[Concatenate[AsyncConnection, P], Coroutine[Any, Any, T]], *args: P.args,
                   **kwargs: P.kwargs) -> T:
        """Run `step(connection, …)` in one transaction that only reads. Raises Unreachable."""
        return await _whole(self._repeated(lambda connection: step(connection, *args, **kwargs), writes=False))

    async def _repeated(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, T]], *, writes: bool) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                with self._translated():
                    return await self._engine.run(step, writes=writes)
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state in CROWDED and tries >= TRIES:
                    raise Unreachable(f"the ledger at {self.where} cannot be used: other transactions were in the way {tries} "
                                      f"times in a row ({self._reason(error)})") from error
                if state not in AGAIN or tries >= TRIES:
                    raise
            await asyncio.sleep(AGAIN_S * 2**tries)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise Unreachable(f"the ledger at {self.where} had no free connection for {BUSY_S} s") from error
        except DBAPIError as error:
            if not _is_outage(error):
                raise
            raise Unreachable(f"the ledger at {self.where} cannot be used: {self._reason(error)}") from error
        except OSError as error:
            raise Unreachable(f"the ledger at {self.where} cannot be reached: {error}") from error

    def _reason(self, error: DBAPIError) -> str:
        """The driver's first line, without the password should it stand there."""
        if not self._is_postgresql and self._url.database and not (folder := Path(self._url.database).parent).is_dir():
            return f"the folder {folder} does not exist; make it, or name another ledger with ORCHESTRATOR_DATABASE_URL"
        line = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
        return line.replace(str(self._url.password), "***") if self._url.password else line


# A network that swallows packets says nothing: without these a transaction waited a quarter of an hour for its answer.
_CUT_CABLE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}


class _Postgresql:
    """Transactions on PostgreSQL, over the asynchronous driver."""

    def __init__(self, url: URL) -> None:
        options = f"{url.query.get('options', '')} -c timezone=UTC -c synchronous_commit=on -c lock_timeout={BUSY_S}s"
        self._engine = create_async_engine(
            url, pool_pre_ping=True, pool_size=8, max_overflow=8, **_SHARED,
            connect_args={"options": options.strip(), "connect_timeout": 10, **_CUT_CABLE})
        # One snapshot for all statements of a look: "nothing moves" and "nothing waits", asked one after the other, were both
        # true of a row that was claimed in between.
        self._reading = self._engine.execution_options(isolation_level="REPEATABLE READ")

    async def run(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, T]], *, writes: bool) -> T:
        """One transaction around `step`."""
        async with (self._engine if writes else self._reading).begin() as connection:
            return await step(connection)

    async def close(self) -> None:
        """Disconnect."""
        await self._engine.dispose()


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """Await work to its end even when canceled: a transaction cut in two was seen to keep its lock for ever, as the driver's
    thread went on to begin what nobody waited for any more."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        task.exception()  # nobody waits for it any more, and it is no news that it failed
        raise


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
    except ArgumentError:
        raise BadInput("the database's URL cannot be read; it looks like sqlite:////absolute/path or "
                       "postgresql://user:password@host/name") from None
    driver = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}.get(parsed.get_backend_name())
    if driver is None:
        raise BadInput(f"databases of kind {parsed.get_backend_name()!r} are not supported: use sqlite:////path or postgresql://…")
    if driver.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise BadInput("a ledger in memory would forget what was bought: give a path, sqlite:////absolute/path")
    return parsed.set(drivername=driver)


def _where(url: URL) -> str:
    """Path, or host and name: never user or password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    host = url.host or url.query.get("host") or "localhost"
    return f"{host}{f':{url.port}' if url.port else ''}/{url.database or ''}"


_SHARED: dict[str, Any] = {"hide_parameters": True, "pool_timeout": BUSY_S}  # errors must not quote rows


def _sqlite(url: URL) -> InlineEngine:
    engine = create_engine(url, pool_size=4, max_overflow=4, **_SHARED,
                           connect_args={"timeout": BUSY_S, "check_same_thread": False})
    event.listen(engine, "connect", _on_sqlite_connect)
    event.listen(engine, "begin", _on_sqlite_begin)
    return InlineEngine(engine)


# FULL: with NORMAL a power cut can take the newest commits, and with them an attempt already paid for.
_SQLITE_SETTINGS = (f"busy_timeout = {BUSY_S * 1000}", "journal_mode = WAL", "synchronous = FULL")


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: _on_sqlite_begin does
    try:
        cursor = connection.cursor()
        for setting in _SQLITE_SETTINGS:
            _set(cursor, setting)
        cursor.close()
    except BaseException:
        connection.close()  # the pool does not know it yet
        raise


def _set(cursor: Any, setting: str) -> None:
    """SQLite may not wait for another process's lock where it switches to WAL; of many that opened a new file at once, one was
    refused as locked."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            cursor.execute(f"PRAGMA {setting}")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.02)


def _on_sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ledger_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


# What SQLite says when the machine is at fault, not the statement (its errors share one class).
_SQLITE_OUTAGES = ("locked", "full", "unable to open", "readonly", "disk I/O", "not a database", "malformed")


def _is_outage(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    said, state = str(error.orig), getattr(error.orig, "sqlstate", None)
    if type(error.orig).__module__.startswith("psycopg"):
        # No state: never connected. By class: connection, login, resources, operator's intervention, system; by code: a
        # lock not given, a role without rights, a server that only reads.
        is_refused = state is None and type(error.orig).__name__ == "OperationalError"
        return (is_refused or state in {"55P03", "42501", "25006"}
                or (state or "")[:2] in {"08", "28", "3D", "53", "57", "58"})
    return isinstance(error, DatabaseError) and any(words in said for words in _SQLITE_OUTAGES)


async def revision(connection: AsyncConnection) -> str | None:
    """The revision the tables are at; None: there are none."""
    if not await connection.run_sync(lambda sync: inspect(sync).has_table("alembic_version")):
        return None
    found = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    return None if found is None else str(found)


async def _create(connection: AsyncConnection) -> bool:
    """All tables of a new ledger, unless another process was first; False: there is an older one."""
    found = await revision(connection)
    if found is not None:
        return found == HEAD
    await connection.run_sync(METADATA.create_all)
    await connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
                                  "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"))
    await connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})
    return True


async def _upgraded(connection: AsyncConnection, upgrade: Callable[[Connection], None]) -> None:
    if is_postgresql(connection):  # two programs starting at once: the second finds the work done
        await connection.execute(text("SELECT pg_advisory_xact_lock(7201948305)"))
    await connection.run_sync(upgrade)
