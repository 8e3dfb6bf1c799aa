"""Caps on money: which there are, what they leave, and what is said where one binds or was not kept. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

from orchestrator.core.cost import to_units, to_usd, usd_text
from orchestrator.core.job import MOST_USD, Budget, Job, Money

BUDGET = "budget"  # how the reason of every wait and pause for money begins
WAITING = f"{BUDGET}: waiting for running rows"


class Scope(StrEnum):
    """Whose money a cap bounds. Where several bind, the first of them is told: the others would still hold when a day is over."""

    BATCH = "batch"
    JOB = "job"
    ACCOUNT = "account"
    JOB_DAY = "job and day"
    ACCOUNT_DAY = "account and day"

    @property
    def of_job(self) -> bool:
        """Whether it is the job's batches that share it, and not all of the account."""
        return self in (Scope.JOB, Scope.JOB_DAY)

    @property
    def of_day(self) -> bool:
        """Whether it counts only what is claimed on one day."""
        return self in (Scope.JOB_DAY, Scope.ACCOUNT_DAY)


SETTING = {
    Scope.BATCH: "budget.usd in the job", Scope.JOB: "budget.job_usd in the job",
    Scope.ACCOUNT: "account_usd under [budget] in the settings", Scope.JOB_DAY: "budget.job_per_day_usd in the job",
    Scope.ACCOUNT_DAY: "account_per_day_usd under [budget] in the settings"}
_WAITING = {Scope.BATCH: WAITING, Scope.JOB: f"{WAITING} of this job", Scope.ACCOUNT: f"{WAITING} of this account",
            Scope.JOB_DAY: f"{WAITING} of this job, under the day's cap",
            Scope.ACCOUNT_DAY: f"{WAITING} of this account, under the day's cap"}
_BY_WHOM = {Scope.BATCH: "", Scope.JOB: " by all batches of this job", Scope.ACCOUNT: " by all batches of this account",
            Scope.JOB_DAY: " by this job on {day} (UTC)", Scope.ACCOUNT_DAY: " by this account on {day} (UTC)"}


@dataclass(frozen=True, slots=True)
class AccountBudget:
    """What all batches of an account in this ledger may cost together, in USD; None: no cap. 0 is a cap of nothing."""

    account_usd: Money | None = None
    account_per_day_usd: Money | None = None  # claimed on one day, UTC


@dataclass(frozen=True, slots=True)
class Cap:
    """So many units of 10^-12 USD at most."""

    scope: Scope
    units: int


