"""What a prediction puts out, computed from its input and id whenever asked, never stored."""

import base64
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from orchestrator.simulator.words import tokens
from orchestrator.simulator.world import Prediction

EXTENSIONS = {"webp": "webp", "jpg": "jpg", "png": "png"}
MEDIA_TYPES = {"webp": "image/webp", "jpg": "image/jpeg", "png": "image/png", "txt": "text/plain"}
_PLACE = re.compile(r"^out-(\d{1,3})\.(webp|jpg|png)$")
# A whole PNG of one grey pixel.
DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a picture shows: words, a size in pixels, a seed for its colour, a caption and a file extension."""

    words: str
    width: int
    height: int
    seed: int
    caption: str
    extension: str


def file_count(prediction: Prediction, given: dict[str, Any]) -> int:
    """Return how many files a succeeded prediction offers."""
    kind = prediction.target.model.kind
    if kind == "images":
        return int(given.get("num_outputs") or 1)
    if kind in ("upscale", "film"):
        return 1
    shapes = {"uri": 1, "uris": 3, "nested": 3}
    return shapes.get(str(given.get("shape")), 0) if kind == "shapes" else 0


def extension(prediction: Prediction, given: dict[str, Any]) -> str:
    """Return the extension of the prediction's files."""
    if prediction.target.model.name == "flux-schnell":
        return str(given.get("output_format") or "webp")
    return "png"


def output_of(prediction: Prediction, *, base_url: str) -> Any:
    """Return the output of a succeeded prediction as JSON values, files as URLs under `base_url`."""
    given = orjson.loads(prediction.input)
    ending = extension(prediction, given)
    urls = [f"{base_url}/files/{prediction.id}/out-{place}.{ending}" for place in range(file_count(prediction, given))]
    kind = prediction.target.model.kind
    if kind == "images":
        return urls
    if kind in ("upscale", "film"):  # a film is one still picture here: what it is billed by is in its metrics
        return urls[0]
    if kind == "tokens":
        return tokens(given, prediction.id)
    if kind == "echo":
        return " ".join([str(given["text"])] * int(given.get("times") or 1))
    return _shape(str(given["shape"]), urls=urls, prompt=str(given.get("prompt") or "a shape"))


def partial_output(prediction: Prediction, *, now: float) -> Any:
    """Return what a running prediction has put out so far: the first tokens of a language model, else nothing."""
    share = prediction.progress(now)
    if prediction.target.model.kind != "tokens" or share <= 0:
        return None
    said = tokens(orjson.loads(prediction.input), prediction.id)
    return said[: int(len(said) * share)] or None


def drawing(prediction: Prediction, name: str) -> Drawing | None:
    """Return what the file of that name shows, or None if the prediction has no such file."""
    given = orjson.loads(prediction.input)
    match = _PLACE.match(name)
    if match is None or match[2] != extension(prediction, given) or int(match[1]) >= file_count(prediction, given):
        return None
    seed = given.get("seed")
    if not isinstance(seed, int):
        seed = int.from_bytes(blake2b(prediction.id.encode(), digest_size=3).digest(), "big")
    width, height = _size(given)
    words = given.get("prompt") or given.get("image") or given.get("shape") or ""
    caption = f"{prediction.target.model.slug}  seed {seed}  #{match[1]}"
    return Drawing(str(words), width, height, seed + int(match[1]), caption, match[2])


def _size(given: dict[str, Any]) -> tuple[int, int]:
    """Return a size whose longer side is 512 pixels, of the proportions asked for."""
    across, down = 1.0, 1.0
    if isinstance(given.get("aspect_ratio"), str):
        across, down = (float(side) for side in given["aspect_ratio"].split(":"))
    elif given.get("width") or given.get("height"):
        across, down = float(given.get("width") or 1024), float(given.get("height") or 1024)
    if across <= 0 or down <= 0:
        return 512, 512
    scale = 512 / max(across, down)
    return max(32, round(across * scale)), max(32, round(down * scale))


def _shape(shape: str, *, urls: list[str], prompt: str) -> Any:
    shapes: dict[str, Any] = {
        "uri": urls[0] if urls else None,
        "uris": urls,
        "text": f"A text about {prompt}.",
        "number": 42.5,
        "object": {"label": prompt, "score": 0.98, "tags": ["one", "two"]},
        "null": None,
        "empty": [],
        "https-text": "https: is how a text may begin, and still be no file",
        "data": "data:image/png;base64," + base64.b64encode(DOT).decode(),
    }
    if shape == "nested":
        return {"cover": urls[0], "pages": [{"image": url, "note": prompt} for url in urls[1:]]}
    return shapes[shape]
