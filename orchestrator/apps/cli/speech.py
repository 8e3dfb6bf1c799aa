"""What is said to people: stderr for progress and questions, stdout for answers."""

import json
import sys
from typing import Any

from orchestrator.apps.cli.ending import Ending
from orchestrator.core.errors import BadRows, OrchestratorError

SHOWN_PROBLEMS = 50


def say(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def answer(line: str) -> None:
    """A line on stdout."""
    print(line, flush=True)  # noqa: T201


def document(value: Any) -> None:
    """The one JSON document of `--json`."""
    answer(json.dumps(value, ensure_ascii=False, default=str))


def ask(question: str) -> bool | None:
    """A yes or no on a terminal; None: nobody is there to say it."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # noqa: T201
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def last_words(ending: Ending, *, as_json: bool) -> None:
    """How a command ended."""
    if as_json:
        document(ending.document)
    for line in ending.lines:
        say(line) if as_json else answer(line)


def trouble(error: OrchestratorError, *, as_json: bool) -> None:
    """An error, with every place and remedy it knows."""
    if as_json:
        document({"error": type(error).__name__, "message": str(error), "problems": _problems(error)})
    say(f"error: {error}")
    if isinstance(error, BadRows):
        for problem in error.problems[:SHOWN_PROBLEMS]:
            say(f"  {problem}")
        more = error.total - min(len(error.problems), SHOWN_PROBLEMS)
        if more > 0:
            say(f"  … and {more:,} more (--json lists up to a thousand)")


def _problems(error: OrchestratorError) -> list[dict[str, Any]]:
    if not isinstance(error, BadRows):
        return []
    return [{"row": p.index, "line": p.line, "field": p.field, "value": p.value, "reason": p.reason} for p in error.problems]