@dataclass(frozen=True, slots=True)
class Bound:
    """How a cap stands. `waits`: something of its scope is out that may free enough for a row."""

    cap: Cap
    spent_units: int
    reserved_units: int
    out_units: int = 0  # of the reserved ones, those of what is out; not asked of a cap that does not bind
    waits: bool = False

    @property
    def left_units(self) -> int:
        """What may still be reserved; negative where more was spent than the cap."""
        return self.cap.units - self.spent_units - self.reserved_units

    def affordable(self, *, count: int, reserve_units: int | None) -> int:
        """Rows, up to `count`, that there is money for: none where nobody knows what one may cost."""
        if reserve_units is None or self.left_units < 0:
            return 0
        return min(count, self.left_units // reserve_units) if reserve_units else count

    def beside(self, out_units: int, *, reserve_units: int | None) -> "Bound":
        """The same, told what is reserved for rows that are out: their ends can free no more than that."""
        may_free = reserve_units is not None and out_units > 0 and self.left_units + out_units >= reserve_units
        return replace(self, out_units=out_units, waits=may_free)

    @property
    def spent_text(self) -> str:
        """`$0.80 of $1.00 spent by all batches of this job`."""
        by_whom = _BY_WHOM[self.cap.scope].replace(" on {day} (UTC)", " today (UTC)")
        return f"{_usd(self.spent_units)} of {_usd(self.cap.units)} spent{by_whom}"

    @property
    def reason(self) -> str:
        """Why no more may be claimed, in the words of `core.ports.Claimable`."""
        scope = self.cap.scope
        return _WAITING[scope] if self.waits else BUDGET if scope is Scope.BATCH else f"{BUDGET}: {scope}"


def caps_of(job: Job, account: AccountBudget) -> tuple[Cap, ...]:
    """Every cap that a batch of this job is bought under, in the order in which they are told."""
    budget = job.budget or Budget()
    said = {Scope.BATCH: budget.usd, Scope.JOB: budget.job_usd, Scope.ACCOUNT: account.account_usd,
            Scope.JOB_DAY: budget.job_per_day_usd, Scope.ACCOUNT_DAY: account.account_per_day_usd}
    return tuple(Cap(scope, to_units(usd)) for scope, usd in said.items() if usd is not None)


def ends_at_usd(bounds: Sequence[Bound], *, own_units: int) -> Decimal | None:
    """The most that a batch can come to which has spent and reserved `own_units`; None: no cap ends it. That of a day does not:
    it goes on on the next."""
    most = [bound.cap.units if bound.cap.scope is Scope.BATCH else own_units + max(0, bound.left_units)
            for bound in bounds if not bound.cap.scope.of_day]
    return to_usd(min(most)) if most else None


def shared(caps: Sequence[Cap]) -> tuple[Cap, ...]:
    """Those that other batches have a part in."""
    return tuple(cap for cap in caps if cap.scope is not Scope.BATCH)


NO_BUDGET = AccountBudget()


def day_of(at: datetime) -> str:
    """The day (UTC, YYYY-MM-DD) that the money of an attempt claimed then counts for, its reservation and its charge alike."""
    return at.astimezone(UTC).date().isoformat()


def is_budget(reason: str | None) -> bool:
    """Whether a batch waits or is paused for its money."""
    return reason == BUDGET or (reason or "").startswith(f"{BUDGET}: ")


def is_spent(reason: str | None) -> bool:
    """Of a reason of `core.ports.Claimable`: whether only a person, or another day, can let the batch go on."""
    return is_budget(reason) and not (reason or "").startswith(WAITING)


def stopped(bound: Bound, *, reserve_units: int | None, day: str) -> str:
    """Why a batch is paused whose next row a cap has no money for, and what to do."""
    cap, setting = bound.cap, SETTING[bound.cap.scope]
    if reserve_units is None:
        return (f"{BUDGET}: what one row may cost at worst is not known, so {setting} cannot be kept; what to add to the job is "
                "said when you run it again")
    spent = f"{_usd(bound.spent_units)} of {_usd(cap.units)} are spent{_BY_WHOM[cap.scope].format(day=day)}"
    held = {"reserved for rows that are out": bound.out_units,
            "held for rows whose cost is not known": bound.reserved_units - bound.out_units}
    spent += "".join(f" and {_usd(units)} are {what}" for what, units in held.items() if units > 0)
    next_row = f"{BUDGET}: {spent}, and the next row may need up to {_usd(reserve_units)}"
    if cap.scope.of_day and reserve_units <= cap.units:
        return f"{next_row}; it goes on after 00:00 UTC: run it again then, or raise {setting} first"
    return f"{next_row}; raise {setting} and run it again"


def alarm(row: int, *, charge_units: int, reserved_units: int, is_absurd: bool = False) -> str | None:
    """Why a batch is paused of which a row cost more than was reserved for it: a cap is only as good as what is reserved. None:
    it did not; nor does a row count of which nothing was reserved any more. `is_absurd`: by its price it cost more than a job may
    say of money."""
    units = to_units(Decimal(MOST_USD)) if is_absurd else charge_units
    if not 0 < reserved_units < units:
        return None
    cost = f"{'more than ' if is_absurd else ''}{_usd(units)}"
    return (f"{BUDGET}: row {row} cost {cost}, and only {_usd(reserved_units)} were reserved for it, so the "
            "cap may not hold; raise budget.per_row_usd, correct the price or look at the model, and run it again")


def is_alarm(reason: str | None) -> bool:
    """Whether a batch is paused by an `alarm`."""
    return (reason or "").startswith(f"{BUDGET}: row ")


def held_text(reserved_units: int, *, is_out: bool) -> str:
    """What is reserved, in words; empty where nothing is. `is_out`: rows are in the air, and part of it is theirs."""
    if not reserved_units:
        return ""
    return f"{_usd(reserved_units)} {'reserved' if is_out else 'held for rows whose cost is not known'}"


def _usd(units: int) -> str:
    return usd_text(to_usd(units))
