"""Many rows by one statement. On SQLite past the work that SQLAlchemy does for each row, which cost more than the writing."""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Insert, Update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.gateways.ledger.session import is_postgresql
from orchestrator.gateways.ledger.tables import sqlite_time


async def write_many(connection: AsyncConnection, statement: Insert | Update, rows: Sequence[dict[str, Any]]) -> None:
    """Execute `statement`, a constant of its module, for each of `rows`, which all have the same keys."""
    if not rows:
        return
    if is_postgresql(connection):
        await connection.execute(statement, rows)
        return
    sql, names = _compiled(statement, connection.dialect, tuple(rows[0]))
    times: dict[datetime, str] = {}  # many rows share one moment

    def plain(value: Any) -> Any:
        if not isinstance(value, datetime):
            return value
        if value not in times:
            times[value] = sqlite_time(value)
        return times[value]

    await connection.exec_driver_sql(sql, [tuple([plain(row[name]) for name in names]) for row in rows])


@lru_cache(maxsize=64)
def _compiled(statement: Insert | Update, dialect: Dialect, columns: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The statement as SQLite reads it, and the order of its values. Constants in it become values of their own."""
    compiled = statement.compile(dialect=dialect, column_keys=list(columns))
    names = tuple(compiled.positiontup or ())
    fixed = {name: value for name, value in compiled.params.items() if value is not None and name not in columns}
    if fixed:
        raise ValueError(f"a constant in a statement for many rows is a value of each row: {sorted(fixed)}")
    return compiled.string, names
