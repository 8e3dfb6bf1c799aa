"""An invoice beside the ledger: what agrees, what differs, and what is said of each prediction."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.beside import MOST_KEPT, MOST_PILES, Beside, Billed, Kind, Pile, Verdict
from orchestrator.core.cost import to_units, to_usd
from orchestrator.core.errors import BadInput
from orchestrator.core.invoice import InvoiceLine
from orchestrator.core.reckoning import Booked

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
A, B = "acme/draw", "acme/film"


def line(usd: str, *, number: int = 2, day: str | None = None, prediction: str | None = None) -> InvoiceLine:
    return InvoiceLine(number, None, prediction, day, Decimal(usd), max(0, -int(Decimal(usd).as_tuple().exponent)))


def booked(units: int | None, row: int = 0, n: int = 1, batch_pk: int = 1) -> Booked:
    return Booked(batch_pk, row, f"sku-{row}", n, "succeeded", f"p{batch_pk}-{row}-{n}", NOW, units, None, None, None, None, None)


def bought(usd: str, unknown_rows: int = 0) -> Pile:
    return Pile(ledger_units=to_units(Decimal(usd)), predictions=1, unknown_rows=unknown_rows)


@pytest.mark.parametrize(("lines", "ledger", "verdict", "agrees"), [
    (["1.00"], "1.00", Verdict.AGREES, True),
    (["1.00"], "1.0099", Verdict.AGREES, True),  # to the cent
    (["1.00"], "1.01", Verdict.DIFFERS, False),
    (["1.02"], "1.01", Verdict.DIFFERS, False),
    (["0.33", "0.33", "0.33"], "1.005", Verdict.AGREES, True),  # three lines, each rounded to the cent
    (["0.330", "0.330", "0.330"], "1.005", Verdict.DIFFERS, False),  # written to a tenth of a cent
    ([], "0.02", Verdict.NOT_BILLED, False),
    ([], "0.00", Verdict.AGREES, True),  # failures only, say
    (["0.02"], None, Verdict.NOT_BOUGHT, True),  # somebody else's use of the account
    (["-5.00"], None, Verdict.NOT_BOUGHT, True),  # credits
])
def test_a_model(lines: list[str], ledger: str | None, verdict: Verdict, agrees: bool):
    """To the cent, or as closely as the lines are rounded; what was never bought here is told, and is no error."""
    beside = Beside()
    for usd in lines:
        beside.add_line(line(usd), A)
    if ledger is not None:
        beside.add_bought(A, "2026-01-05", bought(ledger))
    ((model, pile, found),) = beside.verdicts()
    assert (model, found, beside.agrees()) == (A, verdict, agrees)
    assert pile.difference_usd == sum(map(Decimal, lines), Decimal(0)) - Decimal(ledger or 0)


def test_days_and_sums():
    """Each line under its model and day, in any order; the sums are exact, the dearest model comes first."""
    beside = Beside()
    for usd, model, day in (("0.1", A, "2026-01-06"), ("0.2", A, "2026-01-05"), ("7", B, None)):
        beside.add_line(line(usd, day=day), model)
    beside.add_bought(A, "2026-01-05", bought("0.3", unknown_rows=2))
    beside.add_bought(B, "2026-01-09", bought("7"))
    assert [(day, pile.billed_usd, pile.ledger_usd) for day, pile in beside.days_of(A)] == [
        ("2026-01-05", Decimal("0.2"), Decimal("0.3")), ("2026-01-06", Decimal("0.1"), Decimal(0))]
    assert [(model, verdict.value) for model, _, verdict in beside.verdicts()] == [(B, "agrees"), (A, "agrees")]
    together = beside.together()
    assert (together.billed_usd, together.ledger_usd) == (Decimal("7.3"), Decimal("7.3"))
    assert (together.unknown_rows, together.lines) == (2, 3)
    assert (beside.first, beside.last) == ("2026-01-05", "2026-01-06")


ENTRY = st.tuples(st.integers(1, 3), st.integers(0, 300), st.integers(1, 12), st.integers(-10**13, 10**13))


@given(st.lists(ENTRY, max_size=60))
def test_what_each_attempt_is_billed(entries: list[tuple[int, int, int, int]]):
    """Whatever the order, several lines of one prediction are added up, and no other attempt is touched."""
    billed, expected = Billed(), dict[tuple[int, int, int], list[int]]()
    for batch_pk, row, n, units in entries:
        billed.add(booked(None, row, n, batch_pk), to_usd(units))
        expected.setdefault((batch_pk, row, n), []).append(units)
    for batch_pk in range(1, 4):
        for row in range(0, 301, 7):
            for n in (1, 8, 9, 12):
                units_of = expected.get((batch_pk, row, n))
                found = billed.of(booked(None, row, n, batch_pk))
                assert found == (None if units_of is None else (to_usd(sum(units_of)), len(units_of)))


def test_predictions():
    """At another cost, not on the invoice, of a cost only the invoice knows, and not of this ledger: each in its own words."""
    beside = Beside()
    cheap, dear, missing, unknown, free = (booked(units, row) for row, units in enumerate((3 * 10**9, 10**12, 10**9, None, 0)))
    for one, usd in ((cheap, "0.003"), (dear, "1.000001"), (unknown, "0.5")):
        beside.add_line(line(usd, prediction=one.prediction_id), A)
        beside.billed.add(one, Decimal(usd))
    beside.add_line(line("0.04", number=9, prediction="x"), A)
    beside.add_stranger(line("0.04", number=9, prediction="x"), A)
    for one in (cheap, dear, missing, unknown, free):
        beside.add_bought(A, "2026-01-05", Pile(ledger_units=one.units or 0))
        beside.compare(one, model=A, batch="b")
    assert [(w.kind, w.prediction_id, w.row, w.line, w.billed_usd, w.ledger_usd) for w in beside.words] == [
        (Kind.NOT_BOUGHT, "x", None, 9, Decimal("0.04"), None),
        (Kind.DIFFERS, "p1-1-1", 1, None, Decimal("1.000001"), Decimal(1)),
        (Kind.NOT_BILLED, "p1-2-1", 2, None, None, Decimal("0.001")),
        (Kind.UNKNOWN, "p1-3-1", 3, None, Decimal("0.5"), None)]
    assert (beside.compared, beside.strange()) == (2, 1)
    assert not beside.agrees()


@pytest.mark.parametrize(("lines", "ledger", "verdict"), [
    (["138.799713"], "0", Verdict.UNKNOWN),  # ten thousand times too high, and nobody here could tell
    (["1.00", "0.50"], "1.00", Verdict.UNKNOWN),
    (["0.004"] * 30, "0", Verdict.UNKNOWN),  # what lines may be rounded by is not theirs whose cost nobody knows
    (["1.00"], "1.00", Verdict.AGREES),  # what is not known was not billed: failures of an official model, say
    (["0.50"], "1.00", Verdict.DIFFERS),  # too little, whatever the others cost
    ([], "1.00", Verdict.NOT_BILLED),
    ([], "0", Verdict.UNKNOWN),
])
def test_rows_of_unknown_cost(lines: list[str], ledger: str, verdict: Verdict):
    """Whatever is billed beyond the known sum may be theirs: it is no difference, and it agrees with nothing."""
    beside = Beside()
    for usd in lines:
        beside.add_line(line(usd), A)
    beside.add_bought(A, "2026-01-05", bought(ledger, unknown_rows=30))
    ((_, pile, found),) = beside.verdicts()
    assert (found, beside.differs()) == (verdict, verdict in (Verdict.DIFFERS, Verdict.NOT_BILLED))
    assert beside.agrees() is (verdict is Verdict.AGREES)
    assert beside.unconfirmed().difference_usd == (pile.difference_usd if verdict is Verdict.UNKNOWN else 0)


def test_a_cost_that_only_the_invoice_knows_cannot_be_confirmed():
    """Nor does it agree because its prediction is named: by line or by sum, the verdict is the same."""
    beside = Beside()
    beside.add_line(line("0.5"), A)
    beside.billed.add(booked(None), Decimal("0.5"))
    beside.add_bought(A, "2026-01-05", Pile(unknown_rows=1))
    assert [verdict for _, _, verdict in beside.verdicts()] == [Verdict.UNKNOWN]
    beside.compare(booked(None), model=A, batch="b")
    assert [verdict for _, _, verdict in beside.verdicts()] == [Verdict.UNKNOWN]
    assert (beside.differs(), beside.unconfirmed().difference_usd, beside.counts[Kind.UNKNOWN]) == (False, Decimal("0.5"), 1)


def test_what_rows_of_unknown_cost_were_expected_to_cost():
    """Said only where it is known of every one of them."""
    pile = Pile(unknown_rows=3, expected_rows=3, expected_units=15 * 10**11)
    assert pile.expected_usd == Decimal("1.5")
    pile.add(Pile(unknown_rows=1))
    assert (pile.expected_usd, Pile().expected_usd) == (None, None)


@pytest.mark.parametrize(("written", "ledger", "agrees"), [("0.003", 3 * 10**9, True), ("0.0034", 3 * 10**9, False),
                                                           ("0.0030", 3 * 10**9 + 49 * 10**6, True),
                                                           ("0.0030", 3 * 10**9 + 51 * 10**6, False)])
def test_a_prediction_is_compared_as_closely_as_it_is_written(written: str, ledger: int, agrees: bool):
    """Half of the last digit that the file writes anywhere, and no cent of grace."""
    beside = Beside()
    beside.add_line(line(written), A)
    beside.billed.add(booked(ledger), Decimal(written))
    beside.add_bought(A, "2026-01-05", Pile(ledger_units=ledger))
    beside.compare(booked(ledger), model=A, batch="b")
    assert beside.agrees() == agrees
    assert beside.piles[A].verdict(half=beside.half) is Verdict.AGREES


def test_strangers_count_only_among_models_that_were_bought_here():
    """A colleague's model is his; one more prediction of ours is not explained, be it ever so cheap."""
    beside = Beside()
    beside.add_bought(A, "2026-01-05", bought("0.001"))
    beside.add_line(line("0.003"), B)
    beside.add_stranger(line("0.003", prediction="x"), B)
    assert beside.agrees()
    beside.add_line(line("0.003"), A)
    beside.add_stranger(line("0.003", prediction="y"), A)
    assert not beside.agrees()


def test_lines_that_name_no_prediction():
    """What they are for is not known one by one: the sums decide, and nothing is called missing."""
    beside = Beside()
    beside.add_line(line("2.00", prediction="p1-0-1"), A)
    beside.billed.add(booked(2 * 10**12), Decimal("2.00"))
    beside.add_line(line("1.00"), A)
    for one in (booked(2 * 10**12), booked(10**12, 1)):
        beside.add_bought(A, "2026-01-05", Pile(ledger_units=one.units or 0))
        beside.compare(one, model=A, batch="b")
    assert (beside.agrees(), beside.compared, beside.words) == (True, 1, [])


def test_bounds():
    """A column that is no model is noticed before it fills the memory; words are counted beyond those that are kept."""
    beside = Beside()
    for n in range(MOST_KEPT + 5):
        beside.add_line(line("1"), A)
        beside.add_stranger(replace(line("1"), prediction_id=f"p{n}"), A)
    assert (len(beside.words), beside.counts[Kind.NOT_BOUGHT]) == (MOST_KEPT, MOST_KEPT + 5)
    with pytest.raises(BadInput, match="more than 10,000 models and days of models; is 'model 9999' a model"):
        for n in range(MOST_PILES):
            beside.add_line(line("1"), f"model {n}")
