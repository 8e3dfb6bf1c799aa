"""The violent acts, by the words that schedules use. Each answers what it did, for the line that is printed."""

import signal
import time
from collections.abc import Callable, Sequence

import redis

from tests.chaos.house import House, kill
from tests.chaos.schedule import Act

Deed = Callable[[House, Act, Sequence[int]], None]  # in this house, for this act; the ids of the living commands


def _command(number: int) -> Deed:
    """A signal for one of the commands, as from a terminal or from the kernel."""
    def deed(_house: House, act: Act, commands: Sequence[int]) -> None:
        if commands:
            kill(commands[act.which % len(commands)], number)

    return deed


def _role(role: str, number: int = signal.SIGKILL) -> Deed:
    """A signal for one process of a role."""
    def deed(house: House, act: Act, _commands: Sequence[int]) -> None:
        pids = sorted(house.pids(role))
        for one in house.kept:
            one.away_s = act.away_s
        if pids:
            kill(pids[act.which % len(pids)], number)

    return deed


def _everything(house: House, act: Act, _commands: Sequence[int]) -> None:
    """As a machine that loses its power: commands, roles, private Redis, watchdog, leashes, at once."""
    for one in house.kept:
        one.away_s = act.away_s
    house.kill_all()


def _flush(house: House, _act: Act, _commands: Sequence[int]) -> None:
    try:
        with house.redis_client() as client:
            client.flushall()
    except redis.ConnectionError:
        pass  # between two commands there is no private Redis


def _kill_redis(house: House, act: Act, _commands: Sequence[int]) -> None:
    if house.broker is None:
        for pid in house.redis_pids():
            kill(pid)
        return
    house.broker.kill()
    time.sleep(act.away_s)
    house.broker.start()


def _restart_postgres(mode: str) -> Deed:
    def deed(house: House, act: Act, _commands: Sequence[int]) -> None:
        assert house.postgres is not None
        house.postgres.restart(mode=mode, away_s=act.away_s)

    return deed


ACTS: dict[str, Deed] = {
    "kill command": _command(signal.SIGKILL),
    "ctrl-c": _command(signal.SIGINT),
    "sigterm": _command(signal.SIGTERM),
    "kill everything": _everything,
    "kill worker": _role("worker"),
    "stop worker": _role("worker", signal.SIGTERM),
    "kill web": _role("web"),
    "kill scheduler": _role("scheduler"),
    "kill up": _role("up"),
    "flush redis": _flush,
    "kill redis": _kill_redis,
    "restart postgresql": _restart_postgres("fast"),
    "crash postgresql": _restart_postgres("immediate"),
}
