"""Listings, outputs, retention, files, and the simulator's own ledger."""

import hashlib
import io
from typing import Any

import pytest
from PIL import Image

from orchestrator.simulator.pictures import padded
from tests.simulator.conftest import Rig

FLUX, LLAMA = "black-forest-labs/flux-schnell", "meta/meta-llama-3-8b-instruct"


def finished(rig: Rig, version: str, **given: Any) -> dict[str, Any]:
    """Buy one prediction, let it end and return it."""
    made = rig.buy(version, **given).json()
    rig.advance(1000)
    return rig.see(made["id"])


def shapes(rig: Rig) -> str:
    """Return the version id of the shapes model."""
    return rig.http.get("/v1/models/simulator/shapes").json()["latest_version"]["id"]


def test_listing_pages_newest_first(rig: Rig) -> None:
    """250 predictions come as pages of 100, 100 and 50, newest first, by absolute links that lead back as well."""
    made = [rig.buy(text=str(number)).json()["id"] for number in range(250)]
    url, sizes, seen = "/v1/predictions", [], []
    while url:
        page = rig.http.get(url).json()
        sizes.append(len(page["results"]))
        seen += [item["id"] for item in page["results"]]
        last, url = page, page["next"]
        assert url is None or url.startswith(f"{rig.url}/v1/predictions?cursor=")
    assert sizes == [100, 100, 50]
    assert sorted(seen) == sorted(made)
    assert seen[0] in made[-20:]
    assert [item["id"] for item in rig.http.get(last["previous"]).json()["results"]] == seen[100:200]


def test_created_filters_are_inclusive_and_exclusive(rig: Rig) -> None:
    """created_after takes the very moment in, created_before leaves it out."""
    for number in range(3):
        rig.buy(text=str(number))
        rig.advance(10)
    newest, middle, _ = (item["created_at"] for item in rig.http.get("/v1/predictions").json()["results"])
    texts = {}
    for name, query in {
        "after": {"created_after": middle},
        "before": {"created_before": middle},
        "both": {"created_after": middle, "created_before": newest},
    }.items():
        page = rig.http.get("/v1/predictions", params=query).json()
        texts[name] = [item["input"]["text"] for item in page["results"]]
    assert texts == {"after": ["2", "1"], "before": ["0"], "both": ["1"]}
    assert rig.http.get("/v1/predictions", params={"created_after": "yesterday"}).status_code == 400


def test_next_keeps_filters_unless_switched(rig: Rig) -> None:
    """The filter travels in `next`; with the switch it is dropped, as nobody knows what the real one does."""
    for number in range(101):
        rig.buy(text=str(number))
    query = {"created_after": "2020-01-01T00:00:00Z"}
    assert "created_after" in rig.http.get("/v1/predictions", params=query).json()["next"]
    rig.put("faults", next_drops_filters=1)
    assert "created_after" not in rig.http.get("/v1/predictions", params=query).json()["next"]


def test_list_items_are_lean(rig: Rig) -> None:
    """A list item has input and output but neither logs nor webhook, unless the switch says so."""
    rig.http.post("/v1/predictions", json={"version": FLUX, "input": {"prompt": "x"}, "webhook": "https://a.test"})
    (item,) = rig.http.get("/v1/predictions").json()["results"]
    assert {"input", "output"} <= set(item)
    assert not {"logs", "webhook"} & set(item)
    rig.put("faults", list_webhook=1)
    assert rig.http.get("/v1/predictions").json()["results"][0]["webhook"] == "https://a.test"


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_pictures_are_what_was_asked_for(rig: Rig, extension: str) -> None:
    """Each output file is a real picture of its format and proportions, with a length and an etag, without a token."""
    seen = finished(rig, FLUX, prompt="a corgi", aspect_ratio="16:9", num_outputs=2, seed=5, output_format=extension)
    assert [url.rsplit("/", 1)[1] for url in seen["output"]] == [f"out-0.{extension}", f"out-1.{extension}"]
    answer = rig.http.get(seen["output"][0], headers={"authorization": ""})
    picture = Image.open(io.BytesIO(answer.content))
    assert picture.format == {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[extension]
    assert picture.size == (512, 288)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["etag"]
    assert rig.http.get(f"/files/{seen['id']}/out-2.{extension}").status_code == 404


def test_pictures_show_their_seed(rig: Rig) -> None:
    """Equal seed and prompt draw equal backgrounds, another seed another colour."""
    corners = []
    for seed in (1, 1, 2):
        seen = finished(rig, FLUX, prompt="x", seed=seed, output_format="png")
        picture = Image.open(io.BytesIO(rig.http.get(seen["output"][0]).content)).convert("RGB")
        corners.append(picture.getpixel((0, 0)))
    assert corners[0] == corners[1] != corners[2]


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_padded_files_have_the_exact_size(extension: str) -> None:
    """A padded file is exactly as long as asked, still a picture, and differs from that of another prediction."""
    one, other = (padded(extension, 100_000, mark=mark) for mark in ("one", "other"))
    assert len(one) == len(other) == 100_000
    assert one != other
    Image.open(io.BytesIO(one)).load()


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("text", str),
        ("https-text", str),
        ("data", str),
        ("number", float),
        ("object", dict),
        ("null", type(None)),
        ("empty", list),
    ],
)
def test_output_shapes_without_files(rig: Rig, shape: str, kind: type) -> None:
    """The shapes model puts out every shape an output schema allows, even null on success."""
    seen = finished(rig, shapes(rig), shape=shape)
    assert seen["status"] == "succeeded"
    assert isinstance(seen["output"], kind)


