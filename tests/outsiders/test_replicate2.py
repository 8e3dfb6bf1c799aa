"""The official client `replicate` 2.0.0b4, unmodified: the simulator's shapes against its types, and what its retries cost."""

from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest

from tests.e2e.desk import Provider
from tests.outsiders.conftest import Outsider

SDXL = "39ed52f2a78e934b" * 4
FLUX = "black-forest-labs/flux-schnell"
SEEN = """
def seen(call):
    try:
        call()
    except replicate.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.body]
"""
# One purchase as a program writes it; whatever becomes of it.
BUY = """
try:
    answer = client.predictions.create(version=version, input={"prompt": "a"}).status
except Exception as error:
    answer = type(error).__name__
"""


def posts(provider: Provider) -> dict[str, int]:
    """How creates were answered, by status; 0 is an answer that was never sent."""
    found: dict[str, int] = provider.admin("calls")["routes"]["create prediction"]
    return found


def test_it_is_the_beta(replicate2: Outsider) -> None:
    """What the environment holds is the release that this folder speaks of."""
    assert replicate2("from importlib.metadata import version; answer = version('replicate')") == "2.0.0b4"


def test_create_wait_and_get(replicate2: Outsider, provider: Provider) -> None:
    """All three ways to create, then `wait`: every read fits the types, and its times are in order."""
    seen = replicate2("""
        made = [client.predictions.create(version=version, input={"prompt": "a"}),
                client.models.predictions.create(model_owner=model[0], model_name=model[1], input={"prompt": "b"}),
                client.deployments.predictions.create(deployment_owner="acme", deployment_name="flux", input={"prompt": "c"})]
        answer = []
        for one in made:
            end = strict.predictions.wait(one.id)
            ordered = one.created_at <= end.completed_at and end.created_at <= end.started_at <= end.completed_at
            answer.append([one.status, end.status, end.model, end.version[:6], len(end.output), ordered, end.data_removed])
    """, version=SDXL, model=FLUX.split("/"))
    assert seen == [["starting", "succeeded", "stability-ai/sdxl", "39ed52", 1, True, False],
                    ["starting", "succeeded", FLUX, "hidden", 1, True, False],
                    ["starting", "succeeded", "acme/flux-finetune", "ac3e00", 1, True, False]]
    assert len(provider.purchases()) == 3


def test_a_synchronous_create(replicate2: Outsider) -> None:
    """`prefer=wait` fills in the output, `run` returns it, and a failure of `run` names the prediction."""
    assert replicate2("""
        one = client.predictions.create(version=version, input={"prompt": "a"}, prefer="wait=10")
        answer = [one.status, len(one.output), len(client.run(model, input={"prompt": "b"}))]
    """, version=SDXL, model=FLUX) == ["processing", 1, 1]


def test_run_fails_and_reads_files(replicate2: Outsider, provider: Provider) -> None:
    """A failed prediction is a ModelError; an inlined file is a FileOutput that reads to the byte."""
    provider.put("faults", {"sync_data_uris": True})
    (picture,) = replicate2("""
        answer = [one.read()[:8].hex() for one in client.run(model, input={"prompt": "a"})]
    """, model=FLUX)
    assert picture == b"\x89PNG\r\n\x1a\n".hex()
    provider.put("faults", {"fail": {"next": 1, "text": "NSFW content detected"}})
    assert replicate2("""
        try:
            answer = client.run(model, input={"prompt": "a"})
        except replicate.exceptions.ModelError as error:
            answer = [error.prediction.status, str(error)]
    """, model=FLUX) == ["failed", "NSFW content detected"]


def test_the_list_turns_its_pages(replicate2: Outsider, provider: Provider) -> None:
    """Iterating crosses pages and sees each prediction once; `created_after` and `created_before` cut to the microsecond."""
    every, later, sooner, cut = replicate2("""
        for n in range(103):
            client.predictions.create(version=version, input={"prompt": str(n)})
        every = list(strict.predictions.list())
        cut = every[50].created_at
        answer = [[[one.id, one.created_at.isoformat()] for one in every],
                  [one.id for one in strict.predictions.list(created_after=cut)],
                  [one.id for one in strict.predictions.list(created_before=cut)], cut.isoformat()]
    """, version=SDXL)
    ids = [one for one, _ in every]
    assert sorted(ids) == sorted(one["id"] for one in provider.purchases())
    assert later == [one for one, moment in every if moment >= cut]
    assert sooner == [one for one, moment in every if moment < cut]
    assert later + sooner == ids


