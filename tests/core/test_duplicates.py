"""Equal rows, found by hash in little memory; and what holds where two runs of a batch say different things of them."""

import random
from typing import Any

import pytest

from orchestrator.core.duplicates import Equals, held, said_otherwise
from orchestrator.core.examined import missing_seed, seeds_of
from orchestrator.core.job import Duplicates, Job
from orchestrator.core.openapi import InputSchema
from orchestrator.core.runkey import hash_text
from tests.core.test_job import job, refusal

BATCH, LEDGER = Duplicates(once="batch"), Duplicates(once="ledger")
SHARING = Duplicates(once="batch", empty_seed="share")


def test_equal_rows_are_found():
    """Each row that equals an earlier one names the first of them, past every growth and with rows between that have no input."""
    dice, equals, first = random.Random(4), Equals(), dict[int, int]()
    for row in range(0, 20_000, 2):
        value = dice.randrange(6_000)
        assert equals.add(row, hash_text(str(value))) == first.get(value)
        first.setdefault(value, row)


def test_hashes_that_fall_on_one_place():
    """Neighbours in the table are told apart, and a hash of nothing but zeros is one like any other."""
    equals = Equals()
    hashes = [f"{n:012x}0000" + "f" * 48 for n in range(50)]  # alike in the bits that choose the place
    assert [equals.add(row, text) for row, text in enumerate(hashes)] == [None] * 50
    assert [equals.add(50 + row, text) for row, text in enumerate(hashes)] == list(range(50))


@pytest.mark.parametrize(("given", "meant"), [
    ("buy", None), (None, None), ("once", BATCH), ({}, BATCH), ({"once": "batch"}, BATCH), ({"once": "ledger"}, LEDGER),
    ({"empty_seed": "share"}, SHARING)])
def test_what_a_job_means(given: Any, meant: Duplicates | None):
    """A word, or the table that it is short for; the same job comes back from JSON."""
    said = job(duplicates=given)
    assert said.duplicates == meant
    assert Job.model_validate_json(said.model_dump_json()) == said
    assert said.unsupported() == []


@pytest.mark.parametrize(("given", "part"), [
    ("onse", "'onse' is not 'buy' or 'once' (did you mean 'once'?), nor a table such as { once: batch, empty_seed: share }"),
    (True, "True is not 'buy' or 'once'"), (["once"], "is not 'buy' or 'once'"),
    ({"once": "always"}, "'batch' or 'ledger'"), ({"empty_seed": "buy"}, "'refuse' or 'share'"),
    ({"seed": "share"}, "not permitted")])
def test_what_no_job_means(given: Any, part: str):
    """Each refusal says what would be right."""
    assert part in refusal(duplicates=given)


@pytest.mark.parametrize(("begun", "now", "holds"), [
    (None, BATCH, None), (BATCH, None, BATCH), (BATCH, LEDGER, BATCH), (LEDGER, BATCH, LEDGER), (BATCH, SHARING, SHARING),
    (SHARING, BATCH, BATCH), (None, None, None)])
def test_what_holds(begun: Duplicates | None, now: Duplicates | None, holds: Duplicates | None):
    """What the batch was begun with; only the consent to share without a seed is the job's of today."""
    assert held(begun, now) == holds


def test_what_is_said_of_it():
    """Nothing while they agree, and in the words of a job where they do not."""
    assert said_otherwise(BATCH, SHARING) is None
    assert said_otherwise(None, BATCH) == (
        "this batch was begun with `duplicates: buy` and stays so; --fresh begins one with `duplicates: once`")
    assert "with `duplicates: { once: ledger }`" in (said_otherwise(BATCH, LEDGER) or "")


def test_what_is_a_seed():
    """The input of that name, and whole numbers that end in it; what a row gives is given, whatever the model makes of it."""
    inputs = {"seed": {}, "random_seed": {"type": "integer"}, "noise_seed": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
              "randomize_seed": {"type": "boolean"}, "seeds": {"type": "integer"}, "reseed": {"type": "integer"}}
    schema = InputSchema.from_openapi({"components": {"schemas": {"Input": {"properties": inputs}}}})
    seeds = seeds_of(schema)
    assert seeds == ("seed", "random_seed", "noise_seed")
    assert missing_seed(seeds, {"seed": -1, "noise_seed": 0}) == "random_seed"
    assert missing_seed(seeds, dict.fromkeys(seeds, -1)) is missing_seed((), {}) is None
