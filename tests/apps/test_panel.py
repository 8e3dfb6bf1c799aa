"""What progress looks like."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from rich.console import Console

from orchestrator.apps.cli.follow import Look
from orchestrator.apps.cli.panel import LivePanel, PlainLines, bytes_text, clock_text, money_text
from orchestrator.apps.money import about_text
from orchestrator.core.caps import Bound, Cap, Scope
from orchestrator.core.cost import usd_text
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.records import Batch, Counts, Target


def look(*, reason: str | None = None, cap_units: int | None = None, unknown: int = 0, projected: str | None = None,
         per_minute: str | None = None) -> Look:
    """Five rows done, three running, one failed, nine waiting."""
    now = datetime(2026, 11, 20, tzinfo=UTC)
    batch = Batch(1, "shots-1", "shots", "k", "me", BatchState.RUNNING, reason, now, None, Target("models", "a/b", None), "{}",
                  "{}", "[]", "null", None, "out", 200, 3, None, 18, cap_units, 0, 0)
    by_state = {ItemState.SUCCEEDED: 5, ItemState.RUNNING: 3, ItemState.FAILED: 1, ItemState.PENDING: 9}
    own = () if cap_units is None else (Bound(Cap(Scope.BATCH, cap_units), 3 * 10**11, 0),)
    return Look(batch, Counts(by_state, Decimal("0.3"), Decimal(0), unknown), 528.0, 600.0, 62.0, reason, 12.0,
                projected and Decimal(projected), per_minute and Decimal(per_minute), own)


def drawn(shown: Look, *, width: int = 100) -> str:
    """The live panel as a terminal of so many columns shows it."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    with LivePanel(console) as panel:
        panel.show(shown)
    return out.getvalue()


def test_the_panel_says_everything():
    """Counts by state, rate against the limit, money, time left, and why it waits."""
    text = drawn(look(reason="throttled by the provider (429); until 12:03:10 UTC", cap_units=25 * 10**12, unknown=2))
    for words in ("6 of 18 rows", "5 done", "3 running", "1 failed", "9 waiting", "528 per minute of 600", "$0.30 of $25.00",
                  "2 rows of unknown cost", "0:12 elapsed, 1:02", "until 12:03:10 UTC"):
        assert words in text, words


def test_what_it_will_come_to():
    """The projected total and dollars per minute, in few digits, within 80 columns; nothing where nothing is known."""
    shown = look(projected="0.750166601", per_minute="1.2345678", cap_units=25 * 10**12, unknown=1234)
    text = drawn(shown, width=80)
    assert "528 per minute of 600, $1.23 per minute" in text
    assert "in all  about $0.75 " in text
    assert "$0.30 of $25.00 + 1,234 rows of unknown cost" in text
    assert max(len(line) for line in text.splitlines() if "│" in line) == 80
    out = io.StringIO()
    PlainLines(out).show(shown)
    assert "; 528 per minute of 600, $1.23 per minute; $0.30 of $25.00 + 1,234 rows of unknown cost, in all about $0.75\n" in (
        out.getvalue())
    nothing = drawn(look())
    assert "in all" not in nothing and nothing.count("per minute") == 1


def test_the_panel_tells_what_a_cap_holds():
    """Beside what is spent of it: reserved for what is out, and afterwards for what nobody knows the cost of."""
    shown = look(cap_units=25 * 10**12, unknown=2)
    shown = replace(shown, counts=replace(shown.counts, reserved_usd=Decimal("0.9")))
    assert money_text(shown) == "$0.30 of $25.00 + 2 rows of unknown cost, $0.90 reserved"
    home = replace(shown.counts, by_state={ItemState.SUCCEEDED: 8})
    assert "$0.90 held for rows whose cost is not known" in money_text(replace(shown, counts=home))


def test_a_budget_ends_it_before():
    """What a batch would come to is never told beyond what its budget lets it come to."""
    shown = look(projected="0.75", cap_units=5 * 10**11)
    assert "in all  about $0.75, but the budget ends it at $0.50" in drawn(shown)
    out = io.StringIO()
    PlainLines(out).show(shown)
    assert "in all about $0.75, but the budget ends it at $0.50" in out.getvalue()


def test_a_cap_that_batches_share():
    """What is spent of it by all of them, and what is reserved; of several the tightest."""
    bounds = (Bound(Cap(Scope.ACCOUNT, 50 * 10**12), 9 * 10**11, 0), Bound(Cap(Scope.JOB_DAY, 10**12), 8 * 10**11, 0))
    shown = replace(look(), bounds=bounds)
    shown = replace(shown, counts=replace(shown.counts, reserved_usd=Decimal("0.1")))
    assert money_text(shown) == "$0.30, $0.10 reserved, $0.80 of $1.00 spent by this job today (UTC)"
    assert "reserved" not in money_text(replace(shown, bounds=()))  # nobody is held back by it


def test_a_long_reason_is_told_once():
    """And then by its kind, until there is another one."""
    out, seconds = io.StringIO(), iter([0, 60, 120])
    why = "too many rows failed: not one has succeeded, and 22 have failed (22 × memory: CUDA out of memory); $0.042 was spent"
    with PlainLines(out, monotonic=lambda: float(next(seconds))) as lines:
        for shown in (look(reason=why), look(reason=why), look(reason=f"{why} more")):
            lines.show(shown)
    told = [line.partition("; waiting: ")[2] for line in out.getvalue().splitlines()]
    assert told == [why, "too many rows failed", f"{why} more"]


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


@pytest.mark.parametrize("usd,text", [("0", "$0.00"), ("0.0123456", "$0.0123"), ("0.6", "$0.60"), ("0.12", "$0.12"),
                                      ("1.2449", "$1.24"), ("12345.6", "$12,345.60"), ("1E-5", "$0.00001"), ("1E+2", "$100.00")])
def test_money_about(usd: str, text: str):
    """Cents, or below a dollar three digits."""
    assert about_text(Decimal(usd)) == text


@pytest.mark.parametrize("usd,beside,text", [
    ("0.1462", "0.14625", "$0.146"), ("0.14625", "0.14625", "$0.14625"), ("0.146249", "0.14625", "$0.146"),
    ("0.1459", "0.14595", "$0.1459"), ("12.004", "12", "$12.004"), ("11.999", "12", "$11.999"), ("12", "12", "$12.00")])
def test_beside_its_bound_no_figure_seems_larger(usd: str, beside: str, text: str):
    """Nor equal, where it is not; what is equal looks so."""
    assert about_text(Decimal(usd), beside=Decimal(beside)) == text


@pytest.mark.parametrize("number,text", [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (34_000, "34 kB"), (2_600_000, "2.6 MB"),
                                         (82 * 10**9, "82 GB"), (3 * 10**12, "3.0 TB")])
def test_bytes(number: int, text: str):
    """Two digits are enough."""
    assert bytes_text(number) == text


@pytest.mark.parametrize("usd,text", [("0", "$0.00"), ("0.6", "$0.60"), ("0.0045", "$0.0045"), ("1E+1", "$10.00"),
                                      ("12345.678", "$12,345.678")])
def test_money(usd: str, text: str):
    """At least cents, never an exponent, no digit dropped."""
    assert usd_text(Decimal(usd)) == text
