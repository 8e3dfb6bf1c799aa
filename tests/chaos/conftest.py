"""What the tests of outages begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.outages import a_desk
from tests.e2e.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A user's folder and a stand-in for Replicate."""
    with a_desk(tmp_path) as one:
        yield one
