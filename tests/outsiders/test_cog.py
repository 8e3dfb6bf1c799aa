"""A real Cog server and its schemas, read by our own code: what Replicate runs inside, and what `cog:` targets will be."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.bounds import most_outputs
from orchestrator.core.inputs import InputSchema, OutputShape, canonical, plan_inputs, shape_of
from orchestrator.core.openapi import FieldSpec
from orchestrator.core.prediction import TERMINAL, classify, parse
from orchestrator.core.refusals import Kind, judge
from orchestrator.gateways.outputs import HttpOutputs
from tests.outsiders.cog_server import CogServer, serving
from tests.outsiders.conftest import python_of
from tests.outsiders.receiver import Receiver


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python that has `cog`."""
    return python_of("cog")


@pytest.fixture(scope="module")
def cog(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CogServer]:
    """A server for the module: one prediction at a time, run numbers in its logs."""
    with serving(python, tmp_path_factory.mktemp("cog") / "model") as server:
        yield server


@pytest.fixture(scope="module")
def schema(cog: CogServer) -> dict[str, Any]:
    """The model's schema as the server publishes it."""
    document: dict[str, Any] = cog.http.get("/openapi.json").json()
    return document


def events(receiver: Receiver, count: int) -> list[Any]:
    """The first deliveries, as our parser reads them."""
    return [parse(json.loads(delivery.body)) for delivery in receiver.wait_for(count)]


def test_it_is_the_pure_python_server(cog: CogServer) -> None:
    """What the environment holds is the release that this folder speaks of, and it is ready."""
    assert cog.http.get("/").json()["cog_version"] == "0.16.12"
    assert cog.health() == "READY"


def test_the_inputs_of_a_real_schema(schema: dict[str, Any]) -> None:
    """Types, ranges, choices, files, secrets and defaults are read as the model's signature declares them."""
    fields = InputSchema.from_openapi(schema).fields
    defaults = {name: field.default for name, field in fields.items() if field.has_default}
    assert defaults == {"count": 1, "strength": 0.5, "style": "plain", "size": 512, "shiny": False, "tags": ["a"],
                        "suffix": ".txt", "fail": "", "sleep_s": 0.0}
    assert [replace(field, default=None) for field in fields.values()] == [
        FieldSpec("prompt", "string", required=True, min_length=1, max_length=200),
        FieldSpec("count", "integer", minimum=0, maximum=4, has_default=True),
        FieldSpec("strength", "number", minimum=0, maximum=1, has_default=True),
        FieldSpec("style", "string", enum=("plain", "loud"), has_default=True),
        FieldSpec("size", "integer", enum=(256, 512), has_default=True),
        FieldSpec("shiny", "boolean", has_default=True),
        FieldSpec("image", "string", nullable=True, is_uri=True),
        FieldSpec("tags", "array", items=FieldSpec("tags", "string"), has_default=True),
        FieldSpec("api_key", "string", nullable=True, is_secret=True),
        FieldSpec("suffix", "string", has_default=True),
        FieldSpec("fail", "string", has_default=True),
        FieldSpec("sleep_s", "number", minimum=0, maximum=30, has_default=True)]


@pytest.mark.parametrize("cells", [
    {"prompt": "007"}, {"prompt": "NA", "count": "3"}, {"prompt": "a", "count": "3.0", "strength": "1"},
    {"prompt": "a", "strength": ".25", "style": "loud"}, {"prompt": "a", "size": "256", "shiny": "true"},
    {"prompt": "a", "shiny": "no", "tags": '["x", 7]'}, {"prompt": "grün ✓", "image": "data:text/plain;base64,aGFsbG8="},
    {"prompt": "a", "count": "", "strength": "", "style": "", "image": "", "tags": ""}])
def test_a_row_that_we_type_is_taken(cog: CogServer, schema: dict[str, Any], cells: dict[str, str]) -> None:
    """What our typing makes of text cells passes Cog's own validation, and comes back as the same canonical input."""
    plan = plan_inputs(None, columns=list(cells), schema=InputSchema.from_openapi(schema))
    value, problems = plan.build(cells, index=0)
    assert problems == []
    assert value is not None
    answer = cog.put("typed", value)
    assert answer.status_code == 200, answer.text
    echoed = parse(answer.json()).input
    assert echoed is not None
    assert canonical({name: echoed[name] for name in value}) == canonical(value)


@pytest.mark.parametrize(("cells", "field"), [
    ({"prompt": ""}, "prompt"), ({"prompt": "x" * 201}, "prompt"), ({"prompt": "a", "count": "5"}, "count"),
    ({"prompt": "a", "count": "-1"}, "count"), ({"prompt": "a", "count": "many"}, "count"),
    ({"prompt": "a", "count": "1.5"}, "count"), ({"prompt": "a", "strength": "1.01"}, "strength"),
    ({"prompt": "a", "strength": "nan"}, "strength"), ({"prompt": "a", "style": "Loud"}, "style"),
    ({"prompt": "a", "size": "300"}, "size"), ({"prompt": "a", "shiny": "perhaps"}, "shiny"),
    ({"prompt": "a", "tags": "[x"}, "tags")])
