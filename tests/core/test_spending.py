"""What was spent: groups and sums, without a ledger."""

from decimal import Decimal

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.core.spending import By, Line, Spent, as_json, by_of, grouped, record_of, total

ONE = Spent(rows=2, predictions=3, succeeded_units=3 * 10**9, failed_units=10**9, canceled_units=5, surplus_units=7,
            unknown_rows=1)


@pytest.mark.parametrize(("text", "by"), [("batch", By("batch")), ("day", By("day")), ("column:sku", By("column", "sku")),
                                          ("column:a:b", By("column", "a:b"))])
def test_what_can_be_grouped_by(text: str, by: By):
    """A column may have any name."""
    assert by_of(text) == by


@pytest.mark.parametrize("text", ["", "column", "column:", "colum:sku", "day:x", "Batch"])
def test_what_cannot(text: str):
    """All that can is named, so that nobody has to look it up."""
    with pytest.raises(BadInput, match=r"batch, job, model, day, column:NAME"):
        by_of(text)


def test_groups_add_up():
    """Every figure of every part is in one line, and all lines together are all there is."""
    lines = grouped([("a", ONE), (None, ONE), ("a", ONE)])
    assert [line.key for line in lines] == ["a", None]
    assert lines[0] == Line("a", Spent(4, 6, 6 * 10**9, 2 * 10**9, 10, 14, 2))
    assert total(line.spent for line in lines).units == 3 * ONE.units


def test_figures_are_exact():
    """Money to the last of its twelve digits, without an exponent, and the four parts make the whole."""
    figures = record_of(ONE)
    assert figures["spent_usd"] == Decimal("0.004000000012")
    parts = [figures[f"{name}_usd"] for name in ("succeeded", "failed", "canceled", "surplus")]
    assert sum(Decimal(part) for part in parts) == figures["spent_usd"]
    assert as_json(figures)["surplus_usd"] == "0.000000000007"
