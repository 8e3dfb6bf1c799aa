"""Creates over the wire: what is accepted, what is refused and in which words."""

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.simulator.conftest import Rig

FLUX, SDXL = "black-forest-labs/flux-schnell", "stability-ai/sdxl"


def version_of(rig: Rig, slug: str = SDXL) -> str:
    """Return the newest version id of a model."""
    return rig.http.get(f"/v1/models/{slug}").json()["latest_version"]["id"]


def test_create_speaks_the_fast_dialect(rig: Rig) -> None:
    """A create answers 201 with id first, absent instead of null keys, sorted input and times not in microseconds."""
    answer = rig.buy(version_of(rig), width=512, seed=42069, prompt="corgi", height=512)
    body = answer.json()
    assert answer.status_code == 201
    assert next(iter(body)) == "id"
    assert list(body["input"]) == ["height", "prompt", "seed", "width"]
    assert not {"completed_at", "metrics", "output", "webhook"} & set(body)
    assert (body["status"], body["logs"], body["error"]) == ("starting", "", None)
    assert re.search(r"\.(\d{3}|\d{8})Z$", body["created_at"])
    assert body["urls"]["get"] == f"{rig.url}/v1/predictions/{body['id']}"
    assert (answer.headers["ratelimit-remaining"], answer.headers["ratelimit-reset"]) == ("599", "1")


def test_get_speaks_the_database_dialect(rig: Rig) -> None:
    """A get has ordered keys, nulls, microseconds, input in the order of a jsonb column, and the webhook."""
    body = {"input": {"prompt": "x", "seed": 1}, "webhook": "https://a.test/?a=1", "webhook_events_filter": ["start"]}
    made = rig.http.post(f"/v1/models/{FLUX}/predictions", json=body).json()
    seen = rig.see(made["id"])
    assert list(seen) == sorted(seen)
    assert list(seen["input"]) == ["seed", "prompt"]
    assert (seen["output"], seen["logs"], seen["completed_at"]) == (None, None, None)
    assert re.search(r"\.\d{6}Z$", seen["created_at"])
    assert (seen["model"], seen["version"]) == (FLUX, "hidden")
    assert (seen["webhook"], seen["webhook_events_filter"]) == ("https://a.test/?a=1", ["start"])


def test_three_forms_of_version_and_three_endpoints(rig: Rig) -> None:
    """64 hex digits, owner/name:hex and an official owner/name are accepted, and so are models and deployments."""
    version = version_of(rig)
    for form in (version, f"{SDXL}:{version}"):
        assert rig.buy(form, prompt="x").json()["version"] == version
    assert rig.buy(FLUX, prompt="x").json()["version"] == "hidden"
    for place in (f"models/{FLUX}", "deployments/acme/flux"):
        assert rig.http.post(f"/v1/{place}/predictions", json={"input": {"prompt": "x"}}).status_code == 201
    assert rig.ledger()["by_model"] == {SDXL: 2, FLUX: 2, "acme/flux-finetune": 1}


@pytest.mark.parametrize("version", ["0" * 64, SDXL, f"{FLUX}:latest", "nobody/nothing"])
def test_unknown_versions_are_422(rig: Rig, version: str) -> None:
    """A version that does not exist, a community model by name and `:latest` get the one recorded body."""
    answer = rig.buy(version, prompt="x")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "title": "Invalid version or not permitted",
        "detail": "The specified version does not exist (or perhaps you don't have permission to use it?)",
        "status": 422,
    }


@pytest.mark.parametrize(
    ("given", "kind", "field", "words"),
    [
        ({"seed": 1}, "required", "input", "prompt is required"),
        (
            {"prompt": "x", "seed": "1"},
            "invalid_type",
            "input.seed",
            "Invalid type. Expected: integer, given: string",
        ),
        ({"prompt": None}, "invalid_type", "input.prompt", "Invalid type. Expected: string, given: null"),
        (
            {"prompt": "x", "num_outputs": 5},
            "number_lte",
            "input.num_outputs",
            "Must be less than or equal to 4",
        ),
    ],
)
def test_bad_input_is_422_with_invalid_fields(rig: Rig, given: Any, kind: str, field: str, words: str) -> None:
    """A missing or mistyped field is refused in the API's words, costs nothing and creates nothing."""
    answer = rig.buy(FLUX, **given)
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": f"- {field}: {words}\n",
        "status": 422,
        "title": "Input validation failed",
        "invalid_fields": [{"type": kind, "field": field, "description": words}],
    }
    assert rig.ledger()["created"] == 0


