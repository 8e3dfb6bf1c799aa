"""A row whose sending ends its worker: set aside once it was proven, never bought, and it costs the others nothing."""

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.outages import ECHO, all_home, bought_once, long, texts
from tests.e2e.desk import Desk, Done

COUNT = 12
DEADLY = "sentence number 3"
WHY = "the worker ended 3 times in a row while this row was being sent"
SOONER = {"REQUEST_TIMEOUT_S": "2", "LEASE_MARGIN_S": "1", "HOLD_S": "4", "SLICE_S": "3"}  # a lease ends in 4 s instead of 8


@pytest.fixture
def deadly(desk: Desk, tmp_path: Path) -> Desk:
    """A desk whose workers can be made to die at the purchase of one row, and whose leases are short."""
    marks = tmp_path / "marks"
    marks.mkdir()
    crashing = Path(__file__).parent / "crashing"
    desk.env |= {"PYTHONPATH": f"{crashing}:{desk.env['PYTHONPATH']}", "CRASH_MARKS": str(marks)}
    desk.env |= {f"ORCHESTRATOR_TEMPO__{name}": value for name, value in SOONER.items()}
    desk.job(ECHO % 900, rows=texts(COUNT))
    return desk


def run(desk: Desk, *sides: str) -> Done:
    """A run whose workers die at that row's purchase, one after the other, `before` or `after` it; every death has come."""
    deaths = ";".join(f"worker predictions.create({DEADLY}):{side}:1" for side in sides)
    done = desk("run", "shots", "--yes", "--json", CRASH_AT=deaths)
    died = sorted(mark.name for mark in Path(desk.env["CRASH_MARKS"]).iterdir())
    assert died == [str(n) for n in range(len(sides))], f"{done}\n{desk.log()}"
    assert done.err.count("worker ended with code 137") == len(sides), str(done)
    return done


def items(desk: Desk, state: str) -> list[dict[str, Any]]:
    """The rows in a state, as `items` tells them."""
    found: list[dict[str, Any]] = desk("items", "shots", "--state", state, "--json").json["items"]
    return found


@long
def test_a_row_that_ends_its_worker_while_it_is_sent(deadly: Desk):
    """Before the POST, three times: the row is set aside with its reason and was never bought, the others come home once each;
    `retry --class poison` buys it, once. It would be bought and succeed if it were sent a fourth time."""
    done = run(deadly, "before", "before", "before")
    assert done.code == 1, f"{done}\n{deadly.log()}"
    assert done.json["items"] == {"total": COUNT, "succeeded": COUNT - 1, "failed": 1, "canceled": 0, "pending": 0}
    (row,) = items(deadly, "failed")
    assert (row["index"], row["error_class"], row["prediction_id"], row["attempts"]) == (3, "poison", None, 0), row
    assert WHY in row["error"]
    assert f"poison: {WHY}" in deadly("items", "shots", "--state", "failed").out
    bought = sorted(purchase["input"]["text"] for purchase in deadly.provider.purchases())
    assert bought == sorted(f"sentence number {n}" for n in range(COUNT) if n != 3)
    assert deadly("retry", "shots", "--class", "poison").code == 0
    all_home(deadly, deadly("run", "shots", "--yes", "--json"), COUNT)


@long
def test_a_third_death_after_the_purchase(deadly: Desk):
    """Two deaths before the POST and one between the POST and its answer: what was bought is adopted, not set aside, and not
    bought again."""
    done = run(deadly, "before", "before", "after")
    assert done.code == 0, f"{done}\n{deadly.log()}"
    assert done.json["items"]["succeeded"] == COUNT
    bought_once(deadly, COUNT)
    assert items(deadly, "failed") == []
