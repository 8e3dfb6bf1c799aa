"""What the stand-in's own account says of a rate: shares, refusals, the busiest minute."""

from array import array
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from processes import StandIn

from orchestrator.simulator.counting import busiest

THROTTLED = 429


@dataclass(frozen=True)
class Creates:
    """Creates in order, each with its moment in Unix seconds and the status it was given."""

    all: tuple[tuple[float, int], ...]

    @property
    def accepted(self) -> list[float]:
        """Moments of those that bought."""
        return [at for at, status in self.all if status < 400]

    @property
    def throttled(self) -> list[float]:
        """Moments of the 429s."""
        return [at for at, status in self.all if status == THROTTLED]

    @property
    def busiest_minute(self) -> int:
        """The most that were sent, accepted or not, in any 60 s."""
        return busiest(array("d", sorted(at for at, _ in self.all)), 60.0)

    def between(self, begin: float, end: float) -> "Creates":
        """Those of a window, its end left out."""
        return Creates(tuple(one for one in self.all if begin <= one[0] < end))


def creates(simulator: StandIn, *, client: int = 0) -> Creates:
    """One client's creates; ours is the first token."""
    told = simulator.told("calls?times=1")["creates"]
    columns = zip(told["at"], told["status"], told["client"], strict=True)
    return Creates(tuple((at, status) for at, status, whose in columns if whose == client))


def share_of_429(given: Creates) -> float:
    """429s of all creates sent."""
    return len(given.throttled) / max(1, len(given.all))


def figures(given: Creates, *, per_minute: float, burst: int) -> dict[str, Any]:
    """A rate from its first to its last accepted create, against what was allowed."""
    accepted, per_s = given.accepted, per_minute / 60
    span_s = accepted[-1] - accepted[0] if len(accepted) > 1 else float("nan")
    return {
        "accepted": len(accepted), "span_s": span_s, "share": (len(accepted) - 1) / (span_s * per_s),
        "share_burst_off": (len(accepted) - burst) / (span_s * per_s), "above_s": span_s - (len(accepted) - burst) / per_s,
        "throttled": len(given.throttled), "share_of_429": share_of_429(given),
        "busiest_minute": given.busiest_minute, "allowed_minute": per_minute + burst}


def by_batch(simulator: StandIn, names: list[str]) -> dict[str, list[float]]:
    """Moments of purchases by the name with which their prompts begin, oldest first."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for one in simulator.purchases():
        name = str(one["input"]["prompt"]).partition(" ")[0]
        if name in found:
            found[name].append(datetime.fromisoformat(one["created_at"]).timestamp())
    return {name: sorted(moments) for name, moments in found.items()}


def shares(moments: dict[str, list[float]]) -> tuple[dict[str, float], float]:
    """Each batch's share of what was bought while all of them bought, and how many seconds that was."""
    begin, end = max(at[0] for at in moments.values()), min(at[-1] for at in moments.values())
    counts = {name: sum(begin <= one <= end for one in at) for name, at in moments.items()}
    return {name: count / max(1, sum(counts.values())) for name, count in counts.items()}, end - begin


def back_at(given: Creates, *, after: float, per_minute: float, window_s: float = 10.0, part: float = 0.95) -> float | None:
    """Seconds from `after` until a window begins in which this part of the rate is bought; None if there is none."""
    moments = [at for at in given.accepted if at >= after]
    wanted = part * per_minute / 60 * window_s
    ends = [at for at in moments if at <= moments[-1] - window_s] if moments else []
    for begin in [after, *ends]:
        if sum(begin <= at < begin + window_s for at in moments) >= wanted:
            return begin - after
    return None
