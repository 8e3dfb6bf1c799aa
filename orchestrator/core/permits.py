"""The words of the limiter: what is asked of it, what it grants, what it is told."""

from dataclasses import dataclass

TENTHS = 10


@dataclass(frozen=True, slots=True)
class Budget:
    """One rate to be kept: at most `per_minute` in the long run, `burst` at once. `per_minute` not above zero: no rate."""

    key: str
    per_minute: float
    burst: int


@dataclass(frozen=True, slots=True)
class Flow:
    """Who asks, among those that share a budget. Those that wait get permits in proportion to their weights."""

    key: str
    weight: int  # tenths
    has_more: bool = False  # more rows than it asks for, and it comes back for them before its last permit is used
    feels: bool = False  # one permit at a time, while nobody has heard of the provider for a minute


def flow_of(key: str, *, priority: int) -> Flow:
    """Who buys. A priority is a weight: 6 gets twice what 3 gets. 0 gets a tenth of 1: little beside others, never nothing."""
    return Flow(key, max(1, TENTHS * priority), feels=True)


@dataclass(frozen=True, slots=True)
class Grant:
    """Permits: `count` of them, the first usable in `first_in_s`, then one every `every_s`. Count 0: come back in
    `first_in_s`, because of `reason`."""

    count: int
    first_in_s: float
    every_s: float
    reason: str | None = None  # limit, or what the pause was given for
    serial: int = 0  # number of the last permit of the first budget: whoever used it says so when heard
    per_minute: float = 0.0  # at what rate the first budget is spent now, which the provider may have lowered; 0: none
    is_low_credit: bool = False  # the provider's mode for accounts with little credit
    is_probe: bool = False  # a single one, to see whether the provider is there again
    pause_s: float = 0.0  # count 0: how long the pause lasts, where that is the reason; to ask sooner may still be worth it
    is_shared: bool = False  # other flows wait for the first budget as well, and it goes round by weight


@dataclass(frozen=True, slots=True)
class Heard:
    """What the answers to some purchases tell of the provider. `serial`: of the newest permit among those used."""

    serial: int
    answered: bool = True  # somebody answered, whatever: it is there
    remaining: int | None = None  # permits that it says are left, the least of what it said
    missed: int = 0  # purchases in a row, since the last answer, of which nothing was heard or only that it is out of order
    trouble: str = ""  # what the last of these met, for people
