"""`costs`: what was spent, and on what, as a table, JSON, Parquet or CSV."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.look import here
from orchestrator.apps.cli.steer import absolute
from orchestrator.apps.money import coming_text, more_text, rows_text, spread_text, sum_text
from orchestrator.apps.pricing import at_todays_price, now_document, now_line
from orchestrator.core.coming import NOTHING, Coming, coming
from orchestrator.core.coming import together as all_coming
from orchestrator.core.cost import to_usd, usd_text
from orchestrator.core.errors import BadInput
from orchestrator.core.reckoning import PricedNow
from orchestrator.core.spending import BATCH, By, Line, Spent, as_json, by_of, compared, record_of
from orchestrator.flow.spending import spending
from orchestrator.wiring import Settings

MOST_LINES = 50
_SUFFIXES = (".parquet", ".csv")


@dataclass(frozen=True, slots=True)
class Report:
    """The lines, all together, and what they are of."""

    by: By
    lines: list[Line]
    together: Spent
    coming: Coming = NOTHING  # what is out of them, and may still cost something
    now: PricedNow | None = None  # of one batch: what its rows of unknown cost come to at the price that there is now

    def records(self) -> list[dict[str, Any]]:
        """A line each, its key under the name of its kind; cells of a column under `value`."""
        return [{self.key: line.key, **record_of(line.spent), **self._compared([line])} for line in self.lines]

    def total(self) -> dict[str, Any]:
        """All lines together."""
        return {**record_of(self.together), **self._compared(self.lines)}

    def columns(self) -> list[str]:
        """The names, also where there is no line."""
        return [self.key, *self.total()]

    def _compared(self, lines: list[Line]) -> dict[str, Decimal | None]:
        """Only batches were estimated."""
        return compared(lines) if self.by.kind == BATCH else {}

    @property
    def key(self) -> str:
        """What the first column is called."""
        return self.by.kind if self.by.column is None else "value"


async def told(settings: Settings, name: str | None, *, by: str) -> Report:
    """The report of one batch, or of all. Raises BadInput."""
    kind = by_of(by)
    async with wiring.rooms(settings, token_needed=False) as rooms:
        batch = None if name is None else await rooms.ledger.find(name)
        lines, together = await spending(rooms, kind, batch=batch)
        alive = await rooms.ledger.live_batches() if batch is None else [batch]
        coming_of = [coming(one, await rooms.ledger.counts(one.pk), rooms.budget) for one in alive]
        now = None if batch is None else await at_todays_price(rooms, batch, settings)
    return Report(kind, lines, together, all_coming(coming_of), now)


async def costs(name: str | None, *, by: str, to: str | None, of_invoice: bool = False) -> Ending:
    """Look, and write it down where asked. `of_invoice`: options were given that mean nothing without an invoice."""
    if of_invoice:
        raise BadInput("--columns, --from, --until and --account are for --invoice FILE")
    check_suffix(to)
    report = await told(here(), name, by=by)
    document: dict[str, Any] = {"by": by, "costs": [as_json(record) for record in report.records()],
                                "total": as_json(report.total()), "to_come": report.coming.to_json(),
                                "priced_now": now_document(report.now)}
    if to is None:
        return Ending(Exit.DONE, document, tuple(_table(report)))
    path = await written(to, report.records(), columns=report.columns())
    return Ending(Exit.DONE, document | {"written": path}, (f"written: {path}",))


def check_suffix(to: str | None) -> None:
    """Raises BadInput for a file that would be neither Parquet nor CSV."""
    if to is not None and not to.endswith(_SUFFIXES):
        raise BadInput(f"--to {to}: end the name in {' or '.join(_SUFFIXES)}")


async def written(to: str, records: list[dict[str, Any]], *, columns: list[str]) -> str:
    """Write a table; where it is. Raises BadInput."""
    path = absolute(to)
    try:
        await asyncio.to_thread(wiring.write_table, path, records, columns=columns)
    except OSError as error:
        raise BadInput(f"--to {to} cannot be written: {error.strerror or error}. Choose another --to") from error
    return path


def _table(report: Report) -> list[str]:
    """Right-aligned figures under their names; what is nothing is a dash, and what nobody knows is said."""
    shown = report.lines[:MOST_LINES]
    compares = report.by.kind == BATCH
    cells = [[report.key, "bought rows", "predictions", "spent", *(("estimated", "difference") if compares else ()),
              "failed", "canceled", "surplus", "unknown"],
             *(_cells(line.key or "(empty)", line.spent, [line] if compares else None) for line in shown),
             _cells("together", report.together, report.lines if compares else None)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))]
    lines = ["  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
             for line in cells]
    left = len(report.lines) - len(shown)
    if left > 0:
        lines.insert(-1, f"… and {left:,} more; --json and --to have all")
    return lines + _footnotes(report.together) + [line for line in (now_line(report.now), coming_text(report.coming)) if line]


def _footnotes(together: Spent) -> list[str]:
    """What the sums do not say of themselves."""
    lines = []
    if together.estimated_units:
        lines.append(f"{usd_text(to_usd(together.estimated_units))} of it is estimated: the bill of a deployment or a private "
                     "model counts idle time as well")
    if together.unknown_rows:
        what = f"{rows_text(together.unknown_rows)} {'costs' if together.unknown_rows == 1 else 'cost'}"
        lines.append(f"what {what} is not known, and not in these sums")
    return lines


def _cells(key: str, spent: Spent, lines: list[Line] | None) -> list[str]:
    figures = record_of(spent)
    return [key, f"{spent.rows:,}", f"{spent.predictions:,}",
            sum_text(Decimal(figures["spent_usd"]), unknown_rows=spent.unknown_rows),
            *([] if lines is None else _estimated(compared(lines))),
            *(_or_dash(Decimal(figures[name])) for name in ("failed_usd", "canceled_usd", "surplus_usd")),
            rows_text(spent.unknown_rows) if spent.unknown_rows else "–"]


def _estimated(figures: dict[str, Decimal | None]) -> list[str]:
    """What was expected, with its spread, and what was spent beyond it or below."""
    low, usd, high = (figures[f"estimated_{name}_usd"] for name in ("low", "expected", "high"))
    return [spread_text(low, usd, high), more_text(figures["difference_usd"], is_about=True)]


def _or_dash(usd: Decimal) -> str:
    return usd_text(usd) if usd else "–"
