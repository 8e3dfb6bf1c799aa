"""`plan`: every row read and checked, what they will cost and how long that takes, and what nobody can know before."""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.foresight import Foresight, Storage, foresee, goes_on_by, no_rows, storage_of, too_small
from orchestrator.apps.cli.options import RunOptions, order_of
from orchestrator.apps.cli.panel import bytes_text, clock_text
from orchestrator.apps.money import about_text
from orchestrator.core.caps import BUDGET, SETTING, Bound, Cap, Scope, stopped
from orchestrator.core.cost import to_units, to_usd, usd_text
from orchestrator.core.deadline import TIMES_THE_SLOWEST, duration_text
from orchestrator.core.estimate import TRY_FIRST, Estimate, Figure
from orchestrator.core.examined import Examined
from orchestrator.core.ports import Rooms
from orchestrator.flow.ingest import Prepared, check, output_to, prepare, refusal
from orchestrator.wiring import read_settings

SLOW = 0.9


async def plan(options: RunOptions) -> Ending:
    """Nothing is spent and nothing kept; a ledger that is there is asked what such rows came to before."""
    order, home = order_of(options)
    settings = read_settings(home)
    async with wiring.rooms(settings, ledger_needed=False) as rooms:
        prepared = await prepare(rooms, order, book=wiring.price_book(settings))
        examined = await check(rooms, prepared)
        if (refused := refusal(prepared, examined)) is not None:
            raise refused
        foresight = await foresee(rooms, prepared, examined, options=options, is_new=wiring.is_new(settings))
        planned = Planned(options, prepared, examined, foresight, _per_minute(rooms, prepared),
                          storage_of(foresight.past, rows=foresight.estimate.rows,
                                     folder=output_to(prepared.order, "", rooms.clock.now())))
        return Ending(planned.code, planned.document(), tuple(planned.lines()))


def _per_minute(rooms: Rooms, prepared: Prepared) -> float:
    of_model = rooms.tempo.of_model(prepared.target.name).per_minute
    rates = [r for r in (prepared.order.job.limits.per_minute, of_model, rooms.tempo.creates_per_minute) if r]
    return float(min(rates)) if rates else 0.0


