"""The catalogue: the few models this Replicate offers, with schemas like those of the real ones."""

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from orchestrator.simulator.prices import Price
from orchestrator.simulator.schema import Validator, choice, number, openapi, text

RATIOS = ["1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"]
FORMATS = ["webp", "jpg", "png"]
SHAPES = ["uri", "uris", "nested", "data", "text", "number", "object", "null", "empty", "https-text"]
FILE_OUTPUT = {"type": "string", "format": "uri"}
FILES_OUTPUT = {"type": "array", "items": {"type": "string", "format": "uri"}}
TOKENS_OUTPUT = {
    "type": "array",
    "items": {"type": "string"},
    "x-cog-array-type": "iterator",
    "x-cog-array-display": "concatenate",
}


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model: its 64-hex id, creation time (RFC 3339), schema and compiled validator."""

    id: str
    created_at: str
    schema: dict[str, Any]
    validator: Validator


@dataclass(frozen=True, slots=True)
class Model:
    """One model; `kind` names what it makes, `pace` scales the configured latency, versions stand newest first. A private
    model that is `fast_booting` is billed like a public one."""

    owner: str
    name: str
    kind: str
    description: str
    official: bool
    pace: float
    price: Price
    versions: tuple[Version, ...]
    visibility: str = "public"
    fast_booting: bool = False

    @property
    def slug(self) -> str:
        """Return `owner/name`."""
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment: a model of the account on instances of its own."""

    owner: str
    name: str
    model: Model
    hardware: str

    @property
    def slug(self) -> str:
        """Return `owner/name`."""
        return f"{self.owner}/{self.name}"


@dataclass(slots=True)
class Catalogue:
    """Everything that can be asked for, by name and by version id."""

    models: dict[str, Model] = field(default_factory=dict)
    versions: dict[str, tuple[Model, Version]] = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)

    def add(self, model: Model) -> None:
        """Offer a model and all its versions."""
        self.models[model.slug] = model
        for version in model.versions:
            self.versions[version.id] = (model, version)


def _version(mark: str, schema: dict[str, Any], *, official: bool, created_at: str) -> Version:
    return Version((mark * 64)[:64], created_at, schema, Validator(schema, strict=official))


def _flux_schema() -> dict[str, Any]:
    properties = {
        "prompt": text("Prompt", description="Prompt for generated image"),
        "aspect_ratio": choice("aspect_ratio", description="Aspect ratio for the generated image", default="1:1"),
        "num_outputs": number("Num Outputs", description="Number of outputs", default=1, minimum=1, maximum=4),
        "num_inference_steps": number("Num Inference Steps", default=4, minimum=1, maximum=4),
        "seed": number("Seed", description="Random seed. Set for reproducible generation"),
        "output_format": choice("output_format", description="Format of the output images", default="webp"),
        "output_quality": number("Output Quality", default=80, minimum=0, maximum=100),
        "disable_safety_checker": {"type": "boolean", "title": "Disable Safety Checker", "default": False},
        "go_fast": {"type": "boolean", "title": "Go Fast", "default": True},
        "megapixels": choice("megapixels", description="Approximate number of megapixels", default="1"),
    }
    enums: dict[str, list[Any]] = {"aspect_ratio": RATIOS, "output_format": FORMATS, "megapixels": ["1", "0.25"]}
    return openapi(properties, required=["prompt"], output=FILES_OUTPUT, enums=enums)


def _sdxl_schema(*, refine: bool) -> dict[str, Any]:
    properties: dict[str, dict[str, Any]] = {
        "prompt": text("Prompt", description="Input prompt", default="An astronaut riding a rainbow unicorn"),
        "negative_prompt": text("Negative Prompt", description="Input Negative Prompt", default=""),
        "image": text("Image", description="Input image for img2img", format="uri"),
        "width": number("Width", description="Width of output image", default=1024),
        "height": number("Height", description="Height of output image", default=1024),
        "num_outputs": number("Num Outputs", default=1, minimum=1, maximum=4),
        "scheduler": choice("scheduler", description="scheduler", default="K_EULER"),
        "num_inference_steps": number("Num Inference Steps", default=50, minimum=1, maximum=500),
        "guidance_scale": number("Guidance Scale", type="number", default=7.5, minimum=1, maximum=50),
        "seed": number("Seed", description="Random seed. Leave blank to randomize the seed"),
    }
    enums: dict[str, list[Any]] = {"scheduler": ["DDIM", "K_EULER", "DPMSolverMultistep", "PNDM"]}
    if refine:
        properties["refine"] = choice("refine", description="Which refine style to use", default="no_refiner")
        enums["refine"] = ["no_refiner", "expert_ensemble_refiner", "base_image_refiner"]
    return openapi(properties, required=[], output=FILES_OUTPUT, enums=enums)


def _llama_schema() -> dict[str, Any]:
    properties = {
        "prompt": text("Prompt", description="Prompt", default=""),
        "system_prompt": text("System Prompt", default="You are a helpful assistant"),
        "max_tokens": number("Max Tokens", default=512, minimum=1),
        "temperature": number("Temperature", type="number", default=0.7, minimum=0, maximum=5),
        "top_p": number("Top P", type="number", default=0.95, minimum=0, maximum=1),
        "stop_sequences": text("Stop Sequences", default="<|end_of_text|>,<|eot_id|>"),
        "seed": number("Seed"),
    }
    return openapi(properties, required=[], output=TOKENS_OUTPUT, enums={})


