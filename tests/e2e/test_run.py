"""The main job, from file to results, as a user sees it."""

import hashlib
import json
import shlex
import signal
from pathlib import Path

import pytest

from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import Desk, Provider, interrupt, wait_until

ECHO = """\
model: simulator/echo
source: { path: rows.csv, id: name }
input: { text: "{{ text }}" }
output: { to: "out/{{ batch }}" }
"""
IMAGES = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv, id: sku }
input: { prompt: "{{ title }}, studio light", seed: "{{ seed }}", output_format: png }
output: { to: "out/{{ batch }}" }
"""


def texts(count: int) -> list[dict[str, object]]:
    return [{"name": f"n{i:05}", "text": f"sentence number {i}"} for i in range(count)]


def shots(count: int) -> list[dict[str, object]]:
    return [{"sku": f"{i:03}", "title": f"a teapot of kind {i}", "seed": i} for i in range(count)]


def bought_once(provider: Provider, rows: int) -> None:
    """The provider's own ledger: as many purchases as rows, no input twice."""
    bought = provider.purchases()
    assert len(bought) == rows
    assert len({json.dumps(p["input"], sort_keys=True) for p in bought}) == rows


def test_a_file_of_rows_becomes_files_and_results(desk: Desk, provider: Provider):
    """Every row bought once, its picture at home under its hash, the results in input order, nothing left running."""
    desk.job(IMAGES, rows=shots(40))
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert done.json["items"] == {"total": 40, "succeeded": 40, "failed": 0, "canceled": 0, "pending": 0}
    assert done.json["state"] == "finished"
    rows = desk.results()
    assert [row["sku"] for row in rows] == [f"{i:03}" for i in range(40)]
    assert {row["prediction_status"] for row in rows} == {"succeeded"}
    assert {row["prediction_version"] for row in rows} == {"hidden"}
    folder = Path(done.json["results"]).parent
    manifest = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == 40
    for line, row in zip(manifest, rows, strict=True):
        content = (folder / line["path"]).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert hashlib.sha256(content).hexdigest() == line["sha256"]
        assert row["prediction_files"] == [line["path"]]
        assert row["prediction_id"] == line["prediction_id"]
    assert json.loads((folder / "summary.json").read_text())["items"] == done.json["items"]
    bought_once(provider, 40)
    assert done.json["cost_usd"] == "0.12"
    wait_until(lambda: not desk.processes(), timeout_s=5)


def test_the_same_command_again_buys_nothing(desk: Desk, provider: Provider):
    """A finished batch stays finished: same results, exit 0, no purchase."""
    desk.job(ECHO, rows=texts(10))
    first, again = desk("run", "shots", "--yes"), desk("run", "shots", "--yes", "--json")
    assert (first.code, again.code) == (0, 0), f"{first}\n{again}"
    assert "finished before" in again.err
    bought_once(provider, 10)


def test_a_limit_starts_a_few_and_a_later_run_goes_on(desk: Desk, provider: Provider):
    """--limit 3 buys three and leaves the rest pending; without it the same batch goes on to its end."""
    desk.job(ECHO, rows=texts(12))
    few = desk("run", "shots", "--limit", "3", "--yes", "--json")
    assert few.code == 0, f"{few}\n{desk.log()}"
    assert few.json["items"]["succeeded"] == 3 and few.json["items"]["pending"] == 9
    assert "9 rows not started (--limit 3); the rest: orchestrator run shots\n" in few.err
    assert len(provider.purchases()) == 3
    rest = desk("run", "shots", "--yes", "--json")
    assert rest.json["batch"] == few.json["batch"]
    assert rest.json["items"]["succeeded"] == 12, f"{rest}\n{desk.log()}"
    bought_once(provider, 12)


def test_a_fresh_batch_goes_on_as_it_says(desk: Desk, provider: Provider):
    """What --fresh and --limit left goes on with the command that was printed, in that very batch, beside an older one."""
    desk.job(ECHO, rows=texts(4))
    older = desk("run", "shots", "--yes", "--json").json["batch"]
    few = desk("run", "shots", "--fresh", "--limit", "1", "--yes", "--json")
    (said,) = [line for line in few.err.splitlines() if "the rest: orchestrator " in line]
    rest = desk(*shlex.split(said.partition("the rest: orchestrator ")[2]), "--yes", "--json")
    assert rest.json["batch"] == few.json["batch"] != older, f"{few}\n{rest}"
    assert rest.json["items"]["succeeded"] == 4, f"{rest}\n{desk.log()}"
    assert len(provider.purchases()) == 8
    whole = desk("status", rest.json["batch"], "--json").json
    assert rest.json["elapsed_s"] < whole["elapsed_s"] - few.json["elapsed_s"] / 2  # the time of this run alone


