"""The commands around a run, each as a user types it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

from tests.e2e.desk import Desk, Provider, interrupt, wait_until

ECHO = """\
model: simulator/echo
source: {{ path: rows.csv, id: name }}
input: {{ text: "{{{{ text }}}}" }}
limits: {{ per_minute: {rate} }}
output: {{ to: "out/{{{{ batch }}}}" }}
"""


def texts(count: int) -> list[dict[str, object]]:
    return [{"name": f"n{i:05}", "text": f"sentence number {i}"} for i in range(count)]


def test_plan_spends_nothing_and_leaves_nothing(desk: Desk, provider: Provider):
    """`plan` tells rows, time and inputs, buys nothing and leaves no trace in the folder."""
    desk.job(ECHO.format(rate=60), rows=texts(120))
    before = sorted(p.name for p in desk.folder.iterdir())
    done = desk("plan", "shots", "--json")
    assert done.code == 0, str(done)
    assert (done.json["rows"], done.json["minutes"], done.json["inputs"]) == (120, 2.0, ["text"])
    assert "Nothing was spent" in desk("plan", "shots").out
    assert provider.purchases() == []
    assert sorted(p.name for p in desk.folder.iterdir()) == before


def test_a_source_without_rows(desk: Desk, provider: Provider):
    """A header and nothing below it is no mistake, and is said by `plan` and `run`."""
    desk.job(ECHO.format(rate=60), rows=texts(1))
    (desk.folder / "jobs" / "rows.csv").write_text("name,text\n")
    planned, done = desk("plan", "shots"), desk("run", "shots")
    assert (planned.code, done.code) == (0, 0), done
    assert "rows.csv has no rows" in planned.out
    assert "To buy it" not in planned.out
    assert "rows.csv has no rows" in done.err
    assert provider.purchases() == []


def test_looking_at_a_finished_batch(desk: Desk, provider: Provider):
    """status, items and export tell what happened, as text and as JSON."""
    desk.job(ECHO.format(rate=6000), rows=texts(8))
    batch = desk("run", "shots", "--yes", "--json").json["batch"]
    (one,) = desk("status", "--json").json["batches"]
    assert (one["batch"], one["state"], one["items"]["succeeded"]) == (batch, "finished", 8)
    assert "8 succeeded" in desk("status", batch).out
    watched = desk("watch", batch, "--json")
    assert (watched.code, watched.json["state"]) == (0, "finished")
    items = desk("items", batch, "--json").json["items"]
    assert [i["id"] for i in items] == [f"n{i:05}" for i in range(8)]
    assert all(i["prediction_id"] for i in items)
    assert desk("items", batch, "--state", "failed").out.strip() == "no such rows"
    for suffix in ("csv", "jsonl", "parquet"):
        assert desk("export", batch, "--to", f"all.{suffix}").code == 0
        assert (desk.folder / f"all.{suffix}").stat().st_size > 0
    with (desk.folder / "all.csv").open(newline="") as file:
        assert [row["prediction_output"] for row in csv.DictReader(file)] == [
            json.loads(line)["prediction_output"] for line in (desk.folder / "all.jsonl").read_text().splitlines()]


def test_pause_and_resume_while_it_runs(desk: Desk, provider: Provider):
    """A paused batch buys nothing more, says so, and goes on when resumed."""
    desk.job(ECHO.format(rate=600), rows=texts(180))
    run = desk.start("run", "shots", "--yes", "--json")
    wait_until(lambda: len(provider.purchases()) > 10)
    (batch,) = desk("status", "--json").json["batches"]
    assert (paused := desk("pause", batch["batch"])).code == 0, str(paused)
    wait_until(lambda: desk("status", batch["batch"], "--json").json["by_state"].get("running", 0) == 0)
    bought = len(provider.purchases())
    assert desk("status", batch["batch"], "--json").json["state"] == "paused"
    assert len(provider.purchases()) == bought < 180
    assert desk("resume", batch["batch"]).code == 0
    out, err = run.communicate(timeout=90)
    assert run.returncode == 0, err
    assert json.loads(out)["items"]["succeeded"] == 180
    assert len(provider.purchases()) == 180


def test_resume_after_a_limit(desk: Desk, provider: Provider):
    """A batch of its own run key that stopped at --limit: status and watch say so, `resume` names what goes on with it."""
    desk.job(ECHO.format(rate=6000), rows=texts(5))
    batch = desk("run", "shots", "--run-key", "tuesday", "--limit", "2", "--yes", "--json").json["batch"]
    go_on = "orchestrator run shots --run-key tuesday"
    for look in ("status", "watch"):
        told = desk(look, batch)
        assert "paused, --limit 2 reached" in told.out and f"go on    {go_on}\n" in told.out, str(told)
    resumed = desk("resume", batch)
    assert resumed.code == 0 and go_on in resumed.out, str(resumed)
    done = desk(*go_on.split()[1:], "--yes", "--json")
    assert (done.json["batch"], done.json["items"]["succeeded"]) == (batch, 5), f"{done}\n{desk.log()}"
    assert len(provider.purchases()) == 5


def test_cancel_ends_what_is_out(desk: Desk, provider: Provider):
    """`cancel` buys nothing more, ends what is out at the provider, and the run leaves with exit 5."""
    provider.put("faults", {"stuck": 1.0})
    desk.job(ECHO.format(rate=600), rows=texts(60))
    run = desk.start("run", "shots", "--yes", "--json")
    wait_until(lambda: len(provider.purchases()) > 10)
    (batch,) = desk("status", "--json").json["batches"]
    done = desk("cancel", batch["batch"], "--json")
    assert done.code == 0, str(done)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 5, err
    items = json.loads(out)["items"]
    assert items["canceled"] == 60 and items["succeeded"] == 0
    assert {p["status"] for p in provider.purchases()} == {"canceled"}
    again = desk("run", "shots", "--yes")
    assert again.code == 5 and "--fresh" in again.err + again.out


def test_cancel_while_redis_is_away(desk: Desk, provider: Provider, free_port: Callable[[], int]):
    """Nobody can pace it, and nobody buys: what is out costs money by the second, and is ended all the same."""
    provider.put("faults", {"stuck": 1.0})
    desk.job(ECHO.format(rate=600), rows=texts(12))
    run = desk.start("run", "shots", "--yes", "--json")
    wait_until(lambda: len(provider.purchases()) == 12)
    assert interrupt(run).code == 130
    (batch,) = desk("status", "--json").json["batches"]
    done = desk("cancel", batch["batch"], "--json", ORCHESTRATOR_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert done.code == 0, str(done)
    assert done.json["ended"] == 12
    assert {p["status"] for p in provider.purchases()} == {"canceled"}


def test_a_start_that_is_throttled_for_long(desk: Desk, provider: Provider):
    """A minute to wait before anything is known: said, with the exit code of a provider that cannot be asked."""
    provider.put("limits", {"reads_per_minute": 1})
    desk.job(ECHO.format(rate=600), rows=texts(2))
    done = desk("plan", "shots")
    assert done.code == 4, str(done)
    assert "throttles" in done.err and "resets in ~" in done.err


def test_retry_buys_failed_rows_again(desk: Desk, provider: Provider):
    """Failed rows stay failed on a re-run, which names `retry`; after it the next run buys them."""
    provider.put("faults", {"fail": {"next": 3, "text": "NSFW content detected"}})
    desk.job(ECHO.format(rate=6000), rows=texts(6))
    batch = desk("run", "shots", "--yes", "--json").json["batch"]
    again = desk("run", "shots", "--yes")
    assert again.code == 1 and f"retry {batch}" in again.out
    assert desk("retry", batch, "--class", "timeout", "--json").json["rows"] == 0
    assert desk("retry", batch, "--class", "safety", "--json").json["rows"] == 3
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert len(provider.purchases()) == 9


def test_jobs_lists_what_is_wrong(desk: Desk):
    """`jobs` names every job file and what is wrong with any of them."""
    desk.job(ECHO.format(rate=60), name="good", rows=texts(1))
    desk.job("model: a/b\nsorce: { path: x.csv }\n", name="bad")
    done = desk("jobs", "--json")
    assert done.code == 2
    wrong = {job["job"]: job["wrong"] for job in done.json["jobs"]}
    assert wrong["good"] == [] and "bad.yaml:2" in wrong["bad"][0]


def test_every_shape_of_output(desk: Desk, provider: Provider):
    """Lists, nested values, data URIs, text and nothing: files come home, the rest stands in the results."""
    shapes = ["uri", "uris", "nested", "data", "text", "number", "object", "null", "empty", "https-text"]
    desk.job('model: simulator/shapes\nsource: { path: rows.csv }\ninput: { shape: "{{ shape }}" }\n'
             'output: { to: "out/{{ batch }}" }\n', rows=[{"shape": shape} for shape in shapes])
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    rows = {row["shape"]: row for row in desk.results()}
    folder = Path(done.json["results"]).parent
    for row in rows.values():
        assert all((folder / file).stat().st_size for file in row["prediction_files"])
    assert [len(rows[s]["prediction_files"]) > 0 for s in ("uri", "uris", "nested", "data")] == [True] * 4
    assert [len(rows[s]["prediction_files"]) for s in ("text", "number", "object", "null", "empty")] == [0] * 5
    assert rows["null"]["prediction_output"] is None and json.loads(rows["number"]["prediction_output"]) is not None
