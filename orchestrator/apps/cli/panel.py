"""Progress: a live panel on a terminal, plain lines elsewhere. Both go to stderr."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.apps.cli.follow import Look
from orchestrator.apps.money import about_text, in_all_text, rows_text
from orchestrator.core.caps import Scope, held_text
from orchestrator.core.cost import to_units, to_usd, usd_text
from orchestrator.core.lifecycle import ItemState
from orchestrator.core.waiting import is_usual, kind_of

__all__ = ["LivePanel", "PlainLines", "bytes_text", "clock_text", "money_text", "screen", "usd_text"]

LINE_EVERY_S = 5.0
SAME_LINE_EVERY_S = 60.0  # while nothing changes
LONG_REASON = 100


def clock_text(seconds: float | None) -> str:
    """`1:02:03` or `2:03`; a dash where unknown."""
    if seconds is None:
        return "–"
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def bytes_text(number: int) -> str:
    """`1.2 GB`, `340 kB`, `12 B`."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= size:
            return f"{number / size:.{1 if number < 10 * size else 0}f} {unit}"
    return f"{number} B"


def money_text(look: Look) -> str:
    """What is spent, of how much, and what is not known. In short: all digits of it, twice a second, are no calm sight."""
    counts = look.counts
    text = about_text(counts.spent_usd)
    own = [bound for bound in look.bounds if bound.cap.scope is Scope.BATCH]
    if own:
        text += f" of {usd_text(to_usd(own[0].cap.units))}"
    if counts.cost_unknown_items:
        text += f" + {rows_text(counts.cost_unknown_items)} of unknown cost"
    held = held_text(to_units(counts.reserved_usd), is_out=counts.is_out) if look.bounds else ""
    tightest = min(look.bounds, key=lambda bound: bound.left_units, default=None)
    others = "" if tightest is None or tightest in own else tightest.spent_text
    return ", ".join(part for part in (text, held, others) if part)


def _parts(look: Look) -> dict[str, int]:
    by = look.counts.by_state
    return {
        "done": by.get(ItemState.SUCCEEDED, 0),
        "running": by.get(ItemState.CLAIMED, 0) + by.get(ItemState.RUNNING, 0),
        "downloading": by.get(ItemState.COLLECTING, 0),
        "unsure": by.get(ItemState.UNSURE, 0),
        "failed": by.get(ItemState.FAILED, 0),
        "canceled": by.get(ItemState.CANCELED, 0),
        "waiting": by.get(ItemState.PENDING, 0),
    }


def _rate_text(look: Look) -> str:
    limit = f" of {look.limit_per_minute:,.0f}" if look.limit_per_minute else ", no limit set"
    money = f", {about_text(look.usd_per_minute)} per minute" if look.usd_per_minute else ""
    return f"{look.per_minute:,.0f} per minute{limit}{money}"


class LivePanel:
    """A panel that redraws itself in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> "LivePanel":
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, look: Look) -> None:
        """Draw this moment."""
        self._live.update(_panel(look))


_COLOURS = {"done": "green", "running": "cyan", "downloading": "blue", "unsure": "yellow", "failed": "red",
            "canceled": "magenta", "waiting": "dim"}


def _panel(look: Look) -> Panel:
    parts, total = _parts(look), look.counts.total
    ended = parts["done"] + parts["failed"] + parts["canceled"]
    counts = Text("  ").join(Text.assemble((f"{value:,}", f"bold {_COLOURS[name]}"), f" {name}")
                             for name, value in parts.items() if value or name in ("done", "running", "failed"))
    facts = Table.grid(padding=(0, 2))
    facts.add_row("rate", _rate_text(look))
    facts.add_row("spent", money_text(look))
    if look.projected_usd:
        facts.add_row("in all", in_all_text(look.projected_usd, ends_at_usd=look.ends_at_usd))
    facts.add_row("time", f"{clock_text(look.elapsed_s)} elapsed, {clock_text(look.eta_s)} to the last submission")
    if look.reason:
        facts.add_row("waiting", Text(look.reason, style="dim" if is_usual(look.reason) else "yellow"))
    bar = Table.grid(expand=True)  # a bar alone ends without a line's end, and swallows what follows
    bar.add_row(ProgressBar(total=max(1, total), completed=ended))
    share = Text(f"{ended:,} of {total:,} rows", style="bold")
    return Panel(Group(share, bar, counts, Text(), facts), title=f"[bold]{look.batch.id}[/] · {look.batch.target.name}",
                 title_align="left", border_style="cyan")


class PlainLines:
    """One line now and then, for logs and pipes."""

    def __init__(self, stream: TextIO, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._monotonic = monotonic
        self._last_s = float("-inf")
        self._said: tuple[str, str | None] | None = None
        self._told: str | None = None  # the reason that was told in full

    def __enter__(self) -> "PlainLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def show(self, look: Look) -> None:
        """Print a line every few seconds, once a minute while nothing moves, and at once when the reason for waiting changes."""
        now_s = self._monotonic()
        parts = ", ".join(f"{value:,} {name}" for name, value in _parts(look).items() if value)
        kind = kind_of(look.reason)
        every_s = SAME_LINE_EVERY_S if self._said == (parts, kind) else LINE_EVERY_S
        before = self._said[1] if self._said else None
        is_new_reason = kind != before and not (is_usual(kind) and is_usual(before))
        if self._said and now_s - self._last_s < every_s and not is_new_reason:
            return
        self._last_s, self._said = now_s, (parts, kind)
        in_all = ""
        if look.projected_usd:
            in_all = f", in all {in_all_text(look.projected_usd, ends_at_usd=look.ends_at_usd)}"
        waiting = self._waiting(look.reason)
        print(f"{clock_text(look.elapsed_s)}  {parts}; {_rate_text(look)}; {money_text(look)}{in_all}{waiting}",
              file=self._stream, flush=True)

    def _waiting(self, reason: str | None) -> str:
        """A long reason is told once, and then by its kind."""
        if reason is None:
            return ""
        is_told, self._told = reason == self._told, reason
        return f"; waiting: {kind_of(reason) if is_told and len(reason) > LONG_REASON else reason}"


def screen(*, quiet: bool = False) -> LivePanel | PlainLines:
    """The screen that fits where stderr goes."""
    console = Console(stderr=True)
    return LivePanel(console) if console.is_terminal and not quiet else PlainLines(sys.stderr)