def test_a_row_that_we_refuse_is_refused(cog: CogServer, schema: dict[str, Any], cells: dict[str, str], field: str) -> None:
    """What our typing refuses before anything is spent, Cog refuses too: 422, an input error that names the same input."""
    value, problems = plan_inputs(None, columns=list(cells), schema=InputSchema.from_openapi(schema)).build(cells, index=0)
    assert value is None
    (problem,) = problems
    assert repr(field) in str(problem.field)
    answer = cog.put("refused", cells)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"][:3] == ["body", "input", field]
    refusal = judge(answer.status_code, answer.text)
    assert (refusal.kind, refusal.error_class) == (Kind.REFUSED, "invalid_input")


def test_a_late_refusal(cog: CogServer) -> None:
    """Cog's own 422 inside the error of a failed prediction, as Replicate passes it on, is invalid input and final."""
    body = cog.put("late", {"count": 9}).text
    failed = parse({"id": "late", "status": "failed", "error": f"Prediction input failed validation: {body}"})
    assert classify(failed) == ("invalid_input", False)


def test_words_and_files(cog: CogServer, schema: dict[str, Any]) -> None:
    """A synchronous answer has times, metrics and logs, its files inline; words that look like an address are no file."""
    answer = cog.put("ok", {"prompt": "https://example.com said", "count": 2, "api_key": "secret"})
    assert answer.status_code == 200
    assert "secret" not in answer.text
    done = parse(answer.json())
    assert (done.id, done.status, done.error, done.data_removed) == ("ok", "succeeded", None, False)
    assert done.created_at is None
    assert done.started_at is not None
    assert done.completed_at is not None
    seconds = (done.completed_at - done.started_at).total_seconds()
    assert done.metrics == {"predict_time": pytest.approx(seconds, abs=1e-6)}
    assert done.logs_tail is not None
    assert done.logs_tail.endswith(": https://example.com said\n")
    files = shape_of(json.dumps(schema)).files(done.output)
    assert [(file.index, file.json_path) for file in files] == [(0, "$.pictures[0]"), (1, "$.pictures[1]")]
    head, _, encoded = files[1].url.partition(",")
    assert (head, base64.b64decode(encoded)) == ("data:text/plain;base64", b"https://example.com said 1")


async def test_a_file_of_no_known_type(cog: CogServer, schema: dict[str, Any]) -> None:
    """A type that Cog cannot guess is written `data:None`; the file comes home all the same."""
    done = parse(cog.put("odd", {"prompt": "a", "suffix": ".zzz"}).json())
    (file,) = shape_of(json.dumps(schema)).files(done.output)
    assert file.url.startswith("data:None;base64,")
    async with HttpOutputs(extra_hosts=frozenset()) as outputs, outputs.fetch(file.url) as fetched:
        assert b"".join([chunk async for chunk in fetched.chunks]) == b"a 0"


def test_no_output_files(cog: CogServer, schema: dict[str, Any]) -> None:
    """A success may have no file at all."""
    done = parse(cog.put("none", {"prompt": "a", "count": 0}).json())
    assert done.status == "succeeded"
    assert OutputShape.from_openapi(schema).files(done.output) == []


@pytest.mark.parametrize(("words", "judged"), [
    ("the model is tired", ("model", False)), ("CUDA out of memory. Tried to allocate 2 GiB", ("memory", False)),
    ("NSFW content detected", ("safety", False)), ("the read timed out", ("timeout", False)),
    ("Prediction interrupted; please retry (code: PA)", ("infrastructure", True))])
def test_a_model_that_raises(cog: CogServer, words: str, judged: tuple[str, bool]) -> None:
    """The exception's words are the error of a prediction that failed with status 200; they alone decide its class."""
    answer = cog.put("bad", {"prompt": "a", "fail": words})
    assert answer.status_code == 200
    failed = parse(answer.json())
    assert (failed.status, failed.error, failed.output, failed.metrics) == ("failed", words, None, {})
    assert failed.logs_tail is not None
    assert f"RuntimeError: {words}" in failed.logs_tail
    assert failed.completed_at is not None
    assert classify(failed) == judged


def test_the_life_of_a_background_run(cog: CogServer, schema: dict[str, Any], receiver: Receiver) -> None:
    """202 at once, then unsigned webhooks with the URL's query kept; without an upload URL its files are paths of the
    container, which nobody can fetch and we take for no files."""
    answer = cog.start("slow", {"prompt": "a", "sleep_s": 0.2}, webhook=f"{receiver.url}/hook?attempt=7",
                       webhook_events_filter=["start", "completed"])
    assert answer.status_code == 202
    first = parse(answer.json())
    assert (first.id, first.output, first.completed_at) == ("slow", None, None)
    assert first.status not in TERMINAL
    started, ended = events(receiver, 2)
    assert [(one.id, one.status) for one in (started, ended)] == [("slow", "processing"), ("slow", "succeeded")]
    assert started.started_at == ended.started_at
    assert ended.metrics["predict_time"] >= 0.2
    assert {delivery.path for delivery in receiver.deliveries} == {"/hook?attempt=7"}
    assert not any(name.startswith("webhook-") for delivery in receiver.deliveries for name in delivery.headers)
    assert ended.output["pictures"][0].endswith("out-0.txt")
    assert OutputShape.from_openapi(schema).files(ended.output) == []


