"""The webhook's URL: it carries the id of the attempt, and so tells us whose a prediction is. Pure.

Query parameters are what Replicate itself suggests for an internal id (Replicate docs: receive webhooks)."""

import re
from urllib.parse import parse_qs, urlsplit

PATH = "/webhooks/replicate"
PARAMETER = "attempt"
_ATTEMPT_ID = re.compile(r"[0-9a-z]{26}")


def callback_url(public_url: str, attempt_id: str) -> str:
    """Where the provider is to report on one attempt."""
    return f"{public_url.rstrip('/')}{PATH}?{PARAMETER}={attempt_id}"


def attempt_in(query: str) -> str | None:
    """The attempt that a query string names; None where it names none, or several."""
    if query.startswith(f"{PARAMETER}=") and _ATTEMPT_ID.fullmatch(query, len(PARAMETER) + 1):
        return query[len(PARAMETER) + 1:]  # as we write it ourselves: no need to take it apart
    named = parse_qs(query).get(PARAMETER, [])
    return named[0] if len(named) == 1 and _ATTEMPT_ID.fullmatch(named[0]) else None


def attempt_of(url: str | None) -> str | None:
    """The attempt that a webhook URL of ours names; None for somebody else's URL."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return attempt_in(parts.query) if parts.path.endswith(PATH) else None
