"""Whether a batch goes on buying although rows of it fail. Pure: asked before rows are bought, and again under its lock."""

from dataclasses import dataclass

from orchestrator.core.cost import to_usd
from orchestrator.core.job import Retry
from orchestrator.core.records import Batch

FAILING = "too many rows failed"  # how the reason of such a pause begins
SAMPLE = 20  # rows that have ended, before a share of them says anything
LONGEST_EXAMPLE = 160


@dataclass(frozen=True, slots=True)
class Cause:
    """Failed rows of one class, and what was said of one of them; `differs`: of others of them something else was said."""

    error_class: str
    count: int
    example: str | None
    differs: bool = False

    def text(self, *, longest: int) -> str:
        """On one line, however long a traceback the provider sent."""
        words = " ".join((self.example or "no message").split())
        short = words if len(words) <= longest else words[:longest - 1] + "…"
        return f"{self.count:,} × {self.error_class}{', for example' if self.differs else ''}: {short}"


@dataclass(frozen=True, slots=True)
class Tally:
    """How the rows fared that were sent to the provider. What is counted up to a number may be more.

    `worked`: their prediction succeeded, whether or not its outputs are home; counted up to SAMPLE. `failed`: counted up to what
    was asked for, under the lock all of them. `refused`: those of class invalid_input that bought nothing, likewise, and none of
    the failed. `shared`: of both, those that share what an equal row bought: failures of the batch, and no further try of its
    model. `known_…`: as many there were when a person last said that the batch is to go on."""

    worked: int
    failed: int
    refused: int
    known_failed: int = 0
    known_refused: int = 0
    shared: int = 0
    known_shared: int = 0
    causes: tuple[Cause, ...] = ()  # the most frequent first; only under the lock, like the next two
    unknown: int = 0  # rows of which nobody knows what they cost
    out: int = 0  # rows that are in the air


def still_known(tally: Tally) -> tuple[int, int, int]:
    """What a person knew of, at most as much as stands: failed, refused, and of both those that share. Fewer can share than he
    knew of, but what they leave may be no more tries than there are, or new ones would be let off for it."""
    failed, refused = min(tally.known_failed, tally.failed), min(tally.known_refused, tally.refused)
    tries = tally.failed + tally.refused - tally.shared
    return failed, refused, max(min(tally.known_shared, tally.shared), failed + refused - tries)


@dataclass(frozen=True, slots=True)
class Bounds:
    """From how many failures on a batch of some size stops; None: never for this."""

    all_failed: int | None  # while not one row has worked, the refused ones counted
    too_many: int | None  # at any time, without them
    sample: int  # rows that must have ended before `too_many` counts

    @property
    def most(self) -> int:
        """Further than this nobody needs to count, beyond what is known."""
        return max(self.all_failed or 0, self.too_many or 0)


def bounds(retry: Retry, *, total: int) -> Bounds:
    """What a job's `retry` means for a batch of so many rows. A tolerance of none is judged at the end only: one odd row must not
    stop the others."""
    tolerated = retry.tolerated(total)
    return Bounds(retry.stop_after or None, tolerated + 1 if 0 < tolerated < total else None,
                  SAMPLE if isinstance(retry.tolerate_failed, str) else 0)


def verdict(tally: Tally, limits: Bounds) -> str | None:
    """Why nothing more is to be bought, as a clause; None: go on. What a person knew of when he said so counts for nothing."""
    failed, refused = tally.failed - tally.known_failed, tally.refused - tally.known_refused
    tried = failed + refused - (tally.shared - tally.known_shared)  # one bad input with many twins is one try
    if limits.all_failed is not None and not tally.worked and tried >= limits.all_failed:
        known = tally.known_failed + tally.known_refused
        return f"not one has succeeded, and {tally.failed + tally.refused:,} have failed{_beyond(failed + refused, known)}"
    has_sample = tally.worked + tally.failed + tally.refused >= limits.sample
    if limits.too_many is not None and has_sample and failed >= limits.too_many:
        known = tally.known_failed
        return f"{tally.failed:,} have failed{_beyond(failed, known)}, and the job tolerates {limits.too_many - 1:,}"
    return None


def _beyond(more: int, known: int) -> str:
    """After a person said that it is to go on, how many of them came since."""
    return f", {more:,} more than the {known:,} known" if known else ""


def reason(batch: Batch, tally: Tally, limits: Bounds) -> str | None:
    """The same as the sentence that the batch keeps: the most frequent class, an example, what was spent, what to type next."""
    why = verdict(tally, limits)
    if why is None:
        return None
    spent = f"${to_usd(batch.spent_units):f} was spent until then"
    if tally.unknown:
        spent += f", and what {'1 row costs' if tally.unknown == 1 else f'{tally.unknown:,} rows cost'} is not known"
    out = f", {tally.out:,} more were out" if tally.out else ""
    again = f", `orchestrator retry {batch.id}` the failed rows as well" if tally.failed else ""
    return f"{FAILING}: {why}{_example(tally)}; {spent}{out}. `orchestrator resume {batch.id}` buys the rest all the same{again}"


def _example(tally: Tally) -> str:
    return f" ({tally.causes[0].text(longest=LONGEST_EXAMPLE)})" if tally.causes else ""
