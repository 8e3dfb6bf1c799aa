"""What `status` says of a batch nobody runs, and what `retry` and `export` refuse."""

import json
import os
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from orchestrator.apps.cli import costs, look, steer
from orchestrator.apps.money import about_text, more_text
from orchestrator.core.cost import Price, Pricing
from orchestrator.core.errors import BadInput
from orchestrator.core.estimate import Estimate, Figure
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import Batch, Role
from orchestrator.gateways.ledger import Database, SqlLedger
from orchestrator.gateways.rows.schema import SourceSchema
from tests.contract.conftest import Acts


@pytest.fixture
async def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Acts]:
    """The ledger of the home that the commands find."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    async with Database.open(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        yield Acts(SqlLedger(database))


async def shots(acts: Acts, folder: Path, *, failed: bool = False) -> Batch:
    """A running batch of two rows; the first one may have failed."""
    batch = await acts.loaded(2, output_to=str(folder / "out"))
    job = '{"model": "acme/draw", "source": {"path": "rows.csv"}}'
    await acts.ledger.amend(batch.pk, in_flight=2, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json=job)
    if failed:
        await acts.claim(batch, 1)
        await acts.tell(acts.said(Event.REFUSED, "a0", error="flagged", error_class="safety"))
    return await acts.again(batch)


async def test_a_running_batch_that_nobody_runs(acts: Acts, tmp_path: Path):
    """It is said that nobody is at work, with the command that goes on with it; not while a worker lives."""
    await shots(acts, tmp_path)
    worker, now = f"worker@{socket.gethostname()}", datetime.now(UTC)
    await acts.ledger.beat(Role(f"{worker}:4000001", "worker", None, "1", now, now))  # above every pid: it was killed
    assert (await look.status(None)).lines[0].endswith("nobody at work: orchestrator run shots --run-key b")
    told = (await look.status("b")).lines
    assert told[0].endswith("running, nobody at work")
    assert told[-1] == "  go on    orchestrator run shots --run-key b"

    await acts.ledger.beat(Role(f"{worker}:{os.getpid()}", "worker", None, "1", now, now))
    assert "nobody" not in " ".join((*(await look.status(None)).lines, *(await look.status("b")).lines))


async def test_what_is_reserved_is_told_where_a_cap_is(acts: Acts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While a row is out its reservation is its own; afterwards it is held, should nobody know what the row cost. Without a cap
    that holds nobody back, and is not told."""
    batch = await shots(acts, tmp_path)
    await acts.claim(batch, 2, reserve_units=10**11)
    assert "  spent    $0.00" in (await look.status("b")).lines
    monkeypatch.setenv("ORCHESTRATOR_BUDGET__ACCOUNT_USD", "5")
    assert "  spent    $0.00, $0.20 reserved" in (await look.status("b")).lines
    acts.policy = replace(acts.policy, price=None)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.ended("p1", attempt_id="a1"))
    told = await look.status("b")
    assert "  spent    $0.00 + 2 rows of unknown cost, $0.20 held for rows whose cost is not known" in told.lines
    assert told.document["reserved_usd"] == "0.2"


async def test_retry_says_what_it_leaves_out(acts: Acts, tmp_path: Path):
    """Rows that were paid for once are not bought again by a plain `retry`: how many, why, and the command for them."""
    batch = await shots(acts, tmp_path)
    await acts.claim(batch, 1)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.said(Event.UNCOLLECTABLE, "a0", error="gone", error_class="expired"))
    assert (await steer.retry("b", classes=frozenset())).lines == (
        "no such failed rows",
        "  left out 1 × expired: they were paid for once; to try them again all the same: orchestrator retry b --class expired")


async def test_retry_of_a_class_that_is_none(acts: Acts, tmp_path: Path):
    """A typo is refused with the nearest class and those that occur; a class that no row has is nothing to do."""
    await shots(acts, tmp_path, failed=True)
    with pytest.raises(BadInput, match=r"--class safty: .*did you mean 'safety'.*are of: safety"):
        await steer.retry("b", classes=frozenset({"safty"}))
    assert (await steer.retry("b", classes=frozenset({"timeout"}))).lines == ("no such failed rows",)
    assert (await steer.retry("b", classes=frozenset({"safety"}))).document["to_buy"] == 1


