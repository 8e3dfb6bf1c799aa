"""Token buckets that answer as Replicate's rate limiter does."""

import math
from dataclasses import dataclass
from typing import Any

import orjson

from orchestrator.simulator.wire import Reply

REDUCED = "Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per minute with a burst of 1 requests {why}. Your rate limit resets in ~{seconds}s."  # noqa: E501
REASONS = {"credit": "while you have less than $5.0 in credit", "payment": "until you add a payment method"}
PLAIN = {
    "now": "Request was throttled. Your rate limit resets in ~{seconds}s.",
    "old": "Request was throttled. Expected available in {seconds} second.",
}


class Bucket:
    """A continuously refilled bucket: `per_minute` tokens a minute, at most `burst` saved up; rate 0 never refuses."""

    __slots__ = ("_at", "_tokens", "burst", "per_minute")

    def __init__(self, per_minute: float, burst: float) -> None:
        """Start full."""
        self.per_minute = per_minute
        self.burst = burst or per_minute
        self._tokens = self.burst
        self._at: float | None = None

    def take(self, now: float) -> float:
        """Take one token and return 0, or return the seconds until one is there."""
        if not self.per_minute:
            return 0.0
        rate = self.per_minute / 60
        if self._at is not None:
            self._tokens = min(self.burst, self._tokens + max(0.0, now - self._at) * rate)
        self._at = now
        if self._tokens >= 1 - 1e-9:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / rate

    @property
    def remaining(self) -> int:
        """Return the whole tokens left."""
        return max(0, int(self._tokens))


@dataclass(slots=True)
class Limits:
    """The three budgets of one account and the way refusals are worded.

    `reduced` is None, `credit` or `payment`: the low-credit mode of 6 a minute, burst 1. `dialect` is `now` or `old`,
    `retry_after_header` adds a header that no recorded 429 has shown; real answers may or may not carry it.
    """

    creates: Bucket
    reads: Bucket
    polls: Bucket
    low: Bucket
    reduced: str | None = None
    dialect: str = "now"
    retry_after_header: bool = False
    storm_until: float = 0.0

    def check_create(self, now: float, *, low_credit: bool) -> tuple[Reply | None, list[tuple[str, str]]]:
        """Return a 429 or None, and the headers an accepted create carries."""
        why = self.reduced or ("credit" if low_credit else None)
        bucket = self.low if why else self.creates
        delay = max(bucket.take(now), self.storm_until - now)
        return (self.refusal(delay, why=why) if delay > 0 else None), _headers(bucket.remaining, 1)

    def check_read(self, now: float, *, poll: bool) -> tuple[Reply | None, list[tuple[str, str]]]:
        """Return a 429 or None, and the headers of an accepted read; `poll` is the get of a single prediction."""
        bucket = self.polls if poll else self.reads
        delay = max(bucket.take(now), self.storm_until - now)
        return (self.refusal(delay, why=None) if delay > 0 else None), _headers(bucket.remaining, 1)

    def refusal(self, delay_s: float, *, why: str | None) -> Reply:
        """Return the 429 that asks for a pause of `delay_s`, in one of the wordings seen in public (Replicate docs: rate limits)."""  # noqa: E501
        seconds = max(1, math.ceil(delay_s))
        body: dict[str, Any] = {"detail": PLAIN[self.dialect].format(seconds=seconds)}
        if why:
            detail = REDUCED.format(why=REASONS[why], seconds=seconds)
            body = {"detail": detail, "status": 429, "retry_after": seconds}
        headers = _headers(0, seconds)
        if self.retry_after_header:
            headers.append(("retry-after", str(seconds)))
        return Reply(429, orjson.dumps(body) + b"\n", "application/problem+json", headers)


def _headers(remaining: int, reset: int) -> list[tuple[str, str]]:
    return [("ratelimit-remaining", str(remaining)), ("ratelimit-reset", str(reset))]


def new_limits(*, creates: float, reads: float, polls: float, burst: float) -> Limits:
    """Return full budgets, all per minute; 0 is no limit."""
    return Limits(Bucket(creates, burst), Bucket(reads, 0), Bucket(polls, 0), Bucket(6, 1))