@dataclass(frozen=True, slots=True)
class Planned:
    """All that `plan` has to tell."""

    options: RunOptions
    prepared: Prepared
    examined: Examined
    foresight: Foresight
    per_minute: float  # 0: no rate is set
    storage: Storage

    @property
    def estimate(self) -> Estimate:
        """Of the rows that will be bought."""
        return self.foresight.estimate

    @property
    def saved_usd(self) -> Decimal | None:
        """What `duplicates: once` would save; None: not known, or it is so ordered or some rows are bought already."""
        expected = self.estimate.expected.usd
        return None if expected is None or self._once or self._is_begun else expected * self.examined.equal_rows

    @property
    def _is_begun(self) -> bool:
        return self.foresight.left is not None

    @property
    def _once(self) -> bool:
        return self.prepared.order.job.duplicates is not None

    @property
    def _minutes(self) -> float | None:
        return self.estimate.rows / self.per_minute if self.per_minute else None

    def document(self) -> dict[str, Any]:
        """The document of `--json`."""
        prepared, examined, told = self.prepared, self.examined, self.estimate.to_json()
        deadline_s, saved = self.foresight.deadline_s, self.saved_usd
        return {
            "job": prepared.order.name, "model": prepared.target.name, "run_key": prepared.run_key, "rows": examined.rows,
            "bad_rows": examined.bad, "equal_rows": self.examined.equal_rows, "rows_to_buy": self.estimate.rows,
            "saved_by_once_usd": _plain(saved),
            "per_minute": self.per_minute or None, "minutes": None if self._minutes is None else round(self._minutes, 2),
            "budget_usd": _plain(self._cap_usd), "caps": [self._cap_document(bound) for bound in self.foresight.bounds or ()],
            "worst_case_usd": told["worst_case_usd"], "reserved_per_row_usd": told["per_row"]["worst_case_usd"],
            "unit": self._unit, "estimate": told, "proposed_cancel_after_s": deadline_s,
            "reserved_per_row_then_usd": _plain(self.foresight.reserved_then_usd), "history": self.foresight.document(),
            "storage_bytes": self.storage.needed, "free_bytes": self.storage.free, "not_known": self.not_known(),
            "columns": prepared.columns, "inputs": sorted(prepared.plan.fed), "warnings": self.warnings(),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        bad = f" ({self.examined.bad:,} bad rows will be skipped)" if self.examined.bad else ""
        name, model, rows = self.prepared.order.name, self.prepared.target.name, self.examined.rows
        shown = [("inputs", [", ".join(sorted(self.prepared.plan.fed))]), ("buys", [self._bought()]), ("time", [self._time()]),
                 ("uses", self._used()), ("cost", self._cost()), ("deadline", self._deadline()), ("storage", [self._stored()])]
        block = [f"  {label if not n else '':<9} {line}" for label, lines in shown for n, line in enumerate(lines)]
        notes = [f"  {'note':<9} {warning}" for warning in self.warnings()]
        shortened = block[:1] if not rows else block[:2] if self._is_begun and not self.estimate.rows else block
        return [f"{name}: {rows:,} rows for {model}, all checked{bad}", *shortened, *notes, self._last()]

    @property
    def code(self) -> Exit:
        """A cap under which no row can ever go is a mistake in the job; one that is used up stops `run` as well."""
        if self._blocked is None:
            return Exit.DONE
        return Exit.BAD_INPUT if too_small(self.prepared) else Exit.BUDGET

    @property
    def _blocked(self) -> Cap | None:
        """The first cap under which not one row can be bought, and nothing is out that could change it."""
        if not self.estimate.rows:
            return None
        stand = self.foresight.bounds
        bounds = [Bound(cap, 0, 0) for cap in self.prepared.caps] if stand is None else stand
        return next((bound.cap for bound in bounds if self._is_used_up(bound) and not bound.waits), None)

    def _is_used_up(self, bound: Bound) -> bool:
        worst = self.estimate.worst_usd
        return worst is not None and not bound.affordable(count=1, reserve_units=to_units(worst))

    def _last(self) -> str:
        if not self.examined.rows:
            return f"  {'note':<9} {no_rows(self.prepared)}"
        by_hand = None if self.foresight.batch is None else goes_on_by(self.foresight.batch)
        if (cap := self._blocked) is not None:
            return f"Nothing was spent, and nothing can be bought: raise {SETTING[cap.scope]}, and run it again."
        if by_hand is not None:
            return f"Nothing was spent. To go on: {by_hand}"
        if not self._is_begun:
            return f"Nothing was spent. To buy it: {self.options.to_buy()}"
        if not self.estimate.rows:
            return "Nothing was spent, and nothing is left to buy."
        return f"Nothing was spent. To go on: {self.options.to_buy()}"

    def _bought(self) -> str:
        rows, equal = self.estimate.rows, self.examined.equal_rows
        if self._is_begun:
            limit = "" if self.options.limit is None else " and that --limit lets start"
            return f"{rows:,} rows of {self.examined.good:,}, those that were never started{limit}"
        is_limited = rows == self.options.limit and rows < self.examined.good
        text = f"{rows:,} rows" + (f" of {self.examined.good:,} (--limit)" if is_limited else "")
        if not equal:
            return f"{text}, all different"
        if self._once:
            return f"{text}; {equal:,} more equal one of them, and share what it buys"
        equal_one = "1 of all equals an earlier one" if equal == 1 else f"{equal:,} of all equal an earlier one"
        saved = "what these cost" if self.saved_usd is None else f"about {about_text(self.saved_usd)}"
        seedless = self.examined.seedless_equal_rows
        unlike = f"; {seedless:,} of them leave the seed empty, and would be made differently" if seedless else ""
        return f"{text}; {equal_one}: `duplicates: once` saves {saved}{unlike}"

    def _time(self) -> str:
        past, rows, minutes = self.foresight.past, self.estimate.rows, self._minutes
        at_rate = f"at {self.per_minute:,.0f} per minute"
        pace = "no rate is set" if minutes is None else f"at least {clock_text(minutes * 60)} {at_rate}"
        half_s, slow_s = (None, None) if past is None else (past.took_s(0.5), past.took_s(SLOW))
        if half_s is None or slow_s is None:
            return pace
        in_flight = self.prepared.order.job.limits.in_flight
        by_flight = in_flight * 60 / half_s if half_s > 0 else math.inf
        if by_flight < (self.per_minute or math.inf) and rows > in_flight:
            pace = f"at least {clock_text(rows / by_flight * 60)}, as {in_flight:,} in flight come to {by_flight:,.0f} per minute"
        return f"{pace}; half took {_seconds(half_s)} before, nine in ten {_seconds(slow_s)}"

    def _cost(self) -> list[str]:
        found, cap = self.estimate, self._unspent_usd
        figures = [("low", found.low), ("expected", found.expected), ("high", found.high)]
        if len({figure.usd for _, figure in figures}) == 1:
            figures = figures[1:2]
        at_most = found.in_all(found.worst_usd)
        told = [(name, _in_all(found, figure, beside=at_most), figure.how) for name, figure in figures]
        if at_most is None or found.worst_usd is None:
            told.append(("at most", "not known", "nothing bounds what a row may cost"))
        else:
            ends = "" if cap is None or cap >= at_most else f"; the budget ends it at {usd_text(cap)}"
            reserved = " is reserved" if self.prepared.caps else ""
            told.append(("at most", usd_text(at_most), f"{usd_text(found.worst_usd.normalize())} a row{reserved}{ends}"))
        width = max(len(usd) for _, usd, _ in told)
        return [f"{name:<9} {usd:>{width}}  {how}" for name, usd, how in told]

    @property
    def _cap_usd(self) -> Decimal | None:
        return None if self.prepared.cap_units is None else to_usd(self.prepared.cap_units)

    @property
    def _unspent_usd(self) -> Decimal | None:
        """What may still be spent, by the tightest cap; None: there is no cap."""
        stand = self.foresight.bounds or [Bound(cap, 0, 0) for cap in self.prepared.caps]
        return min((to_usd(max(0, bound.cap.units - bound.spent_units)) for bound in stand), default=None)

    def _cap_document(self, bound: Bound) -> dict[str, Any]:
        usd = {"cap": bound.cap.units, "spent": bound.spent_units, "reserved": bound.reserved_units, "left": bound.left_units}
        return {"setting": SETTING[bound.cap.scope], **{f"{name}_usd": _plain(to_usd(units)) for name, units in usd.items()},
                "rows_left": self._rows_left(bound)}

    def _rows_left(self, bound: Bound) -> int | None:
        """About so many of these rows can be bought under a cap: while what is left is enough for the worst case of one more."""
        each, worst = self.estimate.expected.usd, self.estimate.worst_usd
        if each is None or worst is None:
            return None
        left = to_usd(max(0, bound.left_units)) - worst
        return 0 if left < 0 else self.estimate.rows if not each else min(self.estimate.rows, int(left / each) + 1)

    def _deadline(self) -> list[str]:
        """Only where the price is one of seconds: nothing else is bounded by time."""
        foresight, now_s = self.foresight, self.prepared.order.job.limits.cancel_after
        if self._unit != "second":
            return []
        has = "none is set" if now_s is None else f"{duration_text(now_s)} is set"
        if foresight.deadline_s is None:
            return [f"{has}; how long is enough shows once some rows were bought"]
        then_usd, times = foresight.reserved_then_usd, f"{TIMES_THE_SLOWEST} times as long as the slowest"
        verb = "reserves" if self.prepared.caps else "at most"
        reserved = "" if then_usd is None else f", {verb} {usd_text(then_usd.normalize())} a row"
        return [f"{has}; `cancel_after: {duration_text(foresight.deadline_s)}`, {times}{reserved}"]

    @property
    def _unit(self) -> str | None:
        price = self.prepared.pricing.price
        return None if price is None else price.unit

    def _used(self) -> list[str]:
        """What was counted before, where nothing else tells."""
        past, unit = self.foresight.past, self._unit
        if past is None or unit not in ("second", "token"):
            return []
        if unit == "second":
            seconds = past.mean("seconds")
            return [] if seconds is None else [f"{seconds:,.2f} seconds a prediction, on the average"]
        read, wrote = past.mean("quantity"), past.mean("quantity_out")
        each = f"{read:,.0f} tokens read and {wrote:,.0f} written" if read is not None and wrote is not None else ""
        return [f"{each} a prediction, on the average"] if each else []

    def _stored(self) -> str:
        free = f"{bytes_text(self.storage.free)} free"
        if self.storage.needed is None:
            is_new, brought_none = self.foresight.past is None, ", as no such row has brought its files home"
            return f"not known{' before some rows were bought' if is_new else brought_none}; {free}"
        needed = f"about {bytes_text(self.storage.needed)}" if self.storage.needed else "none, as such rows brought no files"
        return f"{needed}; {free}" + (", which is not enough" if self.storage.is_short else "")

    def warnings(self) -> list[str]:
        """What has to be said before anything is spent."""
        found = [*self.prepared.warnings, *too_small(self.prepared), *self.foresight.remarks]
        if (most := self.estimate.above_worst_usd) is not None and self.estimate.worst_usd is not None:
            found.append(_above_worst(most, self.estimate.worst_usd))
        found += self._too_dear()
        return found + self.storage.warnings()

    def _too_dear(self) -> list[str]:
        """The caps that these rows are expected to reach."""
        if not self.estimate.rows:
            return []
        expected, stand = self.estimate.in_all(self.estimate.expected.usd), self.foresight.bounds
        if stand is None:
            return [f"{_short(cap, expected, ' (what else was bought under it counts too)')}"
                    for cap in self.prepared.caps if expected is not None and expected > to_usd(cap.units)]
        return [note for bound in stand if (note := self._too_low(bound, expected))]

    def _too_low(self, bound: Bound, expected: Decimal | None) -> str | None:
        """How a cap stands that is not enough for all of these rows; None: it is, or it is too small for any."""
        worst, left = self.estimate.worst_usd, to_usd(max(0, bound.left_units))
        if worst is None or worst > to_usd(bound.cap.units):
            return None
        if self._is_used_up(bound) and not bound.waits:
            return stopped(bound, reserve_units=to_units(worst), day=self.foresight.day).removeprefix(f"{BUDGET}: ")
        if expected is None or expected <= left:
            return None
        rows = "" if (some := self._rows_left(bound)) is None else f"about {some:,} rows" if some != 1 else "about 1 row"
        spent = [f"{usd_text(to_usd(units))} {word}" for units, word in (
            (bound.spent_units, "of it are spent"), (bound.reserved_units, "are reserved")) if units]
        today = " today (UTC)" if bound.cap.scope.of_day and spent else ""
        bought = f"{' and '.join(spent)}{today}, and what is left, {usd_text(left)}," if spent else "it"
        return f"{_short(bound.cap, expected, '')}; {bought} buys {rows}"

    def not_known(self) -> list[str]:
        """What nobody can know now, and what would make it known."""
        found = self.estimate
        unknown = [f"{name} cost: {figure.how}" for name, figure in (
            ("low", found.low), ("expected", found.expected), ("high", found.high)) if figure.usd is None]
        unknown += ["at most: nothing bounds what a row may cost"] if found.worst_usd is None else []
        unknown += [f"storage: {TRY_FIRST}"] if self.storage.needed is None else []
        return unknown + ([f"cancel_after: {TRY_FIRST}"] if self._unit == "second" and self.foresight.deadline_s is None else [])


def _above_worst(most_usd: Decimal, worst_usd: Decimal) -> str:
    worst = usd_text(worst_usd.normalize())
    return (f"a row may cost {about_text(most_usd, beside=worst_usd)}, more than its worst case of {worst}: "
            "`budget.per_row_usd`, the price or a bound of the model is too low; under a cap the first such row pauses the batch")


def _plain(usd: Decimal | None) -> str | None:
    return None if usd is None else format(usd.normalize(), "f")


def _short(cap: Cap, expected_usd: Decimal, more: str) -> str:
    usd, setting = to_usd(cap.units), "" if cap.scope is Scope.BATCH else f" ({SETTING[cap.scope]})"
    return (f"the budget of {usd_text(usd)}{setting} will not be enough for all rows{more}: they are expected to cost "
            f"{about_text(expected_usd, beside=usd)}")


def _in_all(found: Estimate, figure: Figure, *, beside: Decimal | None) -> str:
    usd = found.in_all(figure.usd)
    return "not known" if usd is None else about_text(usd, beside=beside)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock_text(seconds)