@pytest.mark.parametrize(("shape", "files"), [("uri", 1), ("uris", 3), ("nested", 3)])
def test_output_shapes_with_files(rig: Rig, shape: str, files: int) -> None:
    """Every URL in an output, however nested, can be fetched."""
    output = finished(rig, shapes(rig), shape=shape)["output"]
    urls = [output] if shape == "uri" else output
    if shape == "nested":
        urls = [output["cover"], *(page["image"] for page in output["pages"])]
    assert len(set(urls)) == files
    assert {rig.http.get(url).headers["content-type"] for url in urls} == {"image/png"}


def test_language_model_counts_its_tokens(rig: Rig) -> None:
    """A language model puts out strings to join, and its metrics count them; the bill is by token."""
    seen = finished(rig, LLAMA, prompt="three little words", max_tokens=9)
    assert len(seen["output"]) == seen["metrics"]["output_token_count"] <= 9
    assert seen["metrics"]["input_token_count"] == 3
    usd = 3 * 0.00000005 + len(seen["output"]) * 0.00000025
    assert float(rig.ledger()["billed_usd"]) == pytest.approx(usd)
    schema = rig.http.get(f"/v1/models/{LLAMA}").json()["latest_version"]["openapi_schema"]["components"]["schemas"]
    assert schema["Output"]["x-cog-array-display"] == "concatenate"


def test_everything_is_removed_after_an_hour(rig: Rig) -> None:
    """An hour after completion input, output, logs and files are gone; metadata stays."""
    seen = finished(rig, FLUX, prompt="x")
    rig.advance(3601)
    gone = rig.see(seen["id"])
    assert (gone["data_removed"], gone["input"], gone["output"], gone["logs"]) == (True, {}, None, None)
    assert (gone["status"], gone["metrics"]) == ("succeeded", seen["metrics"])
    assert rig.http.get(seen["output"][0]).status_code == 404


def test_secrets_are_not_echoed(rig: Rig) -> None:
    """A secret input never comes back, neither from create nor from get."""
    made = rig.buy(text="x", api_key="hunter2")
    assert "hunter2" not in made.text
    assert "hunter2" not in rig.http.get(f"/v1/predictions/{made.json()['id']}").text


