"""The example jobs, each run as it is shipped."""

import csv
import shutil
from datetime import date
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.desk import Desk

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture
def shipped(desk: Desk) -> Desk:
    """A folder that holds the shipped jobs/."""
    shutil.copytree(JOBS, desk.folder / "jobs")
    return desk


def test_bulk_images(shipped: Desk):
    """Pictures for every prompt, beside a Parquet table."""
    done = shipped("run", "parti-images", "--json")
    assert done.code == 0, f"{done}\n{shipped.log()}"
    rows = pq.read_table(done.json["results"]).to_pylist()
    folder = Path(done.json["results"]).parent
    assert {row["prediction_status"] for row in rows} == {"succeeded"}
    assert all((folder / file).stat().st_size for row in rows for file in row["prediction_files"])


def test_an_llm_batch(shipped: Desk):
    """Text for every review, joined as the model's schema says, in a CSV table; no files."""
    done = shipped("run", "reviews-llm", "--json", "--yes")
    assert done.code == 0, f"{done}\n{shipped.log()}"
    with Path(done.json["results"]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == done.json["items"]["total"] > 0
    assert all(len(row["prediction_output"]) > 10 and not row["prediction_output"].startswith("[") for row in rows)
    assert float(done.json["cost_usd"]) > 0


def test_the_demonstration(shipped: Desk):
    """The demo's first ten rows, as PNGs under their own ids."""
    done = shipped("run", "demo", "--limit", "10", "--json")
    assert done.code == 0, f"{done}\n{shipped.log()}"
    files = sorted(p.name for p in (Path(done.json["results"]).parent / "files").iterdir())
    assert files == [f"d{n:03}-0.png" for n in range(1, 11)]


def test_a_nightly_job_by_hand(shipped: Desk):
    """A job with a schedule runs when told to, into a folder of its day in Berlin; `jobs` says when it runs by itself."""
    done = shipped("run", "nightly-images", "--json")
    assert done.code == 0, f"{done}\n{shipped.log()}"
    folder = Path(done.json["results"]).parent
    assert folder.name == done.json["batch"]
    date.fromisoformat(folder.parent.name)
    (job,) = [job for job in shipped("jobs", "--json").json["jobs"] if job["job"] == "nightly-images"]
    assert job["schedule"]["next_local"][11:16] in ("02:30", "03:30")  # the latter in the night without a half past two
    assert job["schedule"]["last"] is None
