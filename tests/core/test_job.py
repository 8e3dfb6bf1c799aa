"""The job model: durations, money, targets, shares, and what this version refuses."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.core.job import Job, duration_s, job_schema

HEX = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


def job(**fields: Any) -> Job:
    return Job.model_validate({"model": "acme/shoes", "source": {"path": "rows.csv"}} | fields)


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        job(**fields)
    return "\n".join(str(error["msg"]) for error in caught.value.errors())


@pytest.mark.parametrize(("text", "seconds"), [
    ("10m", 600), ("1h30m", 5400), ("90s", 90), ("45", 45), ("1h1m1s", 3661), ("2.5h", 9000), ("0.5s", 0.5)])
def test_durations_are_seconds(text: str, seconds: float) -> None:
    """Hours, minutes and seconds combine; a bare number is seconds."""
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "10 m", "-5", "0", "0s", "1m1h", "10d", "nan", "inf", "１０m", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Nothing is guessed: order, sign, unit and digits must be right."""
    with pytest.raises(ValueError, match="duration"):
        duration_s(text)


def test_defaults_are_those_of_the_contract() -> None:
    """Only a target and a source are needed; everything else has a safe default."""
    plain = job()
    assert (plain.retry.attempts, plain.retry.unsure, plain.duplicates) == (3, "refuse", None)
    assert plain.output.name == "{{ id }}-{{ index }}{{ ext }}"
    assert plain.output.results == "parquet"
    assert plain.source.bad_rows == "refuse"
    assert plain.budget is None
    assert plain.unsupported() == []


@pytest.mark.parametrize(("given", "amount"), [
    ("25.00", "25.00"), (25, "25"), (0.1, "0.1"), (0.003, "0.003"), (1e-05, "0.00001")])
def test_money_is_exact(given: Any, amount: str) -> None:
    """An amount is the decimal that was written, never a float's neighbour."""
    budget = job(budget={"usd": given}).budget
    assert budget is not None
    assert budget.usd is not None
    assert format(budget.usd, "f") == amount


@pytest.mark.parametrize("given", ["-1", "25 $", "NaN", "Infinity", True, [], float("inf"), "1,50"])
def test_what_is_no_money_is_refused(given: Any) -> None:
    """Signs, units, NaN and truth values are no amounts."""
    assert "amount in US dollars" in refusal(budget={"usd": given})


def test_money_that_must_be_a_slip_is_refused() -> None:
    """Nothing set aside for a row would let all of them through; and no batch costs more than a million."""
    assert "must be more than 0" in refusal(budget={"usd": 1, "per_row_usd": 0})
    assert "is more than 1,000,000 US dollars" in refusal(budget={"usd": 10_000_000})


def test_a_job_survives_json() -> None:
    """The ledger keeps a job as JSON and reads the same job back."""
    whole = job(limits={"cancel_after": "10m", "per_minute": 600}, budget={"usd": "25.00"}, price={"hardware": "gpu-l40s"},
                retry={"tolerate_failed": "5%"}, input={"prompt": "{{ a }}", "seed": 7, "scale": 0.5, "tags": ["x", None]},
                schedule={"cron": "0 2 * * *"})
    assert Job.model_validate_json(whole.model_dump_json()) == whole
    assert whole.limits.cancel_after == 600.0


@pytest.mark.parametrize(("given", "total", "allowed"), [("5%", 100, 5), ("5%", 19, 0), ("5%", 20, 1), (3, 100, 3), ("3", 9, 3),
                                                        ("0%", 50, 0), ("100%", 7, 7), ("0.1%", 1000, 1)])
def test_tolerated_failures(given: Any, total: int, allowed: int) -> None:
    """A share is rounded down; a number counts as it is."""
    assert job(retry={"tolerate_failed": given}).retry.tolerated(total) == allowed


@pytest.mark.parametrize("given", ["101%", "-1", -1, "many", 0.5, True])
def test_what_is_no_share_is_refused(given: Any) -> None:
    """A fraction could mean two things, so it is refused."""
    assert "write a share such as 5%" in refusal(retry={"tolerate_failed": given})


@pytest.mark.parametrize(("text", "kind", "name", "version"), [
    ("black-forest-labs/flux-1.1-pro", "model", "black-forest-labs/flux-1.1-pro", None),
    (f"acme/shoes:{HEX}", "model", "acme/shoes", HEX),
    (HEX, "version", "", HEX),
])
def test_models_as_written(text: str, kind: str, name: str, version: str | None) -> None:
    """A model is owner/name, owner/name:version or a version alone."""
    target = job(model=text).target()
    assert (target.kind, target.name, target.version) == (kind, name, version)


