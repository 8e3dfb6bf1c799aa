"""What is known of a job's rows before they are bought: for `plan`, and for the question that `run` asks."""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.panel import bytes_text
from orchestrator.apps.money import spread_text
from orchestrator.core.caps import SETTING
from orchestrator.core.cost import to_usd, usd_text
from orchestrator.core.deadline import proposed_s
from orchestrator.core.errors import Unreachable
from orchestrator.core.estimate import Estimate
from orchestrator.core.examined import Examined
from orchestrator.core.history import History, history_of
from orchestrator.core.ports import Rooms
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


async def foresee(rooms: Rooms, prepared: Prepared, examined: Examined, *, limit: int | None,
                  is_new: bool) -> Foresight:
    """`is_new`: there is no ledger yet, and none is made by asking."""
    past, left, remarks = None, None, list[str]()
    if not is_new:
        try:
            past = history_of(await rooms.ledger.past(prepared.account, prepared.target))
            left = await rooms.ledger.left(prepared.run_key, limit=limit)
            if await rooms.ledger.known(prepared.run_key):
                remarks.append(f"there is a batch of this run key already: {_GOES_ON if left != 0 else _IS_STARTED}")
        except Unreachable as error:
            remarks.append(f"what such rows cost before is not known now: {error}")
    found = estimate_of(prepared, examined, past, limit=limit if left is None else left)
    price = prepared.pricing.price
    deadline_s = proposed_s(past) if price is not None and price.unit == "second" else None
    reserved = prepared.pricing.worst_case_usd(cancel_after_s=deadline_s, per_row_usd=None)
    return Foresight(found, past, deadline_s, reserved, (*remarks, *_of_the_past(prepared, past)), left)


_GOES_ON = "`run` goes on with it, and buys what is left of it; --fresh starts another one, of all rows"
_IS_STARTED = ("all of its rows were started; `run` brings home what is still out, `retry` tries failed rows again, --fresh buys "
               "all rows once more")


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
    rows, likely = f"{found.rows:,} rows of {prepared.model.name}", spread_text(low, expected, high)
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
    """Budgets in which not even one row can be bought."""
    row = worst_case_usd(prepared.order.job, prepared.pricing)
    caps = [(to_usd(cap.units), SETTING[cap.scope]) for cap in prepared.caps]
    return [f"the budget of {usd_text(usd)} is less than one row may cost at worst, {usd_text(row)}: raise {setting}, or nothing "
            "can be bought" for usd, setting in caps if row is not None and row > usd]
