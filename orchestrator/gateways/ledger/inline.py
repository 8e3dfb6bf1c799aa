"""SQLite in threads of its own: a transaction is one hop to a thread and back, and its statements wait for nobody.

The asynchronous driver for SQLite hops to a thread and back four times for each statement: measured with 8,000 rows, a third
of a worker's CPU went into waking threads. The ledger's steps are coroutines because PostgreSQL needs them so; on SQLite
nothing in them ever waits, so a thread can drive them to their end by itself.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
READERS = 2  # a long look must not hold up a short one


class InlineConnection:
    """As much of SQLAlchemy's AsyncConnection as the ledger's steps use, on a plain connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        """The engine's."""
        return self._connection.dialect

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Executes at once."""
        return self._connection.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> Any:
        """Executes at once, as the driver reads it."""
        return self._connection.exec_driver_sql(statement, parameters)

    async def run_sync(self, call: Callable[..., T], *args: Any) -> T:
        """Calls at once."""
        return call(self._connection, *args)


def driven(step: Coroutine[Any, Any, T]) -> T:
    """A coroutine that waits for nothing, brought to its end without a loop."""
    try:
        step.send(None)
    except StopIteration as ended:
        return cast(T, ended.value)
    step.close()
    raise RuntimeError("a step of the ledger waited for something else than its database")


class InlineEngine:
    """Transactions on a SQLite file: writes in one thread, one after the other, reads in others.

    Each thread keeps its connection: taking one from a pool and giving it back cost a fifth of a small transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = engine.execution_options(ledger_writes=True)
        self._writer = ThreadPoolExecutor(1, "ledger-writes")
        self._readers = ThreadPoolExecutor(READERS, "ledger-reads")
        self._own = threading.local()
        self._open: list[Connection] = []

    async def run(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, T]], *, writes: bool) -> T:
        """One transaction around `step`. Raises what the driver raises."""
        thread, engine = (self._writer, self._writing) if writes else (self._readers, self._engine)
        return await asyncio.get_running_loop().run_in_executor(thread, self._transaction, engine, step)

    def _transaction(self, engine: Engine, step: Callable[[AsyncConnection], Coroutine[Any, Any, T]]) -> T:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = engine.connect()
            self._open.append(connection)
        try:
            with connection.begin():
                return driven(step(cast(AsyncConnection, InlineConnection(connection))))
        except DBAPIError:  # whatever it was, the next transaction begins on a fresh connection
            self._own.connection = None
            self._open.remove(connection)
            connection.close()
            raise

    async def close(self) -> None:
        """Let the last transaction end, and disconnect."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        for connection in self._open:
            connection.close()
        self._engine.dispose()
