"""Charges reckoned again, from what is kept beside them and from what the provider says now: pure comparisons."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cost import Price, Pricing, Rate, Tier, charge, to_units
from orchestrator.core.findings import Kind
from orchestrator.core.reckoning import (
    Booked,
    Charges,
    Verdict,
    is_comparable,
    judge_line,
    judge_sum,
    note_line,
    note_now,
    reckon,
    verdict,
)
from orchestrator.core.records import Prediction

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
SECOND = Pricing(Price("m@2026", "second", Decimal("0.000975")), 4, failed="free")
OUTPUT = Pricing(Price("m@2026", "output", Decimal("0.003"), failed="unknown"), 4)
TIERED = Pricing(Price("m@2026", "output", None, tiers=(Tier((("quality", ("high",)),), Rate(Decimal("0.1"))),)), 4)
USD = 10**12


def booked(units: int | None = 2437500000, **values: Any) -> Booked:
    """2.5 seconds at $0.000975."""
    kept: dict[str, Any] = {"state": "succeeded", "basis": "metrics", "unit": "second", "quantity": "2.5", "price": "0.000975",
                            "price_id": "m@2026"}
    return Booked(batch_pk=1, row=7, row_id="sku-7", n=1, prediction_id="p7", at=NOW, units=units, **kept | values)


BARE = {"unit": None, "quantity": None, "price": None, "price_id": None}
FREE = booked(0, basis="free", state="failed", **BARE)
UNKNOWN = booked(None, basis=None, **BARE)


def files(output: Any) -> int:
    return len(output)


AMOUNT = st.decimals(0, 700, places=9, allow_nan=False)


@given(AMOUNT, AMOUNT, st.none() | AMOUNT, st.none() | AMOUNT, st.integers(-5, 5))
def test_a_charge_by_itself(quantity: Decimal, price: Decimal, out: Decimal | None, price_out: Decimal | None, off: int):
    """Whatever was counted at whatever price: the charge that was made of it is right, and any other is wrong."""
    unit = "second" if out is None else "token"
    read = {"predict_time": float(quantity)} if out is None else {"token_input_count": float(quantity)}
    metrics = read if out is None else read | {"token_output_count": float(out)}
    made = charge(Prediction("p7", "succeeded", metrics=metrics), price=Price("p", unit, price, price_out), outputs=None)
    assert made.usd is not None and made.line is not None
    line = made.line
    kept = booked(to_units(made.usd) + off, unit=unit, quantity=format(line.quantity, "f"), price=format(line.usd, "f"),
                  quantity_out=None if line.quantity_out is None else format(line.quantity_out, "f"),
                  price_out=None if line.usd_out is None else format(line.usd_out, "f"))
    assert (judge_line(kept) is None) == (off == 0)


@pytest.mark.parametrize(("kept", "text"), [
    (booked(), None), (UNKNOWN, None), (FREE, None), (booked(0, basis="not bought", state="absent", **BARE), None),
    (booked(5, **BARE), None),  # of a version that kept nothing
    (booked(2437500001), "is charged $0.002437500001; what is kept beside it comes to 2.5 × $0.000975 = $0.0024375 (second)"),
    (replace(FREE, units=1), "is charged $0.000000000001; what is kept beside it comes to nothing"),
    (booked(quantity="many"), "is charged by a quantity or price that is no number"),
    (booked(quantity="NaN"), "is charged by a quantity or price that is no number"),
    (booked(price="Infinity"), "is charged by a quantity or price that is no number"),
])
def test_what_is_said_of_a_charge(kept: Booked, text: str | None):
    """A charge that is not what is kept beside it is told with both figures; damage is no crash."""
    finding = judge_line(kept)
    assert (finding and finding.text) == text
    assert finding is None or (finding.kind, finding.row, finding.prediction_id) == (Kind.CHARGE, 7, "p7")


def test_what_was_never_sent_is_no_charge():
    """An attempt that was handed back cost nothing and has no prediction: it is judged, and not counted as a charge."""
    charges = Charges()
    assert note_line(charges, replace(booked(0, basis="not bought", **BARE), prediction_id=None)) is None
    assert (charges.reckoned, charges.bare, charges.units) == (0, 0, 0)


def test_the_sum():
    """What a batch spent is the sum of its charges, unknown ones left out, those of older versions counted in."""
    charges = Charges()
    assert [note_line(charges, one) for one in (booked(), FREE, UNKNOWN, booked(5, **BARE))] == [None] * 4
    assert (charges.reckoned, charges.bare, charges.units) == (2, 1, 2437500005)
    assert judge_sum(charges, spent_units=2437500005) is None
    wrong = judge_sum(charges, spent_units=2 * USD)
    assert wrong is not None and wrong.kind is Kind.SPENT
    assert wrong.text == "the batch has $2 as spent; its charges come to $0.002437500005"


def there(status: str = "succeeded", **values: Any) -> Prediction:
    return Prediction("p7", status, **values)


SHEETS = booked(6 * USD // 1000, basis="counted outputs", unit="output", quantity="2", price="0.003")


@pytest.mark.parametrize(("kept", "prediction", "pricing", "expected"), [
    (booked(), there(metrics={"predict_time": 2.5}), SECOND, Verdict.AGREES),
    (booked(), there(metrics={"predict_time": 2.6}), SECOND, Verdict.DIFFERS),
    (booked(), there(metrics={}), SECOND, Verdict.UNTOLD),
    (booked(), there("canceled", metrics={"predict_time": 2.5}), SECOND, Verdict.AGREES),
    (booked(), there("failed", metrics={"predict_time": 2.5}), SECOND, Verdict.DIFFERS),  # which is free
    (FREE, there("failed", metrics={"predict_time": 2.5}), SECOND, Verdict.AGREES),
    (FREE, there("aborted"), SECOND, Verdict.AGREES),
    (FREE, there(metrics={"predict_time": 2.5}), SECOND, Verdict.DIFFERS),
    (UNKNOWN, there(metrics={"predict_time": 2.5}), SECOND, Verdict.PRICEABLE),
    (UNKNOWN, there(), SECOND, Verdict.UNKNOWN),
    (UNKNOWN, there("failed"), OUTPUT, Verdict.UNKNOWN),
    (SHEETS, there(output=["a", "b"]), OUTPUT, Verdict.AGREES),
    (SHEETS, there(output=["a"]), OUTPUT, Verdict.DIFFERS),
    (SHEETS, there(data_removed=True), OUTPUT, Verdict.UNTOLD),  # outputs are deleted after an hour
    (SHEETS, there(data_removed=True, metrics={"image_output_count": 2}), OUTPUT, Verdict.AGREES),  # metrics stay
    (SHEETS, there(output=["a", "b"]), Pricing(None, 4), Verdict.AGREES),  # at its own price, whatever the batch's is now
    (replace(UNKNOWN, input_json='{"quality": "high"}'), there(output=["a"]), TIERED, Verdict.PRICEABLE),
    (replace(UNKNOWN, input_json='{"quality": "low"}'), there(output=["a"]), TIERED, Verdict.UNKNOWN),
])
def test_by_what_the_provider_says_now(kept: Booked, prediction: Prediction, pricing: Pricing, expected: Verdict):
    """At the attempt's own price; what the provider no longer tells is no difference, and what nobody knew may be known now."""
    assert verdict(kept, reckon(prediction, kept, pricing, count_files=files)) is expected


