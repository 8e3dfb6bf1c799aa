"""Full disks and deadly rows on order, in every process that has this folder on its PYTHONPATH.

While the file named by FULL_LEDGER is there, SQLite gets no page more than it has (its own SQLITE_FULL); while that named by
FULL_STORE is there, no byte of an output is written (ENOSPC). Who finishes a file whose name begins with
DEADLY_FILE is killed."""

import errno
import os
import signal
import sqlite3
from pathlib import Path

_write, _replace = os.write, os.replace


def _is(name):
    return name in os.environ and Path(os.environ[name]).exists()


class _Cursor(sqlite3.Cursor):
    def execute(self, statement, *args):
        if statement == "BEGIN IMMEDIATE":
            most = super().execute("PRAGMA page_count").fetchone()[0] if _is("FULL_LEDGER") else 2**30
            super().execute(f"PRAGMA max_page_count = {most}").fetchall()
        return super().execute(statement, *args)


class _Connection(sqlite3.Connection):
    def cursor(self, factory=_Cursor):
        return super().cursor(factory)


def _connect(*args, _really=sqlite3.connect, **named):
    return _really(*args, **({"factory": _Connection} | named))


def _write_or_refuse(fd, data):
    if _is("FULL_STORE") and str(Path(f"/proc/self/fd/{fd}").readlink()).endswith(".part"):
        raise OSError(errno.ENOSPC, "No space left on device")
    return _write(fd, data)


def _replace_or_die(source, target, **named):
    if os.environ.get("DEADLY_FILE") and Path(target).name.startswith(os.environ["DEADLY_FILE"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return _replace(source, target, **named)


sqlite3.connect = sqlite3.dbapi2.connect = _connect
os.replace = _replace_or_die
os.write = _write_or_refuse
