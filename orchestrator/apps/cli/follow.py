"""Follow a batch to its end: look at the ledger twice a second, show it, and know when and how it is over."""

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Protocol

from orchestrator import wiring
from orchestrator.apps.cli.ending import Exit
from orchestrator.apps.cli.speech import say
from orchestrator.apps.hints import why
from orchestrator.apps.machine import Machine
from orchestrator.core.caps import Bound, caps_of, ends_at_usd, is_budget
from orchestrator.core.cost import to_units
from orchestrator.core.errors import OrchestratorError, Unreachable
from orchestrator.core.failing import FAILING
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import IN_AIR_ITEM, BatchState, ItemState
from orchestrator.core.matching import last_moment
from orchestrator.core.ports import Rooms
from orchestrator.core.projecting import projected_usd
from orchestrator.core.records import Batch, Counts
from orchestrator.core.tempo import Tempo
from orchestrator.core.waiting import LOW_CREDIT, LOW_CREDIT_PER_MINUTE, is_outage, until
from orchestrator.flow.control import BY_OPERATOR, INTERRUPTED, LEFT, START_LIMIT, go_on
from orchestrator.flow.homecoming import OUTPUTS_REFUSED
from orchestrator.flow.report import write_all

LOOK_S = 0.5
RATE_WINDOW_S = 15.0
QUIET_S = 20.0  # an outage that nobody complains of for so long is over
_ANSWERED = (ItemState.RUNNING, ItemState.COLLECTING, ItemState.SUCCEEDED, ItemState.FAILED, ItemState.CANCELED)


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be shown of a batch at one moment."""

    batch: Batch
    counts: Counts
    per_minute: float  # purchases, over the last quarter minute
    limit_per_minute: float  # 0: none
    eta_s: float | None
    reason: str | None
    elapsed_s: float
    projected_usd: Decimal | None = None  # spent and still to be spent in all; None: nobody can say
    usd_per_minute: Decimal | None = None  # over the last quarter minute; None: nothing was spent in it, or nobody knows
    bounds: tuple[Bound, ...] = ()  # the caps that it is bought under, and how they stand

    @property
    def in_air(self) -> int:
        """Paid or perhaps paid predictions not yet home."""
        return self.counts.own(*IN_AIR_ITEM, ItemState.COLLECTING)

    @property
    def ends_at_usd(self) -> Decimal | None:
        """The most that its budgets let it come to; None: they do not end it."""
        return ends_at_usd(self.bounds, own_units=to_units(self.counts.spent_usd + self.counts.reserved_usd))


class Screen(Protocol):
    """Where progress is shown."""

    def show(self, look: Look) -> None:
        """Show this moment."""


@dataclass(slots=True)
class Follower:
    """Watches one batch; knows the limit, and since when there is an outage."""

    rooms: Rooms
    batch_id: str
    screen: Screen
    machine: Machine | None
    patience_s: float
    began_s: float  # this time and those below: clock.boottime(), for a clock set right is no outage of an hour
    last_trouble: str | None = None
    _outage_since_s: float | None = None
    _heard_s: float | None = None
    _shown: Look | None = None
    _answered: tuple[int, ...] = ()
    _lost: tuple[int, str] = (0, "")  # how many answers, and by when they are settled
    _spent: list[tuple[float, Decimal]] = field(default_factory=list)  # when, and how much by then

    async def follow(self, interrupted: asyncio.Event) -> Exit | None:
        """Until the batch is over (its exit code) or somebody interrupts (None)."""
        while not interrupted.is_set():
            try:
                self._shown = look = await self._look()
                self.screen.show(look)
                code = await self._over(look)
            except Unreachable as error:
                code = self._blind(str(error))
            if code is not None:
                return code
            with_timeout = asyncio.wait_for(interrupted.wait(), timeout=LOOK_S)
            await asyncio.gather(with_timeout, return_exceptions=True)
        return None

    def _blind(self, reason: str) -> Exit | None:
        """Nothing can be seen: what was seen last is shown, and why there is nothing newer."""
        if self._shown is not None:
            elapsed_s = self.rooms.clock.boottime() - self.began_s
            self.screen.show(replace(
                self._shown, reason=reason, per_minute=0.0, eta_s=None, elapsed_s=elapsed_s, usd_per_minute=None))
        return self._patience(reason)

    async def _look(self) -> Look:
        batch = await self.rooms.ledger.batch(self.batch_id)
        if batch is None:
            raise OrchestratorError(f"batch {self.batch_id} has gone from the ledger")
        counts = await self.rooms.ledger.counts(batch.pk)
        now_s = self.rooms.clock.boottime()
        left = counts.own(ItemState.PENDING)
        per_minute, usd = await self._bought_per_minute(batch, now_s), self._usd_per_minute(now_s, counts.spent_usd)
        eta_s = left / per_minute * 60 if per_minute > 0 and left else None
        reason = await self._reason(batch, left=left) or await self._unsure(batch, counts)
        limit = _limit(batch, self.rooms.tempo, reason)
        return Look(batch, counts, per_minute, limit, eta_s, reason, now_s - self.began_s, projected_usd(batch, counts),
                    usd if usd > 0 else None, await self._bounds(batch))

    async def _bought_per_minute(self, batch: Batch, now_s: float) -> float:
        """Purchases, those of rows that are tried again among them."""
        window_s = min(RATE_WINDOW_S, now_s - self.began_s)
        if window_s <= 0:
            return 0.0
        since = self.rooms.clock.now() - timedelta(seconds=window_s)
        return await wiring.views(self.rooms).recent_rate(batch.pk, since=since) / window_s * 60

    def _usd_per_minute(self, now_s: float, spent_usd: Decimal) -> Decimal:
        self._spent.append((now_s, spent_usd))
        while len(self._spent) > 2 and now_s - self._spent[0][0] > RATE_WINDOW_S:
            self._spent.pop(0)
        then_s, before_usd = self._spent[0]
        return (spent_usd - before_usd) * 60 / Decimal(now_s - then_s) if now_s > then_s else Decimal(0)

    async def _bounds(self, batch: Batch) -> tuple[Bound, ...]:
        caps = caps_of(Job.model_validate_json(batch.job_json), self.rooms.budget)
        return tuple(await wiring.views(self.rooms).caps_standing(batch.pk, caps, now=self.rooms.clock.now()))

    async def _reason(self, batch: Batch, *, left: int) -> str | None:
        if self.machine is not None and self.machine.trouble:
            return self.machine.trouble
        paused = await self.rooms.limiter.paused(f"creates:{batch.account}")
        if paused is not None and left:  # who has nothing left to buy does not wait for it
            return until(paused[1], self.rooms.clock.now() + timedelta(seconds=paused[0]))
        return why(batch)

    async def _unsure(self, batch: Batch, counts: Counts) -> str | None:
        """With nothing left to buy, lost answers are what a batch waits for, and that takes minutes."""
        lost = counts.own(ItemState.UNSURE)
        if not lost or counts.own(ItemState.PENDING):
            return None
        if self._lost[0] != lost:
            self._lost = lost, await self._settled_by(batch)
        what = "1 answer was lost; looking for it" if lost == 1 else f"{lost:,} answers were lost; looking for them"
        may_leave = "" if self.machine is None else "; you may leave, and a later run goes on with it"
        return (f"{what} in the provider's list, so that nothing is paid twice "
                f"(settled by {self._lost[1]} UTC at the latest{may_leave})")

    async def _settled_by(self, batch: Batch) -> str:
        """When the last of them is given up, with a minute for the look that does it."""
        tempo = self.rooms.tempo
        lasts = [last_moment(a, tempo=tempo) for a in await self.rooms.ledger.unsure(batch.account) if a.batch_pk == batch.pk]
        latest = max(lasts, default=self.rooms.clock.now()) + timedelta(seconds=tempo.unsure_give_up_s + 60)
        return f"{latest:%H:%M}"

    async def _over(self, look: Look) -> Exit | None:
        batch = look.batch
        if batch.state is BatchState.PAUSED and batch.reason in (INTERRUPTED, LEFT) and self.machine is not None:
            await go_on(self.rooms, batch)  # another command that named it too has ended; this one has not
            return None
        if batch.state is BatchState.FINISHED:
            return exit_of(batch, look.counts)
        if batch.state is BatchState.CANCELED:
            return Exit.CANCELED
        if batch.state is BatchState.PAUSED and not look.in_air:
            return await self._paused(look)
        return self._outage(look)

    async def _paused(self, look: Look) -> Exit | None:
        """A pause that nobody but a person can end is an end, once nothing is in the air."""
        reason = look.batch.reason or ""
        if reason in (BY_OPERATOR, INTERRUPTED, LEFT):
            return None
        try:
            await write_all(self.rooms, look.batch)
        except OSError as error:
            say(f"the results cannot be written to {look.batch.output_to}: {error.strerror or error}")
        if reason == START_LIMIT:
            return exit_of(look.batch, look.counts)
        if reason.startswith((OUTPUTS_REFUSED, FAILING)):
            self.last_trouble = reason
            return Exit.FAILED_ROWS
        return Exit.UNREACHABLE if "token" in reason and not is_budget(reason) else Exit.BUDGET

    def _outage(self, look: Look) -> Exit | None:
        """An outage lasts from its first sign until predictions move again, or until it is not heard of any more."""
        now_s, by = self.rooms.clock.boottime(), look.counts.by_state
        answered = tuple(by.get(state, 0) for state in _ANSWERED)
        moved, self._answered = answered != self._answered, answered
        if moved:  # what stops the buying stops nothing else
            self._outage_since_s = None
        is_own = self.machine is not None and look.reason == self.machine.trouble
        if look.reason and (is_own or is_outage(look.reason)):
            return self._patience(look.reason)
        if moved or self._heard_s is None or now_s - self._heard_s > QUIET_S:
            self._outage_since_s = None
        return None

    def _patience(self, reason: str) -> Exit | None:
        now_s = self._heard_s = self.rooms.clock.boottime()
        if self._outage_since_s is None:
            self._outage_since_s = now_s
        if now_s - self._outage_since_s < self.patience_s:
            return None
        self.last_trouble = reason
        return Exit.UNREACHABLE


def _limit(batch: Batch, tempo: Tempo, reason: str | None) -> float:
    asked, of_model = Job.model_validate_json(batch.job_json).limits.per_minute, tempo.of_model(batch.target.name).per_minute
    is_low = (reason or "").startswith(LOW_CREDIT)
    limits = [float(value) for value in (asked, of_model, tempo.creates_per_minute, LOW_CREDIT_PER_MINUTE * is_low) if value]
    return min(limits, default=0.0)


def exit_of(batch: Batch, counts: Counts) -> Exit:
    """Whether the failures of a finished batch are within what its job tolerates."""
    failed = counts.by_state.get(ItemState.FAILED, 0)
    allowed = Job.model_validate_json(batch.job_json).retry.tolerated(counts.total)
    return Exit.DONE if failed <= allowed else Exit.FAILED_ROWS
