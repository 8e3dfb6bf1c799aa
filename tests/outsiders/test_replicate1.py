"""The official client `replicate` 1.0.7, unmodified, as the judge of the simulator."""

from hashlib import sha256
from typing import Any

import pytest

from tests.e2e.desk import Provider
from tests.outsiders.conftest import Outsider

SDXL = "39ed52f2a78e934b" * 4
FLUX = "black-forest-labs/flux-schnell"
# An API error as a program sees it, and a way to see it.
SEEN = """
import replicate.exceptions
def seen(call):
    try:
        call()
    except replicate.exceptions.ReplicateError as error:
        return error.to_dict()
"""


def creates(provider: Provider) -> dict[str, int]:
    """How creates were answered, by status; 0 is an answer that was never sent."""
    found: dict[str, int] = {}
    for route, statuses in provider.admin("calls")["routes"].items():
        if route.startswith("create prediction"):
            for status, count in statuses.items():
                found[status] = found.get(status, 0) + count
    return found


def test_it_is_the_stable_release(replicate1: Outsider) -> None:
    """What the environment holds is the release that this folder speaks of."""
    assert replicate1("from importlib.metadata import version; answer = version('replicate')") == "1.0.7"


def test_create_by_version_model_and_deployment(replicate1: Outsider, provider: Provider) -> None:
    """All three ways to create give a prediction that starts, can be waited for and ends with its output."""
    seen = replicate1("""
        made = [client.predictions.create(version=version, input={"prompt": "a", "num_outputs": 2}),
                client.predictions.create(model=model, input={"prompt": "b", "output_format": "png"}),
                client.predictions.create(deployment="acme/flux", input={"prompt": "c"})]
        answer = []
        for one in made:
            first = one.status
            one.wait()
            answer.append([first, one.status, one.model, one.version[:16], one.error, len(one.output), sorted(one.metrics)])
    """, version=SDXL, model=FLUX)
    metrics = ["predict_time", "total_time"]
    assert seen == [
        ["starting", "succeeded", "stability-ai/sdxl", SDXL[:16], None, 2, metrics],
        ["starting", "succeeded", FLUX, "hidden", None, 1, metrics],
        ["starting", "succeeded", "acme/flux-finetune", "ac3e000000000001", None, 1, metrics]]
    assert [(one["model"], one["deployment"]) for one in provider.purchases()] == [
        ("stability-ai/sdxl", None), (FLUX, None), ("acme/flux-finetune", "acme/flux")]


def test_reload_sees_the_whole_life(replicate1: Outsider, provider: Provider) -> None:
    """A prediction read again shows the times of its life in order; after the retention its data is gone."""
    first, last, gone = replicate1("""
        import urllib.request
        one = client.predictions.create(version=version, input={"prompt": "a"})
        first = [one.status, one.output, one.started_at, one.completed_at]
        one.wait()
        last = [one.created_at, one.started_at, one.completed_at]
        advance = urllib.request.Request(url + "/_admin/advance", data=b'{"seconds": 3601}', method="POST")
        urllib.request.urlopen(advance).read()
        one.reload()
        answer = [first, last, [one.status, one.output, one.logs, one.completed_at]]
    """, version=SDXL, url=provider.url)
    assert first == ["starting", None, None, None]
    assert last == sorted(last)
    assert gone == ["succeeded", None, None, last[2]]


def test_waiting_in_the_create(replicate1: Outsider) -> None:
    """A synchronous create answers `processing` with the output filled in, as recorded ones do; a read then says `succeeded`."""
    assert replicate1("""
        one = client.predictions.create(version=version, input={"prompt": "a"}, wait=True)
        sync = [one.status, len(one.output), one.metrics]
        one.reload()
        answer = sync + [one.status, len(one.output)]
    """, version=SDXL) == ["processing", 1, None, "succeeded", 1]


