"""Every error of the program, drawn as one tree.

OrchestratorError
├── BadInput                 the user's job, source or argument is wrong; nothing was spent        exit 2
│   └── BadRows              rows that do not fit the model's schema, all of them listed
├── Unreachable              the provider, the database or Redis cannot be reached                 exit 4
│   └── ProviderAway         the provider, of these
├── TokenRefused             the provider does not accept the token                                exit 4
├── ProviderRefusal          the provider answered a read or a cancel with an error status
│   ├── NotFound             404
│   ├── Unreadable           it answered, with a prediction that cannot be read
│   └── Throttled            429, with the hint it gave
└── CollectError             an output could not be brought home
    ├── OutputGone           the provider deleted it
    ├── OutputForbidden      the host is not allowed, or the address is private
    └── OutputBroken         truncated, wrong length, wrong media type

What a POST proves is not an exception but a value (`core.ports.CreateAnswer`): it decides about money.
"""

from dataclasses import dataclass


class OrchestratorError(Exception):
    """Root of the tree; its text is a sentence for the user."""


class BadInput(OrchestratorError):
    """A job, a source or an argument is wrong. Nothing was spent."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One thing wrong with one cell: where it stands and why it does not fit."""

    index: int  # row number, from 0
    line: int | None  # line in the source file, from 1, where the format has lines
    field: str | None  # the model input or column concerned
    value: str | None  # the cell as text, shortened
    reason: str

    def __str__(self) -> str:
        """`row 17 (line 19), input 'seed', value 'seven': not an integer`."""
        place = f"row {self.index}" + (f" (line {self.line})" if self.line is not None else "")
        if self.field is not None:
            place += f", {self.field}"
        if self.value is not None:
            place += f", value {self.value!r}"
        return f"{place}: {self.reason}"


class BadRows(BadInput):
    """Rows do not fit; `problems` holds the first thousand, `total` counts all."""

    def __init__(self, message: str, *, problems: list[RowProblem], total: int) -> None:
        super().__init__(message)
        self.problems = problems
        self.total = total


class Unreachable(OrchestratorError):
    """The provider, the database or Redis cannot be reached."""


class ProviderAway(Unreachable):
    """The provider, among these: for so long nobody needs to submit."""


class TokenRefused(OrchestratorError):
    """The provider answered 401 or 403: the token is missing, wrong or not permitted."""


class ProviderRefusal(OrchestratorError):
    """The provider answered with an error status to a call that buys nothing."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotFound(ProviderRefusal):
    """The provider does not know this model, version or prediction."""


class Unreadable(ProviderRefusal):
    """The provider knows the prediction, and what it says of it cannot be read."""


class NameTaken(OrchestratorError):
    """Another batch has the id that was drawn: draw another."""


class Discarded(OrchestratorError):
    """The batch that is being loaded is not there any more, or not as far: another run of the same job found its file wrong."""


class Throttled(ProviderRefusal):
    """429: wait `retry_after_s` seconds (None: no hint was given)."""

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message, status=429)
        self.retry_after_s = retry_after_s


class CollectError(OrchestratorError):
    """An output could not be brought home this time; trying again may help."""


class OutputGone(CollectError):
    """The provider deleted the output, or never had it."""


class OutputForbidden(CollectError):
    """The output's host is not allowed, or its address is private. Trying again cannot help."""


class OutputBroken(CollectError):
    """The output arrived truncated, with a wrong length or a wrong media type."""
