"""What is known of a job's rows before they are bought: for `plan`, and for the question that `run` asks."""

from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.options import RunOptions
from orchestrator.apps.cli.panel import bytes_text
from orchestrator.apps.money import spread_text
from orchestrator.core.caps import SETTING, Bound, day_of
from orchestrator.core.cost import to_units, to_usd, usd_text
from orchestrator.core.deadline import proposed_s
from orchestrator.core.errors import Unreachable
from orchestrator.core.estimate import Estimate
from orchestrator.core.examined import Examined
from orchestrator.core.failing import FAILING
from orchestrator.core.history import History, history_of
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Begun, Met, Rooms
from orchestrator.core.quote import worst_case_usd
from orchestrator.flow.ingest import Prepared, estimate_of


@dataclass(frozen=True, slots=True)
class Foresight:
    """What the rows are expected to cost, what is known of the past, and a deadline by it with what that would reserve.

    `left`: rows that were never started of the batch that there is already; the estimate is of these. None: there is none yet, or
    its rows are still being read."""

    estimate: Estimate
    past: History | None
    deadline_s: float | None = None  # None: not known, or nothing that a deadline bounds
    reserved_then_usd: Decimal | None = None
    remarks: tuple[str, ...] = ()
    left: int | None = None
    batch: Begun | None = None  # that there is already
    bounds: tuple[Bound, ...] | None = None  # how the caps stand; None: not known
    day: str = ""  # of which those of a day are told

    def document(self) -> dict[str, Any] | None:
        """The past as JSON; None: there is none."""
        past = self.past
        if past is None:
            return None
        means = {name: past.mean(field) for name, field in (("predict_seconds", "seconds"), ("units", "quantity"),
                                                            ("units_out", "quantity_out"))}
        return {"rows": past.rows, "attempts": len(past.attempts), "attempts_per_row": round(past.attempts_per_row, 3),
                "failed_share": round(past.failed_share, 4), "bytes_per_row": past.bytes_per_row,
                **{f"mean_{name}": None if mean is None else float(round(mean, 4)) for name, mean in means.items()},
                **{f"seconds_p{percent}": past.took_s(percent / 100) for percent in (50, 90, 99)}}


async def foresee(rooms: Rooms, prepared: Prepared, examined: Examined, *, options: RunOptions, is_new: bool) -> Foresight:
    """`is_new`: there is no ledger yet, and none is made by asking."""
    past, met, remarks, limit = None, _NOTHING if is_new else _UNKNOWN, list[str](), options.limit
    if not is_new:
        try:
            past = history_of(await rooms.ledger.past(prepared.account, prepared.target))
            met = await _met(rooms, prepared)
        except Unreachable as error:
            remarks.append(f"what such rows cost before is not known now: {error}")
    left = None if met.batch is None else _left(met.batch, limit)
    if met.batch is not None:
        remarks.append(f"there is a batch of this run key already: {_how_it_stands(met.batch, left)}")
    if (fresh := _of_fresh(met, prepared, options)) is not None:
        remarks.append(fresh)
    found = estimate_of(prepared, examined, past, limit=limit if left is None else left)
    price = prepared.pricing.price
    deadline_s = proposed_s(past) if price is not None and price.unit == "second" else None
    reserved = prepared.pricing.worst_case_usd(cancel_after_s=deadline_s, per_row_usd=None)
    return Foresight(found, past, deadline_s, reserved, (*remarks, *_of_the_past(prepared, past)), left, met.batch,
                     _unspent(prepared) if is_new else met.bounds, day_of(rooms.clock.now()))


_UNKNOWN = Met(None, None, None)
_NOTHING = Met(None, None, ())


def _unspent(prepared: Prepared) -> tuple[Bound, ...]:
    return tuple(Bound(cap, 0, 0) for cap in prepared.caps)


async def _met(rooms: Rooms, prepared: Prepared) -> Met:
    row = worst_case_usd(prepared.order.job, prepared.pricing, is_capped=bool(prepared.caps))
    return await rooms.ledger.met(prepared.run_key, account=prepared.account, job=prepared.order.name, caps=prepared.caps,
                                  reserve_units=None if row is None else to_units(row), now=rooms.clock.now())


def _left(batch: Begun, limit: int | None) -> int | None:
    """Rows that were never started and would be now; None: it is still being loaded."""
    rows = batch.never_started
    return rows if limit is None or rows is None else min(rows, max(0, limit - batch.started))


_IS_STARTED = ("all of its rows were started; `run` brings home what is still out, `retry` tries failed rows again, --fresh buys "
               "all rows once more")


def goes_on_by(batch: Begun) -> str | None:
    """What a person has to type where `run` alone does not go on with a batch that has rows left; None: it does."""
    is_failing = batch.state is BatchState.PAUSED and (batch.reason or "").startswith(FAILING)
    is_canceled = batch.state in (BatchState.CANCELED, BatchState.CANCELING)
    return f"orchestrator resume {batch.id}" if is_failing or is_canceled else None


