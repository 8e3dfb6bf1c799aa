"""Results as a pandas DataFrame: the only pandas in the building, as importing it costs half a second."""

import json
from pathlib import Path
from typing import Any

from orchestrator.core.errors import BadInput

_LIST = "prediction_files"


def results_frame(folder: Path) -> Any:
    """The results in an output folder, one row per input row, in input order.

    Types are those of the file: a Parquet table keeps them, CSV cells are text (`007` stays `007`, an empty cell is None).
    `prediction_files` is a list everywhere. Raises BadInput where the folder holds no results.
    """
    import pandas as pd

    path = next((p for p in sorted(folder.glob("results.*")) if p.suffix in _READERS), None)
    if path is None:
        raise BadInput(f"{folder} holds no results: `orchestrator export BATCH` writes them at any moment")
    return _READERS[path.suffix](pd, path)


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
