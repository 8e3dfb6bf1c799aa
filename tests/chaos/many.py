"""Many schedules, side by side in processes of their own."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from multiprocessing.util import Finalize
from pathlib import Path

from tests.chaos.house import PipPostgres
from tests.chaos.play import Played, play
from tests.chaos.schedule import drawn

_servers: list[PipPostgres] = []
_stack = ExitStack()
_stopped: list[bool] = []  # a pool hands its processes the next piece of work whatever became of the last


def played(seeds: Sequence[int], *, shapes: Sequence[str], at_once: int) -> Iterator[Played]:
    """The schedules of these seeds as they end; the folders of those that failed stay under the temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with ProcessPoolExecutor(at_once, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_one, seed, tuple(shapes), folder) for seed in seeds]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # Ctrl-C ends the schedules at work, with everything they started, and begins no other
            pool.shutdown(cancel_futures=True)
    with suppress(OSError):  # something is in it: a schedule that failed
        folder.rmdir()


def _one(seed: int, shapes: tuple[str, ...], folder: Path) -> Played:
    """Play the schedule of a seed, in a process that keeps its PostgreSQL for the next."""
    if _stopped:
        raise KeyboardInterrupt
    try:
        return _played_in(folder, seed, shapes)
    except KeyboardInterrupt:
        _stopped.append(True)
        raise


def _played_in(folder: Path, seed: int, shapes: tuple[str, ...]) -> Played:
    schedule = drawn(seed, shapes=shapes)
    if schedule.shape.startswith("postgresql") and not _servers:
        _servers.append(_stack.enter_context(PipPostgres()))
        Finalize(None, _stack.close, exitpriority=1)  # a pool's process knows no atexit
    place = folder / f"seed-{seed}"
    place.mkdir()
    one = play(schedule, folder=place, postgres=_servers[0] if _servers else None)
    if not one.complaints:
        shutil.rmtree(place)
    return one
