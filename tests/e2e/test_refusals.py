"""What is wrong is said with its place and its remedy, with the right exit code, and nothing is bought."""

import json

import pytest

from tests.e2e.desk import Desk, Provider

JOB = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv }
input:
  prompt: "{{ title }}"
  seed: "{{ seed }}"
"""
ROWS = [{"title": "a cat", "seed": 1}, {"title": "a dog", "seed": 2}, {"title": "a cow", "seed": 3}]


def refused(desk: Desk, provider: Provider, *words: str, code: int = 2, **env: str) -> str:
    """Both plan and run refuse with this code and these words, without a traceback, and nothing is bought."""
    for command in (["plan", "shots"], ["run", "shots", "--yes"]):
        done = desk(*command, **env)
        assert done.code == code, str(done)
        for word in words:
            assert word in done.err, f"{word!r} is not said\n{done}"
        assert "Traceback" not in done.err + done.out
    assert provider.purchases() == []
    return done.err


def test_wrong_cells_are_all_listed(desk: Desk, provider: Provider):
    """Every wrong cell with row, line, input, value and reason; the ledger keeps nothing of the batch."""
    desk.job(JOB, rows=[ROWS[0], {"title": "a dog", "seed": "seven"}, {"title": "", "seed": "8.5"}])
    said = refused(desk, provider, "row 1 (line 3)", "'seven'", "row 2 (line 4)", "'8.5'", "prompt", "bad_rows: skip")
    assert said.count("row 2 ") == 2
    assert desk("status", "--json").json == {"batches": []}


def test_bad_rows_can_be_skipped(desk: Desk, provider: Provider):
    """With bad_rows: skip the others run, and the bad one ends failed, class invalid_input, in its place."""
    desk.job(JOB.replace("rows.csv }", "rows.csv, bad_rows: skip }") + "retry: { tolerate_failed: 1 }\n",
             rows=[ROWS[0], {"title": "a dog", "seed": "seven"}, ROWS[2]])
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert [(r["prediction_status"], r["prediction_error_class"]) for r in desk.results()] == [
        ("succeeded", None), ("failed", "invalid_input"), ("succeeded", None)]
    assert len(provider.purchases()) == 2


def test_a_missing_column(desk: Desk, provider: Provider):
    """A column that the file does not have: the nearest is named, with the job file's line."""
    desk.job(JOB.replace("{{ title }}", "{{ titel }}"), rows=ROWS)
    refused(desk, provider, "titel", "title", "shots.yaml:4")


def test_an_unknown_input(desk: Desk, provider: Provider):
    """An input that the model does not have: the nearest is named, with the job file's line."""
    desk.job(JOB.replace("  seed:", "  sead:"), rows=ROWS)
    refused(desk, provider, "sead", "seed", "shots.yaml:5")


def test_a_bad_field(desk: Desk, provider: Provider):
    """An unknown field of the job file: file, line and the nearest name."""
    desk.job(JOB + "limit: { per_minute: 5 }\n", rows=ROWS)
    refused(desk, provider, "shots.yaml:6", "limit", "limits")


def test_an_unquoted_template(desk: Desk, provider: Provider):
    """An unquoted {{ says: put quotes around it."""
    desk.job(JOB.replace('"{{ title }}"', "{{ title }}"), rows=ROWS)
    refused(desk, provider, "shots.yaml:4", "quotes")


def test_no_source(desk: Desk, provider: Provider):
    """A file that is not there is named."""
    desk.job(JOB)
    refused(desk, provider, "rows.csv")


def test_an_unknown_job(desk: Desk, provider: Provider):
    """A job that is not there: the nearest name."""
    desk.job(JOB, name="shotts", rows=ROWS)
    refused(desk, provider, "shotts")


def test_an_unknown_model(desk: Desk, provider: Provider):
    """A model that the provider does not know."""
    desk.job(JOB.replace("flux-schnell", "flux-schnel"), rows=ROWS)
    refused(desk, provider, "black-forest-labs/flux-schnel")


def test_no_token(desk: Desk, provider: Provider):
    """Without a token: which variable, and where to get one."""
    desk.job(JOB, rows=ROWS)
    refused(desk, provider, "REPLICATE_API_TOKEN", "orchestrator demo", REPLICATE_API_TOKEN="")


def test_a_wrong_token(desk: Desk, provider: Provider):
    """A refused token is exit 4, names the variable, and is not repeated in the message."""
    desk.job(JOB, rows=ROWS)
    said = refused(desk, provider, "REPLICATE_API_TOKEN", code=4, REPLICATE_API_TOKEN="r8_wrong_secret")
    assert "r8_wrong_secret" not in said


def test_an_unreachable_api(desk: Desk, provider: Provider):
    """Nobody listens there: exit 4 at once, naming the address."""
    desk.job(JOB, rows=ROWS)
    refused(desk, provider, "127.0.0.1:9", code=4, REPLICATE_BASE_URL="http://127.0.0.1:9")


