"""Kills its own process (SIGKILL) at a named point: before or after an effect, or within its transaction.

A point is written `WHO NAME:SIDE:N`. WHO: command, worker, web, scheduler, or `everything` (the worker, and with it the command
that started it). NAME: a port's method (`ledger.claim`), a step of the ledger (`sql.claim`) or a call on a file (`file.replace`),
with a label in parentheses where only some of its calls are meant (`ledger.move(collected)`). SIDE: before; after, when what it
did is durable and the caller does not know yet; for `sql` also within: all statements made, none committed. N: at the n-th such
call of the process. Several points, divided by `;`, come one after the other; each has a mark, a file made at its kill, which
says that it was reached and lets those live who come later.
"""

import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

CLASSES = {
    "ledger": "orchestrator.gateways.ledger.ledger:SqlLedger",
    "predictions": "orchestrator.gateways.replicate:ReplicateApi",
    "limiter": "orchestrator.gateways.limiter:RedisLimiter",
    "queue": "orchestrator.gateways.queue:CeleryQueue",
    "outputs": "orchestrator.gateways.outputs:HttpOutputs",
    "storage": "orchestrator.gateways.storage:LocalFolder",
    "tables": "orchestrator.gateways.rows.files:FileTables",
    "results": "orchestrator.gateways.rows.results:ResultsWriter",
}
LABELS = {  # of one call, by what it was given
    "predictions.create": lambda _target, *, input_json, **_: set(map(str, json.loads(input_json).values())),
    "ledger.move": lambda facts, **_: {fact.event.value for fact in facts},
    "ledger.set_state": lambda _pk, *, to, **_: {to.value},
    "ledger.schedule": lambda wakes, **_: {wake.station for wake in wakes},
    "ledger.hold": lambda wake, **_: {wake.station},
    "ledger.finish_slot": lambda _job, *, state, **_: {state.value},
    "file.replace": lambda _source, target: {_kind(str(target))},
    "file.fsync": lambda fd: {_kind(str(Path(f"/proc/self/fd/{fd}").readlink()))},
}
POINT = re.compile(r"(?P<who>\w+) (?P<name>[\w.]+)(?:\((?P<label>[\w ]+)\))?:(?P<side>before|within|after):(?P<count>\d+)")


def _kind(path):
    """What a file or folder of an output folder is: output, files (the folder of outputs), results, manifest, summary, note."""
    name = Path(path).name
    if name == "files" or path.startswith("/dev/"):
        return name
    if "/files/" in path:
        return "output"
    kinds = {"results": "results.", "manifest": "manifest.", "summary": "summary.", "note": "orchestrator."}
    return next((kind for kind, word in kinds.items() if word in name), "other")


def resolve(where):
    """The class and the name of the method that a point's name means, without its label. Raises LookupError."""
    port, _, method = where.partition(".")
    if port not in CLASSES:
        raise LookupError(f"no such port: {port}")
    module, _, name = CLASSES[port].partition(":")
    found = getattr(importlib.import_module(module), name)
    if not inspect.isfunction(inspect.getattr_static(found, method, None)):
        raise LookupError(f"{name} has no method {method}")
    return found, method


class Crash:
    """One armed point of this process."""

    def __init__(self, point, mark):
        self._point, self._mark = point, mark
        self._left = int(point["count"])
        self._lock = threading.Lock()

    def __call__(self, name, side, *args, **kwargs):
        """Die here, if this call is the one."""
        if (name, side) != (self._point["name"], self._point["side"]):
            return
        if self._point["label"] is not None and self._point["label"] not in LABELS[name](*args, **kwargs):
            return
        with self._lock:
            self._left -= 1
            if self._left:
                return
            self._die()

    def _die(self):
        try:
            os.close(os.open(self._mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return  # another process was first
        if self._point["who"] == "everything":
            os.kill(_parent_of(os.getppid()), signal.SIGKILL)  # the leash is between
        os.kill(os.getpid(), signal.SIGKILL)


def _parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[1])


def _role(argv):
    rest = argv[argv.index("orchestrator") + 1:]
    return rest[0] if rest and rest[0] in ("worker", "web", "scheduler") else "command"


def armed(points, marks, argv):
    """The first point that was not reached yet, if it is this process's; None: live."""
    for number, text in enumerate(points.split(";")):
        mark = Path(marks) / str(number)
        if mark.exists():
            continue
        point = POINT.fullmatch(text)
        if point is None:
            raise ValueError(f"not a point: {text}")
        whose = "worker" if point["who"] == "everything" else point["who"]
        return Crash(point, mark) if whose == _role(argv) else None
    return None


def arm_after_import(points, marks, argv):
    """Arm this process as soon as it has its gateways, and make waiting short that no setting does."""
    crash = armed(points, marks, argv)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "orchestrator.wiring":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                _scale_down()
                if crash is not None:
                    _wrap_all(crash)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())


def _scale_down():
    from orchestrator.flow import ingest, schedule

    ingest.CHUNK_ROWS = 8
    object.__setattr__(schedule.DEFAULT, "lease_s", 4.0)


def _wrap_all(crash):
    name = crash._point["name"]
    if name.startswith("sql."):
        _wrap_steps(crash)
    elif name.startswith("file."):
        call = name.partition(".")[2]
        setattr(os, call, _plain(name, getattr(os, call), crash))
    else:
        owner, method = resolve(name)
        original = getattr(owner, method)
        wrap = _waiting if inspect.iscoroutinefunction(original) else _plain
        setattr(owner, method, wrap(name, original, crash, skip=1))


def _plain(name, original, crash, *, skip=0):
    @functools.wraps(original)
    def call(*args, **kwargs):
        crash(name, "before", *args[skip:], **kwargs)
        result = original(*args, **kwargs)
        crash(name, "after", *args[skip:], **kwargs)
        return result

    return call


def _waiting(name, original, crash, *, skip):
    @functools.wraps(original)
    async def call(*args, **kwargs):
        crash(name, "before", *args[skip:], **kwargs)
        result = await original(*args, **kwargs)
        crash(name, "after", *args[skip:], **kwargs)
        return result

    return call


def _wrap_steps(crash):
    """Each step of the ledger is a transaction."""
    from orchestrator.gateways.ledger.session import Database

    original = Database.write

    async def write(self, step, *args, **kwargs):
        name = f"sql.{step.__name__}"

        async def stepped(*given, **named):
            done = await step(*given, **named)
            crash(name, "within")
            return done

        crash(name, "before")
        done = await original(self, stepped, *args, **kwargs)
        crash(name, "after")
        return done

    Database.write = write
