"""The real time and real chance."""

import asyncio
import os
import random
import string
import time
from datetime import UTC, datetime

TOKEN_ALPHABET = string.ascii_lowercase + string.digits
TOKEN_LENGTH = 26
TOKEN_BYTES = 24  # more than 26 characters hold, so that each is as likely as the other

# CLOCK_MONOTONIC stands still while a Linux laptop sleeps, and a deadline before a purchase must not. macOS has no
# CLOCK_BOOTTIME; there a sleep is noticed by the wall clock of the lease only.
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """`core.ports.Clock` on this machine."""

    def now(self) -> datetime:
        """The wall clock, UTC."""
        return datetime.now(UTC)

    def boottime(self) -> float:
        """Seconds that also pass while the machine sleeps, where the system can count them."""
        return time.clock_gettime(_BOOT_CLOCK)

    async def sleep(self, seconds: float) -> None:
        """Wait; not at all for zero or less, except to let others run."""
        await asyncio.sleep(max(0.0, seconds))

    def token(self) -> str:
        """A new random id of 26 lowercase letters and digits: 134 bits, from the system's secure source."""
        number, letters = int.from_bytes(os.urandom(TOKEN_BYTES)), []  # one question to the system, not 26
        for _ in range(TOKEN_LENGTH):
            number, place = divmod(number, len(TOKEN_ALPHABET))
            letters.append(TOKEN_ALPHABET[place])
        return "".join(letters)

    def jitter(self) -> float:
        """A number in [0, 1)."""
        return random.random()
