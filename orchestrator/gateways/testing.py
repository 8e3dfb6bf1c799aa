"""Doubles of the small ports, shipped, and held to the same contract suites as the real ones. Not for apps or flow."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from orchestrator.core import heeding
from orchestrator.core.errors import Unreachable
from orchestrator.core.pacing import HORIZON_S, MICROSECONDS, Bucket, after_set_back, longer_pause, pause_us, rate_of, reserve
from orchestrator.core.permits import Budget, Flow, Grant, Heard
from orchestrator.core.ports import Clock
from orchestrator.core.records import Wake
from orchestrator.core.turns import Turn, reserve_in_turn

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class HandClock:
    """`core.ports.Clock` that moves only when told to, or when somebody sleeps on it.

    Tokens count up from `prefix`, 26 characters each; jitter is the value last set."""

    def __init__(self, *, start_at: datetime = EPOCH, prefix: str = "t", jitter: float = 0.5) -> None:
        self._start_at = start_at
        self._passed_us = 0
        self._prefix = prefix
        self._tokens = 0
        self.next_jitter = jitter
        self.slept: list[float] = []

    def now(self) -> datetime:
        """Start plus what has passed."""
        return self._start_at + timedelta(microseconds=self._passed_us)

    def boottime(self) -> float:
        """Seconds passed since the clock was made."""
        return self._passed_us / MICROSECONDS

    def boottime_us(self) -> int:
        """The same in whole microseconds."""
        return self._passed_us

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._passed_us += round(seconds * MICROSECONDS)

    async def sleep(self, seconds: float) -> None:
        """Note the wait in `slept` and let it pass at once."""
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))

    def token(self) -> str:
        """`t0000…1`, then `t0000…2`, and so on."""
        self._tokens += 1
        return self._prefix + str(self._tokens).zfill(26 - len(self._prefix))

    def jitter(self) -> float:
        """The value last set."""
        return self.next_jitter


class MemoryLimiter:
    """`core.ports.Limiter` in this process. `away` set to True plays a Redis that cannot be reached."""

    def __init__(self, clock: Clock, *, horizon_s: float = HORIZON_S) -> None:
        self._clock = clock
        self._horizon_us = round(horizon_s * MICROSECONDS)
        self._buckets: dict[str, Bucket] = {}
        self._turns: dict[str, dict[str, Turn]] = {}
        self.away = False

    async def reserve(self, budgets: Sequence[Budget], *, count: int, flow: Flow | None = None) -> Grant:
        """As the port says."""
        now_us, rates = self._now_us(), [rate_of(budget) for budget in budgets]
        buckets = [self._bucket(budget.key) for budget in budgets]
        if flow is None:
            answer = reserve(rates, buckets, count=count, now_us=now_us, horizon_us=self._horizon_us)
        else:
            turns = self._turns.get(budgets[0].key, {})
            shared = reserve_in_turn(rates, buckets, turns, flow, count=count, now_us=now_us, horizon_us=self._horizon_us)
            answer, self._turns[budgets[0].key] = shared.reservation, shared.turns
        self._buckets.update(zip((budget.key for budget in budgets), answer.buckets, strict=True))
        return answer.grant()

    async def hear(self, budget: Budget, heard: Heard) -> None:
        """As the port says."""
        self._buckets[budget.key] = heeding.heard(self._bucket(budget.key), rate_of(budget), heard, now_us=self._now_us(),
                                                   horizon_us=self._horizon_us)

    async def throttle(self, budget: Budget, *, serial: int, seconds: float, reason: str, is_low_credit: bool) -> None:
        """As the port says."""
        self._buckets[budget.key] = heeding.throttled(
            self._bucket(budget.key), rate_of(budget), serial=serial, for_us=pause_us(seconds), reason=reason,
            is_low_credit=is_low_credit, now_us=self._now_us(), horizon_us=self._horizon_us)

    async def pause(self, key: str, *, seconds: float, reason: str) -> None:
        """As the port says."""
        bucket, now_us = self._bucket(key), self._now_us()
        self._buckets[key] = longer_pause(bucket, now_us=now_us, for_us=pause_us(seconds), reason=reason)

    async def paused(self, key: str) -> tuple[float, str] | None:
        """As the port says."""
        left_us = (bucket := self._bucket(key)).until_us - self._now_us()
        return (left_us / MICROSECONDS, bucket.reason) if left_us > 0 else None

    def flush(self) -> None:
        """Forget everything, as FLUSHALL would."""
        self._buckets.clear()
        self._turns.clear()

    def _bucket(self, key: str) -> Bucket:
        return after_set_back(self._buckets.get(key, Bucket()), now_us=self._now_us())

    def _now_us(self) -> int:
        if self.away:
            raise Unreachable("the limiter was told to be away")
        return round(self._clock.boottime() * MICROSECONDS)


class MemoryQueue:
    """`core.ports.Queue` that keeps what was sent, in order. `away` set to True plays an absent broker."""

    def __init__(self) -> None:
        self.sent: list[Wake] = []
        self.away = False

    async def send(self, wakes: Sequence[Wake]) -> None:
        """Keep the wakes, less the due time, which no message carries."""
        if self.away:
            raise Unreachable("the queue was told to be away")
        self.sent.extend(replace(wake, due_at=None) for wake in wakes)

    def take(self) -> list[Wake]:
        """What was sent since the last look."""
        taken, self.sent = self.sent, []
        return taken