async def test_export_to_a_place_that_cannot_be_written(acts: Acts, tmp_path: Path):
    """A sentence with the place and what to do, not a traceback."""
    await shots(acts, tmp_path)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE batches SET source_schema_json = ?", (SourceSchema(pa.schema([("sku", pa.string())])).to_json(),))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"--to file/x.csv cannot be written: .*Choose another --to"):
        await steer.export("b", to="file/x.csv")
    (tmp_path / "out").write_text("")
    with pytest.raises(BadInput, match=r"/out cannot be written: .*Choose --to FILE"):
        await steer.export("b", to=None)


async def test_what_a_batch_will_have_cost(acts: Acts, tmp_path: Path):
    """Beside what is spent: in all, how fast, and what was expected; each only while it is known, and in `costs` what differs."""
    batch = await shots(acts, tmp_path)
    assert (await look.status("b")).document["projected_usd"] is None
    now = datetime.now(UTC)
    figures = [Figure(Decimal(usd), "") for usd in ("1", "1.5", "2")]
    await acts.ledger.amend(batch.pk, in_flight=2, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json=batch.job_json, estimate_json=json.dumps(Estimate(2, *figures, None).to_json()))
    await acts.claim(batch, 2)
    ended = acts.ended("p0", seconds=2.0)
    assert ended.prediction is not None
    await acts.tell(acts.answered("a0", "p0"), ended._replace(prediction=ended.prediction._replace(completed_at=now)))
    told = await look.status("b")
    assert (told.document["projected_usd"], told.document["usd_per_minute"]) == ("2", "1")
    assert told.document["estimate"]["expected_usd"] == "3"
    assert [line for line in told.lines if line.startswith(("  in all", "  expected"))] == [
        "  in all   about $2.00, $1.00 per minute", "  expected $3.00 ($2.00 to $4.00)"]
    assert (await look.status(None)).document["batches"][0]["projected_usd"] == "2"
    (line,) = (await costs.costs("b", by="batch", to=None)).document["costs"]
    assert (line["estimated_low_usd"], line["estimated_expected_usd"], line["difference_usd"]) == ("2", "3", None)
    await acts.tell(acts.answered("a1", "p1"), acts.ended("p1", "failed", output=None, error="broken"))
    await acts.ledger.set_state(batch.pk, to=BatchState.FINISHED, allowed=frozenset(BatchState), reason=None, now=now)
    shown = await costs.costs("b", by="batch", to=None)
    assert shown.document["costs"][0]["difference_usd"] == shown.document["total"]["difference_usd"] == "-2"
    assert shown.lines[1].split()[4:9] == ["$3.00", "($2.00", "to", "$4.00)", "-$2.00"]
    assert "estimated" not in (await costs.costs("b", by="day", to=None)).lines[0]
    assert (await look.status("b")).document["projected_usd"] is None


async def test_unknown_is_never_zero(acts: Acts, tmp_path: Path):
    """Neither in the list of batches, nor in a column of sums; the document has the two numbers side by side."""
    batch = await shots(acts, tmp_path)
    acts.policy = replace(acts.policy, price=None)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.ended("p1", attempt_id="a1"))
    listed = await look.status(None)
    assert "0 failed  $0.00 + 2 rows of unknown cost  nobody" in listed.lines[0]
    assert (listed.document["batches"][0]["cost_usd"], listed.document["batches"][0]["cost_unknown_items"]) == ("0", 2)
    shown = (await costs.costs(None, by="job", to=None)).lines
    assert shown[0].split() == ["job", "bought", "rows", "predictions", "spent", "failed", "canceled", "surplus", "unknown"]
    assert shown[1].split() == ["shots", "2", "2", "unknown", "–", "–", "–", "2", "rows"]
    assert shown[-1] == "what 2 rows cost is not known, and not in these sums"


async def test_as_much_as_was_expected(acts: Acts, tmp_path: Path):
    """A difference of nothing is a dash on screen, and a plain 0 in the document."""
    batch, figure = await shots(acts, tmp_path), Figure(Decimal("0.500"), "")
    estimate = json.dumps(Estimate(2, figure, figure, figure, None).to_json())
    await acts.ledger.amend(batch.pk, in_flight=2, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json=batch.job_json, estimate_json=estimate)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=1.0), acts.ended("p1", attempt_id="a1", seconds=1.0))
    now = datetime.now(UTC)
    await acts.ledger.set_state(batch.pk, to=BatchState.FINISHED, allowed=frozenset(BatchState), reason=None, now=now)
    shown = await costs.costs("b", by="batch", to=None)
    assert shown.document["costs"][0]["difference_usd"] == "0"
    assert shown.lines[1].split()[4:6] == ["$1.00", "–"]