def test_a_price_above_the_threshold_asks(desk: Desk, provider: Provider):
    """Above ask_above_usd and without a terminal: exit 2, naming the three ways to consent."""
    desk.job(JOB, rows=ROWS)
    done = desk("run", "shots", ORCHESTRATOR_ASK_ABOVE_USD="0.005")
    assert done.code == 2, str(done)
    for word in ("$0.", "budget.usd", "--yes", "terminal"):
        assert word in done.err
    assert provider.purchases() == []
    assert desk("run", "shots", "--limit", "1", ORCHESTRATOR_ASK_ABOVE_USD="0.005").code == 0  # that one is below it
    rest = desk("run", "shots", ORCHESTRATOR_ASK_ABOVE_USD="0.005")
    assert (rest.code, len(provider.purchases())) == (2, 1)
    assert f"{len(ROWS) - 1} rows" in rest.err


def test_a_cap_without_a_worst_case(desk: Desk, provider: Provider):
    """A model without a price under a cap is refused with the lines to add."""
    desk.job(JOB.replace("black-forest-labs/flux-schnell", "stability-ai/sdxl") + "budget: { usd: 1.00 }\n", rows=ROWS)
    refused(desk, provider, "per_row_usd", "hardware")


def test_a_price_book_with_faults(desk: Desk, provider: Provider):
    """Every fault of the project's own price book with file, key and what to do; nothing is spent."""
    (desk.folder / "config").mkdir()
    (desk.folder / "config" / "prices.toml").write_text(
        '[models."acme/x"]\nper_ouput_usd = "0.01"\n[hardware]\ngpu-l40s = { per_second_usd = "free" }\n', "utf-8")
    desk.job(JOB, rows=ROWS)
    refused(desk, provider, 'config/prices.toml: models."acme/x".per_ouput_usd: unknown (did you mean \'per_output_usd\'?)',
            "config/prices.toml: hardware.gpu-l40s.per_second_usd: 'free' is not an amount in US dollars")


def test_a_price_of_unknown_hardware(desk: Desk, provider: Provider):
    """By its place in the job, with the nearest right name."""
    desk.job(JOB + "price: { hardware: gpu-l4s }\n", rows=ROWS)
    refused(desk, provider, "jobs/shots.yaml:", "price: there is no price of hardware 'gpu-l4s' (did you mean 'gpu-l40s'?)")


def test_the_projects_own_price_book(desk: Desk):
    """It wins over the shipped one, and `plan` reckons with it."""
    (desk.folder / "config").mkdir()
    (desk.folder / "config" / "prices.toml").write_text(
        '[models."black-forest-labs/flux-schnell"]\nper_output_usd = "7"\n', "utf-8")
    desk.job(JOB, rows=ROWS)
    assert "$21.00" in desk("plan", "shots").out  # three rows of one picture, by the model's default


def test_a_budget_below_one_row(desk: Desk, provider: Provider):
    """plan warns of it, and run says what is spent of how much and what the next row may need."""
    desk.job(JOB + "budget: { usd: 0.001 }\n", rows=ROWS)
    assert "the budget of $0.001 is less than one row may cost at worst, $0.0" in desk("plan", "shots").out
    done = desk("run", "shots")
    assert done.code == 3, done
    assert "stopped: budget: $0.00 of $0.001 are spent, and the next row may need up to $0.0" in done.out
    assert provider.purchases() == []


def test_a_run_key_with_other_content(desk: Desk, provider: Provider):
    """A run key met again with another source is exit 2, and nothing more is spent."""
    desk.job(JOB, rows=ROWS)
    assert desk("run", "shots", "--yes", "--run-key", "k1").code == 0
    desk.job(JOB, rows=ROWS[:2])
    done = desk("run", "shots", "--yes", "--run-key", "k1")
    assert done.code == 2, str(done)
    assert "--fresh" in done.err
    assert len(provider.purchases()) == 3


def test_a_foreign_output_folder(desk: Desk, provider: Provider):
    """A folder that holds another batch's outputs is exit 2 before anything is bought."""
    desk.job(JOB + "output: { to: out/same }\n", rows=ROWS)
    assert desk("run", "shots", "--yes").code == 0
    done = desk("run", "shots", "--yes", "--fresh")
    assert done.code == 2, str(done)
    assert "out/same" in done.err
    assert len(provider.purchases()) == 3


def test_json_errors_are_one_document(desk: Desk, provider: Provider):
    """With --json an error is one document on stdout, rows and reasons included."""
    desk.job(JOB, rows=[ROWS[0], {"title": "a dog", "seed": "seven"}])
    done = desk("plan", "shots", "--json")
    assert done.code == 2
    (problem,) = json.loads(done.out)["problems"]
    assert (problem["row"], problem["line"], problem["value"]) == (1, 3, "seven")


@pytest.mark.parametrize("arguments", [
    ["run"], ["run", "shots", "--limit", "0"], ["items", "nothing"], ["run", "shots", "--set", "x"]])
def test_bad_arguments(desk: Desk, provider: Provider, arguments: list[str]):
    """Arguments that do not parse, or name nothing, are exit 2."""
    desk.job(JOB, rows=ROWS)
    done = desk(*arguments)
    assert done.code == 2, str(done)
    assert "Traceback" not in done.err