def test_a_list_is_read_page_by_page(replicate1: Outsider, provider: Provider) -> None:
    """Newest first, a hundred on a page; `next` and `previous` are followed as they stand, and nothing is listed twice."""
    pages, back = replicate1("""
        made = [client.predictions.create(version=version, input={"prompt": str(n)}).id for n in range(103)]
        page = client.predictions.list()
        pages = [[(one.created_at, one.id) for one in page]]
        while page.next:
            page = client.predictions.list(page.next)
            pages.append([(one.created_at, one.id) for one in page])
        answer = pages, [(one.created_at, one.id) for one in client.predictions.list(page.previous)]
    """, version=SDXL)
    assert [len(page) for page in pages] == [100, 3]
    listed = pages[0] + pages[1]
    assert [moment for moment, _ in listed] == sorted((moment for moment, _ in listed), reverse=True)
    assert sorted(one for _, one in listed) == sorted(one["id"] for one in provider.purchases())
    assert back == pages[0]


def test_cancel(replicate1: Outsider, provider: Provider) -> None:
    """A running prediction is canceled, once and for all; one that has ended stays as it is."""
    provider.put("faults", {"stuck": {"next": 1}})
    assert replicate1("""
        one = client.predictions.create(version=version, input={"prompt": "a"})
        one.cancel()
        answer = [client.predictions.get(one.id).status, client.predictions.cancel(one.id).status]
        other = client.predictions.create(version=version, input={"prompt": "b"}, wait=True)
        answer += [client.predictions.cancel(other.id).status]
    """, version=SDXL) == ["canceled", "canceled", "succeeded"]
    assert [one["status"] for one in provider.purchases()] == ["canceled", "succeeded"]


def test_run_gives_files(replicate1: Outsider, provider: Provider) -> None:
    """Files inlined by a synchronous create, and files behind a URL, are both read to the byte."""
    provider.put("faults", {"sync_data_uris": True})
    inline, linked = replicate1("""
        from replicate.helpers import FileOutput
        (inline,) = client.run("stability-ai/sdxl:" + version, input={"prompt": "a"})
        (url,) = client.run("stability-ai/sdxl:" + version, input={"prompt": "b"}, wait=False)
        linked = FileOutput(url, client)
        answer = [[type(inline).__name__, inline.read()[:8].hex()], [linked.url, linked.read()[:8].hex()]]
    """, version=SDXL)
    png = b"\x89PNG\r\n\x1a\n".hex()
    assert inline == ["FileOutput", png]
    assert linked[0].startswith(f"{provider.url}/files/")
    assert linked[1] == png


def test_run_gives_text(replicate1: Outsider) -> None:
    """A language model's output comes as its list of tokens, polled or waited for."""
    waited, polled = replicate1("""
        answer = [client.run(model, input={"prompt": "a"}, wait=wait) for wait in (True, False)]
    """, model="meta/meta-llama-3-8b-instruct")
    assert len(waited) > 1
    assert all(isinstance(piece, str) for piece in waited + polled)


def test_files(replicate1: Outsider) -> None:
    """An upload keeps name, type, size, checksum and metadata; it can be read, listed and deleted, once."""
    made, listed, deleted, missing = replicate1(SEEN + """
import io
made = client.files.create(io.BytesIO(b"0,1\\n"), filename="a.csv", content_type="text/csv", metadata={"row": 7})
listed = [one.id == made.id for one in client.files.list()]
answer = [client.files.get(made.id).dict(), listed, client.files.delete(made.id), seen(lambda: client.files.get(made.id))]
""")
    assert (made["name"], made["content_type"], made["size"], made["metadata"]) == ("a.csv", "text/csv", 4, {"row": 7})
    assert made["checksums"]["sha256"] == sha256(b"0,1\n").hexdigest()
    assert made["urls"]["get"].endswith(f"/v1/files/{made['id']}")
    assert made["created_at"] < made["expires_at"]
    assert (listed, deleted) == ([True], True)
    assert missing == {"status": 404, "detail": "File not found"}


def test_a_file_name_beyond_ascii(replicate1: Outsider) -> None:
    """File names are UTF-8 (Replicate docs: files)."""
    assert replicate1("""
        import io
        answer = client.files.create(io.BytesIO(b"0"), filename="\\u00e9t\\u00e9.csv").name
    """) == "été.csv"