@pytest.mark.parametrize(("usd", "about", "more"), [
    ("2.325", "$2.33", "+$2.33"), ("13.825", "$13.83", "+$13.83"), ("0", "$0.00", "–"), ("-0.01235", None, "-$0.0124"),
    ("0.000", "$0.00", "–")])
def test_one_way_to_round(usd: str, about: str | None, more: str):
    """Halves up, in every figure that is told in short, and no sign before nothing."""
    assert about is None or about_text(Decimal(usd)) == about
    assert more_text(Decimal(usd), is_about=True) == more
    assert more_text(None) == "–"


async def test_charges_that_are_only_estimates(acts: Acts, tmp_path: Path):
    """Of a deployment: how much of the sum, and which rows."""
    batch = await shots(acts, tmp_path)
    assert acts.policy.price is not None
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=2.0))
    acts.policy = replace(acts.policy, price=replace(acts.policy.price, is_estimate=True))
    await acts.tell(acts.ended("p1", attempt_id="a1", seconds=1.0))
    shown = await costs.costs("b", by="batch", to=None)
    assert (shown.document["total"]["estimated_usd"], shown.document["total"]["spent_usd"]) == ("0.5", "1.5")
    assert shown.lines[-1].startswith("$0.50 of it is estimated: ")
    told = await look.status("b")
    assert "  spent    $1.50, of it $0.50 estimated" in told.lines and told.document["estimated_usd"] == "0.5"
    rows = await look.items("b", state=None, limit=9)
    assert [row["cost_is_estimate"] for row in rows.document["items"]] == [False, True]
    assert [line.split()[4:] for line in rows.lines] == [["$1"], ["$0.5", "(estimated)"]]


async def test_what_a_budget_ends(acts: Acts, tmp_path: Path):
    """`status` tells no total beyond the batch's own cap."""
    batch = await shots(acts, tmp_path)
    await acts.claim(batch, 1)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=2.0))
    await acts.ledger.amend(batch.pk, in_flight=2, max_attempts=3, cap_units=15 * 10**11, price_json="null", start_limit=None,
                            job_json=batch.job_json)
    assert "  in all   about $2.00, but the budget ends it at $1.50" in (await look.status("b")).lines


@pytest.mark.parametrize(("more", "expected", "said"), [
    ({"limits": {"cancel_after": "10s"}, "price": {"per_second_usd": "0.003"}}, None,
     "up to $0.06 more for 2 predictions that are out"),
    ({}, "0.5", "about $1.00 more for 2 predictions that are out"),
    ({}, None, "more for 2 predictions that are out, and nothing bounds how much"),
    ({"budget": {"per_row_usd": "0.05"}}, None, "more for 2 predictions that are out, and nothing bounds how much"),  # not capped
    ({"budget": {"usd": 1, "per_row_usd": "0.05"}}, None, "up to $0.10 more for 2 predictions that are out"),
])
async def test_what_is_still_to_come(acts: Acts, tmp_path: Path, more: dict[str, Any], expected: str | None, said: str):
    """Of what is out: at worst, else as expected, else that nobody can say; and no word of it once all have ended."""
    batch, figure = await shots(acts, tmp_path), Figure(expected and Decimal(expected), "")
    pricing = Pricing(Price("job", "second", Decimal("0.003")) if "price" in more else None, 1, None, Decimal("0.003"))
    await acts.ledger.amend(batch.pk, in_flight=2, max_attempts=3, cap_units=None, price_json=pricing.to_json(), start_limit=None,
                            job_json=json.dumps(json.loads(batch.job_json) | more),
                            estimate_json=json.dumps(Estimate(2, figure, figure, figure, None).to_json()))
    await acts.claim(batch, 2)
    await acts.tell(acts.answered("a0", "p0"), acts.answered("a1", "p1"))
    assert f"  to come  {said}" in (await look.status("b")).lines
    for name in ("b", None):
        shown = await costs.costs(name, by="batch", to=None)
        assert (shown.lines[-1], shown.document["to_come"]["predictions"]) == (said, 2)
    await acts.tell(acts.ended("p0"), acts.ended("p1"))
    assert "to come" not in " ".join((await look.status("b")).lines)
    assert (await costs.costs("b", by="batch", to=None)).document["to_come"]["predictions"] == 0
