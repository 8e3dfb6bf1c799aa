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
