"""Reports for Python, as pandas DataFrames."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.apps.cli.costs import told
from orchestrator.apps.cli.look import here, settings_of


def costs_frame(batch: str | None, *, by: str, home: Path | None) -> Any:
    """What was spent. In a thread of its own: a notebook has a loop that runs already."""
    import pandas as pd

    settings = here() if home is None else settings_of(home)
    with ThreadPoolExecutor(1) as thread:
        report = thread.submit(lambda: asyncio.run(told(settings, batch, by=by))).result()
    return pd.DataFrame(report.records(), columns=report.columns())