def test_a_background_run_that_fails(cog: CogServer, receiver: Receiver) -> None:
    """A failure is told by webhook in the same shape as a synchronous one, and again until it is taken."""
    receiver.statuses = [503, 500]
    cog.start("doomed", {"prompt": "a", "fail": "boo"}, webhook=receiver.url, webhook_events_filter=["completed"])
    failed = events(receiver, 3)
    assert [(one.id, one.status, one.error) for one in failed] == [("doomed", "failed", "boo")] * 3
    assert classify(failed[0]) == ("model", False)
    assert len({delivery.body for delivery in receiver.deliveries}) == 1


def test_cancel_and_busy(cog: CogServer, receiver: Receiver) -> None:
    """One at a time: another id is 409, the same id is the same run; a cancel ends it as `canceled`, an unknown id is 404."""
    cog.start("long", {"prompt": "a", "sleep_s": 25}, webhook=receiver.url, webhook_events_filter=["start", "completed"])
    receiver.wait_for(1)
    assert cog.health() == "BUSY"
    other = cog.put("other", {"prompt": "b"})
    assert (other.status_code, other.json()) == (409, {"detail": "Already running a prediction"})
    same = cog.start("long", {"prompt": "c"})
    assert (same.status_code, parse(same.json()).status, same.json()["input"]["prompt"]) == (202, "processing", "a")
    assert cog.http.post("/predictions/nobody/cancel").status_code == 404
    assert cog.http.post("/predictions/long/cancel").status_code == 200
    canceled = events(receiver, 2)[-1]
    assert (canceled.id, canceled.status, canceled.output, canceled.error) == ("long", "canceled", None, None)
    assert canceled.completed_at is not None


def test_an_id_is_spent_only_while_it_runs(cog: CogServer) -> None:
    """The same id after its end runs anew: idempotence that guards against nothing but a repeat in flight."""
    runs = [cog.put("twice", {"prompt": "a"}).json()["logs"] for _ in range(2)]
    assert runs[0].startswith("run ")
    assert runs[0] != runs[1]


def test_uploaded_files(python: Path, schema: dict[str, Any], receiver: Receiver, tmp_path: Path) -> None:
    """With an upload URL the files are put there, marked with the prediction's id, and the output holds their addresses."""
    with serving(python, tmp_path / "model", "--upload-url", f"{receiver.url}/upload/") as server:
        server.start("up", {"prompt": "a", "count": 2}, webhook=f"{receiver.url}/hook", webhook_events_filter=["completed"])
        first, second, hook = receiver.wait_for(3)
    assert [(one.path, one.body, one.headers["x-prediction-id"], one.headers["content-type"]) for one in (first, second)] == [
        ("/upload/out-0.txt", b"a 0", "up", "text/plain"), ("/upload/out-1.txt", b"a 1", "up", "text/plain")]
    files = OutputShape.from_openapi(schema).files(parse(json.loads(hook.body)).output)
    assert [file.url for file in files] == [f"{receiver.url}/upload/out-{place}.txt" for place in range(2)]


MODEL = """
from typing import List
from cog import BasePredictor, ConcatenateIterator, Input, Path
class Predictor(BasePredictor):
    def predict(self, prompt: str, num_outputs: int = Input(default=1, ge=1, le=3)) -> {output}:
        ...
"""
A, B = "https://replicate.delivery/x/out-0.png", "https://replicate.delivery/x/out-1.png"


@pytest.mark.parametrize(("output", "value", "files", "text", "most"), [
    ("str", A, [], A, 1),
    ("Path", A, [A], A, 1),
    ("List[Path]", [A, B], [A, B], None, 3),
    ("List[str]", [A, B], [], None, 3),
    ("ConcatenateIterator[str]", ["https:", "//x.test"], [], "https://x.test", 1),
    ("dict", {"a": [A]}, [A], None, None),
])
def test_other_outputs(python: Path, tmp_path: Path, output: str, value: Any, files: list[str], text: str | None,
                       most: int | None) -> None:
    """The schema that Cog makes of a return type tells us which strings are files, what is text, and how many there can be."""
    (tmp_path / "cog.yaml").write_text('predict: "predict.py:Predictor"\n')
    (tmp_path / "predict.py").write_text(MODEL.format(output=output))
    command = [python, "-m", "cog.command.openapi_schema"]
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    printed = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=True, timeout=60).stdout
    document = json.loads(printed)
    shape = OutputShape.from_openapi(document)
    assert [file.url for file in shape.files(value)] == files
    assert shape.text(value) == text
    assert most_outputs(document) == most
