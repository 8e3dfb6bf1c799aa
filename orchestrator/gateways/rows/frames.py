"""Results as a pandas DataFrame: the only pandas in the building, as importing it costs half a second."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput

_LIST = "prediction_files"
_COST = "prediction_cost_usd"


def results_frame(folder: Path) -> Any:
    """The results in an output folder, one row per input row, in input order.

    Types are those of the file: a Parquet table keeps them, CSV cells are text (`007` stays `007`, an empty cell is None).
    `prediction_files` is a list everywhere, and `prediction_cost_usd` decimal, so that its sum is one of money. Raises
    BadInput where the folder holds no results.
    """
    import pandas as pd

    path = next((p for p in sorted(folder.glob("results.*")) if p.suffix in _READERS), None)
    if path is None:
        raise BadInput(f"{folder} holds no results: `orchestrator export BATCH` writes them at any moment")
    frame = _READERS[path.suffix](pd, path)
    if _COST in frame and path.suffix != ".parquet":
        cells = [Decimal(cell) if isinstance(cell, str) else None for cell in frame[_COST]]
        frame[_COST] = pd.Series(cells, index=frame.index, dtype=object)
    return frame


def _parquet(pd: Any, path: Path) -> Any:
    return pd.read_parquet(path)


def _csv(pd: Any, path: Path) -> Any:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame = frame.astype(object).where(frame != "", None)
    frame[_LIST] = [json.loads(cell) if cell else [] for cell in frame[_LIST]]
    return frame


def _jsonl(pd: Any, path: Path) -> Any:
    with path.open(encoding="utf-8") as file:  # not read_json: it guesses types
        return pd.DataFrame([json.loads(line) for line in file])


_READERS = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