def test_cancel_and_deadline(replicate2: Outsider, provider: Provider) -> None:
    """A cancel is answered with the canceled prediction; a deadline is echoed as a moment after the creation."""
    provider.put("faults", {"stuck": {"next": 2}})
    status, created, deadline = replicate2("""
        one = client.predictions.create(version=version, input={"prompt": "a"})
        two = client.predictions.create(version=version, input={"prompt": "b"}, cancel_after="1m30s")
        two = strict.predictions.get(prediction_id=two.id)
        answer = [strict.predictions.cancel(prediction_id=one.id).status, two.created_at.isoformat(), two.deadline.isoformat()]
    """, version=SDXL)
    lifetime = datetime.fromisoformat(deadline) - datetime.fromisoformat(created)
    assert status == "canceled"
    assert abs(lifetime - timedelta(seconds=90)) < timedelta(seconds=0.1)


def test_files(replicate2: Outsider) -> None:
    """Upload, read, list and delete fit the types; name, type and checksum are what was sent."""
    made, listed, missing = replicate2(SEEN + """
made = client.files.create(content=b"0,1", filename="a.csv", type="text/csv")
again = strict.files.get(file_id=made.id)
listed = [one.id == made.id for one in strict.files.list()]
client.files.delete(file_id=made.id)
answer = [[again.name, again.content_type, again.size, again.checksums.sha256], listed,
          seen(lambda: client.files.get(file_id=made.id))]
""")
    assert made == ["a.csv", "text/csv", 3, sha256(b"0,1").hexdigest()]
    assert listed == [True]
    assert missing == ["NotFoundError", 404, {"detail": "File not found"}]


def test_what_is_on_offer(replicate2: Outsider) -> None:
    """Account, hardware, models, versions and deployments fit the types generated from the API's own description."""
    seen = replicate2("""
        where = {"model_owner": "stability-ai", "model_name": "sdxl"}
        versions = [one.id for one in strict.models.versions.list(**where).results]
        answer = {
            "account": [strict.account.get().type, strict.account.get().username],
            "hardware": strict.hardware.list()[0].sku,
            "model": strict.models.get(**where).latest_version.id,
            "versions": versions,
            "version": strict.models.versions.get(**where, version_id=versions[0]).id,
            "models": [f"{one.owner}/{one.name}" for one in strict.models.list()],
            "deployment": strict.deployments.get(deployment_owner="acme", deployment_name="flux").current_release.model,
            "deployments": [one.name for one in strict.deployments.list()],
            "collections": [one.slug for one in strict.collections.list()],
        }
    """)
    assert seen["account"] == ["organization", "simulator"]
    assert seen["hardware"]
    assert seen["model"] == seen["version"] == seen["versions"][0] == SDXL
    assert FLUX in seen["models"]
    assert (seen["deployment"], seen["deployments"]) == ("acme/flux-finetune", ["flux"])
    assert seen["collections"] == ["text-to-image"]


@pytest.mark.parametrize(("call", "error"), [
    ("client.with_options(bearer_token='r8_wrong').predictions.list()", ["AuthenticationError", 401, "Unauthenticated"]),
    ("client.predictions.get(prediction_id='nosuchprediction')", ["NotFoundError", 404, None]),
    ("client.predictions.create(version='0' * 64, input={})",
     ["UnprocessableEntityError", 422, "Invalid version or not permitted"]),
])
def test_refusals_are_typed(replicate2: Outsider, provider: Provider, call: str, error: list[Any]) -> None:
    """Each refusal arrives as its class, with the recorded body, at the first try."""
    name, status, body = replicate2(SEEN + f"answer = seen(lambda: {call})")
    assert [name, status, body.get("title")] == error
    assert body["status"] == status
    assert sum(provider.admin("calls")["routes"].popitem()[1].values()) == 1
    assert provider.purchases() == []


def test_invalid_fields_are_readable(replicate2: Outsider) -> None:
    """The body of a 422 keeps the fields that this client shows and the older one drops."""
    name, _, body = replicate2(SEEN + """
answer = seen(lambda: client.predictions.create(version=model, input={"seed": "x"}))
""", model=FLUX)
    assert name == "UnprocessableEntityError"
    assert body["invalid_fields"] == [
        {"type": "required", "field": "input", "description": "prompt is required"},
        {"type": "invalid_type", "field": "input.seed", "description": "Invalid type. Expected: integer, given: string"}]


