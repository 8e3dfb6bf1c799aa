"""Texts the simulated models and their provider produce."""

from hashlib import blake2b
from typing import Any

# Seen verbatim in public threads, except where the error code list of Replicate's docs gives only the code.
FAILURES = (
    "Prediction interrupted; please retry (code: PA)",
    "Director: unexpected error handling prediction (E9828)",
    "Model health check failed (E8765)",
    "Prediction failed (E1000)",
    "Timeout starting prediction (E6716)",
)
TIMED_OUT = "Prediction timed out after running for 30 minutes"
_LEXICON = [
    "a",
    "quiet",
    "river",
    "bends",
    "past",
    "the",
    "old",
    "mill",
    "and",
    "every",
    "stone",
    "keeps",
    "its",
    "own",
]
_LEXICON += ["account", "of", "winter", "while", "small", "birds", "argue", "over", "nothing", "until", "evening"]


def token_counts(given: dict[str, Any], prediction_id: str) -> tuple[int, int]:
    """Return tokens in and out of a language model's run, from its input and the prediction's id alone."""
    spoken = f"{given.get('system_prompt') or ''} {given.get('prompt') or ''}".split()
    wanted = 8 + blake2b(prediction_id.encode(), digest_size=2).digest()[0] % 56
    return len(spoken), min(wanted, int(given.get("max_tokens") or 512))


def film_hundredths(given: dict[str, Any], prediction_id: str) -> int:
    """Return how long a film lasts, in hundredths of a second: up to a second less than was asked for."""
    lacks = blake2b(prediction_id.encode(), digest_size=2).digest()[1] % 100
    return 100 * int(given.get("duration") or 5) - lacks


def tokens(given: dict[str, Any], prediction_id: str) -> list[str]:
    """Return the tokens a language model says, to be joined without a space."""
    _, count = token_counts(given, prediction_id)
    noise = blake2b(prediction_id.encode(), digest_size=64).digest()
    words = [_LEXICON[noise[place % 64] % len(_LEXICON)] for place in range(count)]
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)]
