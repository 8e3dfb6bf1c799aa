"""A slice of the chaos suite: a few schedules of each shape. The long form is `make chaos`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.house import PipPostgres
from tests.chaos.play import play
from tests.chaos.schedule import SHAPES, drawn

SEEDS = {"sqlite run": (22,), "sqlite up": (47,), "postgresql run": (140,), "postgresql roles": (18,)}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PipPostgres]:
    """A server that is restarted and crashed: of its own, away from those that other tests share."""
    with PipPostgres() as server:
        yield server


@pytest.mark.timeout(400)  # a schedule bounds itself, and says what it waited for
@pytest.mark.parametrize(("shape", "seed"), [(shape, seed) for shape in SHAPES for seed in SEEDS[shape]])
def test_a_schedule(shape: str, seed: int, tmp_path: Path, request: pytest.FixtureRequest):
    """Whatever is killed, lost or forged, each row is bought once, all is at home, and nothing stays alive."""
    server = request.getfixturevalue("postgres") if shape.startswith("postgresql") else None
    played = play(drawn(seed, shapes=[shape]), folder=tmp_path, postgres=server)
    print(played)  # noqa: T201 - shown where it failed
    assert not played.complaints, str(played)
