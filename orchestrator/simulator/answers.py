"""The fixed answers of the API, in Replicate's words where they are recorded, plain ones where they are not."""

from typing import Any

import orjson

from orchestrator.simulator.wire import Reply

PROBLEM = "application/problem+json"
BILLING = "https://replicate.com/account/billing#billing"


def json_reply(document: Any, status: int = 200) -> Reply:
    """Return a JSON answer."""
    return Reply(status, orjson.dumps(document))


def problem(status: int, detail: str, *, title: str | None = None) -> Reply:
    """Return an RFC 7807-like error body with a trailing newline, as the API's are."""
    body = {"detail": detail, "status": status} | ({"title": title} if title else {})
    return Reply(status, orjson.dumps(body) + b"\n", PROBLEM)


def unauthenticated() -> Reply:
    """Return the recorded 401; it carries no rate limit headers."""
    return problem(401, "You did not pass a valid authentication token", title="Unauthenticated")


def no_credit() -> Reply:
    """Return the 402 of an account without credit."""
    detail = (
        f"You have insufficient credit to run this model. Go to {BILLING} to purchase credit. "
        "Once you purchase credit, please wait a few minutes before trying again."
    )
    return problem(402, detail, title="Insufficient credit")


def not_found() -> Reply:
    """Return a 404; the exact body of the real one is not recorded."""
    return problem(404, "Not found")


def wrong_version() -> Reply:
    """Return the 422 of a version that does not exist or may not be used."""
    detail = "The specified version does not exist (or perhaps you don't have permission to use it?)"
    return problem(422, detail, title="Invalid version or not permitted")


def bad_gateway() -> bytes:
    """Return the body of an edge that cannot reach the API: not JSON."""
    return b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>\n"
