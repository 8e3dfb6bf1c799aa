"""`python -m tests.chaos`: so many schedules from a first seed, one line each, and the totals."""

import argparse
import sys
import time

from tests.chaos.many import played
from tests.chaos.oracle import Tally
from tests.chaos.schedule import SHAPES


def main() -> int:
    """The exit code: 1 if any schedule failed, or too many rows ended in doubt."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="the first one")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="only these; changes what a seed stands for")
    given = parser.parse_args()
    began, total = time.monotonic(), Tally()
    seeds = range(given.seed, given.seed + given.schedules)
    for one in played(seeds, shapes=given.shape or SHAPES, at_once=given.at_once):
        print(one, flush=True)  # noqa: T201
        total.add(one.tally)
    print(f"{total}; {time.monotonic() - began:.0f} s")  # noqa: T201
    return int(total.failed > 0 or not total.is_honest)


if __name__ == "__main__":
    sys.exit(main())
