"""What reading every row of a source found, and whether the job runs such rows. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.core.asked import AskedRows
from orchestrator.core.duplicates import Equals
from orchestrator.core.errors import BadInput, BadRows, RowProblem
from orchestrator.core.job import Duplicates, Job
from orchestrator.core.openapi import InputSchema
from orchestrator.core.records import Row

KEPT_PROBLEMS = 1000
SEED = "seed"  # how models call the input with which a run comes out as another one did; some say `noise_seed` and the like


@dataclass(slots=True)
class Examined:
    """What reading every row found. Equal rows: that have the input of an earlier good row, whatever the job wants done then."""

    rows: int = 0
    bad: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    source_schema_json: str | None = None
    equal_rows: int = 0
    seedless_equal_rows: int = 0  # of these, rows that leave the model's seed empty
    first_seedless: tuple[str, str] | None = None  # the first of those, and the row that it equals
    missing_seed: str = SEED  # what the model calls the seed that the first of these lacks
    first_earlier: tuple[str, str] | None = None  # one that equals a row of an earlier batch; only `load` looks for these
    equals: Equals = field(default_factory=Equals)
    asked: AskedRows | None = None  # by the rows to be bought; None: all ask for the same

    @property
    def good(self) -> int:
        """Rows that can be bought."""
        return self.rows - self.bad

    def note_bad(self, row: Row, problems: list[RowProblem]) -> str:
        """A row that does not fit; all that is wrong with it in one text."""
        self.bad += 1
        placed = [replace(problem, line=row.line) for problem in problems]
        self.problems.extend(placed[: max(0, KEPT_PROBLEMS - len(self.problems))])
        return "; ".join(str(problem) for problem in placed)

    def note_good(self, row: Row, input_hash: str, *, missing_seed: str | None) -> bool:
        """One that fits: whether it equals an earlier one. `missing_seed`: one that the row leaves empty."""
        earlier = self.equals.add(row.index, input_hash)
        if earlier is None:
            return False
        self.equal_rows += 1
        if missing_seed is not None:
            self.seedless_equal_rows += 1
            if self.first_seedless is None:
                place = f"row {row.index}" + (f" (line {row.line})" if row.line is not None else "")
                self.first_seedless, self.missing_seed = (place, f"row {earlier}"), missing_seed
        return True


def seeds_of(schema: InputSchema) -> tuple[str, ...]:
    """The inputs of a model that are seeds, by their names: `seed`, and whole numbers such as `random_seed`."""
    return tuple(name for name, spec in schema.fields.items()
                 if name.lower() == SEED or (name.lower().endswith(f"_{SEED}") and spec.type == "integer"))


def missing_seed(seeds: Sequence[str], given: Mapping[str, Any]) -> str | None:
    """The first of a model's seeds that an input leaves empty. Whatever is given counts, -1 and 0 too: what a model makes of them
    is said in prose at most."""
    return next((name for name in seeds if name not in given), None)


def to_buy(job: Job, examined: Examined, *, limit: int | None = None) -> int:
    """How many rows are bought at most: good ones, and of equal ones those that the job wants bought."""
    rows = examined.good - (0 if job.duplicates is None else examined.equal_rows)
    return rows if limit is None else min(rows, limit)


def refusal(job: Job, model: str, examined: Examined, *, places: Mapping[str, str]) -> BadInput | None:
    """Why these rows are not run as the job has it; None: they are."""
    if examined.bad and job.source.bad_rows == "refuse":
        return _bad_rows(job, model, examined)
    lacks_seed = examined.first_seedless is not None or examined.first_earlier is not None
    if lacks_seed and job.duplicates is not None and job.duplicates.empty_seed == "refuse":
        return _no_seed(job.duplicates, model, examined, place=places.get("duplicates"))
    return None


def _bad_rows(job: Job, model: str, examined: Examined) -> BadRows:
    """All that is wrong with the rows, as one error."""
    rows = "1 row does" if examined.bad == 1 else f"{examined.bad} rows do"
    message = (f"{rows} not fit {model} ({job.source.path}, {examined.rows} rows read); nothing was spent. Correct them, "
               "or say `bad_rows: skip` under `source:` to run the others.")
    return BadRows(message, problems=examined.problems, total=examined.bad)


def _no_seed(duplicates: Duplicates, model: str, examined: Examined, *, place: str | None) -> BadInput:
    """With equal seeds they come out alike, whoever pays; without one somebody may have wanted several to choose from."""
    return BadInput(
        f"{place + ': ' if place else ''}{_alike(model, examined)}. Nothing was spent. If one output is to serve for all that "
        f"are equal, write\n  duplicates: {{ once: {duplicates.once}, empty_seed: share }}\n"
        f"If each is wanted, give them a `{examined.missing_seed}` of their own, or write `duplicates: buy`.")


def _alike(model: str, examined: Examined) -> str:
    seed = examined.missing_seed
    if examined.first_seedless is None:
        row, earlier = examined.first_earlier or ("a row", "one of an earlier batch")
        return f"{row} has the same input as {earlier} and no `{seed}`, so {model} would make something else of it"
    row, earlier = examined.first_seedless
    many = examined.seedless_equal_rows
    rows = "1 row has" if many == 1 else f"{many:,} rows have"
    first = f"{row} equals {earlier}" if many == 1 else f"the first is {row}, which equals {earlier}"
    return f"{rows} the same input as an earlier row and no `{seed}`, so {model} would make something else of each: {first}"