def test_an_interrupted_fresh_batch_names_its_key(desk: Desk, provider: Provider):
    """The same command again would begin another batch: Ctrl-C says which one goes on with this."""
    desk.job(ECHO.replace("output:", "limits: { per_minute: 1200 }\noutput:"), rows=texts(100))
    process = desk.start("run", "shots", "--fresh", "--yes")
    wait_until(lambda: len(provider.purchases()) > 5)
    stopped = interrupt(process)
    assert stopped.code == 130 and "same command" not in stopped.out, str(stopped)
    again = desk(*shlex.split(stopped.out.partition("to go on: orchestrator ")[2].splitlines()[0]), "--yes", "--json")
    assert again.json["items"]["succeeded"] == 100, f"{again}\n{desk.log()}"
    bought_once(provider, 100)


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_half_way_and_run_again(desk: Desk, provider: Provider, number: int, code: int):
    """Ctrl-C and SIGTERM end well, say how to go on, leave no process; the same command finishes, each row bought once."""
    desk.job(ECHO.replace("output:", "limits: { per_minute: 1200 }\noutput:"), rows=texts(150))
    process = desk.start("run", "shots", "--yes")
    wait_until(lambda: len(provider.purchases()) > 40)
    stopped = interrupt(process, number)
    assert stopped.code == code, f"{stopped}\n{desk.log()}"
    assert "run the same command again" in stopped.out + stopped.err
    assert len(provider.purchases()) < 150
    wait_until(lambda: not desk.processes(), timeout_s=5)
    again = desk("run", "shots", "--yes", "--json")
    assert again.code == 0, f"{again}\n{desk.log()}"
    assert again.json["items"]["succeeded"] == 150
    bought_once(provider, 150)


def test_killed_half_way_and_run_again(desk: Desk, provider: Provider):
    """kill -9 of the command takes the worker with it; the next run finds what was out, and buys the rest once."""
    desk.job(ECHO.replace("output:", "limits: { per_minute: 1500 }\noutput:"), rows=texts(150))
    process = desk.start("run", "shots", "--yes")
    wait_until(lambda: len(provider.purchases()) > 50)
    process.kill()
    process.communicate()
    wait_until(lambda: not desk.processes(), timeout_s=8)
    again = desk("run", "shots", "--yes", "--json")
    assert again.code == 0, f"{again}\n{desk.log()}"
    assert again.json["items"] == {"total": 150, "succeeded": 150, "failed": 0, "canceled": 0, "pending": 0}
    bought_once(provider, 150)


def test_lost_answers_are_found_again(desk: Desk, provider: Provider):
    """Five answers lost after the purchase: found in the list by their input, none bought twice."""
    provider.put("faults", {"lost_answer": {"next": 5}})
    desk.job(ECHO, rows=texts(60))
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert done.json["items"]["succeeded"] == 60
    bought_once(provider, 60)


def test_the_provider_throttles(desk: Desk, provider: Provider):
    """429 is a pause: no row fails, none is bought twice."""
    provider.put("limits", {"creates_per_minute": 1200, "burst": 20})
    desk.job(ECHO, rows=texts(60))
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert done.json["items"]["succeeded"] == 60
    bought_once(provider, 60)


def test_credit_runs_out(desk: Desk, provider: Provider):
    """402 stops the batch with nothing in the air, exit 3 and the reason; with new credit the same command goes on."""
    provider.put("faults", {"error_before": {"p": 1.0, "status": 402}})
    desk.job(ECHO, rows=texts(60))
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 3, f"{done}\n{desk.log()}"
    assert "credit" in done.err
    assert provider.purchases() == []
    provider.put("faults", {"error_before": None})
    again = desk("run", "shots", "--yes", "--json")
    assert again.json["items"]["succeeded"] == 60, f"{again}\n{desk.log()}"
    bought_once(provider, 60)