def _esrgan_schema() -> dict[str, Any]:
    properties = {
        "image": text("Image", description="Input image", format="uri"),
        "scale": number("Scale", type="number", description="Factor to scale by", default=4, minimum=0, maximum=10),
        "face_enhance": {"type": "boolean", "title": "Face Enhance", "default": False},
    }
    return openapi(properties, required=["image"], output=FILE_OUTPUT, enums={})


def _portrait_schema() -> dict[str, Any]:
    properties = {
        "prompt": text("Prompt", description="Prompt for generated image"),
        "quality": choice("quality", description="Quality of the image", default="medium"),
        "num_outputs": number("Num Outputs", default=1, minimum=1, maximum=4),
    }
    return openapi(properties, required=["prompt"], output=FILES_OUTPUT, enums={"quality": ["low", "medium", "high"]})


def _film_schema() -> dict[str, Any]:
    properties = {
        "prompt": text("Prompt", description="What happens"),
        "duration": number("Duration", description="Seconds", default=5, minimum=2, maximum=12),
        "resolution": choice("resolution", description="Resolution of the film", default="720p"),
        "generate_audio": {"type": "boolean", "title": "Generate Audio", "default": False},
    }
    return openapi(properties, required=["prompt"], output=FILE_OUTPUT, enums={"resolution": ["480p", "720p", "1080p"]})


def _shapes_schema() -> dict[str, Any]:
    properties = {"shape": choice("shape", description="Which shape the output takes"), "prompt": text("Prompt")}
    return openapi(properties, required=["shape"], output={}, enums={"shape": SHAPES})


def _echo_schema() -> dict[str, Any]:
    properties = {
        "text": text("Text", description="What to say"),
        "times": number("Times", default=1, minimum=1, maximum=100),
        "api_key": text("Api Key", format="password", writeOnly=True, **{"x-cog-secret": True}),
    }
    return openapi(properties, required=["text"], output={"type": "string"}, enums={})


def catalogue() -> Catalogue:
    """Return the models, versions and the deployment on offer."""
    shop = Catalogue()
    tokens = Price(token_in_usd=Decimal("0.00000005"), token_out_usd=Decimal("0.00000025"))
    shop.add(_model("black-forest-labs/flux-schnell", "images", _flux_schema(), Price(image_usd=Decimal("0.003"))))
    shop.add(_model("meta/meta-llama-3-8b-instruct", "tokens", _llama_schema(), tokens, pace=0.8))
    shop.add(_model("simulator/echo", "echo", _echo_schema(), Price(run_usd=Decimal("0.0001")), pace=0.1))
    by_quality = (("low", Decimal("0.011")), ("medium", Decimal("0.042")), ("high", Decimal("0.167")))
    shop.add(_model("simulator/portrait", "images", _portrait_schema(), Price(image_by_quality=by_quality)))
    seconds = (("480p", False, "0.05"), ("480p", True, "0.10"), ("720p", False, "0.10"), ("720p", True, "0.20"),
               ("1080p", False, "0.15"), ("1080p", True, "0.30"))  # fmt: skip
    film = Price(film_second=tuple((resolution, sounds, Decimal(usd)) for resolution, sounds, usd in seconds))
    shop.add(_model("simulator/film", "film", _film_schema(), film, pace=2.0))
    sdxl = (("39ed52f2a78e934b", True, "2023-10-03T23:06:49Z"), ("7762fd07cf82c948", False, "2023-08-01T12:00:00Z"))
    versions = tuple(
        _version(mark, _sdxl_schema(refine=refine), official=False, created_at=at) for mark, refine, at in sdxl
    )
    shop.add(_community("stability-ai/sdxl", "images", versions, Price(hardware="gpu-l40s"), pace=2.0))
    for slug, kind, schema, price, mark in (
        ("nightmareai/real-esrgan", "upscale", _esrgan_schema(), Price(image_usd=Decimal("0.002")), "f121d640bd286e1f"),
        ("simulator/shapes", "shapes", _shapes_schema(), Price(hardware="cpu"), "5ba9e5000c0ffee0"),
    ):
        version = _version(mark, schema, official=False, created_at="2024-01-15T09:30:00Z")
        shop.add(_community(slug, kind, (version,), price, pace=0.5))
    own = _version("ac3e000000000001", _sdxl_schema(refine=False), official=False, created_at="2024-05-05T05:05:05Z")
    private = _community("acme/flux-finetune", "images", (own,), Price(hardware="gpu-l40s"), pace=1.0, visibility="private")
    shop.add(private)
    quick = _version("9c1c000000000001", _sdxl_schema(refine=False), official=False, created_at="2025-05-05T05:05:05Z")
    tuned = _community(
        "acme/quick-finetune", "images", (quick,), Price(hardware="gpu-h100"), pace=1.0, visibility="private"
    )
    shop.add(replace(tuned, fast_booting=True))
    shop.deployments["acme/flux"] = Deployment("acme", "flux", private, "gpu-l40s")
    return shop


def _model(slug: str, kind: str, schema: dict[str, Any], price: Price, *, pace: float = 1.0) -> Model:
    """Return an official model: one version whose id answers never show."""
    owner, _, name = slug.partition("/")
    mark = f"{sum(slug.encode()):016x}"
    version = _version(mark, schema, official=True, created_at="2024-07-30T00:32:11Z")
    return Model(owner, name, kind, f"Simulated {slug}", True, pace, price, (version,))


def _community(
    slug: str, kind: str, versions: tuple[Version, ...], price: Price, *, pace: float, visibility: str = "public"
) -> Model:
    owner, _, name = slug.partition("/")
    return Model(owner, name, kind, f"Simulated {slug}", False, pace, price, versions, visibility)
