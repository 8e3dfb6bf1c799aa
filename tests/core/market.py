"""A provider's limit, several workers and somebody else, in virtual time: what the limiter's arithmetic comes to."""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

from orchestrator.core.permits import Budget, Flow, Grant, Heard
from orchestrator.gateways.testing import HandClock, MemoryLimiter

T = TypeVar("T")
AHEAD_S = 0.1
TIMEOUT_S = 10.0  # after so long a purchase counts as not answered


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The answer of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    raise AssertionError("it waits")


@dataclass
class Provider:
    """A token bucket, as the provider keeps it; `says` False: its answers have no headers."""

    per_minute: float
    burst: float
    says: bool = True
    low_credit: bool = False
    silent: bool = False  # nobody is there: no answer comes
    tokens: float = 0.0
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.burst

    def take(self, at_s: float) -> tuple[bool, int | None]:
        """Whether one request is let in, and what is left."""
        self.tokens = min(self.burst, self.tokens + (at_s - self.at_s) * self.per_minute / 60)
        self.at_s = at_s
        if self.tokens < 1 - 1e-9:
            return False, None
        self.tokens -= 1
        return True, int(self.tokens) if self.says else None


@dataclass
class Sent:
    """One request of ours: when it arrived, whose it was, and whether it was let in."""

    at_s: float
    flow: str
    accepted: bool


@dataclass
class Worker:
    """One lane of one batch: asks, sends on the schedule of the grant, tells what it heard.

    `in_flight`: so many predictions alive at most, each for `takes_s`; `gone`: it died, with whatever it had reserved."""

    flow: Flow
    rows: int = 10**9
    own: Sequence[Budget] = ()
    chunk: int = 100
    in_flight: int | None = None
    takes_s: float = 1.0
    alive: int = 0
    gone: bool = False
    heard: Heard | None = None
    held_until_s: float = 0.0


