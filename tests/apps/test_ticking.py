"""Chores at the metronome's beat: not begun twice, not ended by an error, outages said."""

import asyncio

from orchestrator.apps.ticking import regularly
from orchestrator.core.errors import BadInput, Unreachable


async def test_errors_do_not_end_a_chore():
    """An outage is told and taken back; a refusal and a defect are survived."""
    troubles = [Unreachable("away"), BadInput("odd"), ZeroDivisionError()]
    heard: list[str | None] = []
    done = asyncio.Event()

    async def chore() -> None:
        if troubles:
            raise troubles.pop(0)
        done.set()

    async with regularly({"chore": (0.02, chore)}, heard=heard.append):
        await asyncio.wait_for(done.wait(), 10)
        await asyncio.sleep(0.1)
    assert heard[0] == "away"
    assert heard[-1] is None


async def test_a_slow_chore_is_not_begun_twice():
    """However often the beat calls, one look at a time; the other chores go on meanwhile."""
    at_once, most, quick = 0, 0, 0

    async def slow() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.2)
        at_once -= 1

    async def other() -> None:
        nonlocal quick
        quick += 1

    async with regularly({"slow": (0.02, slow), "quick": (0.02, other)}):
        await asyncio.sleep(0.7)
    assert most == 1
    assert quick > 6
