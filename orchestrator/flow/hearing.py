"""What the answers to purchases mean for everybody: told to the limiter in bulk, and at once where it is a pause."""

from contextlib import suppress

from orchestrator.core.errors import OrchestratorError, Throttled, TokenRefused, Unreachable
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.permits import Budget, Heard
from orchestrator.core.ports import CreateAnswer, Proof, Rooms
from orchestrator.core.records import Batch
from orchestrator.core.refusals import Kind, is_low_credit, judge
from orchestrator.core.waiting import CREDIT_IS_LOW, NO_PERMIT_LEFT, THROTTLED, in_short

LOOK_S = 0.2  # how old may be what a sender knows of pauses: permits that are out already must heed them too
SILENCE_S = 10.0  # answered within a second as a rule; each purchase that is lost costs minutes of looking for it
UNHINTED_S = 2.0  # the pause of a 429 that names none
SOON_S = 1.5  # `ratelimit-reset` is 1 in every recorded answer, also of a bucket that refills all the time
LONGEST_RESET_S = 60.0


class Ear:
    """Of one submitting task: keeps what was heard until it is told, and knows of pauses and of silence."""

    def __init__(self, rooms: Rooms, budget: Budget) -> None:
        self._rooms = rooms
        self._budget = budget
        self._heard: Heard | None = None
        self._out = 0
        self._quiet_since_s = 0.0
        self.answered_at_s = float("-inf")  # clock.boottime()
        self._looked_at_s = float("-inf")
        self._held = False

    def sent(self) -> None:
        """A purchase is on its way."""
        if not self._out:
            self._quiet_since_s = self._rooms.clock.boottime()
        self._out += 1

    def over(self) -> None:
        """A purchase has ended, however."""
        self._out -= 1

    @property
    def is_busy(self) -> bool:
        """Whether purchases are out."""
        return self._out > 0

    @property
    def is_silent(self) -> bool:
        """Whether purchases are out, and not one has been answered for long."""
        return self._out > 0 and self._rooms.clock.boottime() - self._quiet_since_s > SILENCE_S

    async def is_held(self) -> bool:
        """Whether a pause was set since the permits in hand were given; asked for several times a second, not for each."""
        now_s = self._rooms.clock.boottime()
        if now_s - self._looked_at_s > LOOK_S:
            self._looked_at_s = now_s
            try:
                self._held = await self._rooms.limiter.paused(self._budget.key) is not None
            except Unreachable:
                self._held = True  # with Redis away nothing is sent
        return self._held

    async def hear(self, answer: CreateAnswer, batch: Batch, *, serial: int) -> None:
        """One outcome: kept to be told, or acted on at once. `serial`: of the permit that was used."""
        with suppress(Unreachable):  # with Redis away no permit is granted either
            if answer.proof is Proof.NOT_SENT:
                await self._not_sent(answer)
            elif answer.proof is Proof.UNSURE:
                self.missed(serial, answer.detail or "no answer")
            else:
                await self._answered(answer, batch, serial=serial)

    def missed(self, serial: int, trouble: str) -> None:
        """Nobody answered, or only to say that it is out of order."""
        before = self._heard or Heard(0, answered=False)
        self._heard = Heard(max(serial, before.serial), before.answered, before.remaining, before.missed + 1, in_short(trouble))

    async def tell(self) -> None:
        """Tell the limiter what was heard since the last time. Raises Unreachable."""
        heard, self._heard = self._heard, None
        if heard is not None:
            await self._rooms.limiter.hear(self._budget, heard)

    async def _not_sent(self, answer: CreateAnswer) -> None:
        if answer.detail and answer.detail.startswith("cannot reach"):
            await self._rooms.limiter.pause(self._budget.key, seconds=self._rooms.tempo.outage_pause_s, reason=answer.detail)

    async def _answered(self, answer: CreateAnswer, batch: Batch, *, serial: int) -> None:
        self._quiet_since_s = self.answered_at_s = self._rooms.clock.boottime()
        before = self._heard or Heard(0)
        left = [n for n in (before.remaining, answer.rate_remaining) if n is not None]
        self._heard = Heard(max(serial, before.serial), remaining=min(left, default=None))
        if answer.rate_remaining == 0 and (answer.rate_reset_s or 0.0) > SOON_S:
            seconds = min(answer.rate_reset_s or 0.0, LONGEST_RESET_S)
            await self._rooms.limiter.pause(self._budget.key, seconds=seconds, reason=NO_PERMIT_LEFT)
        if answer.proof is Proof.REFUSED:
            await self._refused(answer, batch, serial=serial)

    async def _refused(self, answer: CreateAnswer, batch: Batch, *, serial: int) -> None:
        detail = answer.detail or ""
        refusal = judge(answer.status or 0, detail)
        if refusal.kind is Kind.THROTTLED:
            self._heard, self._held, self._looked_at_s = None, True, self._rooms.clock.boottime()
            is_low = is_low_credit(detail)
            seconds = UNHINTED_S if answer.retry_after_s is None else answer.retry_after_s
            await self._rooms.limiter.throttle(self._budget, serial=serial, seconds=seconds + self._rooms.clock.jitter(),
                                               reason=CREDIT_IS_LOW if is_low else THROTTLED, is_low_credit=is_low)
        elif refusal.kind is Kind.HELD:
            await self._rooms.ledger.set_state(batch.pk, to=BatchState.PAUSED, allowed=frozenset({BatchState.RUNNING}),
                                               reason=refusal.sentence, now=self._rooms.clock.now())

    async def is_there(self, serial: int) -> bool:
        """Whether the provider answers a question that costs nothing: asked before a breaker risks a purchase. To refuse is to
        answer: a 429 of a read holds no purchase back, and of a token that is not taken the purchase will tell."""
        try:
            await self._rooms.predictions.account()
        except (Throttled, TokenRefused):
            return True
        except OrchestratorError as error:
            self.missed(serial, str(error))
            return False
        return True

    def probed(self, serial: int) -> None:
        """A probe has ended. Where no purchase came of it, and so no word, it was answered all the same."""
        self._heard = self._heard or Heard(serial)
