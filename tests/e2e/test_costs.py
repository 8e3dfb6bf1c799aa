"""`costs`, as it is typed, on a batch with a failure in it; and the same figures in files and in pandas."""

import csv
from decimal import Decimal

import pandas as pd
import pyarrow.parquet as pq
import pytest

import orchestrator
from orchestrator.core.errors import BadInput
from tests.e2e.desk import Desk, Provider

JOB = """\
model: simulator/echo
source: { path: rows.csv }
input: { text: "{{ text }}" }
price: { per_second_usd: 0.01 }
output: { to: "out/{{ batch }}" }
"""


async def test_in_a_notebook_as_well(desk: Desk, provider: Provider):
    """Every form tells the same dollars, and they are the batch's; a running event loop is no obstacle; errors say what to do."""
    provider.put("faults", {"fail": {"next": 2, "text": "NSFW content detected"}})
    desk.job(JOB, rows=[{"text": f"sentence {n}", "shop": "ab"[n % 2]} for n in range(8)])
    done = desk("run", "shots", "--yes", "--json").json
    batch, spent = done["batch"], Decimal(done["cost_usd"])
    assert spent > 0
    told = desk("costs", "--json").json
    assert [line["batch"] for line in told["costs"]] == [batch]
    assert told["total"] == {key: value for key, value in told["costs"][0].items() if key != "batch"}
    assert (Decimal(told["total"]["spent_usd"]), told["total"]["rows"], told["total"]["predictions"]) == (spent, 8, 8)
    assert told["total"]["estimated_expected_usd"] is told["total"]["difference_usd"] is None  # by the second, and never before
    shown = desk("costs", batch, "--by", "column:shop").out.splitlines()
    assert shown[0].split() == ["value", "bought", "rows", "predictions", "spent", "failed", "canceled", "surplus", "unknown"]
    assert {line.split()[0] for line in shown[1:-1]} == {"a", "b", "together"}
    assert shown[-1] == "what 2 rows cost is not known, and not in these sums"  # failed runs of an official model
    assert desk("costs", "--by", "model", "--to", "m.csv").code == 0
    assert desk("costs", "--by", "day", "--to", "d.parquet").code == 0
    with (desk.folder / "m.csv").open() as file:
        (model,) = csv.DictReader(file)
    assert (model["model"], Decimal(model["spent_usd"])) == ("simulator/echo", spent)
    (day,) = pq.read_table(desk.folder / "d.parquet").to_pylist()
    assert (day["spent_usd"], day["rows"]) == (spent, 8)
    frame = orchestrator.costs(by="job", home=desk.folder / ".orchestrator")
    assert isinstance(frame, pd.DataFrame) and frame.loc[0, "job"] == "shots" and frame.loc[0, "spent_usd"] == spent
    with pytest.raises(BadInput, match="--by weekday"):
        orchestrator.costs(by="weekday", home=desk.folder / ".orchestrator")
    with pytest.raises(BadInput, match="no ledger here"):
        orchestrator.costs(home=desk.folder / "elsewhere")
    assert not (desk.folder / "elsewhere").exists()
    refused = desk("costs", "--by", "column:shop")
    assert refused.code == 2 and "needs a batch" in refused.err
    assert desk("costs", "--to", "costs.xlsx").code == 2


def test_a_first_limit_makes_it_known(desk: Desk, provider: Provider):
    """Three rows are bought, and the next run expects the rest by them: its lines, its last words and `costs` tell both."""
    desk.job(JOB, rows=[{"text": f"sentence {n}"} for n in range(8)])
    first = desk("run", "shots", "--limit", "3", "--yes")
    assert first.code == 0 and "in all" not in first.out, str(first)
    done = desk("run", "shots", "--yes")
    assert done.code == 0 and " (expected: $" in done.out, str(done)
    assert "in all" in done.err, done.err
    (line,) = desk("costs", "--json").json["costs"]
    low, expected, high, spent, more = (Decimal(line[name]) for name in (
        "estimated_low_usd", "estimated_expected_usd", "estimated_high_usd", "spent_usd", "difference_usd"))
    assert 0 < low <= expected <= high and more == spent - expected
