"""Tables, transactions and outages: what the ledger's promises stand on."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.errors import BadInput, Unreachable
from orchestrator.gateways.ledger import Database, SqlLedger
from orchestrator.gateways.ledger.migrations import config
from orchestrator.gateways.ledger.tables import HEAD, METADATA

_NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


async def _run(database: Database, do: Callable[[Connection], Any]) -> Any:
    async def step(connection: Any) -> Any:
        return await connection.run_sync(do)

    return await database.write(step)


async def _pragma(database: Database, setting: str) -> None:
    """Set something on the one connection that such a test uses."""
    await _run(database, lambda c: c.execute(text(f"PRAGMA {setting}")).all())


def _definitions(connection: Connection) -> dict[str, str]:
    """Every table, index and constraint as the engine itself describes it."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
        return {name: _ordered("".join(sql.split()).replace('"', "")) for name, sql in rows if name != "alembic_version"}
    rows = connection.execute(text(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' UNION ALL "
        "SELECT table_name || '.' || column_name, data_type || is_nullable || COALESCE(column_default, '') "
        "FROM information_schema.columns WHERE table_schema = 'public'")).all()
    return {name: definition for name, definition in rows if "alembic" not in name}


def _ordered(sql: str) -> str:
    """Unique columns by their names: a table that was copied has them in any order."""
    columns, *uniques = sql.removesuffix(")").split(",UNIQUE")
    return ",UNIQUE".join([columns, *sorted(uniques)])


async def test_migrated_equals_metadata(ledger_url: str) -> None:
    """Tables made by migration are those of the metadata, to the letter of every index."""
    database = Database(ledger_url)
    await _run(database, METADATA.drop_all)
    await _run(database, lambda c: c.execute(text("DROP TABLE IF EXISTS alembic_version")))
    await database.migrate()
    migrated = await _run(database, _definitions)
    found = await _run(database, lambda c: compare_metadata(MigrationContext.configure(c), METADATA))
    assert [change for change in found if "alembic_version" not in str(change)] == []
    await _run(database, METADATA.drop_all)
    await _run(database, METADATA.create_all)
    assert await _run(database, _definitions) == migrated
    await database.close()


def _without_0010(connection: Connection) -> None:
    """Take back the newest revision."""
    connection.execute(text("DROP INDEX ix_items_copies"))
    connection.execute(text("DROP INDEX uq_items_share_key"))
    for name in ("twin_of", "copies", "share_key"):
        connection.execute(text(f"ALTER TABLE items DROP COLUMN {name}"))
    for name in ("attended", "estimate_json", "known_shared"):
        connection.execute(text(f"ALTER TABLE batches DROP COLUMN {name}"))
    connection.execute(text("DROP TABLE batch_days"))
    connection.execute(text("UPDATE alembic_version SET version_num = '0009'"))


async def test_days_of_an_older_ledger(acts: Any, database: Database) -> None:
    """What an older ledger spent and reserves counts for the days on which it was claimed."""
    batch = await acts.loaded(3)
    await acts.claim(batch, 3, reserve_units=7)
    await acts.tell(acts.ended("p0", attempt_id="a0"))
    await _run(database, _without_0010)
    await database.migrate()
    query = text("SELECT d.day, d.spent_units, d.reserved_units, b.spent_units, b.reserved_units FROM batch_days d "
                 "JOIN batches b ON b.pk = d.batch_pk")
    ((day, spent, reserved, of_batch, held),) = await _run(database, lambda c: [tuple(r) for r in c.execute(query)])
    assert (day, spent, reserved) == ("2026-01-05", 10**12, 14) == (day, of_batch, held)