def test_what_is_said_of_a_difference():
    """What the ledger has, what the provider says, and by how much, in either direction; sums are exact."""
    charges, texts = Charges(), []
    for kept, prediction in ((booked(), there(metrics={"predict_time": 2.6})), (FREE, there(metrics={"predict_time": 1})),
                             (booked(), there("failed")), (booked(), there(metrics={"predict_time": 2.5})),
                             (UNKNOWN, there(metrics={"predict_time": 4})), (UNKNOWN, there())):
        found = note_now(charges, kept, prediction, reckon(prediction, kept, SECOND, count_files=files))
        texts += [found.text] if found is not None else []
    assert texts == [
        "is charged 2.5 × $0.000975 = $0.0024375 (second); the provider now says 2.6 × $0.000975 = $0.002535 (second), "
        "$0.0000975 more",
        "is charged nothing (free); the provider now says 1 × $0.000975 = $0.000975 (second), $0.000975 more",
        "is charged 2.5 × $0.000975 = $0.0024375 (second); the provider now says failed, which costs nothing, $0.0024375 less"]
    assert (charges.compared, charges.agree, charges.unknown, charges.untold) == (4, 1, 1, 0)
    assert charges.difference_units == to_units(Decimal("0.0000975") + Decimal("0.000975") - Decimal("0.0024375"))
    (could_be,) = charges.priceable.kept
    assert could_be.text == "could be priced now: 4 × $0.000975 = $0.0039 (second)"
    assert charges.priceable_units == to_units(Decimal("0.0039"))


def test_what_is_compared():
    """Only where both sides know the end, and the charge is sound in itself."""
    assert is_comparable(there(), booked())
    assert not is_comparable(there("processing"), booked())
    assert not is_comparable(there(), booked(None, state="running"))
    assert not is_comparable(there(), booked(quantity="many"))