def test_bad_choice_and_unknown_key_are_422(rig: Rig) -> None:
    """A value outside an enum reached by reference is refused, and so is a top-level key the API does not know."""
    assert rig.buy(FLUX, prompt="x", aspect_ratio="7:5").json()["invalid_fields"][0]["type"] == "enum"
    answer = rig.http.post("/v1/predictions", json={"version": FLUX, "input": {"prompt": "x"}, "metadata": {}})
    assert (answer.status_code, "metadata" in answer.json()["detail"]) == (422, True)


def test_late_validation_fails_after_201(rig: Rig) -> None:
    """A community model's range is checked by its container only: 201, then failed with Cog's text, and free."""
    made = rig.buy(version_of(rig), prompt="x", num_inference_steps=0)
    assert made.status_code == 201
    rig.advance(3000)
    seen = rig.see(made.json()["id"])
    assert seen["status"] == "failed"
    assert seen["error"].startswith('Prediction input failed validation: {"detail":[{"loc":["body","input",')
    assert "ensure this value is greater than or equal to 1" in seen["error"]
    assert rig.ledger()["billed_usd"] == "0"


def test_wrong_token_is_the_recorded_401(rig: Rig) -> None:
    """No or a wrong token gives the exact 401 without ratelimit headers; Token is as good as Bearer."""
    for authorization in ("Bearer nonsense", "r8_simulator", ""):
        answer = rig.http.get("/v1/account", headers={"authorization": authorization})
        assert answer.status_code == 401
        assert answer.json() == {
            "title": "Unauthenticated",
            "detail": "You did not pass a valid authentication token",
            "status": 401,
        }
        assert "ratelimit-remaining" not in answer.headers
    assert rig.http.get("/v1/account", headers={"authorization": "Token r8_simulator"}).status_code == 200


def test_accounts_do_not_see_each_other(rig: Rig) -> None:
    """A prediction is 404 to a token of another account, and its budget is its own."""
    rig.put("limits", creates_per_minute=60, burst=1, account="simulator")
    made = rig.buy().json()
    rival = {"authorization": "Bearer r8_other"}
    assert rig.http.get(f"/v1/predictions/{made['id']}", headers=rival).status_code == 404
    assert rig.buy().status_code == 429
    assert rig.buy(headers=rival).status_code == 201


def test_429_bodies(rig: Rig) -> None:
    """A spent budget answers the documented text; the reduced mode adds retry_after, equal to the text's number."""
    rig.put("limits", creates_per_minute=6, burst=1)
    assert rig.buy().status_code == 201
    answer = rig.buy()
    assert answer.status_code == 429
    assert answer.json() == {"detail": "Request was throttled. Your rate limit resets in ~10s."}
    assert (answer.headers["ratelimit-remaining"], answer.headers["ratelimit-reset"]) == ("0", "10")
    rig.advance(10)
    assert rig.buy().status_code == 201
    rig.put("limits", reduced="payment", retry_after_header=True)
    assert rig.buy().status_code == 201
    answer = rig.buy()
    assert answer.json() == {
        "detail": "Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per "
        "minute with a burst of 1 requests until you add a payment method. Your rate limit resets in ~10s.",
        "status": 429,
        "retry_after": 10,
    }
    assert answer.headers["retry-after"] == "10"


def test_little_credit_slows_and_none_refuses(rig: Rig) -> None:
    """Below 5 dollars the reduced mode holds; when the credit is spent, creates are 402 in the recorded words."""
    rig.put("credit", usd="0.003")
    assert rig.buy(FLUX, prompt="x").status_code == 201
    assert "while you have less than $5.0 in credit" in rig.buy(FLUX, prompt="x").json()["detail"]
    rig.advance(600)
    answer = rig.buy(FLUX, prompt="x")
    assert (answer.status_code, answer.json()["title"]) == (402, "Insufficient credit")
    assert rig.ledger()["accounts"]["simulator"] == {"billed_usd": "0.003", "left_usd": "0.000"}


