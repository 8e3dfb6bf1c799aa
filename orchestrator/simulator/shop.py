"""The parts of the API that only describe: account, hardware, models, versions, deployments, collections."""

from typing import Any

from orchestrator.simulator.models import Catalogue, Deployment, Model, Version
from orchestrator.simulator.prices import HARDWARE


class Shop:
    """Documents about what is on offer."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Take the catalogue."""
        self._catalogue = catalogue

    def find(self, parts: list[str], *, base_url: str, account: str) -> Any:
        """Return the document at a path below /v1, split at its slashes, or None."""
        match parts:
            case ["account"]:
                return _account(account)
            case ["hardware"]:
                return [{"name": name, "sku": sku} for sku, name, _ in HARDWARE]
            case ["models"]:
                return _page([_model(model, base_url) for model in self._catalogue.models.values()])
            case ["models", owner, name, *rest]:
                model = self._catalogue.models.get(f"{owner}/{name}")
                return None if model is None else _of_model(model, rest, base_url=base_url)
            case ["deployments"]:
                return _page([_deployment(known) for known in self._catalogue.deployments.values()])
            case ["deployments", owner, name]:
                deployment = self._catalogue.deployments.get(f"{owner}/{name}")
                return None if deployment is None else _deployment(deployment)
            case ["collections"]:
                return _page([_collection(self._catalogue, base_url=base_url, whole=False)])
            case ["collections", "text-to-image"]:
                return _collection(self._catalogue, base_url=base_url, whole=True)
            case _:
                return None


def _page(results: list[Any]) -> dict[str, Any]:
    return {"next": None, "previous": None, "results": results}


def _account(name: str) -> dict[str, Any]:
    url = f"https://github.com/{name}"
    return {"type": "organization", "username": name, "name": name.title(), "github_url": url, "avatar_url": None}


def _of_model(model: Model, rest: list[str], *, base_url: str) -> Any:
    if not rest:
        return _model(model, base_url)
    if rest == ["versions"]:
        return _page([] if model.official else [_version(version) for version in model.versions])
    if len(rest) == 2 and rest[0] == "versions":
        return next((_version(version) for version in model.versions if version.id == rest[1]), None)
    return None


def _version(version: Version) -> dict[str, Any]:
    return {
        "id": version.id,
        "created_at": version.created_at,
        "cog_version": "0.9.26",
        "openapi_schema": version.schema,
    }


def _model(model: Model, base_url: str) -> dict[str, Any]:
    return {
        "url": f"{base_url}/{model.slug}",
        "owner": model.owner,
        "name": model.name,
        "description": model.description,
        "visibility": model.visibility,
        "is_official": model.official,
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 1000,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": _version(model.versions[0]),
    }


def _deployment(deployment: Deployment) -> dict[str, Any]:
    return {
        "owner": deployment.owner,
        "name": deployment.name,
        "current_release": {
            "number": 1,
            "model": deployment.model.slug,
            "version": deployment.model.versions[0].id,
            "created_at": "2024-05-06T00:00:00.000000Z",
            "created_by": _account(deployment.owner),
            "configuration": {"hardware": deployment.hardware, "min_instances": 1, "max_instances": 5},
        },
    }


def _collection(catalogue: Catalogue, *, base_url: str, whole: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": "Text to image",
        "slug": "text-to-image",
        "description": "Models that generate images from text prompts",
    }
    if whole:
        makers = [model for model in catalogue.models.values() if model.kind == "images" and model.official]
        document["models"] = [_model(model, base_url) for model in makers]
    return document
