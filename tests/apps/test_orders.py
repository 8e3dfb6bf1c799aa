"""From a job file to an order, and what is looked at before a batch is written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.apps.orders import check_folder, order_by_hand
from orchestrator.core.errors import BadInput
from orchestrator.gateways import jobfile
from orchestrator.gateways.testing import HandClock


class Book:
    """A ledger that knows some run keys."""

    def __init__(self, *known: str) -> None:
        self._known = known

    async def known(self, run_key: str) -> bool:
        return run_key in self._known


async def look(folder: Path, *, to: str, run_key: str = "mine", known: tuple[str, ...] = ()) -> None:
    """Check the folder of an order, as `run` and the scheduler do."""
    path = folder / "night.yaml"
    path.write_text("model: acme/shoes\nsource: { path: rows.csv }\n")
    rooms: Any = SimpleNamespace(ledger=Book(*known), clock=HandClock())
    order = order_by_hand(jobfile.load(path), output=str(folder / to))
    prepared: Any = SimpleNamespace(order=order, run_key=run_key)
    await check_folder(rooms, prepared)


async def test_a_folder_is_looked_at_before_the_batch_is_written(tmp_path: Path):
    """Another batch's folder and a file are refused; a new folder, one's own and one per batch are not."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".orchestrator.json").write_text(json.dumps({"batch": "b-1", "run_key": "theirs", "ledger": "there"}))
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(BadInput, match=r"holds the outputs of batch b-1 .*--output"):
        await look(tmp_path, to="out")
    with pytest.raises(BadInput, match="cannot be used"):
        await look(tmp_path, to="taken/{{ batch }}")
    for to in ("new", "out/{{ batch }}"):
        await look(tmp_path, to=to)
    await look(tmp_path, to="out", run_key="theirs")


async def test_a_batch_that_is_there_goes_on_in_its_own_folder(tmp_path: Path):
    """The order's folder is not asked for then: the files of the batch may lie in another one."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".orchestrator.json").write_text(json.dumps({"batch": "b-1", "run_key": "theirs", "ledger": "there"}))
    await look(tmp_path, to="out", known=("mine",))