def _how_it_stands(batch: Begun, left: int | None) -> str:
    """What there is of it, and what `run` would do."""
    by_hand = goes_on_by(batch)
    if batch.state in (BatchState.CANCELED, BatchState.CANCELING):
        return (f"{batch.id}, which was canceled; `run` buys nothing of it, `{by_hand}` goes on with it, --fresh buys all rows "
                "once more")
    if by_hand is not None:
        return (f"{batch.id}, which is paused, as {FAILING}; `{by_hand}` buys the rest all the same, `retry` tries failed rows "
                "again as well")
    if batch.state is BatchState.FINISHED:
        return (f"{batch.id}, which has finished; `run` buys nothing more, `retry` tries failed rows again, --fresh buys all "
                "rows once more")
    if left is None:
        return f"{batch.id}, whose rows were not all read; `run` reads the rest of them"
    if left:
        return "`run` goes on with it, and buys what is left of it; --fresh starts another one, of all rows"
    return f"{batch.started:,} of its rows were started, no fewer than --limit says" if batch.never_started else _IS_STARTED


async def bought_fresh(rooms: Rooms, prepared: Prepared, options: RunOptions) -> str | None:
    """A hint for a new batch where one that `--fresh` began has the same rows; None: there is none."""
    return _of_fresh(await _met(rooms, prepared), prepared, options)


def _of_fresh(met: Met, prepared: Prepared, options: RunOptions) -> str | None:
    """A key that was given by hand may look like one of these by chance."""
    fresh = met.fresh
    if fresh is None or met.batch is not None or prepared.order.run_key is not None:
        return None
    there = replace(options, run_key=fresh.run_key, fresh=False)
    return (f"batch {fresh.id} (--fresh, {fresh.state.value}) is of the same rows, and this one buys all of them again; to go on "
            f"with that one: {there.to_buy()}")


def _of_the_past(prepared: Prepared, past: History | None) -> list[str]:
    """What went wrong so often before that one should know."""
    cancel_after_s = prepared.order.job.limits.cancel_after
    slow_s = None if past is None else past.took_s(0.9)
    if past is None or past.rows < 3:
        return []
    found = []
    if past.failed_share >= 0.05:
        found.append(f"of {past.rows:,} rows bought before {past.failed_share:.0%} failed")
    if cancel_after_s is not None and slow_s is not None and slow_s > cancel_after_s:
        found.append(f"limits.cancel_after of {cancel_after_s:g} s would have ended one in ten of the rows bought before")
    return found


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that the files will need (None: not known), the folder they go to, and the bytes free there."""

    needed: int | None
    folder: str
    free: int

    @property
    def is_short(self) -> bool:
        """Whether they do not fit."""
        return self.needed is not None and self.needed > self.free

    def warnings(self) -> list[str]:
        """That they do not fit, where it is known."""
        return [f"the files will not fit: {self.folder} has {bytes_text(self.free)} free, and they need about "
                f"{bytes_text(self.needed or 0)}; make room, or choose another --output"] if self.is_short else []


def storage_of(past: History | None, *, rows: int, folder: str) -> Storage:
    """By what such rows brought home before."""
    per_row = None if past is None else past.bytes_per_row
    return Storage(None if per_row is None else per_row * rows, folder, wiring.free_bytes(Path(folder)))


def question(prepared: Prepared, found: Estimate) -> tuple[Decimal | None, str]:
    """What may be spent at worst, as far as anything tells (None: nothing does), and how a person is asked about it.

    The dearest tenth of what such rows cost before counts where nothing bounds it, or where that is above the worst case."""
    worst, low, expected, high = (found.in_all(usd) for usd in (
        found.worst_usd, found.low.usd, found.expected.usd, found.high.usd))
    rows, likely = f"{found.rows:,} rows of {prepared.target.name}", spread_text(low, expected, high, beside=worst)
    if worst is None:
        return high, f"{rows} may cost about {likely}, by what such rows cost before; nothing bounds it."
    if high is not None and high > worst:
        return high, f"{rows} may cost about {likely}, more than the {usd_text(worst)} that their worst case comes to."
    told = "" if expected is None or expected == worst else f"; expected: {likely}"
    return worst, f"{rows} may cost up to {usd_text(worst)}{told}."


def no_rows(prepared: Prepared) -> str:
    """That there is nothing to buy."""
    return f"the source {prepared.order.job.source.path} has no rows: there is nothing to buy"


def too_small(prepared: Prepared) -> list[str]:
    """Budgets in which not even one row can be bought, each with what to do."""
    row = worst_case_usd(prepared.order.job, prepared.pricing)
    caps = [(to_usd(cap.units), SETTING[cap.scope]) for cap in prepared.caps]
    return [f"the budget of {usd_text(usd)} is less than one row may cost at worst, {usd_text(row.normalize())}: raise "
            f"{setting}, or nothing can be bought" for usd, setting in caps if row is not None and row > usd]
