"""What was spent, by a column of the source: the cells as they were read, each with what its rows cost."""

import pytest

from orchestrator import wiring
from orchestrator.core.cost import to_units
from orchestrator.core.errors import BadInput
from orchestrator.core.records import Batch
from orchestrator.core.spending import Line, Spent, by_of
from orchestrator.flow import spending as station
from orchestrator.flow.ingest import Order, load, prepare
from orchestrator.flow.spending import spending
from tests.flow.conftest import Stage
from tests.flow.test_stations import settle

RUN = to_units(1) // 4  # 25 cents
JOB = """\
model: simulator/echo
source: { path: rows.csv }
input: { text: "{{ text }}" }
price: { per_run_usd: 0.25 }
"""


async def bought(stage: Stage) -> Batch:
    """Six rows of three shops, one of them without a name; one row fails."""
    (stage.folder / "rows.csv").write_text("text,shop\none,007\ntwo,7\nthree,007\nfour,\nfive,007\nsix,7\n")
    (stage.folder / "job.yaml").write_text(JOB)
    found = wiring.load_job(stage.folder / "job.yaml", changes={})
    order = Order(job=found.job, name="job", folder=str(stage.folder), output_to="out", output_base=str(stage.folder))
    batch, _ = await load(stage.rooms, await prepare(stage.rooms, order, book={}))
    assert (await settle(stage, batch))["succeeded"] == 6
    return batch


async def test_by_a_column(stage: Stage):
    """The dearest first; 007 is not 7; an empty cell is a group of its own; and together they are the batch."""
    batch = await bought(stage)
    lines, together = await spending(stage.rooms, by_of("column:shop"), batch=batch)
    assert lines == [Line("007", Spent(3, 3, 3 * RUN)), Line("7", Spent(2, 2, 2 * RUN)), Line(None, Spent(1, 1, RUN))]
    assert together == Spent(6, 6, 6 * RUN)


async def test_columns_that_cannot_be_grouped_by(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """A wrong name is told with the nearest, a column of names is refused before it fills the memory, and all need a batch."""
    batch = await bought(stage)
    with pytest.raises(BadInput, match=r"no such column \(did you mean 'shop'\?\); it has text, shop"):
        await spending(stage.rooms, by_of("column:shp"), batch=batch)
    with pytest.raises(BadInput, match="needs a batch"):
        await spending(stage.rooms, by_of("column:shop"), batch=None)
    monkeypatch.setattr(station, "MOST_VALUES", 5)
    with pytest.raises(BadInput, match="more than 5 different values"):
        await spending(stage.rooms, by_of("column:text"), batch=batch)
