"""A file of inputs in, verified files and a ledger out: batches of Replicate predictions, each bought once."""

from pathlib import Path
from typing import Any


def results(folder: str | Path) -> Any:
    """The results of a batch as a pandas DataFrame, from its output folder.

    One row per input row, in input order: the input columns, then `prediction_status`, `prediction_files` and the others.
    Raises `orchestrator.core.errors.BadInput` where the folder holds none.
    """
    from orchestrator.gateways.rows.frames import results_frame

    return results_frame(Path(folder))


def costs(batch: str | None = None, *, by: str = "batch", home: str | Path | None = None) -> Any:
    """What was spent, as a pandas DataFrame: a row for each batch, job, model, day (UTC) or cell of `column:NAME`, as `by` says.

    Of one batch (its id, the beginning of it, or its job's name), or of all in the ledger. Money is exact: columns `spent_usd`,
    and of that `succeeded_usd`, `failed_usd`, `canceled_usd`, `surplus_usd`, hold `decimal.Decimal` US dollars, and so does
    `estimated_usd`, what of all that is only an estimate; `rows` (for which something was bought), `predictions`, and
    `unknown_rows`, of which something cost nobody knows how much, are counts. By batch also `estimated_low_usd`,
    `estimated_expected_usd` and `estimated_high_usd`, what was expected when its rows were loaded, and `difference_usd`, spent
    less expected, of a batch that has finished and whose cost is known in full; None where nobody knows.
    `home`: the folder `.orchestrator`; left out, the one nearest to the working folder. Raises
    `orchestrator.core.errors.BadInput`.
    """
    from orchestrator.apps.frames import costs_frame

    return costs_frame(batch, by=by, home=None if home is None else Path(home))