async def test_charges_of_an_older_ledger(acts: Any, database: Database) -> None:
    """What was charged before it was written down from what, stays charged, and nothing is made up beside it."""
    batch = await acts.loaded(2)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0"))
    younger = ("charge_unit", "charge_quantity", "charge_quantity_out", "charge_price", "charge_price_out", "charge_price_id")

    def back(connection: Connection) -> None:
        for name in younger:
            connection.execute(text(f"ALTER TABLE attempts DROP COLUMN {name}"))
        for name in ("known_failed", "known_refused"):  # of the revision after that
            connection.execute(text(f"ALTER TABLE batches DROP COLUMN {name}"))
        _without_0010(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '0007'"))

    await _run(database, back)
    await database.migrate()
    await acts.tell(acts.ended("p1", attempt_id="a1"))
    query = text(f"SELECT charge_units, {', '.join(younger)} FROM attempts ORDER BY id")
    first, second = await _run(database, lambda connection: [tuple(row) for row in connection.execute(query)])
    assert first == (10**12, *[None] * 6)
    assert second == (10**12, "second", "2.0", None, "0.5", None, "test")


def test_head() -> None:
    """The revision a new ledger is stamped with is the newest one."""
    assert ScriptDirectory.from_config(config()).get_current_head() == HEAD


async def test_opened_again(ledger_url: str) -> None:
    """What one opening wrote, the next one reads."""
    async with Database.open(ledger_url) as database:
        await SqlLedger(database).note_offset("acme", offset_s=2.0, now=_NOW)
    async with Database.open(ledger_url) as database:
        assert await SqlLedger(database).offset("acme") == 2.0


async def test_newer_ledger(ledger_url: str) -> None:
    """A ledger of a newer program is refused, with what to do, and left alone."""
    async with Database.open(ledger_url) as database:
        await _run(database, lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(BadInput, match=r"newer version of this program \(revision 9999\)"):
        async with Database.open(ledger_url):
            pass


async def test_naive_time(acts: Any) -> None:
    """A time without a zone is a mistake, not midnight somewhere."""
    with pytest.raises(StatementError, match="without a zone"):
        await acts.ledger.note_offset("acme", offset_s=1.0, now=_NOW.replace(tzinfo=None))


@pytest.mark.parametrize(("url", "message"), [
    ("mysql://localhost/x", "kind 'mysql' are not supported"), ("sqlite://", "in memory would forget"),
    ("nonsense", "cannot be read")])
async def test_bad_urls(url: str, message: str) -> None:
    """A URL that cannot be a ledger is the user's mistake."""
    with pytest.raises(BadInput, match=message):
        async with Database.open(url):
            pass


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
async def test_nobody_there(scheme: str) -> None:
    """A server that is not there is named by host and database, without the password."""
    with pytest.raises(Unreachable) as caught:
        async with Database.open(f"{scheme}://me:s3cret@127.0.0.1:1/books"):
            pass
    assert str(caught.value).startswith("the ledger at 127.0.0.1:1/books cannot be used: ")
    assert "s3cret" not in repr(caught.value) + str(caught.value.__cause__)


async def test_file_cannot_be_opened(tmp_path: Path) -> None:
    """A ledger that cannot be opened is named by its path; where its folder is missing, that is said."""
    with pytest.raises(Unreachable, match=r"no/such/ledger\.db cannot be used: the folder .*/no/such does not exist; make it"):
        async with Database.open(f"sqlite:///{tmp_path}/no/such/ledger.db"):
            pass
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(Unreachable, match=r"ledger\.db cannot be used: unable to open"):
        async with Database.open(f"sqlite:///{tmp_path}/ledger.db"):
            pass


async def test_not_a_ledger(tmp_path: Path) -> None:
    """A file that is something else is left alone and said to be no database."""
    (tmp_path / "ledger.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Unreachable, match="not a database"):
        async with Database.open(f"sqlite:///{tmp_path}/ledger.db"):
            pass
    assert (tmp_path / "ledger.db").read_bytes().startswith(b"not a database")


async def test_disk_full(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A full disk is an outage that leaves whole chunks only, and is over when there is room again."""
    async with Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        ledger = SqlLedger(database)
        acts = request.getfixturevalue("acts_of")(ledger)
        batch, _ = await ledger.open_batch(acts.new())
        pages = await _run(database, lambda c: c.execute(text("PRAGMA page_count")).scalar())
        await _pragma(database, f"max_page_count = {pages + 40}")
        with pytest.raises(Unreachable, match=r"ledger\.db cannot be used: database or disk is full"):
            for first in range(0, 100_000, 200):
                await ledger.add_chunk(batch.pk, acts.chunk(200, first))
        rows = await ledger.loaded_rows(batch.pk)
        assert (await ledger.counts(batch.pk)).total == rows > 0
        await _pragma(database, "max_page_count = 1000000")
        await ledger.add_chunk(batch.pk, acts.chunk(200, rows))
        assert await ledger.loaded_rows(batch.pk) == rows + 200


async def test_durable(ledger_url: str) -> None:
    """A commit is on disk when it returns, on either engine."""
    async with Database.open(ledger_url) as database:
        if database.where.endswith("ledger.db"):
            settings = [await _run(database, lambda c, n=n: c.execute(text(f"PRAGMA {n}")).scalar())
                        for n in ("synchronous", "journal_mode", "busy_timeout")]
            assert settings == [2, "wal", 30_000]
        else:
            assert await _run(database, lambda c: c.execute(text("SHOW synchronous_commit")).scalar()) == "on"


async def test_lock_held_too_long(tmp_path: Path) -> None:
    """A lock that somebody else does not give back is an outage, not a crash."""
    async with Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        await _pragma(database, "busy_timeout = 20")
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unreachable, match="locked"):
            await SqlLedger(database).note_offset("acme", offset_s=1.0, now=_NOW)
        other.close()
        await SqlLedger(database).note_offset("acme", offset_s=1.0, now=_NOW)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
async def test_server_closes_connections(ledger: SqlLedger, ledger_url: str) -> None:
    """Connections that the server has closed, as at its restart, are replaced before anybody notices."""
    await ledger.live_batches()
    with psycopg.connect(ledger_url, autocommit=True) as admin:
        ended = admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                              "WHERE datname = current_database() AND pid <> pg_backend_pid()").fetchall()
    assert ended == [(True,)]
    assert await ledger.live_batches() == []


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
async def test_server_that_only_reads(ledger: SqlLedger, ledger_url: str) -> None:
    """A server that has become read-only, as a replica is, counts as away: reads go on, writes are an outage."""
    with psycopg.connect(ledger_url, autocommit=True) as admin:
        name = admin.info.dbname
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")  # type: ignore[call-overload]
    async with Database.open(ledger_url) as database:
        assert await SqlLedger(database).live_batches() == []
        with pytest.raises(Unreachable, match="read-only transaction"):
            await SqlLedger(database).note_offset("acme", offset_s=1.0, now=_NOW)


COUNT = """
import asyncio, sys, time
from sqlalchemy import select, update
from orchestrator.gateways.ledger import Database
from orchestrator.gateways.ledger.tables import batches

async def read_then_write(connection):
    found = (await connection.execute(select(batches.c.spent_units))).scalar_one()
    time.sleep(0.0001)
    await connection.execute(update(batches).values(spent_units=found + 1))

async def main():
    async with Database.open(sys.argv[1]) as database:
        for _ in range(100):
            await database.write(read_then_write)

asyncio.run(main())
"""


async def test_sqlite_lost_update(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Two processes that read and then write lose nothing: 100 each are 200."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    async with Database.open(url) as database:
        acts = request.getfixturevalue("acts_of")(SqlLedger(database))
        await acts.loaded(1)
        children = [await asyncio.create_subprocess_exec(sys.executable, "-c", COUNT, url) for _ in range(2)]
        assert [await child.wait() for child in children] == [0, 0]
        assert (await SqlLedger(database).batches())[0].spent_units == 200


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_created_by_many_at_once(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Programs that start together on a new ledger all find it whole."""
    url = request.getfixturevalue("empty_postgresql") if engine == "postgresql" else f"sqlite:///{tmp_path}/ledger.db"

    async def start() -> int:
        async with Database.open(url) as database:
            return len(await SqlLedger(database).live_batches())

    assert await asyncio.gather(*(start() for _ in range(8))) == [0] * 8


DIE = """
import asyncio, os, signal, sys
from sqlalchemy import text
from orchestrator.gateways.ledger import Database

async def half(connection):
    await connection.execute(text("UPDATE items SET state = 'claimed'"))
    await connection.execute(text("UPDATE batches SET reserved_units = 7"))
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with Database.open(sys.argv[1]) as database:
        await database.write(half)

asyncio.run(main())
"""


async def test_killed_in_mid_transaction(acts: Any, ledger_url: str) -> None:
    """A worker killed between two statements leaves nothing of either, and no lock."""
    batch = await acts.loaded(4)
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", DIE, ledger_url)
    assert await child.wait() == -signal.SIGKILL
    assert await acts.states(batch) == ["pending"] * 4
    assert len(await acts.claim(batch, 4, reserve_units=5)) == 4
    assert (await acts.again(batch)).reserved_units == 20


async def test_cancelled_in_mid_transaction(acts: Any, database: Database) -> None:
    """A caller cancelled between two statements, as by a timeout, still sees its transaction end whole, and no lock stays."""
    batch = await acts.loaded(4)
    loop, halfway = asyncio.get_running_loop(), asyncio.Event()
    go_on, thread_goes_on = asyncio.Event(), threading.Event()

    async def two_statements(connection: Any) -> None:
        await connection.execute(text("UPDATE items SET error = 'x'"))
        loop.call_soon_threadsafe(halfway.set)
        if connection.dialect.name == "sqlite":  # in a thread of its own
            assert thread_goes_on.wait(10)
        else:
            await go_on.wait()
        await connection.execute(text("UPDATE batches SET reason = 'y'"))

    task = asyncio.create_task(database.write(two_statements))
    await halfway.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    thread_goes_on.set()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
    assert {r.error for r in await acts.results(batch)} == {"x"}
    assert (await acts.again(batch)).reason == "y"
    assert len(await acts.claim(batch, 4)) == 4


CLAIM = """
import asyncio, sys
from datetime import UTC, datetime
from orchestrator.core.ports import ClaimTerms
from orchestrator.gateways.ledger import Database, SqlLedger

async def main():
    now, me = datetime(2026, 1, 5, tzinfo=UTC), sys.argv[2]
    async with Database.open(sys.argv[1]) as database:
        for n in range(100):
            ids = [f"{me}-{n}-{k}" for k in range(3)]
            for claim in await SqlLedger(database).claim(1, attempt_ids=ids, terms=ClaimTerms(now, now, now, me, 10)):
                print(claim.index)

asyncio.run(main())
"""


async def test_claimed_by_processes(acts: Any, ledger_url: str) -> None:
    """Workers in processes of their own share the rows of a batch, each row once, and its budget to the last cent."""
    batch = await acts.loaded(400, cap_units=3003)
    assert batch.pk == 1
    children = [await asyncio.create_subprocess_exec(sys.executable, "-c", CLAIM, ledger_url, f"w{n}",
                                                     stdout=subprocess.PIPE) for n in range(3)]
    said = [(await child.communicate())[0].split() for child in children]
    assert sorted(int(index) for some in said for index in some) == list(range(300))
    assert (await acts.again(batch)).reserved_units == 3000


async def test_unused_imports_stay_out() -> None:
    """Opening a ledger that is up to date loads neither Alembic nor pandas: they cost half a second."""
    code = "import sys, orchestrator.gateways.ledger; print([m for m in ('alembic', 'pandas') if m in sys.modules])"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    out, _ = await child.communicate()
    assert out == b"[]\n"


async def test_a_step_that_waits_for_something_else(tmp_path: Path) -> None:
    """On SQLite a step runs in a thread without a loop: one that waits for the network is a defect, said at once, undone."""
    async def step(connection: Any) -> None:
        await connection.execute(text("DELETE FROM alembic_version"))
        await asyncio.sleep(0)

    async with Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        with pytest.raises(RuntimeError, match="something else than its database"):
            await database.write(step)
    async with Database.open(f"sqlite:///{tmp_path}/ledger.db") as database:
        assert await SqlLedger(database).live_batches() == []


async def test_a_look_is_one_snapshot(acts: Any, database: Database) -> None:
    """Two statements of one reading step see the same moment, whatever is committed between them."""
    if not database.where.startswith("/"):  # PostgreSQL; on SQLite a step cannot even be interrupted
        batch = await acts.loaded(1)

        async def look(connection: AsyncConnection) -> list[int]:
            seen = []
            for turn in range(2):
                seen.append((await connection.execute(text("SELECT count(*) FROM items WHERE state = 'pending'"))).scalar_one())
                if not turn:
                    assert len(await acts.claim(batch, 1)) == 1
            return seen

        assert await database.read(look) == [1, 1]
