"""Many rows by one statement. On SQLite past the work that SQLAlchemy does for each row, which cost more than the writing."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

import orjson
from sqlalchemy import ARRAY, ColumnElement, Dialect, Insert, Text, Update, any_, bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeDecorator, TypeEngine

from orchestrator.gateways.ledger.session import is_postgresql
from orchestrator.gateways.ledger.tables import UtcTime, sqlite_time


async def write_many(connection: AsyncConnection, statement: Insert | Update, rows: Sequence[dict[str, Any]]) -> None:
    """Execute `statement`, a constant of its module, for each of `rows`, which all have the same keys."""
    if not rows:
        return
    if is_postgresql(connection):
        await connection.execute(statement, rows)
        return
    sql, values_of, times_at = _compiled(statement, connection.dialect, tuple(rows[0]))
    values = [list(values_of(row)) for row in rows]
    spelled: dict[datetime, str] = {}  # many rows share one moment
    for at in times_at:
        for row in values:
            if row[at] is not None:
                row[at] = spelled.get(row[at]) or spelled.setdefault(row[at], sqlite_time(row[at]))
    await connection.exec_driver_sql(sql, [tuple(row) for row in values])


@lru_cache(maxsize=64)
def _compiled(statement: Insert | Update, dialect: Dialect,
              columns: tuple[str, ...]) -> tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]], tuple[int, ...]]:
    """The statement as SQLite reads it, its values of a row in their order, and which of them are times.

    Constants in it become values of their own."""
    compiled = statement.compile(dialect=dialect, column_keys=list(columns))
    names = tuple(compiled.positiontup or ())
    fixed = {name: value for name, value in compiled.params.items() if value is not None and name not in columns}
    if fixed:
        raise ValueError(f"a constant in a statement for many rows is a value of each row: {sorted(fixed)}")
    times_at = tuple(at for at, name in enumerate(names) if isinstance(compiled.binds[name].type, UtcTime))
    return compiled.string, itemgetter(*names), times_at


class _Listed(TypeDecorator[Sequence[str]]):
    """Many texts as one parameter: an array on PostgreSQL, a JSON text on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(ARRAY(Text()) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Sequence[str] | None, dialect: Dialect) -> Any:
        return list(value or ()) if dialect.name == "postgresql" else orjson.dumps(list(value or ())).decode()


def among(column: ColumnElement[Any], name: str, *, dialect: str) -> ColumnElement[bool]:
    """`column` is one of the texts in the parameter `name`, however many: the statement stays the same and is prepared once,
    where `IN (…)` is spelled anew for each number of values."""
    listed = bindparam(name, type_=_Listed())
    if dialect == "postgresql":
        return column == any_(listed)
    return column.in_(select(func.json_each(listed).table_valued("value").c.value))


def each(name: str, *, dialect: str) -> ColumnElement[str]:
    """The texts in the parameter `name`, a row for each, to be selected from."""
    listed = bindparam(name, type_=_Listed())
    if dialect == "postgresql":
        return func.unnest(listed).column_valued(name)
    return func.json_each(listed).table_valued("value").c.value
