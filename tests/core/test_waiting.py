"""Why a batch waits, in words."""

from datetime import UTC, datetime

import pytest

from orchestrator.core.pacing import PROVIDER_DOWN
from orchestrator.core.permits import Budget, Grant
from orchestrator.core.waiting import (
    CREDIT_IS_LOW,
    THROTTLED,
    behind,
    in_short,
    in_words,
    is_outage,
    is_same,
    is_usual,
    kind_of,
    limited,
    until,
)

AT = datetime(2026, 1, 2, 12, 3, 10, tzinfo=UTC)
ACCOUNT, OWN, NONE = Budget("a", 600, 10), Budget("b", 60, 1), Budget("b", 0, 1)


def test_a_pause_says_its_end():
    """The kind of reason first, with the time at which it is over, where anybody knows; the kind is the same without it."""
    assert until(THROTTLED, AT) == "backoff until 12:03:10 UTC: throttled by the provider (429)"
    assert until(f"{PROVIDER_DOWN}: 500", AT) == "provider down until 12:03:10 UTC: 500"
    assert until("cannot reach it", AT) == "cannot reach it"
    assert until(CREDIT_IS_LOW, AT) == CREDIT_IS_LOW
    kinds = [kind_of(until(one, AT)) for one in (THROTTLED, f"{PROVIDER_DOWN}: 500", CREDIT_IS_LOW)]
    assert kinds == ["backoff", "provider down", "low credit"] and kind_of(None) is None


@pytest.mark.parametrize(("grant", "budgets", "words"), [
    (Grant(10, 0.0, 0.0, per_minute=600), (ACCOUNT, NONE), None),
    (Grant(5, 0.1, 0.1, per_minute=600), (ACCOUNT, NONE), "limit: 600 per minute"),
    (Grant(0, 0.3, 0.0, "limit", per_minute=600), (ACCOUNT, NONE), "limit: 600 per minute"),
    (Grant(2, 0.3, 0.1, per_minute=600, is_shared=True), (ACCOUNT, NONE),
     "limit: 600 per minute, shared with other batches by priority"),
    (Grant(1, 0.4, 0.0, per_minute=600, is_shared=True), (ACCOUNT, OWN), "limit: 60 per minute, this batch"),
    (Grant(1, 0.4, 0.0, per_minute=600), (ACCOUNT, OWN), "limit: 60 per minute, this batch"),
    (Grant(1, 0.4, 0.0, per_minute=600), (ACCOUNT, NONE, Budget("m", 30, 1)), "limit: 30 per minute, this model"),
    (Grant(1, 0.4, 0.0, per_minute=300), (ACCOUNT, OWN), "limit: 60 per minute, this batch"),
    (Grant(1, 0.4, 0.0, per_minute=6, is_low_credit=True), (ACCOUNT, NONE), CREDIT_IS_LOW),
    (Grant(9, 0.0, 0.0), (Budget("a", 0, 1), NONE), None),
])
def test_whose_limit_it_is(grant: Grant, budgets: tuple[Budget, ...], words: str | None):
    """A burst is not held back; else the lowest rate is named, with whose it is."""
    assert limited(grant, budgets) == words


def test_slower_than_told():
    """Where the provider's words brought the rate down, that is said, and that somebody else may be there."""
    said = limited(Grant(2, 0.4, 0.2, per_minute=300), (ACCOUNT, NONE)) or ""
    assert said.startswith("limit: slower than 600 per minute") and is_usual(said)


def test_one_pause_by_two_clocks_is_one_sentence():
    """A second or two between two ends of one pause is no news; another end, or another pause, is."""
    told = until(THROTTLED, AT)
    assert is_same(told, until(THROTTLED, AT.replace(second=12)))
    assert not is_same(told, until(THROTTLED, AT.replace(second=13)))
    assert not is_same(told, until(f"{PROVIDER_DOWN}: 500", AT))
    assert not is_same(told, None) and is_same(None, None) and not is_same("limit: 1", "limit: 2")


def test_a_page_is_no_reason():
    """What a proxy answers is a page of HTML: its words are enough, on one line."""
    assert in_short("<html>\n<h1>502 Bad Gateway</h1></html>") == "502 Bad Gateway"
    assert len(in_short("x" * 999)) == 160


def test_in_flight_downloads_and_outages():
    """As many as may be, of what; how far behind; and what `--patience` counts."""
    assert in_words("in flight", batch=1200, model=None) == "in flight: 1,200 predictions are out, the most for this batch"
    assert in_words("in flight: this model", batch=9, model=3) == "in flight: 3 predictions are out, the most for this model"
    assert in_words("none due", batch=9, model=None) is None
    assert behind(720, 0.5) == "downloads: 12 minutes behind; buying slows down until they catch up"
    assert behind(1900, 0.0) == "downloads: 32 minutes behind; buying waits until they catch up"
    assert is_outage("cannot reach it") and is_outage("provider down until 12:00:00 UTC: x") and not is_outage(THROTTLED)