def test_files_keep_every_byte(rig: Rig) -> None:
    """An upload of any bytes is described by its checksums, listed, deleted, and expires after a day."""
    raw = bytes(range(256)) * 40 + b"\r\n--x\r\n"
    sent = {"content": ("odd name.bin", raw, "application/x-thing"), "metadata": (None, '{"row": 1}')}
    made = rig.http.post("/v1/files", files=sent)
    assert (made.status_code, "ratelimit-remaining" in made.headers) == (201, False)
    body = made.json()
    assert (body["name"], body["content_type"], body["size"]) == ("odd name.bin", "application/x-thing", len(raw))
    assert body["checksums"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert body["metadata"] == {"row": 1}
    assert rig.http.get(body["urls"]["get"]).json() == body
    assert [item["id"] for item in rig.http.get("/v1/files").json()["results"]] == [body["id"]]
    assert rig.http.delete(body["urls"]["get"]).status_code == 204
    assert rig.http.get(body["urls"]["get"]).json() == {"detail": "File not found"}


def test_official_models_tell_what_they_are_billed_by(rig: Rig) -> None:
    """The seconds of a film, a little less than was asked for, and the number of images; unless a switch keeps them back."""
    film = rig.buy("simulator/film", prompt="x", duration=12).json()["id"]
    images = rig.buy("simulator/portrait", prompt="x", num_outputs=3).json()["id"]
    rig.advance(1000)
    assert 11 < rig.see(film)["metrics"]["video_output_duration_seconds"] <= 12
    assert rig.see(images)["metrics"]["image_output_count"] == len(rig.see(images)["output"]) == 3
    rig.put("faults", untold_counts=True)
    assert set(rig.see(film)["metrics"]) == set(rig.see(images)["metrics"]) == {"predict_time", "total_time"}


def test_descriptions(rig: Rig) -> None:
    """Account, hardware, versions, deployment, collection and webhook secret are there in their documented forms."""
    get = rig.http.get
    assert get("/v1/account").json()["username"] == "simulator"
    assert {"name": "CPU", "sku": "cpu"} in get("/v1/hardware").json()
    versions = get("/v1/models/stability-ai/sdxl/versions").json()["results"]
    assert [len(version["id"]) for version in versions] == [64, 64]
    assert get(f"/v1/models/stability-ai/sdxl/versions/{versions[1]['id']}").json() == versions[1]
    assert get("/v1/deployments/acme/flux").json()["current_release"]["configuration"]["hardware"] == "gpu-l40s"
    assert get("/v1/collections/text-to-image").json()["models"][0]["is_official"] is True
    assert get("/v1/webhooks/default/secret").json()["key"].startswith("whsec_")


def test_ledger_knows_what_was_bought_twice(rig: Rig) -> None:
    """Equal inputs in another key order, or with 7.0 for 7, count as one purchase made twice."""
    for given in ({"prompt": "x", "seed": 7}, {"seed": 7.0, "prompt": "x"}, {"prompt": "y"}):
        rig.buy(FLUX, **given)
    rig.advance(1000)
    ledger = rig.ledger()
    assert (ledger["created"], ledger["inputs_bought"], ledger["inputs_bought_more_than_once"]) == (3, 2, 1)
    assert (ledger["billed_usd"], ledger["by_status"]) == ("0.009", {"succeeded": 3})
    lines = list(rig.http.get("/_admin/purchases").iter_lines())
    assert len(lines) == 3
    assert '"billed_usd":"0.003"' in lines[0]


def test_the_invoice_is_what_was_billed(rig: Rig) -> None:
    """A line for each prediction that cost something, on the day on which it ended there; those of another account apart."""
    rig.put("faults", fail={"next": 1})
    for prompt in ("free", "one", "two"):
        rig.buy(FLUX, prompt=prompt)
    rig.http.post("/v1/predictions", json={"version": "simulator/echo", "input": {"text": "x"}},
                  headers={"authorization": "Bearer r8_other"})
    rig.put("clock", offset_s=86_400 * 3)
    rig.advance(1000)
    lines = [line.split(",") for line in rig.http.get("/_admin/invoice?account=simulator").iter_lines()]
    assert lines[0] == ["date", "model", "prediction_id", "amount_usd"]
    assert [(model, usd) for _, model, _, usd in lines[1:]] == [(FLUX, "0.003")] * 2
    assert {day for day, *_ in lines[1:]} == {rig.see(lines[1][2])["completed_at"][:10]}
    everything = list(rig.http.get("/_admin/invoice").iter_lines())
    assert (len(everything), rig.ledger()["billed_usd"]) == (4, "0.0061")


def test_calls_are_counted(rig: Rig) -> None:
    """Calls are counted by route and status, and the busiest minute of accepted creates is known."""
    made = rig.buy().json()
    rig.buy("nobody/nothing")
    rig.see(made["id"])
    rig.advance(120)
    rig.buy()
    calls = rig.http.get("/_admin/calls?times=1").json()
    assert calls["routes"]["create prediction"] == {"201": 2, "422": 1}
    assert calls["routes"]["get prediction"] == {"200": 1}
    assert (calls["max_creates_in_60_s"], len(calls["create_times"])) == (1, 2)


def test_every_create_is_told_apart(rig: Rig) -> None:
    """Accepted or refused, each create has its moment, its status and its client: that is how storms are counted."""
    rig.put("limits", creates_per_minute=6, burst=1)
    rival, nobody = ({"authorization": f"Bearer {token}"} for token in ("r8_other", "r8_wrong"))
    for headers in (None, None, rival, nobody):
        rig.buy(headers=headers)
    rig.advance(10)
    rig.buy()
    calls = rig.http.get("/_admin/calls?times=1").json()
    assert calls["creates"]["status"] == [201, 429, 201, 401, 201]
    assert calls["creates"]["client"] == [0, 0, 1, -1, 0]
    moments = calls["creates"]["at"]
    assert moments == sorted(moments)
    assert moments[4] - moments[3] >= 10
    assert calls["create_times"] == [moments[place] for place in (0, 2, 4)]


def test_page_for_people(rig: Rig) -> None:
    """The page at / shows the counts and the latest pictures."""
    seen = finished(rig, FLUX, prompt="x")
    page = rig.http.get("/").text
    assert f"/files/{seen['id']}/out-0.webp" in page
    assert "billed_usd" in page
