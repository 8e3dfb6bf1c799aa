"""The state of the simulated Replicate: accounts and predictions, as pure data under a clock that is an argument.

No timer drives a prediction. Its whole life is decided when it is created and read off the clock whenever somebody
asks, so a hundred thousand predictions cost memory and nothing else.
"""

import heapq
import math
from base64 import b32encode
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from sys import intern
from typing import Any, Protocol

import orjson

from orchestrator.simulator.config import SimulatorConfig
from orchestrator.simulator.faults import Faults
from orchestrator.simulator.limits import Limits, new_limits
from orchestrator.simulator.models import Deployment, Model, Version
from orchestrator.simulator.prices import ZERO, Usage, charge
from orchestrator.simulator.words import FAILURES, TIMED_OUT, film_hundredths, token_counts

RUN_LIMIT_S = 1800.0
LOW_CREDIT_USD = 5
_ALPHABET = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789abcdefghjkmnpqrstvwxyz")


@dataclass(frozen=True, slots=True)
class Target:
    """What a create is addressed to."""

    model: Model
    version: Version
    deployment: Deployment | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One accepted create: who asked for what, where to, the deadline and webhook given with it, and the host addressed."""

    account: str
    target: Target
    input: dict[str, Any]
    cancel_after_s: float | None = None
    webhook: str | None = None
    events: tuple[str, ...] | None = None
    base_url: str = "http://127.0.0.1"


@dataclass(slots=True, eq=False)
class Prediction:
    """One prediction and its fate: when it starts, when it ends and how; times are world seconds, inf is never.

    `input` is JSON with the keys in database order (by length, then by letter); `key` orders the listing: creation in
    microseconds as the provider tells it, then the running number. `base_url` is the host its create came to; webhooks
    name it in their URLs.
    """

    id: str
    key: tuple[int, int]
    account: str
    target: Target
    input: bytes
    created_at: float
    start_at: float
    end_at: float
    end_status: str
    error: str | None
    deadline_at: float | None
    webhook: str | None
    events: tuple[str, ...] | None
    base_url: str
    billed: Decimal | None = None

    def status(self, now: float) -> str:
        """Return the status at a moment."""
        if now >= self.end_at:
            return self.end_status
        return "processing" if now >= self.start_at else "starting"

    def tells(self, event: str) -> bool:
        """Say whether a webhook is wanted for an event; Cog's default is all four, and Replicate's docs differ on it."""
        return self.webhook is not None and (self.events is None or event in self.events)

    @property
    def started(self) -> bool:
        """Say whether the model ever ran, once the end is known."""
        return self.start_at <= self.end_at and self.end_status != "aborted"

    @property
    def predict_s(self) -> float:
        """Return the active seconds of an ended prediction."""
        return self.end_at - self.start_at if self.started else 0.0

    def progress(self, now: float) -> float:
        """Return the share of the planned run that was done at a moment, 0 to 1."""
        reached = min(now, self.end_at)
        if reached < self.start_at or not math.isfinite(reached):
            return 0.0
        run = self.end_at - self.start_at
        return 1.0 if run <= 0 else min(1.0, (reached - self.start_at) / run)


@dataclass(slots=True)
class Account:
    """One paying account: its limits, credit and predictions in order of their keys."""

    name: str
    limits: Limits
    credit_usd: Decimal | None
    spent_usd: Decimal = ZERO
    predictions: list[Prediction] = field(default_factory=list)

    @property
    def left_usd(self) -> Decimal | None:
        """Return the credit left, None for a bottomless account."""
        return None if self.credit_usd is None else self.credit_usd - self.spent_usd

    @property
    def low(self) -> bool:
        """Say whether the account is in the reduced mode of little credit."""
        left = self.left_usd
        return left is not None and left < LOW_CREDIT_USD


class Heralds(Protocol):
    """Who tells the outside of predictions: `webhooks.Dispatch`."""

    def created(self, prediction: Prediction) -> None:
        """A new one."""

    def canceled(self, prediction: Prediction) -> None:
        """One that ended sooner than planned."""

    def nudge(self) -> None:
        """Time was moved."""

    async def early(self, prediction: Prediction, *, within_s: float) -> None:
        """One that has ended before its create is answered."""


class World:
    """Accounts, predictions and time; every question is asked with the world's own `now`."""

    def __init__(self, config: SimulatorConfig, *, clock: Callable[[], float], seed: int) -> None:
        """Start empty; `clock` gives Unix seconds, `seed` decides ids, latencies and failures."""
        self.config = config
        self.clock_offset_s = config.clock_offset_s
        self.faults = Faults(seed)
        self._clock = clock
        self._seed = seed
        self._advanced_s = 0.0
        self._late: list[tuple[float, int, Order]] = []
        self._open: list[tuple[float, int, Prediction]] = []
        self._drawn = 0
        self.dispatch: Heralds | None = None
        self.predictions: dict[str, Prediction] = {}
        self.accounts: dict[str, Account] = {}
        for token in config.tokens:
            self.account(token.partition("=")[2] or "simulator")

    def now(self) -> float:
        """Return the world's time in Unix seconds, without the provider's clock error."""
        return self._clock() + self._advanced_s

    def told_now(self) -> float:
        """Return the time the provider believes it is."""
        return self.now() + self.clock_offset_s

    @property
    def late_at(self) -> float:
        """Return when the next stuck create will come through, infinity if there is none."""
        return self._late[0][0] if self._late else math.inf

    def advance(self, seconds: float) -> None:
        """Let time pass at once."""
        self._advanced_s += seconds
        if self.dispatch is not None:
            self.dispatch.nudge()

    def account(self, name: str) -> Account:
        """Return an account, opened on first use."""
        if name not in self.accounts:
            config = self.config
            limits = new_limits(
                creates=config.creates_per_minute,
                reads=config.reads_per_minute,
                polls=config.polls_per_minute,
                burst=config.burst,
            )
            credit = None if config.credit_usd is None else Decimal(config.credit_usd)
            self.accounts[name] = Account(name, limits, credit)
        return self.accounts[name]

    def create(self, order: Order, *, at: float) -> Prediction:
        """Make a prediction and decide its whole life."""
        self._drawn += 1
        digest = blake2b(b"%d:%d" % (self._seed, self._drawn), digest_size=32).digest()
        words = [int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (16, 20, 24, 28)]
        jitter_us = int(words[3] * 5_000)
        told_us = int((at + self.clock_offset_s) * 1e6) + jitter_us
        start_at, end_at, status, error = self._fate(order, at=at, chances=words)
        deadline_at = None if order.cancel_after_s is None else at + order.cancel_after_s
        if deadline_at is not None and deadline_at < end_at:
            status, end_at, error = ("canceled" if start_at <= deadline_at else "aborted"), deadline_at, None
        prediction = Prediction(
            id=b32encode(digest[:16])[:26].translate(_ALPHABET).decode(),
            key=(told_us, self._drawn),
            account=order.account,
            target=order.target,
            input=_stored(order.input),
            created_at=at,
            start_at=start_at,
            end_at=end_at,
            end_status=status,
            error=error,
            deadline_at=deadline_at,
            webhook=order.webhook,
            events=order.events,
            base_url=intern(order.base_url),
        )
        self._admit(prediction)
        return prediction

    def create_later(self, order: Order, *, at: float) -> None:
        """Make a prediction when the clock reaches `at`, as if the create had been stuck inside the provider."""
        self._drawn += 1
        heapq.heappush(self._late, (at, self._drawn, order))
        if self.dispatch is not None:
            self.dispatch.nudge()

    def settle(self, now: float) -> None:
        """Let everything happen that was due by `now`: late creations, and the bill of what has ended.

        Each prediction that ends passes here exactly once, in order of its end.
        """
        while self._late and self._late[0][0] <= now:
            at, _, order = heapq.heappop(self._late)
            self.create(order, at=at)
        while self._open and self._open[0][0] <= now:
            _, _, prediction = heapq.heappop(self._open)
            if prediction.billed is None and prediction.end_at <= now:
                prediction.billed = self._bill(prediction)
                self.account(prediction.account).spent_usd += prediction.billed

    def cancel(self, prediction: Prediction, *, now: float) -> None:
        """End a prediction now, canceled even in the queue (only deadlines abort); one that has ended stays as it is.

        Official clients older than the status `aborted` cancel queued predictions without trouble.
        """
        if now >= prediction.end_at:
            return
        prediction.end_status, prediction.end_at, prediction.error = "canceled", now, None
        self._await_end(prediction)
        if self.dispatch is not None:
            self.dispatch.canceled(prediction)

    def end_at_once(self, prediction: Prediction, *, now: float) -> None:
        """Let a prediction be over as soon as it is made, as it would have ended."""
        prediction.start_at = prediction.end_at = now
        self._await_end(prediction)

    def removed(self, prediction: Prediction, now: float) -> bool:
        """Say whether input, output, logs and files are gone: the retention counts from completion."""
        return now >= prediction.end_at + self.config.retention_s

    def listed(self, account: Account, *, now: float) -> int:
        """Return how many of the account's predictions the listing shows yet; the newest may lag behind."""
        lag = self.faults.standing("list_lag")
        if lag is None:
            return len(account.predictions)
        edge = int((now + self.clock_offset_s - lag.seconds) * 1e6)
        return bisect_left(account.predictions, (edge, 0), key=lambda prediction: prediction.key)

    def _admit(self, prediction: Prediction) -> None:
        self.predictions[prediction.id] = prediction
        insort(self.account(prediction.account).predictions, prediction, key=lambda known: known.key)
        self._await_end(prediction)
        if self.dispatch is not None and prediction.webhook is not None:
            self.dispatch.created(prediction)

    def _await_end(self, prediction: Prediction) -> None:
        if math.isfinite(prediction.end_at):
            heapq.heappush(self._open, (prediction.end_at, prediction.key[1], prediction))

    def _fate(self, order: Order, *, at: float, chances: list[float]) -> tuple[float, float, str, str | None]:
        """Return start, end, final status and error of a prediction that nobody interrupts."""
        if self.faults.strike("stuck"):
            return math.inf, math.inf, "succeeded", None
        wait_s, run_s = self._durations(order.target.model, chances=chances)
        start_at = at + wait_s
        error = self._mishap(order, chance=chances[2])
        if error is not None:
            return start_at, start_at + min(run_s, RUN_LIMIT_S) * 0.2, "failed", error
        if run_s > RUN_LIMIT_S:
            return start_at, start_at + RUN_LIMIT_S, "failed", TIMED_OUT
        return start_at, start_at + run_s, "succeeded", None

    def _durations(self, model: Model, *, chances: list[float]) -> tuple[float, float]:
        """Return the seconds until the start and from there to the end."""
        if self.config.latency_between_s is not None:
            low, high = self.config.latency_between_s
            whole_s = low + (high - low) * chances[1]
            return whole_s * 0.3 * chances[0], whole_s * (1 - 0.3 * chances[0])
        mean_s = self.config.latency_s * model.pace
        queued_s = mean_s * (0.05 + 0.35 * chances[0])  # never none: what is canceled at once has not started
        return queued_s, mean_s * 0.8 * (0.7 - 0.3 * math.log(1 - chances[1]))

    def _mishap(self, order: Order, *, chance: float) -> str | None:
        refused = order.target.version.validator.in_the_container(order.input)
        if refused is not None:
            return refused
        switch = self.faults.strike("fail")
        if switch is not None:
            return switch.text or FAILURES[self._drawn % len(FAILURES)]
        rate = self.config.failure_rate
        return FAILURES[int(chance / rate * len(FAILURES))] if chance < rate else None

    def _bill(self, prediction: Prediction) -> Decimal:
        target = prediction.target
        kind = target.model.kind
        finished = prediction.end_status == "succeeded"
        given = orjson.loads(prediction.input)
        images = int(given.get("num_outputs") or 1) if finished and kind != "tokens" else 0
        tokens_in, tokens_out = token_counts(given, prediction.id) if kind == "tokens" and finished else (0, 0)
        film_s = Decimal(film_hundredths(given, prediction.id)).scaleb(-2) if kind == "film" and finished else ZERO
        usage = Usage(
            status=prediction.end_status,
            started=prediction.started,
            predict_s=prediction.predict_s,
            images=images,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            quality=given.get("quality") or "medium",
            film_s=film_s,
            resolution=given.get("resolution") or "720p",
            sounds=given.get("generate_audio") is True,
        )
        model = target.model
        own = target.deployment is not None or (model.visibility == "private" and not model.fast_booting)
        return charge(model.price, usage, deployment=own)


def _stored(given: dict[str, Any]) -> bytes:
    """Return an input as a jsonb column keeps it; copied, because orjson's own result holds on to a whole page."""
    ordered = {name: given[name] for name in sorted(given, key=lambda name: (len(name), name))}
    return bytes(memoryview(orjson.dumps(ordered)))
