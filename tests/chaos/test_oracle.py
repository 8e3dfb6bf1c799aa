"""The judge itself: each thing that may go wrong is complained of, and what went well is not."""

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from tests.chaos.oracle import Attempt, Left, Purchase, Row, Tally, judge, tally
from tests.chaos.schedule import SHAPES, drawn

CENT = Decimal("0.003")
Broken = tuple[Left, list[Purchase]]


def bought(number: int, *, status: str = "succeeded", prompt: str | None = None) -> Purchase:
    return Purchase(f"p{number}", "m", prompt or f"kind {number}", status, CENT if status == "succeeded" else Decimal(0))


def row(number: int, **changes: Any) -> Row:
    good = Row(number, f"r{number}", f"kind {number}", "succeeded", f"p{number}", None, CENT, (f"r{number}.png",))
    return replace(good, **changes)


def whole() -> Broken:
    """Three rows; the second was failed by the provider once, and bought again."""
    purchases = [bought(0), bought(1), bought(2), bought(9, status="failed", prompt="kind 1")]
    attempts = [Attempt(n, "succeeded", f"p{n}", was_lost=n == 2, is_priced=True) for n in range(3)]
    attempts.append(Attempt(1, "failed", "p9", was_lost=False, is_priced=True))
    manifest = [{"id": f"r{n}", "path": f"r{n}.png", "sha256": f"sha {n}", "source_url": f"/{n}", "prediction_id": f"p{n}"}
                for n in range(3)]
    return Left(
        model="m", prompts=[f"kind {n}" for n in range(3)], exit_code=0, rows=[row(n) for n in range(3)], attempts=attempts,
        manifest=manifest, there={f"r{n}.png": f"sha {n}" for n in range(3)}, served={f"/{n}": f"sha {n}" for n in range(3)},
        books=dict.fromkeys(("batch", "days", "attempts"), (9 * 10 ** 9, 0)),
        summary={"state": "finished", "cost_usd": "0.009", "cost_unknown_items": 0,
                 "items": {"succeeded": 3, "failed": 0, "canceled": 0, "pending": 0}}), purchases


def test_what_went_well():
    """No complaint where there is nothing to complain of, and the figures are counted."""
    left, purchases = whole()
    assert judge([left], purchases, alive=[]) == []
    counted = tally([left], purchases, struck={"lost_answer": 1, "fail": 1}, is_evident=True, failed=False)
    assert (counted.purchases, counted.answers_lost, counted.doubted, counted.adopted, counted.evident_unsure) == (4, 1, 1, 1, 0)


def test_a_row_in_doubt():
    """A row that ends unsure may have been bought without anybody's knowledge, once; its dollars are counted apart."""
    left, purchases = whole()
    doubtful = row(2, status="failed", prediction_id=None, error_class="unsure", cost_usd=None, files=())
    items = {"succeeded": 2, "failed": 1, "canceled": 0, "pending": 0}
    left = replace(left, rows=[*left.rows[:2], doubtful], manifest=left.manifest[:2], exit_code=1,
                   attempts=[replace(a, state="lost", prediction_id=None, is_priced=False) if a.index == 2 else a
                             for a in left.attempts],
                   there={path: sha for path, sha in left.there.items() if path != "r2.png"},
                   summary=left.summary | {"cost_usd": "0.006", "cost_unknown_items": 1, "items": items})
    assert judge([left], purchases, alive=[]) == []
    assert judge([left], purchases[:2] + purchases[3:], alive=[]) == [], "it may as well never have been bought"
    twice = judge([left], [*purchases, replace(bought(2), id="p7")], alive=[])
    assert any("no attempt knows" in complaint for complaint in twice)


def test_a_surplus_purchase_that_is_known():
    """Bought beyond need and shown as that: counted and paid for, but no complaint."""
    left, purchases = whole()
    more = Attempt(0, "canceled", "p7", was_lost=True, is_priced=True, is_surplus=True)
    left = _summary(_tried(left, more), cost_usd="0.012")
    left = replace(left, rows=[row(0, cost_usd=2 * CENT), *left.rows[1:]])
    sold = [*purchases, replace(bought(0), id="p7", status="canceled")]
    assert judge([left], sold, alive=[]) == []
    assert tally([left], sold, struck={}, is_evident=False, failed=False).surplus == 1


def _tried(left: Left, attempt: Attempt) -> Left:
    return replace(left, attempts=[*left.attempts, attempt])


def _summary(left: Left, **changes: Any) -> Left:
    return replace(left, summary=left.summary | changes)