def test_a_file_as_input_is_uploaded(replicate1: Outsider) -> None:
    """An open file in an input becomes the URL of an upload, and the model takes it."""
    image, status = replicate1("""
        import io
        one = client.predictions.create(version=version, input={"image": io.BytesIO(b"picture")})
        one.wait()
        answer = [one.input["image"], one.status]
    """, version="f121d640bd286e1f" * 4)
    assert "/v1/files/" in image
    assert status == "succeeded"


def test_what_is_on_offer(replicate1: Outsider) -> None:
    """Account, hardware, models, versions, deployments and collections have the shapes the client's types demand."""
    seen = replicate1("""
        model = client.models.get("stability-ai/sdxl")
        versions = model.versions.list()
        schema = model.versions.get(versions[0].id).openapi_schema
        answer = {
            "account": client.accounts.current().username,
            "hardware": client.hardware.list()[0].sku,
            "model": [model.id, model.visibility, model.latest_version.id],
            "versions": [one.id for one in versions],
            "inputs": sorted(schema["components"]["schemas"]["Input"]["properties"]),
            "models": [one.id for one in client.models.list()],
            "deployment": client.deployments.get("acme/flux").current_release.model,
            "collection": [one.id for one in client.collections.get("text-to-image").models],
        }
    """)
    assert seen["account"] == "simulator"
    assert seen["hardware"]
    assert seen["model"] == ["stability-ai/sdxl", "public", SDXL]
    assert seen["versions"] == [SDXL, "7762fd07cf82c948" * 4]
    assert {"prompt", "seed", "width", "height"} <= set(seen["inputs"])
    assert FLUX in seen["models"]
    assert seen["deployment"] == "acme/flux-finetune"
    assert seen["collection"] == [FLUX, "simulator/portrait"]


def test_a_failed_prediction_is_a_model_error(replicate1: Outsider, provider: Provider) -> None:
    """`run` raises ModelError with the prediction, whether the failure came in the create's answer or later."""
    text = "Prediction interrupted; please retry (code: PA)"
    provider.put("faults", {"fail": {"next": 2, "text": text}})
    assert replicate1("""
        from replicate.exceptions import ModelError
        answer = []
        for wait in (True, False):
            try:
                client.run(model, input={"prompt": "a"}, wait=wait)
            except ModelError as error:
                answer.append([error.prediction.status, str(error)])
    """, model=FLUX) == [["failed", text]] * 2


def test_a_late_refusal_of_the_input(replicate1: Outsider) -> None:
    """What the API lets pass and the container refuses is a prediction, and fails with Cog's words in its error."""
    error = replicate1("""
        one = client.predictions.create(version=version, input={"prompt": "a", "num_inference_steps": 0})
        one.wait()
        answer = one.error
    """, version=SDXL)
    assert error.startswith('Prediction input failed validation: {"detail":[{"loc":["body","input","num_inference_steps"]')


CREDIT = ("You have insufficient credit to run this model. Go to https://replicate.com/account/billing#billing to purchase "
          "credit. Once you purchase credit, please wait a few minutes before trying again.")
REDUCED = ("Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per minute with a burst of "
           "1 requests while you have less than $5.0 in credit. Your rate limit resets in ~")


@pytest.mark.parametrize(("call", "error"), [
    ("replicate.Client(api_token='r8_wrong').predictions.list()",
     {"title": "Unauthenticated", "status": 401, "detail": "You did not pass a valid authentication token"}),
    ("client.predictions.get('nosuchprediction')", {"status": 404, "detail": "Not found"}),
    ("client.predictions.create(model='nobody/nothing', input={'prompt': 'a'})", {"status": 404, "detail": "Not found"}),
    ("client.predictions.create(model='black-forest-labs/flux-schnell', input={})",
     {"title": "Input validation failed", "status": 422, "detail": "- input: prompt is required\n"}),
    ("client.predictions.create(model='black-forest-labs/flux-schnell', input={'prompt': 'a', 'seed': '7'})",
     {"title": "Input validation failed", "status": 422,
      "detail": "- input.seed: Invalid type. Expected: integer, given: string\n"}),
    ("client.predictions.create(version='0' * 64, input={'prompt': 'a'})",
     {"title": "Invalid version or not permitted", "status": 422,
      "detail": "The specified version does not exist (or perhaps you don't have permission to use it?)"}),
])
def test_refusals(replicate1: Outsider, provider: Provider, call: str, error: dict[str, Any]) -> None:
    """Each refusal arrives with the recorded title, status and detail, and nothing is bought."""
    assert replicate1(SEEN + f"answer = seen(lambda: {call})") == error
    assert provider.purchases() == []