@dataclass
class Market:
    """All of it. `delay` draws the seconds of a whole exchange."""

    provider: Provider
    budget: Budget = field(default_factory=lambda: Budget("creates:a", 600, 10))
    delay: Callable[[random.Random], float] = lambda dice: dice.uniform(0.05, 0.3)
    seed: int = 1

    def __post_init__(self) -> None:
        self.clock = HandClock()
        self.clock.advance(1000)
        self.limiter = MemoryLimiter(self.clock)
        self.dice = random.Random(self.seed)
        self.sent: list[Sent] = []
        self.permits: list[float] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.provider.at_s = self.now_s

    @property
    def now_s(self) -> float:
        """Seconds on the market's clock."""
        return self.clock.boottime()

    def at(self, at_s: float, do: Callable[[], None]) -> None:
        """Something is to happen then."""
        heapq.heappush(self._events, (at_s, next(self._numbers), do))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        until_s = self.now_s + seconds
        while self._events and self._events[0][0] <= until_s:
            at_s, _, do = heapq.heappop(self._events)
            self.clock.advance(max(0.0, at_s - self.now_s))
            do()
        self.clock.advance(max(0.0, until_s - self.now_s))

    def work(self, worker: Worker) -> None:
        """The worker asks again and again, as long as it has rows, and looks for new ones where it has none."""
        if worker.gone:
            return
        free = worker.rows if worker.in_flight is None else min(worker.rows, worker.in_flight - worker.alive)
        if free <= 0:
            self.at(self.now_s + 0.1, lambda: self.work(worker))
            return
        flow = replace(worker.flow, has_more=free > worker.chunk)
        grant = now(self.limiter.reserve([self.budget, *worker.own], count=min(free, worker.chunk), flow=flow))
        worker.rows -= grant.count
        worker.alive += grant.count
        self._send(worker, grant)
        last_s = grant.first_in_s + max(0, grant.count - 1) * grant.every_s
        wait_s = max(0.0, last_s - AHEAD_S) if grant.count else grant.first_in_s
        self.at(self.now_s + max(0.005, wait_s) + self.dice.uniform(0.001, 0.02), lambda: self.work(worker))

    def _send(self, worker: Worker, grant: Grant) -> None:
        for n in range(grant.count):
            at_s = self.now_s + grant.first_in_s + n * grant.every_s
            serial = grant.serial - grant.count + n + 1
            self.permits.append(at_s)
            self.at(at_s + self.delay(self.dice) / 2, lambda serial=serial: self._arrive(worker, serial))  # type: ignore[misc]

    def _arrive(self, worker: Worker, serial: int) -> None:
        if worker.gone or self.now_s < worker.held_until_s:
            worker.rows, worker.alive = worker.rows + 1, worker.alive - 1
            return
        self.at(self.now_s + worker.takes_s, lambda: self._ended(worker))
        if self.provider.silent:
            nothing = Heard(serial, answered=False, missed=1, trouble="timeout")
            self.at(self.now_s + TIMEOUT_S, lambda: self._note(worker, nothing))
            self.sent.append(Sent(self.now_s, worker.flow.key, False))
            return
        accepted, left = self.provider.take(self.now_s)
        self.sent.append(Sent(self.now_s, worker.flow.key, accepted))
        if accepted:
            self.at(self.now_s + self.delay(self.dice) / 2, lambda: self._note(worker, Heard(serial, remaining=left)))
        else:
            worker.rows += 1
            self.at(self.now_s + self.delay(self.dice) / 2, lambda: self._refused(worker, serial))

    def _ended(self, worker: Worker) -> None:
        worker.alive -= 1

    def _note(self, worker: Worker, told: Heard) -> None:
        """What is heard is gathered for a quarter of a second, as a worker gathers facts."""
        if worker.heard is None:
            self.at(self.now_s + 0.25, lambda: self._tell(worker))
            worker.heard = told
            return
        before, left = worker.heard, [n for n in (told.remaining, worker.heard.remaining) if n is not None]
        worker.heard = Heard(max(told.serial, before.serial), answered=told.answered or before.answered,
                             remaining=min(left, default=None), trouble=told.trouble,
                             missed=0 if told.answered else before.missed + told.missed)

    def _tell(self, worker: Worker) -> None:
        told, worker.heard = worker.heard, None
        if told is not None:
            now(self.limiter.hear(self.budget, told))

    def _refused(self, worker: Worker, serial: int) -> None:
        low, seconds = self.provider.low_credit, 1.0 + self.dice.random()
        if low:
            seconds = max(1.0, 60 / self.provider.per_minute * (1 - self.provider.tokens)) + self.dice.random()
        worker.held_until_s = self.now_s + seconds
        now(self.limiter.throttle(self.budget, serial=serial, seconds=seconds, reason="429", is_low_credit=low))

    def join(self, *workers: Worker, after_s: float = 0.0) -> None:
        """They begin, a little apart."""
        for worker in workers:
            self.at(self.now_s + after_s + self.dice.uniform(0, 0.1), partial(self.work, worker))

    def feed(self, worker: Worker, *, per_minute: float, seconds: float) -> None:
        """A row for the worker now and then."""
        for n in range(int(seconds * per_minute / 60)):
            self.at(self.now_s + n * 60 / per_minute, partial(self._row, worker))

    def _row(self, worker: Worker) -> None:
        worker.rows += 1

    def stranger(self, *, per_minute: float, seconds: float) -> None:
        """Somebody else on the same account, at a steady rate."""
        for n in range(int(seconds * per_minute / 60)):
            self.at(self.now_s + n * 60 / per_minute, lambda: self.provider.take(self.now_s) and None)

    def between(self, first_s: float, end_s: float) -> tuple[float, float]:
        """Ours let in per minute, and the share refused, in this part of the time."""
        here = [one for one in self.sent if first_s <= one.at_s < end_s]
        accepted = sum(one.accepted for one in here)
        return accepted * 60 / (end_s - first_s), (len(here) - accepted) / max(1, len(here))

    def shares(self, first_s: float, end_s: float) -> dict[str, float]:
        """What each flow got in this part of the time, of what the budget allows."""
        sent = Counter(one.flow for one in self.sent if first_s <= one.at_s < end_s)
        return {key: number * 60 / (end_s - first_s) / self.budget.per_minute for key, number in sent.items()}