def test_a_budget_stops_the_batch(desk: Desk, provider: Provider):
    """A cap of three cents buys ten images of $0.003, no eleventh, and says so with exit 3."""
    desk.job(IMAGES.replace("output:", "budget: { usd: 0.03, per_row_usd: 0.003 }\noutput:"), rows=shots(14))
    done = desk("run", "shots", "--json")
    assert done.code == 3, f"{done}\n{desk.log()}"
    assert (done.json["cost_usd"], done.json["items"]["succeeded"], len(provider.purchases())) == ("0.03", 10, 10)


def test_failures_are_rows_with_reasons(desk: Desk, provider: Provider):
    """Rows that the provider fails end failed, with class and text; beyond the tolerated share the exit code is 1."""
    provider.put("faults", {"fail": {"next": 2, "text": "NSFW content detected"}})
    desk.job(ECHO, rows=texts(10))
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 1, f"{done}\n{desk.log()}"
    assert "  failed   2 × safety: NSFW content detected\n" in done.err
    failed = [row for row in desk.results() if row["prediction_status"] == "failed"]
    why = [(row["prediction_error"], row["prediction_error_class"]) for row in failed]
    assert why == [("NSFW content detected", "safety")] * 2
    bought_once(provider, 10)


def test_infrastructure_failures_are_tried_again(desk: Desk, provider: Provider):
    """`Prediction interrupted; please retry (code: PA)` costs nothing and is tried again."""
    provider.put("faults", {"fail": {"next": 3, "text": "Prediction interrupted; please retry (code: PA)"}})
    desk.job(ECHO, rows=texts(10))
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert sorted(row["prediction_attempts"] for row in desk.results())[-4:] in ([1, 2, 2, 2], [1, 1, 2, 3], [1, 1, 1, 3])
    assert len(provider.purchases()) == 13


def test_a_provider_that_goes_away(desk: Desk, tmp_path: Path):
    """With the provider away in mid-batch the run waits, saying why; after --patience it leaves with exit 4, all kept."""
    with running(SimulatorConfig(port=0, latency_s=0.2, creates_per_minute=0, reads_per_minute=0)) as url:
        provider = Provider(url)
        desk.job(ECHO.replace("output:", "limits: { per_minute: 1200 }\noutput:"), rows=texts(200))
        run = desk.start("run", "shots", "--yes", "--patience", "2s", "--json", REPLICATE_BASE_URL=url)
        wait_until(lambda: len(provider.purchases()) > 20)
        bought = len(provider.purchases())
    out, err = run.communicate(timeout=60)
    assert run.returncode == 4, err
    assert "waiting: cannot reach" in err and "stopped: cannot reach" in err
    items = json.loads(out)["items"]
    assert items["failed"] == 0 and items["succeeded"] <= bought + 5
    wait_until(lambda: not desk.processes(), timeout_s=5)


def test_the_output_folder_may_change_until_files_are_in_it(desk: Desk, provider: Provider):
    """A folder that cannot be used is exit 2 with nothing bought, and another one goes on with the same batch."""
    desk.job(ECHO, rows=texts(5))
    (desk.folder / "taken").write_text("a file, no folder")
    refused = desk("run", "shots", "--yes", "--output", "taken/out")
    assert refused.code == 2 and "taken" in refused.err, str(refused)
    assert desk("status", "--json").json["batches"] == []
    done = desk("run", "shots", "--yes", "--output", "fine", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert done.json["results"] == str(desk.folder / "fine" / "results.parquet")
    assert len(desk("status", "--json").json["batches"]) == 1
    bought_once(provider, 5)


def test_a_folder_of_another_batch_leaves_no_batch_behind(desk: Desk, provider: Provider):
    """Exit 2 names whose the folder is; nothing is bought, and no new batch stands in the ledger for ever."""
    desk.job(ECHO, rows=texts(2))
    first = desk("run", "shots", "--yes", "--output", "one", "--json").json["batch"]
    refused = desk("run", "shots", "--yes", "--fresh", "--output", "one")
    assert refused.code == 2 and first in refused.err, str(refused)
    assert [one["batch"] for one in desk("status", "--json").json["batches"]] == [first]
    bought_once(provider, 2)