def test_no_credit(replicate1: Outsider, provider: Provider) -> None:
    """Without credit a create is refused in the recorded words; reading still works."""
    provider.put("credit", {"usd": 0})
    error, listed = replicate1(SEEN + """
answer = [seen(lambda: client.predictions.create(model=model, input={"prompt": "a"})), len(client.predictions.list())]
""", model=FLUX)
    assert (error, listed) == ({"title": "Insufficient credit", "status": 402, "detail": CREDIT}, 0)


def test_a_throttled_create_raises_at_once(replicate1: Outsider, provider: Provider) -> None:
    """This client does not repeat a POST: one 429 of the low-credit mode, one exception, one call."""
    provider.put("limits", {"reduced": "credit"})
    made, error = replicate1(SEEN + """
create = lambda: client.predictions.create(model=model, input={"prompt": "a"})
made = create()
answer = [made.id, seen(create)]
""", model=FLUX)
    assert error["status"] == 429
    assert error["detail"].startswith(REDUCED)
    assert creates(provider) == {"201": 1, "429": 1}
    assert [one["id"] for one in provider.purchases()] == [made]


@pytest.mark.parametrize("status", [429, 503])
def test_a_read_is_repeated(replicate1: Outsider, provider: Provider, status: int) -> None:
    """A GET that is throttled or unavailable twice is asked three times, and the program notices nothing."""
    provider.put("faults", {"get_error": {"next": 2, "status": status}})
    assert replicate1("""
        one = client.predictions.create(model=model, input={"prompt": "a"})
        one.reload()
        answer = one.status in ("starting", "processing", "succeeded")
    """, model=FLUX) is True
    assert provider.admin("calls")["routes"]["get prediction"] == {"200": 1, str(status): 2}


@pytest.mark.parametrize(("fault", "error"), [
    ({"lost_answer": {"next": 1}}, "RemoteProtocolError"),
    ({"lost_answer_reset": {"next": 1}}, "ReadError"),
    ({"error_after": {"next": 1, "status": 500}}, "ReplicateError"),
    ({"error_after": {"next": 1, "status": 502}}, "ReplicateError"),
])
def test_a_lost_answer_is_a_purchase(replicate1: Outsider, provider: Provider, fault: dict[str, Any], error: str) -> None:
    """The create raises, and yet it was bought: once, as this client does not try again."""
    provider.put("faults", fault)
    assert replicate1("""
        try:
            answer = client.predictions.create(model=model, input={"prompt": "a"}).id
        except Exception as error:
            answer = type(error).__name__
    """, model=FLUX) == error
    assert len(provider.purchases()) == 1


def test_aborted_is_unknown_to_it(replicate1: Outsider, provider: Provider) -> None:
    """A prediction whose deadline passes in the queue is `aborted`, which this client's types refuse, in a get and in a list."""
    provider.put("faults", {"stuck": {"next": 1}})
    errors = replicate1("""
        import urllib.request
        hurried = replicate.Client(headers={"Cancel-After": "5s"})
        one = hurried.predictions.create(model=model, input={"prompt": "a"})
        advance = urllib.request.Request(url + "/_admin/advance", data=b'{"seconds": 6}', method="POST")
        urllib.request.urlopen(advance).read()
        answer = []
        for call in (lambda: client.predictions.get(one.id), one.wait, client.predictions.list):
            try:
                call()
            except Exception as error:
                answer.append([type(error).__name__, "'aborted'" in str(error) or "unexpected value" in str(error)])
    """, model=FLUX, url=provider.url)
    assert [one["status"] for one in provider.purchases()] == ["aborted"]
    assert errors == [["ValidationError", True]] * 3