def test_no_credit(replicate2: Outsider, provider: Provider) -> None:
    """402 has no class of its own here; its body says what to do, and it is not tried again."""
    provider.put("credit", {"usd": 0})
    name, status, body = replicate2(SEEN + """
answer = seen(lambda: client.predictions.create(version=version, input={"prompt": "a"}))
""", version=SDXL)
    assert [name, status, body["title"]] == ["APIStatusError", 402, "Insufficient credit"]
    assert posts(provider) == {"402": 1}


def test_a_throttled_create_is_posted_three_times(replicate2: Outsider, provider: Provider) -> None:
    """Unlike the stable client this one repeats POSTs: a constant 429 sees three of them, and sells nothing."""
    provider.put("limits", {"reduced": "payment"})
    provider.put("faults", {"storm_429": {"p": 1}})
    assert replicate2(BUY, version=SDXL) == "RateLimitError"
    assert posts(provider) == {"429": 3}
    assert provider.purchases() == []


def test_the_body_of_a_throttled_create(replicate2: Outsider, provider: Provider) -> None:
    """In the low-credit mode the exception carries the body with `retry_after`, which equals the seconds in its text."""
    provider.put("limits", {"reduced": "payment"})
    first, (name, status, body) = replicate2(SEEN + """
once = client.with_options(max_retries=0)
create = lambda: once.predictions.create(version=version, input={"prompt": "a"})
answer = [create().status, seen(create)]
""", version=SDXL)
    assert (first, name, status, body["status"]) == ("starting", "RateLimitError", 429, 429)
    assert body["detail"].endswith(f"until you add a payment method. Your rate limit resets in ~{body['retry_after']}s.")
    assert posts(provider) == {"201": 1, "429": 1}


@pytest.mark.parametrize(("fault", "error", "answered"), [
    ({"error_after": {"p": 1, "status": 500}}, "InternalServerError", "500"),
    ({"error_after": {"p": 1, "status": 502}}, "InternalServerError", "502"),
    ({"lost_answer": {"p": 1}}, "APIConnectionError", "0"),
])
def test_one_call_three_purchases(replicate2: Outsider, provider: Provider, fault: dict[str, Any], error: str,
                                  answered: str) -> None:
    """Where the answer to a create is lost or an error, this client's retries buy the same input three times."""
    provider.put("faults", fault)
    assert replicate2(BUY, version=SDXL) == error
    assert posts(provider) == {answered: 3}
    ledger = provider.admin("ledger")
    assert (ledger["creates_received"], ledger["created"], ledger["inputs_bought"]) == (3, 3, 1)
    assert ledger["inputs_bought_more_than_once"] == 1


def test_a_slow_answer_is_bought_again(replicate2: Outsider, provider: Provider) -> None:
    """An answer slower than the client's patience, once, ends well for the program: with two purchases for one result."""
    provider.put("faults", {"slow_answer": {"next": 1, "seconds": 2}})
    assert replicate2("client = client.with_options(timeout=0.5)\n" + BUY, version=SDXL) == "starting"
    assert provider.admin("ledger")["created"] == 2


def test_an_error_before_the_purchase(replicate2: Outsider, provider: Provider) -> None:
    """An error that bought nothing is repeated just the same: three POSTs, no purchase; the client cannot tell them apart."""
    provider.put("faults", {"error_before": {"p": 1, "status": 500}})
    assert replicate2(BUY, version=SDXL) == "InternalServerError"
    assert posts(provider) == {"500": 3}
    assert provider.purchases() == []


def test_waiting_for_an_aborted_one_never_ends(replicate2: Outsider, provider: Provider) -> None:
    """`aborted` is read, though its types do not list it, but `wait` does not know that it is an end."""
    provider.put("faults", {"stuck": {"next": 1}})
    assert replicate2("""
        import signal, urllib.request
        one = client.predictions.create(version=version, input={"prompt": "a"}, cancel_after="5s")
        advance = urllib.request.Request(url + "/_admin/advance", data=b'{"seconds": 6}', method="POST")
        urllib.request.urlopen(advance).read()
        class Tired(BaseException): pass
        def tire(*_): raise Tired
        signal.signal(signal.SIGALRM, tire)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        answer = [client.predictions.get(prediction_id=one.id).status]
        try:
            client.predictions.wait(one.id)
        except Tired:
            answer.append("still waiting")
        try:
            strict.predictions.get(prediction_id=one.id)
        except replicate.APIResponseValidationError as error:
            answer.append("aborted" in repr(error.body))
    """, version=SDXL, url=provider.url) == ["aborted", "still waiting", True]
