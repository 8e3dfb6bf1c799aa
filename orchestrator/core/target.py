"""The target as a job writes it: which kind, whose, which version."""

import re
from dataclasses import dataclass
from typing import Literal

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_VERSION = re.compile(r"[0-9a-f]{64}", re.ASCII)
_URL = re.compile(r"(?:https?://)?(?:www\.|api\.)?replicate\.com/(?:v1/)?(?:models/|deployments/)?(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TargetRef:
    """A target before the provider was asked. `version`: 64 hex digits where the job names one."""

    kind: Literal["model", "version", "deployment", "cog", "training"]
    name: str  # owner/name; of `cog` the URL; empty for a `version` alone
    version: str | None


def parse_version_or_model(text: str) -> TargetRef:
    """`owner/name`, `owner/name:version` or a version. Raises ValueError saying what to write instead."""
    if _VERSION.fullmatch(text):
        return TargetRef("version", "", text)
    name, colon, version = text.partition(":")
    if not _NAME.fullmatch(name) or text.lower().startswith(("http:", "https:")):
        raise ValueError(_not_a_name(text, what="a model"))
    if not colon:
        return TargetRef("model", name, None)
    if version == "latest":
        raise ValueError(f"Replicate has no version 'latest'; write {name}, or {name}:VERSION with 64 hex digits")
    if not _VERSION.fullmatch(version):
        raise ValueError(f"the version {version!r} is not 64 hex digits (0-9, a-f); {name} alone takes the newest")
    return TargetRef("model", name, version)


def parse_deployment(text: str) -> TargetRef:
    """`owner/name` of a deployment. Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError(_not_a_name(text, what="a deployment"))
    return TargetRef("deployment", text, None)


def parse_training(text: str, *, destination: str) -> TargetRef:
    """`owner/name:version` to train, and the `owner/name` it writes to. Raises ValueError."""
    ref = parse_version_or_model(text)
    if ref.kind != "model" or ref.version is None:
        raise ValueError(f"training: {text!r} names no version; write owner/name:version")
    if not _NAME.fullmatch(destination):
        raise ValueError(f"destination: {_not_a_name(destination, what='a model')}")
    return TargetRef("training", ref.name, ref.version)


def _not_a_name(text: str, *, what: str) -> str:
    found = _URL.fullmatch(text)
    if found:
        parts = [part for part in re.split(r"[/?#]", found[1]) if part]
        if len(parts) >= 2:
            return f"{text!r} is an address; keep only {'/'.join(parts[:2])}"
    return f"{text!r} does not name {what}; write owner/name" + (" or owner/name:version" if what == "a model" else "")
