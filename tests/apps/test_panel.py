"""What progress looks like."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from rich.console import Console

from orchestrator.apps.cli.follow import Look
from orchestrator.apps.cli.panel import LivePanel, PlainLines, clock_text, money_text, usd_text
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.records import Batch, Counts, Target


def look(*, reason: str | None = None, cap_units: int | None = None, unknown: int = 0) -> Look:
    """Five rows done, three running, one failed, nine waiting."""
    now = datetime(2026, 11, 20, tzinfo=UTC)
    batch = Batch(1, "shots-1", "shots", "k", "me", BatchState.RUNNING, reason, now, None, Target("models", "a/b", None), "{}",
                  "{}", "[]", "null", None, "out", 200, 3, None, 18, cap_units, 0, 0)
    by_state = {ItemState.SUCCEEDED: 5, ItemState.RUNNING: 3, ItemState.FAILED: 1, ItemState.PENDING: 9}
    return Look(batch, Counts(by_state, Decimal("0.3"), Decimal(0), unknown), 528.0, 600.0, 62.0, reason, 12.0)


def drawn(shown: Look) -> str:
    """The live panel as a terminal of 100 columns shows it."""
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with LivePanel(console) as panel:
        panel.show(shown)
    return out.getvalue()


def test_the_panel_says_everything():
    """Counts by state, rate against the limit, money, time left, and why it waits."""
    text = drawn(look(reason="throttled by the provider (429); until 12:03:10 UTC", cap_units=25 * 10**12, unknown=2))
    for words in ("6 of 18 rows", "5 done", "3 running", "1 failed", "9 waiting", "528 per minute of 600", "$0.30 of $25.00",
                  "2 rows of unknown cost", "0:12 elapsed, 1:02", "until 12:03:10 UTC"):
        assert words in text, words


def test_the_panel_tells_what_a_cap_holds():
    """Beside what is spent of it: reserved for what is out, and afterwards for what nobody knows the cost of."""
    shown = look(cap_units=25 * 10**12, unknown=2)
    shown = replace(shown, counts=replace(shown.counts, reserved_usd=Decimal("0.9")))
    assert money_text(shown) == "$0.30 of $25.00 + 2 rows of unknown cost, $0.90 reserved"
    home = replace(shown.counts, by_state={ItemState.SUCCEEDED: 8})
    assert "$0.90 held for rows whose cost is not known" in money_text(replace(shown, counts=home))


def test_plain_lines_come_when_the_reason_changes():
    """Elsewhere than on a terminal: one line at first, none while nothing is new, one at once for a new reason that is news."""
    out = io.StringIO()
    with PlainLines(out) as lines:
        for reason in (None, None, "in flight: 9", "backoff", "backoff", "limit: 600", None):
            lines.show(look(reason=reason))
    said = out.getvalue().splitlines()
    assert len(said) == 3
    assert said[1].endswith("waiting: backoff")


def test_an_unchanged_line_comes_once_a_minute():
    """A wait of minutes is no page of equal lines; what moves is told every few seconds as before."""
    out, seconds = io.StringIO(), iter([0, 5, 30, 59, 60, 61, 65])
    with PlainLines(out, monotonic=lambda: float(next(seconds))) as lines:
        for shown in (*[look(reason="lost answers")] * 5, *[moved()] * 2):
            lines.show(shown)
    assert [line.partition(",")[0][-6:] for line in out.getvalue().splitlines()] == ["5 done", "5 done", "6 done"]


def moved() -> Look:
    """The same batch with one row more at home."""
    before = look(reason="lost answers")
    by_state = dict(before.counts.by_state) | {ItemState.SUCCEEDED: 6, ItemState.RUNNING: 2}
    return replace(before, counts=replace(before.counts, by_state=by_state))


@pytest.mark.parametrize("seconds,text", [(None, "–"), (0, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_times(seconds: float | None, text: str):
    """Minutes and seconds, hours where there are any, a dash where unknown."""
    assert clock_text(seconds) == text


@pytest.mark.parametrize("usd,text", [("0", "$0.00"), ("0.6", "$0.60"), ("0.0045", "$0.0045"), ("1E+1", "$10.00"),
                                      ("12345.678", "$12,345.678")])
def test_money(usd: str, text: str):
    """At least cents, never an exponent, no digit dropped."""
    assert usd_text(Decimal(usd)) == text