@pytest.mark.parametrize(("text", "part"), [
    ("acme/shoes:latest", "no version 'latest'; write acme/shoes"),
    ("acme/shoes:abc", "'abc' is not 64 hex digits"),
    (f"acme/shoes:{HEX.upper()}", "is not 64 hex digits"),
    ("https://replicate.com/acme/shoes", "keep only acme/shoes"),
    ("replicate.com/acme/shoes/api?x=1", "keep only acme/shoes"),
    ("https://api.replicate.com/v1/models/acme/shoes/predictions", "keep only acme/shoes"),
    ("shoes", "write owner/name"),
    ("a/b/c", "write owner/name"),
    ("acme/ shoes", "write owner/name"),
    ("../shoes", "write owner/name"),
])
def test_wrong_models_say_what_to_write(text: str, part: str) -> None:
    """A wrong model names the part to keep or the form to write."""
    assert part in refusal(model=text)


def test_exactly_one_target() -> None:
    """Two targets, or none, are refused by name."""
    assert "found model and deployment" in refusal(deployment="acme/flux")
    assert "found none" in refusal(model=None)
    assert "training and destination go together" in refusal(destination="acme/mine")


def test_other_targets_carry_their_word() -> None:
    """A deployment never shares its written target, and so its run key, with the model of that name."""
    deployment = job(model=None, deployment="acme/flux")
    assert deployment.target_as_written() == "deployment:acme/flux"
    assert deployment.target().kind == "deployment"
    assert job().target_as_written() == "acme/shoes"


@pytest.mark.parametrize(("fields", "word"), [
    ({"model": None, "cog": "http://127.0.0.1:5000"}, "cog"),
    ({"model": None, "training": f"acme/t:{HEX}", "destination": "acme/mine"}, "training"),
    ({"model": HEX}, "owner/name:version"),
    ({"schedule": {"cron": "0 2 * * *", "source": "s3://in/{{ date }}.parquet"}}, "schedule.source"),
    ({"source": {"path": "s3://in/rows.parquet"}}, "source.path"),
    ({"output": {"to": "gs://out/{{ batch }}"}}, "output.to"),
])
def test_features_not_run_yet_are_named(fields: dict[str, Any], word: str) -> None:
    """What is valid but not run yet is a sentence, one per feature."""
    (sentence,) = job(**fields).unsupported()
    assert word in sentence


@pytest.mark.parametrize(("fields", "part"), [
    ({"price": {}}, "exactly one of hardware"),
    ({"price": {"hardware": "cpu", "per_run_usd": 1}}, "exactly one of hardware"),
    ({"limits": {"cancel_after": "3s"}}, "shorter than 5 seconds"),
    ({"limits": {"per_minute": 0}}, "greater than or equal to 1"),
    ({"limits": {"per_minute": True}}, "valid integer"),
    ({"output": {"name": "{{ idd }}"}}, "unknown name 'idd' (did you mean 'id'?)"),
    ({"output": {"name": "{{ ext }}-{{ id }}"}}, "must come last"),
    ({"output": {"to": "out/{{ batc }}"}}, "did you mean 'batch'?"),
    ({"schedule": {"cron": "* * *"}}, "five fields"),
])
def test_wrong_fields_are_refused(fields: dict[str, Any], part: str) -> None:
    """Each refusal says what would be right."""
    assert part in refusal(**fields)


def test_token_prices_go_together() -> None:
    """The price per output token belongs to the one per input token."""
    price = job(price={"per_input_token_usd": "0.00000005", "per_output_token_usd": "0.00000025"}).price
    assert price is not None
    assert price.per_output_token_usd == Decimal("0.00000025")
    assert "exactly one" in refusal(price={"per_output_token_usd": "1"})


def test_names_written_bare_are_text() -> None:
    """A column called 2024 may be written without quotes."""
    assert job(source={"path": "rows.csv", "id": 2024}).source.id == "2024"


def test_the_shipped_schema_is_the_model() -> None:
    """config/job.schema.json is what the model says, and every field of a job is described in it."""
    shipped = Path(__file__).parents[2] / "config" / "job.schema.json"
    assert json.loads(shipped.read_text("utf-8")) == job_schema()
    for part in job_schema()["$defs"].values():
        assert all("description" in prop or "$ref" in prop for prop in part["properties"].values())
