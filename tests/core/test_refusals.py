"""What an error status means, and how long a 429 asks to wait."""

from typing import Any

import pytest

from orchestrator.core.refusals import LONGEST_HINT_S, Kind, is_low_credit, judge, retry_after

REDUCED = ("Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per minute with a burst "
           "of 1 requests while you have less than $5.0 in credit. Your rate limit resets in ~5s.")


@pytest.mark.parametrize(("status", "kind", "error_class"), [
    (429, Kind.THROTTLED, "throttled"), (401, Kind.HELD, "token"), (402, Kind.HELD, "credit"), (403, Kind.HELD, "token"),
    (400, Kind.REFUSED, "invalid_input"), (404, Kind.REFUSED, "not_found"), (405, Kind.REFUSED, "refused"),
    (413, Kind.REFUSED, "invalid_input"), (415, Kind.REFUSED, "refused"), (422, Kind.REFUSED, "invalid_input"),
    (0, Kind.UNSURE, "unsure"), (302, Kind.UNSURE, "unsure"), (408, Kind.UNSURE, "unsure"), (409, Kind.UNSURE, "unsure"),
    (500, Kind.UNSURE, "unsure"), (503, Kind.UNSURE, "unsure")])
def test_each_status_concerns_somebody(status: int, kind: Kind, error_class: str) -> None:
    """Everybody, the account, the row, or nobody knows."""
    got = judge(status, "words")
    assert (got.kind, got.error_class) == (kind, error_class)
    assert got.sentence.endswith(f"({status}: words)")


def test_a_missing_version_is_not_a_wrong_input() -> None:
    """A 422 about the version speaks of the job, not of the row."""
    got = judge(422, "The specified version does not exist (or perhaps you don't have permission to use it?)")
    assert (got.kind, got.error_class) == (Kind.REFUSED, "not_found")


def test_account_matters_say_what_to_do() -> None:
    """A held batch names the remedy."""
    assert "billing" in judge(402, "").sentence
    assert "REPLICATE_API_TOKEN" in judge(401, "").sentence


@pytest.mark.parametrize(("headers", "body", "text", "expected"), [
    ({}, None, "Request was throttled. Expected available in 1 second.", 1.0),
    ({}, None, "Request was throttled. Your rate limit resets in ~30s.", 30.0),
    ({}, {"retry_after": 5}, REDUCED, 5.0),
    ({}, {"retry_after": "7"}, "", 7.0),
    ({"retry-after": "3"}, {"retry_after": 5}, REDUCED, 3.0),
    ({"retry-after": "Fri, 20 Nov 2026 10:00:09 GMT", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, None, "", 9.0),
    ({"retry-after": "Fri, 20 Nov 2026 09:00:00 GMT", "date": "Fri, 20 Nov 2026 10:00:00 GMT"}, None, "", 0.0),
    ({"retry-after": "Fri, 20 Nov 2026 10:00:09 GMT"}, {"retry_after": 2}, "", 2.0),
    ({"retry-after": "0"}, None, "", 0.0),
    ({"retry-after": "soon"}, {"retry_after": True}, "later", None),
    ({"retry-after": "-1"}, {"retry_after": -5}, "", None),
    ({"retry-after": "nan"}, {"retry_after": float("inf")}, "", None),
    ({"retry-after": "99999999"}, None, "", LONGEST_HINT_S),
    ({}, [], "resets in ~2.5 seconds", 2.5),
    ({}, None, "", None),
])
def test_hints_of_a_429(headers: dict[str, str], body: Any, text: str, expected: float | None) -> None:
    """Header, then body, then text; nonsense counts as absent."""
    assert retry_after(headers, body, text) == expected


def test_low_credit_is_recognised() -> None:
    """By the reduced rate in its words, whether for credit or for a missing payment method."""
    assert is_low_credit(REDUCED)
    assert is_low_credit("is reduced to 6 requests per minute with a burst of 1 requests until you add a payment method")
    assert not is_low_credit("Request was throttled. Your rate limit resets in ~30s.")