@pytest.mark.parametrize(("header", "seconds"), [("5", 5), ("90s", 90), ("5m", 300), ("1h30m45s", 5445)])
def test_cancel_after_sets_a_deadline(rig: Rig, header: str, seconds: int) -> None:
    """Every documented spelling of Cancel-After is understood, and a prediction stuck in the queue is aborted by it."""
    rig.put("faults", stuck=1)
    made = rig.buy(headers={"cancel-after": header}).json()
    assert "deadline" in made
    rig.advance(seconds - 1)
    assert rig.see(made["id"])["status"] == "starting"
    rig.advance(2)
    seen = rig.see(made["id"])
    assert (seen["status"], seen["started_at"]) == ("aborted", None)


@pytest.mark.parametrize("header", ["4", "soon", "", "5m1h", "-9"])
def test_cancel_after_refuses_nonsense(rig: Rig, header: str) -> None:
    """A duration under five seconds or in no known spelling is refused before anything is bought."""
    assert rig.buy(headers={"cancel-after": header}).status_code == 422
    assert rig.ledger()["created"] == 0


def test_cancel_ends_a_running_prediction(rig: Rig) -> None:
    """Cancel answers 200 with status canceled and metrics, in the database dialect; again it changes nothing."""
    made = rig.buy(FLUX, prompt="x").json()
    for _ in range(60):
        if rig.see(made["id"])["status"] == "processing":
            break
        rig.advance(0.5)
    answer = rig.http.post(f"/v1/predictions/{made['id']}/cancel")
    assert answer.status_code == 200
    assert answer.json()["status"] == "canceled"
    assert answer.json()["metrics"]["total_time"] >= answer.json()["metrics"]["predict_time"] > 0
    rig.advance(100)
    again = rig.http.post(f"/v1/predictions/{made['id']}/cancel").json()
    assert again["completed_at"] == answer.json()["completed_at"]


def test_prefer_wait_returns_the_output(rig: Rig) -> None:
    """A create that waits answers 201 when the prediction ends: output there, status processing, preference echoed."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(rig.buy, FLUX, headers={"prefer": "wait=10"}, prompt="x")
        while not rig.ledger()["created"]:
            assert not pending.done()
        rig.advance(1000)
        answer = pending.result()
    body = answer.json()
    assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=10")
    assert (body["status"], "metrics" in body, "completed_at" in body) == ("processing", False, False)
    assert body["output"] == [f"{rig.url}/files/{body['id']}/out-0.webp"]


def test_prefer_wait_that_ends_first_is_202(rig: Rig) -> None:
    """A wait shorter than the prediction answers 202 without output; a wait of 61 seconds is refused."""
    rig.put("faults", stuck=1)
    slow = rig.buy(FLUX, prompt="x", headers={"prefer": "wait=1"})
    assert (slow.status_code, slow.json()["status"], "output" in slow.json()) == (202, "starting", False)
    assert rig.buy(headers={"prefer": "wait=61"}).status_code == 422
    assert rig.buy(headers={"prefer": "respond-async"}).status_code == 201


def test_a_body_that_is_no_json_is_400(rig: Rig) -> None:
    """Broken JSON, and JSON that is no object, are 400."""
    for raw in (b"{", b"[]"):
        assert rig.http.post("/v1/predictions", content=raw).status_code == 400


def test_unknown_paths_are_404(rig: Rig) -> None:
    """Unknown models, deployments, predictions and routes are 404."""
    for path in ("models/no/thing", "deployments/no/thing", "predictions/nothing", "nonsense", "models/no/x/versions"):
        assert rig.http.get(f"/v1/{path}").status_code == 404
    for path in ("models/no/thing", f"models/{SDXL}", "deployments/no/thing"):
        assert rig.http.post(f"/v1/{path}/predictions", json={"input": {}}).status_code == 404


def test_chunked_bodies_are_read(rig: Rig) -> None:
    """A create sent in chunks, without a content-length, is understood."""
    pieces = iter([b'{"version":"simulator/echo",', b'"input":{"text":"in pieces"}}'])
    answer = httpx.post(f"{rig.url}/v1/predictions", content=pieces, headers={"authorization": "Bearer r8_simulator"})
    assert answer.json()["input"] == {"text": "in pieces"}
