"""Reading the provider's account of a prediction, and what its failure means."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.core.prediction import LOGS_TAIL_BYTES, TERMINAL, classify, parse, seconds_of
from orchestrator.core.records import Prediction

ID = "hdwst0bb05rgp0cf0p29mzk2am"
CREATE = json.loads(
    '{"id":"hdwst0bb05rgp0cf0p29mzk2am","model":"stability-ai/sdxl","version":"39ed52f2","input":{"height":512,"prompt":'
    '"a studio photo","seed":42069,"width":512},"logs":"","error":null,"status":"starting",'
    '"created_at":"2024-04-22T11:15:15.329Z","urls":{"cancel":"c","get":"g"}}')
CANCEL = json.loads(
    '{"completed_at":"2024-04-22T11:15:15.504128Z","created_at":"2024-04-22T11:15:15.329000Z","error":null,"id":'
    '"hdwst0bb05rgp0cf0p29mzk2am","input":{"seed":42069,"width":512,"height":512,"prompt":"a studio photo"},"logs":null,'
    '"metrics":{"predict_time":0.128148,"total_time":0.175128},"output":null,"started_at":"2024-04-22T11:15:15.375980Z",'
    '"status":"canceled","urls":{},"model":"stability-ai/sdxl","version":"39ed52f2","webhook_completed":null}')


def read(**changes: Any) -> Prediction:
    return parse({"id": ID, "status": "starting"} | changes)


def test_both_dialects_of_one_prediction_read_alike() -> None:
    """The answer of a create (keys absent, milliseconds) and of a cancel (nulls, microseconds) agree where both speak."""
    created, canceled = parse(CREATE), parse(CANCEL)
    assert created.created_at == canceled.created_at == datetime(2024, 4, 22, 11, 15, 15, 329000, tzinfo=UTC)
    assert created.input == canceled.input
    assert (created.output, created.logs_tail, created.error, created.metrics) == (None, None, None, {})
    assert canceled.metrics["predict_time"] == 0.128148
    assert canceled.completed_at == datetime(2024, 4, 22, 11, 15, 15, 504128, tzinfo=UTC)


def test_id_and_status_are_enough() -> None:
    """A sparse webhook is a prediction."""
    assert read() == Prediction(ID, "starting")


@pytest.mark.parametrize("payload", [
    {}, {"id": ID}, {"status": "starting"}, {"id": 7, "status": "starting"}, {"id": "", "status": "starting"},
    {"id": ID, "status": None}, {"id": ID, "status": ""}, {"id": "../account", "status": "starting"},
    {"id": "..", "status": "starting"}, {"id": "a b", "status": "starting"}, {"id": "x" * 201, "status": "starting"}])
def test_without_readable_id_and_status_it_is_no_prediction(payload: dict[str, Any]) -> None:
    """What cannot be asked for again by its id is not a purchase that can be followed."""
    with pytest.raises(ValueError, match="prediction"):
        parse(payload)


@pytest.mark.parametrize(("text", "microsecond"), [
    ("2024-10-04T18:07:35Z", 0), ("2024-10-04T18:07:35.262Z", 262000), ("2024-10-04T18:07:35.360785Z", 360785),
    ("2024-10-04T18:07:35.36078514Z", 360785), ("2024-10-04T18:07:35.360785149Z", 360785),
    ("2024-10-04T20:07:35.262+02:00", 262000), ("2024-10-04T18:07:35.262", 262000)])
def test_times_of_any_precision(text: str, microsecond: int) -> None:
    """Seconds to nanoseconds, any zone, become UTC with microseconds."""
    assert read(created_at=text).created_at == datetime(2024, 10, 4, 18, 7, 35, microsecond, tzinfo=UTC)


@pytest.mark.parametrize("value", [None, "", "soon", 1713784515, {}, "0001-01-01T00:00:00+23:00"])
def test_unreadable_times_are_absent(value: Any) -> None:
    """A time nobody can read must not lose a paid prediction."""
    assert read(started_at=value).started_at is None


@pytest.mark.parametrize(("key", "value"), [
    ("model", 1), ("version", []), ("input", "x"), ("metrics", None), ("metrics", []), ("logs", {}), ("webhook", 0)])
def test_fields_of_a_wrong_type_are_absent(key: str, value: Any) -> None:
    """Only id and status can spoil a prediction."""
    assert read(**{key: value}) == read()


@pytest.mark.parametrize(("value", "error"), [
    (None, None), ("", None), ("boom", "boom"), ({"detail": "x"}, '{"detail": "x"}')])
def test_errors(value: Any, error: str | None) -> None:
    """An empty text is none; anything else is kept as text."""
    assert read(error=value).error == error


def test_only_the_tail_of_logs_is_kept() -> None:
    """At most 8 KB, whole characters, the newest."""
    tail = read(logs="é" * 10_000 + "end!").logs_tail
    assert tail is not None
    assert len(tail.encode()) <= LOGS_TAIL_BYTES
    assert tail.endswith("éend!") and set(tail[:-4]) == {"é"}


def test_texts_are_fit_for_a_database() -> None:
    """NUL and lone surrogates, legal in JSON, are replaced."""
    got = read(logs="a\0b", error=json.loads('"\\ud800x"'))
    assert (got.logs_tail, got.error) == ("a\N{REPLACEMENT CHARACTER}b", "?x")


@pytest.mark.parametrize(("told", "seconds"), [
    (2, 2.0), (1.5, 1.5), (10**400, None), (float("inf"), None), (float("nan"), None), (True, None), ("2", None), (None, None)])
def test_seconds(told: Any, seconds: float | None) -> None:
    """What no float can hold is not told."""
    assert seconds_of({"predict_time": told}) == seconds


def test_removed_data_is_said() -> None:
    """After its hour a prediction says so; only a true counts."""
    assert read(data_removed=True).data_removed
    assert not read(data_removed="no").data_removed


def test_aborted_is_an_end() -> None:
    """The status that official clients forget."""
    assert {"succeeded", "failed", "canceled", "aborted"} == TERMINAL


@pytest.mark.parametrize(("error", "expected"), [
    ("Prediction interrupted; please retry (code: PA)", ("infrastructure", True)),
    ("Director: unexpected error handling prediction (E9828)", ("infrastructure", True)),
    ("E6716: timeout starting prediction", ("infrastructure", True)),
    ("something (E8765)", ("infrastructure", True)),
    ("E1001: out of memory", ("memory", False)),
    ("CUDA out of memory. Tried to allocate 2 GiB", ("memory", False)),
    ("E4875: webhook URL is empty", ("model", False)),
    ("The input or output was flagged as sensitive. Please try again with different inputs. (E005)", ("safety", False)),
    ("NSFW content detected. Try running it again, or try a different prompt.", ("safety", False)),
    ('Prediction input failed validation: {"detail":[{"msg":"out of memory (E1000)"}]}', ("invalid_input", False)),
    ("Prediction timed out", ("timeout", False)),
    ("PA", ("model", False)),
    ("WE10001 units", ("model", False)),
    ("list index out of range", ("model", False)),
    (None, ("model", False)),
])
def test_failures_have_a_class_and_only_the_listed_are_worth_again(error: str | None, expected: tuple[str, bool]) -> None:
    """An allow-list: whatever is not known to be the provider's own trouble ends the row."""
    assert classify(Prediction(ID, "failed", error=error)) == expected
