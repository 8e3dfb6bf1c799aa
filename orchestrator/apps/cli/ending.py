"""How a command ends: exit codes and their meaning."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    DONE = 0  # all rows done, or failures within the tolerated share
    FAILED_ROWS = 1
    BAD_INPUT = 2  # a bad job, source or argument; nothing spent
    BUDGET = 3  # stopped by the budget or by credit, with nothing left in the air
    UNREACHABLE = 4  # provider, database or Redis away, or the token refused
    CANCELED = 5
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True, slots=True)
class Ending:
    """An exit code, the document for `--json`, and what a person reads last."""

    code: Exit
    document: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
