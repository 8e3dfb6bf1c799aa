"""Charges and worst cases: to the last digit where they can be known, None where they cannot."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cost import Price, Pricing, charge, resolve, to_units, to_usd
from orchestrator.core.errors import BadInput
from orchestrator.core.records import Prediction

BOOK = {
    "hardware": {"gpu-l40s": {"per_second_usd": "0.000975"}},
    "models": {
        "black-forest-labs/flux-schnell": {"per_output_usd": "0.003", "as_of": "2026-09-01"},
        "meta/llama": {"per_input_token_usd": "0.00000005", "per_output_token_usd": "0.00000025"},
        "stability-ai/sdxl": {"hardware": "gpu-l40s", "as_of": "2025-07-01"},
    },
}


def price_of(model: str, *, official: bool = False) -> Price | None:
    return resolve(model=model, official=official, given=None, book=BOOK, deployment=False)


def prediction(status: str = "succeeded", **metrics: float) -> Prediction:
    return Prediction("p1", status, metrics=dict(metrics))


def test_images_are_counted():
    """A price per output times the files that came."""
    cost = charge(prediction(), price=price_of("black-forest-labs/flux-schnell", official=True), outputs=4)
    assert (cost.usd, cost.basis) == (Decimal("0.012"), "counted outputs")


def test_seconds_are_measured():
    """A hardware price times predict_time, exactly, without a float in between."""
    cost = charge(prediction(predict_time=0.1), price=price_of("stability-ai/sdxl"), outputs=1)
    assert cost.usd == Decimal("0.0000975")


def test_tokens_have_two_prices():
    """Tokens read and tokens written are priced apart."""
    cost = charge(prediction(input_token_count=8, output_token_count=43), price=price_of("meta/llama"), outputs=0)
    assert cost.usd == Decimal("0.00000005") * 8 + Decimal("0.00000025") * 43


@pytest.mark.parametrize("status,official,expected", [
    ("aborted", True, Decimal(0)),
    ("aborted", False, Decimal(0)),
    ("failed", False, Decimal(0)),
    ("failed", True, None),
])
def test_what_did_not_run_well(status: str, official: bool, expected: Decimal | None):
    """Aborted is free; failed is free on public models, and not documented for official ones: unknown."""
    model = "black-forest-labs/flux-schnell" if official else "stability-ai/sdxl"
    assert charge(prediction(status, predict_time=3.0), price=price_of(model, official=official), outputs=0).usd == expected


def test_canceled_is_billed_up_to_the_cancellation():
    """A canceled run on hardware costs its seconds."""
    cost = charge(prediction("canceled", predict_time=2.0), price=price_of("stability-ai/sdxl"), outputs=0)
    assert cost.usd == Decimal("0.00195")


@pytest.mark.parametrize("model", ["stability-ai/sdxl", "meta/llama"])
def test_missing_metrics_are_unknown_never_zero(model: str):
    """Without the metric a charge is None."""
    assert charge(prediction(), price=price_of(model), outputs=1).usd is None


def test_no_price_is_unknown():
    """A model outside the book costs an honest None, and so does a deployment."""
    assert price_of("somebody/else") is None
    assert charge(prediction(predict_time=1.0), price=None, outputs=1).usd is None
    deployed = resolve(model="black-forest-labs/flux-schnell", official=False, given=None, book=BOOK, deployment=True)
    assert deployed is None


def test_the_job_has_the_first_word():
    """A price in the job wins over the book, and names the hardware it took."""
    price = resolve(model="meta/llama", official=True, given={"hardware": "gpu-l40s"}, book=BOOK, deployment=True)
    assert price is not None and (price.unit, price.id) == ("second", "job:gpu-l40s")


def test_unknown_hardware_lists_the_known():
    """A misspelt hardware is refused with what there is."""
    with pytest.raises(BadInput, match="gpu-l40s"):
        resolve(model="m/n", official=False, given={"hardware": "gpu-l4s"}, book=BOOK, deployment=False)


@given(st.integers(min_value=0, max_value=10**18))
def test_units_and_usd_are_inverse(units: int):
    """No digit is lost between SQL and Decimal."""
    assert to_units(to_usd(units)) == units


def test_finer_than_a_unit_rounds_up():
    """What cannot be held is rounded against ourselves, so a cap stays kept."""
    assert to_units(Decimal("0.0000000000001")) == 1


def test_worst_cases():
    """Finite where price and deadline make it so, else None."""
    per_second, per_output = price_of("stability-ai/sdxl"), price_of("black-forest-labs/flux-schnell")
    assert Pricing(per_second, 1).worst_case_usd(cancel_after_s=60, per_row_usd=None) == Decimal("0.0585")
    assert Pricing(per_second, 1).worst_case_usd(cancel_after_s=None, per_row_usd=None) is None
    assert Pricing(per_output, 4).worst_case_usd(cancel_after_s=None, per_row_usd=None) == Decimal("0.012")
    assert Pricing(price_of("meta/llama"), 1).worst_case_usd(cancel_after_s=60, per_row_usd=None) is None
    assert Pricing(None, 1).worst_case_usd(cancel_after_s=None, per_row_usd=Decimal("0.05")) == Decimal("0.05")


def test_prices_survive_json():
    """A batch keeps the price it began with."""
    for model in BOOK["models"]:
        price = price_of(model, official=True)
        assert price is not None
        assert Pricing.from_json(Pricing(price, 3).to_json()) == Pricing(price, 3)
    assert Price.from_json(None) is None


def test_a_failed_run_of_a_deployment_is_not_free():
    """Deployments are billed for failures too: by the seconds it ran where the price is per second, else unknown."""
    by_second = resolve(model="m/n", official=False, given={"hardware": "gpu-l40s"}, book=BOOK, deployment=True)
    assert by_second is not None
    assert charge(prediction("failed", predict_time=60.0), price=by_second, outputs=0).usd == by_second.usd * 60
    by_run = resolve(model="m/n", official=False, given={"per_run_usd": 0.1}, book=BOOK, deployment=True)
    assert charge(prediction("failed", predict_time=60.0), price=by_run, outputs=0).usd is None


def test_a_price_of_an_older_ledger():
    """Prices written before failures had a word of their own: official ones stay unknown, others free."""
    old = {"id": "x", "unit": "run", "usd": "1", "usd_out": None}
    assert [Price.from_json(old | {"official": official}).failed for official in (True, False)] == ["unknown", "free"]  # type: ignore[union-attr]
