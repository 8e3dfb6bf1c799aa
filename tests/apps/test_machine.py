"""Keepers and the stand-by: an outage, a full disk or a shutdown in the midst of it ends none of them too early or too late."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.apps import machine
from orchestrator.apps.machine import Keeper, Machine
from orchestrator.core.errors import Unreachable
from orchestrator.core.tempo import Tempo
from orchestrator.settings import read_settings

AWAY = Unreachable("the database restarts")


@dataclass
class Child:
    """A process that ends when it is told to."""

    end: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = 1
    dies_in_s: float = 0.0

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        await self.end.wait()
        return self.code

    async def terminate(self, *, grace_s: float) -> int:
        """It takes its time."""
        if not self.end.is_set():
            await asyncio.sleep(self.dies_in_s)
        self.end.set()
        return self.code


@dataclass
class Nursery:
    """Where children come from, unless starting them fails."""

    children: list[Child] = field(default_factory=list)
    troubles: list[Exception] = field(default_factory=list)
    starting_s: float = 0.0

    async def start(self, _: Any) -> Child:
        """As wiring does it."""
        await asyncio.sleep(self.starting_s)
        if self.troubles:
            raise self.troubles.pop(0)
        self.children.append(Child())
        return self.children[-1]

    async def has(self, count: int) -> None:
        """Wait until so many were started."""
        await until(lambda: len(self.children) >= count)


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch) -> Nursery:
    """Children instead of processes, in a hurry."""
    one = Nursery()
    monkeypatch.setattr(wiring, "start", one.start)
    monkeypatch.setattr(machine, "AGAIN_S", 0.3)
    return one


def rooms(**ledger: Callable[..., Awaitable[Any]]) -> Any:
    return SimpleNamespace(ledger=SimpleNamespace(**ledger), clock=wiring.clock(), tempo=Tempo(beat_s=0.02), owner="here:1")


def role(name: str = "worker") -> Any:
    return SimpleNamespace(name=name, log_path=f"{name}.log")


async def test_a_death_in_an_outage(nursery: Nursery) -> None:
    """What cannot be freed now is freed later; the trouble is said meanwhile, and then another worker is started."""
    troubles: list[Exception] = [AWAY, ValueError("a defect")]

    async def free(_: str) -> None:
        if troubles:
            raise troubles.pop(0)

    keeper = Keeper(rooms(), on_death=free)
    await keeper.start([role()])
    nursery.children[0].end.set()
    await until(lambda: keeper.trouble == "cannot start another worker, trying again: the database restarts")
    await until(lambda: keeper.trouble == "cannot start another worker, trying again: a defect")
    await nursery.has(2)
    await until(lambda: keeper.trouble is None)
    await keeper.stop()


async def test_a_start_that_fails(nursery: Nursery) -> None:
    """A log that cannot be opened just now is no end of keeping."""
    keeper = Keeper(rooms())
    await keeper.start([role(), role("web")])
    nursery.troubles = [OSError(28, "No space left on device")]
    nursery.children[0].end.set()
    await until(lambda: "No space left" in (keeper.trouble or ""))
    await nursery.has(3)
    await until(lambda: keeper.trouble is None)
    await keeper.stop()


async def test_what_ends_for_an_outage_is_started_for_as_long_as_it_takes(nursery: Nursery,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4 says that something is away: it is not one of the deaths after which a keeper gives up."""
    monkeypatch.setattr(machine, "AGAIN_S", 0.01)
    keeper = Keeper(rooms())
    await keeper.start([role()])
    for count in range(1, 12):
        await nursery.has(count)
        nursery.children[-1].code = 4
        nursery.children[-1].end.set()
    await nursery.has(12)
    assert keeper.trouble is None
    await keeper.stop()


@pytest.mark.parametrize("starting_s", [0.0, 0.6])
async def test_nothing_lives_on_after_a_stop(nursery: Nursery, starting_s: float) -> None:
    """A child whose restart is due, or under way, while the others still end: not started, or ended with them."""
    keeper = Keeper(rooms())
    await keeper.start([role(), role("web")])
    nursery.children[1].dies_in_s = 1.0
    nursery.starting_s = starting_s
    nursery.children[0].end.set()
    await asyncio.sleep(0.5 if starting_s else 0.1)  # the restart is due after 0.4 s
    await keeper.stop()
    await asyncio.sleep(0.5)
    assert len(nursery.children) == (3 if starting_s else 2)
    assert all(child.end.is_set() for child in nursery.children)


@dataclass
class Presence:
    """Answers of a ledger that is asked who is at work; the last one for ever."""

    answers: list[list[str] | Exception]
    asked: int = 0
    released: int = 0

    async def release_holds(self, **_: Any) -> None:
        """Counted."""
        self.released += 1

    async def present(self, **_: Any) -> list[Any]:
        """As the ledger says."""
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [SimpleNamespace(role=name, id=f"{name}@here:1") for name in answer]


def standing_by(presence: Presence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    async def tick() -> None:
        return None

    monkeypatch.setattr(machine, "tick_chore", lambda *_: (60.0, tick))
    settings = read_settings(tmp_path, api_token=None)
    ledger = rooms(present=presence.present, release_holds=presence.release_holds)
    return Machine(ledger, settings, wiring.Hold("redis://none", False, 0))


async def test_the_stand_by_survives_outages(nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is told while it lasts; after it, those at work have the time to say so before anybody stands in."""
    both = ["worker", "scheduler"]
    presence = Presence([AWAY, ValueError("a defect"), AWAY, [], [], both])
    one = standing_by(presence, tmp_path, monkeypatch)
    await one.start(served=True)
    await until(lambda: one.trouble == "the database restarts")
    await until(lambda: presence.asked >= 8)
    assert (one.trouble, nursery.children) == (None, [])
    presence.answers = [[]]
    await nursery.has(1)
    await one.stop()
    assert nursery.children[0].end.is_set()


async def test_the_stand_by_tries_again_to_start(nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When everybody has gone and its own worker cannot be started at first, that is said, and tried again."""
    nursery.troubles = [OSError(24, "Too many open files")] * 3
    presence = Presence([[]])
    one = standing_by(presence, tmp_path, monkeypatch)
    await one.start(served=True)
    await until(lambda: "Too many open files" in (one.trouble or ""))
    await nursery.has(1)
    await until(lambda: one.trouble is None)
    await one.stop()
    assert len(nursery.children) == 1
    assert presence.released, "a look that died with its worker would be waited for"


@pytest.mark.parametrize(("died", "there", "freed"), [
    ("worker", [], True), ("worker", ["web", "scheduler"], True), ("web", [], False), ("worker", ["worker"], False)])
async def test_what_the_dead_one_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: str, there: list[str], freed: bool):
    """Freed while another command's worker lives, what that one fetches is begun again, and at the third time set aside."""
    released: list[bool] = []

    async def release_holds(**_: Any) -> None:
        released.append(True)

    monkeypatch.setattr(wiring, "is_gone", lambda _: False)
    one = Machine(rooms(present=Presence([there]).present, release_holds=release_holds),
                  read_settings(tmp_path, api_token=None), wiring.Hold("redis://none", False, 0))
    await one._free_its_work(died)
    assert bool(released) is freed
