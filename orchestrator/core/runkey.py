"""What makes a batch the same batch, and the hash that inputs are matched by."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.core.canonical import canonical

KEY_CHARACTERS = 32
FRESH_KEY_CHARACTERS = 8  # behind a key and a dash: drawn anew for each batch that `--fresh` begins


def hash_text(text: str) -> str:
    """SHA-256 of the text, 64 hex digits. Lone surrogates, which a provider's JSON may hold, are hashed too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def run_key(*, job_name: str, target_as_written: str, input_mapping: Mapping[str, Any] | None,
            source_hashes: Sequence[str]) -> str:
    """The default run key, 32 hex digits: job name, target as written, input mapping with `--set` applied, source content.

    `source_hashes` in the order in which the files are read: another order is another batch, because rows are numbered.
    """
    return hash_text(canonical({
        "job": job_name,
        "target": target_as_written,
        "input": None if input_mapping is None else dict(input_mapping),
        "source": list(source_hashes),
    }))[:KEY_CHARACTERS]
