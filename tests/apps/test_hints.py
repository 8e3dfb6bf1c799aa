"""What people are told of a batch: why it waits, why rows failed, and a command that goes on with it and no other."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.apps.hints import again, failed_lines, why
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.records import Batch, Target
from orchestrator.core.runkey import run_key

JOB = "model: acme/draw\nsource: { path: rows.csv }\ninput: { prompt: '{{ text }}', steps: 4 }\n"


def batch(**changes: object) -> Batch:
    """A batch of jobs/shots.yaml as it stands there, with the run key it gets by itself."""
    job = Job.model_validate({"model": "acme/draw", "source": {"path": "rows.csv"},
                              "input": {"prompt": "{{ text }}", "steps": 4}})
    key = run_key(job_name="shots", target_as_written="acme/draw", input_mapping=job.input, source_hashes=["ab"])
    made = Batch(1, "shots-1", "shots", key, "me", BatchState.PAUSED, None, datetime(2026, 11, 20, tzinfo=UTC), None,
                 Target("models", "acme/draw", None), job.model_dump_json(), "{}", '[{"sha256": "ab"}]', "null", None, "out",
                 200, 3, None, 18, None, 0, 0)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with jobs/shots.yaml."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "shots.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "jobs"


@pytest.mark.parametrize(("reason", "limit", "words"), [
    ("start limit", 3, "--limit 3 reached"), ("start limit", None, "--limit reached"), ("budget", 3, "budget"), (None, 3, None)])
def test_why(reason: str | None, limit: int | None, words: str | None):
    """A start limit is called by the option that set it; other reasons are sentences already."""
    assert why(batch(reason=reason, start_limit=limit)) == words


def test_the_job_alone_where_that_is_this_batch(jobs: Path):
    """The default run key needs no option; any other one is named."""
    assert again(batch()) == "orchestrator run shots"
    assert again(batch(run_key="abc-12345678")) == "orchestrator run shots --run-key abc-12345678"
    assert again(batch(run_key="tuesday's")).endswith("--run-key 'tuesday'\"'\"'s'")


def test_a_batch_begun_with_other_words(jobs: Path):
    """Begun with --set or --source, `run JOB` would buy another batch: the key is named, and what else is to be typed."""
    (jobs / "shots.yaml").write_text(JOB.replace("steps: 4", "steps: 1"))
    told = again(batch())
    assert told == f"orchestrator run shots --run-key {batch().run_key} (and the --set or --source it was begun with)"
    (jobs / "shots.yaml").write_text(JOB.replace("rows.csv", "more.csv"))
    assert again(batch()) == told


def test_a_job_file_that_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What it says cannot be known then; the batch's own content decides."""
    monkeypatch.chdir(tmp_path)
    assert again(batch()) == "orchestrator run shots"


def test_causes_are_a_few_short_lines():
    """One line for each class, a traceback made one line, and how many classes were left out."""
    found = [{"class": f"c{n}", "count": 1000 * n, "example": "no\n  good " * 90 if n == 1 else None, "differs": n == 2}
             for n in (1, 2, 3, 4, 5)]
    first, *rest, last = failed_lines(found, most=3)
    assert first.startswith("  failed   1,000 × c1: no good no good") and len(first) < 230 and first.endswith("…")
    assert rest == ["  failed   2,000 × c2, for example: no message", "  failed   3,000 × c3: no message"]
    assert last.split() == ["…", "and", "2", "more", "classes"]
    assert len(failed_lines(found)) == 5
