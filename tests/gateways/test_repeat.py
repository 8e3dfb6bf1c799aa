import pytest

from orchestrator.gateways.clock import TOKEN_ALPHABET, SystemClock
from orchestrator.gateways.repeat import repeat


class Flaky:
    """Fails so many times, then answers; notes the waits it caused."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0
        self.waits: list[float] = []

    async def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "answer"

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


async def test_repeats_until_it_works() -> None:
    """A call that fails twice is made three times, with growing bounded waits between."""
    call = Flaky(OSError(), OSError())
    assert await repeat(call, on=(OSError,), sleep=call.sleep, first_wait_s=1.0, max_wait_s=1.5) == "answer"
    assert call.calls == 3
    assert 0 <= call.waits[0] <= 1.0
    assert 0 <= call.waits[1] <= 1.5


async def test_last_exception_passes_unwrapped() -> None:
    """After the last attempt the real exception comes out, and not one more call is made."""
    last = OSError("third")
    call = Flaky(OSError("first"), OSError("second"), last, OSError("never"))
    with pytest.raises(OSError, match="third") as caught:
        await repeat(call, on=(OSError,), attempts=3, sleep=call.sleep)
    assert caught.value is last
    assert (call.calls, len(call.waits)) == (3, 2)


async def test_other_errors_are_not_repeated() -> None:
    """An exception that was not named passes through at the first call."""
    call = Flaky(ValueError())
    with pytest.raises(ValueError):
        await repeat(call, on=(OSError,), sleep=call.sleep)
    assert call.calls == 1


async def test_system_clock() -> None:
    """The real clock is UTC, moves on, and its tokens are 26 fresh letters and digits."""
    clock = SystemClock()
    before = clock.boottime()
    await clock.sleep(-1)
    assert clock.boottime() >= before
    assert clock.now().utcoffset() is not None
    tokens = {clock.token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(token) == 26 and set(token) <= set(TOKEN_ALPHABET) for token in tokens)
    assert all(0 <= clock.jitter() < 1 for _ in range(100))