BREAKS: dict[str, tuple[Callable[[Left, list[Purchase]], Broken], str]] = {
    "bought twice": (lambda left, sold: (left, [*sold, replace(bought(0), id="p7")]), "no attempt knows"),
    "bought twice, and known": (
        lambda left, sold: (_tried(left, Attempt(0, "succeeded", "p7", was_lost=False, is_priced=True)),
                            [*sold, replace(bought(0), id="p7")]), "its purchases that succeeded are"),
    "a failed purchase that nobody knows": (
        lambda left, sold: (left, [*sold, replace(bought(0, status="failed"), id="p7")]), "no attempt knows"),
    "never bought": (lambda left, sold: (left, sold[1:]), "which was never sold"),
    "of another prompt": (lambda left, sold: (left, [replace(sold[0], prompt="kind 1"), *sold[1:]]), "another prompt"),
    "of no row": (lambda left, sold: (left, [*sold, bought(5)]), "no row asked for"),
    "another model": (lambda left, sold: (left, [*sold, replace(bought(5), model="x")]), "nobody asked for"),
    "a row too few": (lambda left, sold: (replace(left, rows=left.rows[:2]), sold), "in their order"),
    "an open row": (lambda left, sold: (replace(left, rows=[row(0, status="pending"), *left.rows[1:]]), sold), "without an end"),
    "an odd failure": (
        lambda left, sold: (replace(left, rows=[row(0, status="failed", error_class="expired"), *left.rows[1:]]), sold),
        "nothing here should cause"),
    "not finished": (lambda left, sold: (_summary(left, state="paused"), sold), "the batch is paused"),
    "a changed file": (lambda left, sold: (replace(left, there=left.there | {"r1.png": "else"}), sold), "the manifest says"),
    "a missing file": (lambda left, sold: (replace(left, there={}), sold), "the file is missing"),
    "another's file": (lambda left, sold: (replace(left, served=left.served | {"/1": "else"}), sold), "provider serves"),
    "a file too many": (lambda left, sold: (replace(left, there=left.there | {".x.part": "s"}), sold), "nobody knows"),
    "a short manifest": (lambda left, sold: (replace(left, manifest=left.manifest[:2]), sold), "its manifest []"),
    "too few dollars": (lambda left, sold: (_summary(left, cost_usd="0.006"), sold), "the provider billed 0.009"),
    "an unknown cost untold": (
        lambda left, sold: (replace(left, attempts=[replace(left.attempts[0], is_priced=False), *left.attempts[1:]]), sold),
        "rows of unknown cost"),
    "books that differ": (
        lambda left, sold: (replace(left, books=left.books | {"days": (9 * 10**9, 1)}), sold), "spent and reserved differ"),
    "a reservation left over": (
        lambda left, sold: (replace(left, books=dict.fromkeys(left.books, (9 * 10**9, 1))), sold), "something is reserved"),
    "a wrong sum": (
        lambda left, sold: (_summary(left, items=left.summary["items"] | {"failed": 1}), sold), "the results"),
    "a wrong code": (lambda left, sold: (replace(left, exit_code=1), sold), "exit code 1 instead of 0"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_went_wrong(name: str):
    """Each defect, alone, is found by the complaint that is meant for it."""
    breaks, words = BREAKS[name]
    left, purchases = breaks(*whole())
    complaints = judge([left], purchases, alive=[])
    assert any(words in complaint for complaint in complaints), complaints


def test_what_still_lives():
    """A process that is left is a complaint."""
    left, purchases = whole()
    assert judge([left], purchases, alive=["python worker"]) == ["still alive: python worker"]


def test_how_much_doubt_is_too_much():
    """A single row proves nothing; two of a thousand are few; three of two hundred are too many."""
    few = [Tally(evident_doubted=20, evident_unsure=1), Tally(evident_doubted=1000, evident_unsure=2)]
    assert [one.is_honest for one in few] == [True, True]
    assert not Tally(evident_doubted=200, evident_unsure=3).is_honest


def test_a_seed_is_a_schedule():
    """The same seed draws the same schedule; over some seeds every shape, both kinds of rows and every act occur."""
    schedules = [drawn(seed) for seed in range(400)]
    assert schedules == [drawn(seed) for seed in range(400)]
    assert {one.shape for one in schedules} == set(SHAPES)
    assert {one.distinct < one.rows for one in schedules} == {True, False}
    assert len({act.what for one in schedules for act in one.acts}) == 13
    assert {len(one.jobs) for one in schedules} == {1, 2}
