"""A machine that is too slow to buy: its purchases miss their moment, one after the other. Pure.

A POST may be written for a second after its permit's moment and not later. Where a process gets so little of its machine that
each is too late, none is ever sent, and claiming rows for it only fills the ledger with attempts."""

from dataclasses import dataclass

ENOUGH = 10  # in a row, and over so many seconds: a laptop that wakes up misses as many at one moment
SLOW_S = 5.0
FIRST_PAUSE_S = 5.0  # doubles
LONGEST_PAUSE_S = 60.0


@dataclass(slots=True)
class Lateness:
    """Of one process, on CLOCK_BOOTTIME: purchases in a row that missed their moment, and until when no more are made."""

    missed: int = 0
    since_s: float = 0.0
    pauses: int = 0
    until_s: float = float("-inf")

    @property
    def is_slow(self) -> bool:
        """Whether one purchase at a time is tried, until one is made in time."""
        return self.pauses > 0

    def wait_s(self, now_s: float) -> float:
        """How long nothing is tried."""
        return max(0.0, self.until_s - now_s)

    def note_missed(self, now_s: float) -> None:
        """One more was too late."""
        self.since_s = self.since_s if self.missed else now_s
        self.missed += 1
        if self.missed >= ENOUGH and now_s - self.since_s >= SLOW_S and now_s >= self.until_s:
            self.until_s = now_s + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self.pauses, 10))
            self.pauses += 1

    def note_in_time(self) -> None:
        """One was written: whatever became of it, the machine can do it."""
        self.missed, self.pauses, self.until_s = 0, 0, float("-inf")
