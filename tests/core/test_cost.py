"""Charges and worst cases: to the last digit where they can be known, None where they cannot."""

import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cost import (
    ABSURD,
    FREE,
    UNKNOWN,
    Price,
    Pricing,
    Rate,
    Tier,
    asks_input,
    charge,
    spelled,
    to_units,
    to_usd,
)
from orchestrator.core.records import ChargeLine, Prediction

L40S = Price("sdxl@2025-07-01", "second", Decimal("0.000975"))
FLUX = Price("flux@2025-07-01", "output", Decimal("0.003"), failed="unknown")
LLAMA = Price("llama@2025-05-01", "token", Decimal("0.00000005"), Decimal("0.00000025"), failed="unknown")
FILM = Price("film@2026-01-01", "output second", Decimal("0.10"), failed="unknown", tiers=(
    Tier((("resolution", ("1080p",)), ("sound", ("true",))), Rate(Decimal("0.50"))),
    Tier((("resolution", ("1080p",)),), Rate(Decimal("0.30"))),
    Tier((("resolution", ("480p", "360p")),), Rate(Decimal("0.05")))), defaults=(("resolution", "720p"), ("sound", "false")))
RUN_S = Price("tick@2026-01-01", "second", Decimal("0.5"))
RUN = Price("coin@2026-01-01", "run", Decimal("0.0001"), failed="unknown")


def prediction(status: str = "succeeded", **metrics: Any) -> Prediction:
    return Prediction("p1", status, metrics=dict(metrics))


def test_images_are_counted():
    """A price per output times the files that came; what was counted goes with it."""
    cost = charge(prediction(), price=FLUX, outputs=4)
    assert (cost.usd, cost.basis) == (Decimal("0.012"), "counted outputs")
    assert cost.line == ChargeLine("output", Decimal(4), Decimal("0.003"), "flux@2025-07-01")


def test_the_providers_own_count_comes_first():
    """Where the provider says how many it counted, that is what it bills, also on a canceled run."""
    cost = charge(prediction("canceled", image_output_count=3), price=FLUX, outputs=1)
    assert (cost.usd, cost.basis) == (Decimal("0.009"), "metrics")


def test_two_counts_are_none():
    """Of two counts nobody knows which is billed: the files are counted."""
    cost = charge(prediction(image_output_count=3, video_output_count=9), price=FLUX, outputs=1)
    assert (cost.usd, cost.basis) == (Decimal("0.003"), "counted outputs")


@pytest.mark.parametrize("output,usd", [(None, "0"), ([], "0"), ("a caption", None), (["a", "b"], None), ({"score": 1}, None)])
def test_what_came_without_a_file_is_not_free(output: Any, usd: str | None):
    """Nothing at all is none; text, of which no file was counted, costs what nobody knows, unless the provider counts it."""
    gave = Prediction("p1", "succeeded", output=output)
    assert charge(gave, price=FLUX, outputs=0).usd == (None if usd is None else Decimal(usd))
    told = gave._replace(metrics={"generic_output_count": 1})
    assert charge(told, price=FLUX, outputs=0).usd == Decimal("0.003")


def test_seconds_are_measured():
    """A hardware price times predict_time, exactly, without a float in between."""
    cost = charge(prediction(predict_time=0.1), price=L40S, outputs=1)
    assert (cost.usd, cost.basis) == (Decimal("0.0000975"), "metrics")
    assert cost.line == ChargeLine("second", Decimal("0.1"), Decimal("0.000975"), "sdxl@2025-07-01")


@pytest.mark.parametrize("words", [("input_token_count", "output_token_count"), ("token_input_count", "token_output_count")])
def test_tokens_have_two_prices(words: tuple[str, str]):
    """Tokens read and tokens written are priced apart, in the words of older models and of newer ones."""
    cost = charge(prediction(**{words[0]: 8, words[1]: 43}), price=LLAMA, outputs=0)
    assert cost.usd == Decimal("0.00000005") * 8 + Decimal("0.00000025") * 43
    assert cost.line is not None and (cost.line.quantity, cost.line.quantity_out, cost.line.usd_out) == (8, 43, LLAMA.usd_out)


def test_free_output_tokens_are_free():
    """A price of zero is a price: not that of the other side."""
    price = Price("x", "token", Decimal("0.001"), Decimal(0))
    assert charge(prediction(input_token_count=1, output_token_count=9), price=price, outputs=0).usd == Decimal("0.001")


@pytest.mark.parametrize("given_input,rate", [
    ({"resolution": "1080p", "sound": True}, "0.50"), ({"resolution": "1080p"}, "0.30"), ({"resolution": "360p"}, "0.05"),
    ({}, "0.10"), ({"resolution": None}, "0.10"), ({"resolution": "4k"}, "0.10")])
def test_the_first_tier_that_fits(given_input: dict[str, Any], rate: str):
    """By the row's input, else the model's defaults, else the entry's own figure."""
    cost = charge(prediction(video_output_duration_seconds=5.04), price=FILM, outputs=1, given=given_input)
    assert cost.usd == Decimal(rate) * Decimal("5.04")


def test_no_tier_and_no_figure_is_unknown():
    """What no tier covers is unknown, and so is a row whose input is not known."""
    bare = Price("x", "output", None, tiers=FILM.tiers)
    assert charge(prediction(), price=bare, outputs=1, given={"resolution": "4k"}) == UNKNOWN
    assert charge(prediction(), price=bare, outputs=1, given=None) == UNKNOWN
    assert charge(prediction(), price=bare, outputs=1, given={"resolution": "480p"}).usd == Decimal("0.05")


def test_seconds_of_video_are_never_guessed():
    """Neither from what was asked for, nor from how long it ran: only from what the provider tells of the output."""
    assert charge(prediction(predict_time=60.0), price=FILM, outputs=1, given={"duration": 5}) == UNKNOWN


@pytest.mark.parametrize("status,price,expected", [
    ("aborted", FLUX, Decimal(0)), ("aborted", L40S, Decimal(0)), ("aborted", None, Decimal(0)),
    ("failed", L40S, Decimal(0)), ("failed", FLUX, None), ("failed", None, None),
    ("canceled", L40S, Decimal("0.002925")), ("canceled", FLUX, None), ("canceled", RUN, None), ("canceled", LLAMA, None),
    ("canceled", None, None)])
def test_what_did_not_run_well(status: str, price: Price | None, expected: Decimal | None):
    """Aborted is free, failed is free on public models and not documented for official ones, canceled costs its seconds."""
    assert charge(prediction(status, predict_time=3.0), price=price, outputs=0).usd == expected


def test_failed_runs_without_a_price():
    """A failed public run is free whatever the price; others cost what nobody knows."""
    found = [charge(prediction("failed"), price=None, outputs=0, failed=word) for word in ("free", "unknown", "billed")]
    assert found == [FREE, UNKNOWN, UNKNOWN]


@pytest.mark.parametrize("price", [L40S, LLAMA, FILM])
@pytest.mark.parametrize("metrics", [
    {}, {"predict_time": None}, {"predict_time": "3"}, {"predict_time": True, "token_input_count": True},
    {"predict_time": -1.0, "video_output_duration_seconds": -1}])
def test_missing_metrics_are_unknown_never_zero(price: Price, metrics: dict[str, Any]):
    """Without a metric that can be one, a charge is None."""
    assert charge(prediction(**metrics), price=price, outputs=1, given={}) == UNKNOWN


@pytest.mark.parametrize("price", [L40S, LLAMA, FILM])
def test_metrics_that_nobody_believes(price: Price):
    """Of every kind."""
    told = prediction(predict_time=1e300, input_token_count=10**300, output_token_count=1, video_output_duration_seconds=1e300)
    assert charge(told, price=price, outputs=1, given={}) == ABSURD


def test_an_estimate_is_called_one():
    """What a deployment's prediction tells is not what is billed: the figure says so."""
    price = Price("job", "second", Decimal("0.5"), failed="billed", is_estimate=True)
    assert [charge(prediction(status, predict_time=2.0), price=price, outputs=0).basis for status in (
        "succeeded", "failed", "canceled", "aborted")] == ["estimate", "estimate", "estimate", "free"]


def test_a_failed_run_of_a_deployment_is_not_free():
    """Deployments are billed for failures too: by the seconds it ran where the price is per second, else unknown."""
    by_second = Price("job", "second", Decimal("0.5"), failed="billed")
    assert charge(prediction("failed", predict_time=60.0), price=by_second, outputs=0).usd == 30
    by_run = Price("job", "run", Decimal("0.5"), failed="billed")
    assert charge(prediction("failed", predict_time=60.0), price=by_run, outputs=0).usd is None


@given(st.integers(min_value=0, max_value=10**18))
def test_units_and_usd_are_inverse(units: int):
    """No digit is lost between SQL and Decimal."""
    assert to_units(to_usd(units)) == units


RATES = st.decimals(min_value=0, max_value=10, places=9)  # times the seconds no more than anybody believes
SECONDS = st.floats(min_value=0, max_value=100_000, allow_nan=False).map(lambda x: round(x, 6))


@given(SECONDS, RATES)
def test_seconds_as_the_provider_writes_them(seconds: float, usd: Decimal):
    """The text of the number in the answer times the price, as fractions: no float error, and at most one unit rounded up."""
    written = json.dumps(seconds)
    cost = charge(prediction(predict_time=json.loads(written)), price=Price("x", "second", usd), outputs=0)
    exact = Fraction(written) * Fraction(usd)
    assert cost.usd is not None and Fraction(cost.usd) == exact
    assert 0 <= to_units(cost.usd) - exact * 10**12 < 1


TOKEN_RATES = st.decimals(min_value=0, max_value=Decimal("0.01"), places=12)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), max_size=30), TOKEN_RATES, TOKEN_RATES)
def test_sums_of_charges_are_exact(counts: list[tuple[int, int]], read: Decimal, wrote: Decimal):
    """Prices of at most twelve decimals times whole counts: the sum of the charges is the charge of the sums, in units."""
    price = Price("x", "token", read, wrote)
    units = [to_units(charge(prediction(token_input_count=i, token_output_count=o), price=price, outputs=0).usd or Decimal(0))
             for i, o in counts]
    total = Fraction(read) * sum(i for i, _ in counts) + Fraction(wrote) * sum(o for _, o in counts)
    assert sum(units) == total * 10**12


def test_finer_than_a_unit_rounds_up():
    """What cannot be held is rounded against ourselves, so a cap stays kept."""
    assert to_units(Decimal("0.0000000000001")) == 1


@pytest.mark.parametrize("seconds", [2_000_001, 1e308, 10**400])
def test_a_charge_that_nobody_believes(seconds: float):
    """More than a job may say of money is unknown, and is said to be that: the ledger could not hold a few of them."""
    half = Price("x", "second", Decimal("0.5"))
    assert charge(prediction(predict_time=2_000_000), price=half, outputs=0).usd == 1_000_000
    assert charge(prediction(predict_time=seconds), price=half, outputs=0) == ABSURD


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1, True, "2", None])
def test_what_is_no_number_of_seconds(seconds: Any):
    """It is not told: unknown, and nothing to be said of it."""
    assert charge(prediction(predict_time=seconds), price=RUN_S, outputs=0) == UNKNOWN


def worst(price: Price | None, *, outputs: int | None = 1, seconds: str | None = None, cancel_after_s: float | None = None,
          known: dict[str, Any] | None = None, per_row: str | None = None) -> Decimal | None:
    dearest = price.dearest(known or {}) if price else None
    pricing = Pricing(price, outputs, Decimal(seconds) if seconds else None, dearest.usd if dearest else None)
    assert Pricing.from_json(pricing.to_json()) == pricing
    return pricing.worst_case_usd(cancel_after_s=cancel_after_s, per_row_usd=Decimal(per_row) if per_row else None)


def test_worst_cases():
    """Finite where price, deadline and schema make it so, else None."""
    assert worst(L40S, cancel_after_s=60) == Decimal("0.0585")
    assert worst(L40S) is None
    assert worst(FLUX, outputs=4) == Decimal("0.012")
    assert worst(FLUX, outputs=None) is worst(FILM, outputs=None, seconds="10") is None
    assert worst(RUN, outputs=None) == Decimal("0.0001")
    assert worst(L40S, outputs=None, cancel_after_s=60) == Decimal("0.0585")
    assert worst(LLAMA, cancel_after_s=60) is None
    assert worst(FILM, cancel_after_s=60) is None
    assert worst(FILM, seconds="10") == Decimal("5.0")
    assert worst(None, cancel_after_s=60) is None
    assert worst(None, per_row="0.05") == worst(LLAMA, per_row="0.05") == Decimal("0.05")


@pytest.mark.parametrize("known,usd", [
    ({}, "0.50"), ({"resolution": "1080p"}, "0.50"), ({"resolution": "1080p", "sound": False}, "0.30"),
    ({"resolution": "480p"}, "0.05"), ({"resolution": "4k"}, "0.10"), ({"sound": False}, "0.30")])
def test_the_dearest_tier_that_is_possible(known: dict[str, Any], usd: str):
    """What is alike for every row rules tiers out; what is not known rules out nothing."""
    assert worst(FILM, seconds="1", known=known) == Decimal(usd)


@pytest.mark.parametrize("known,usd", [
    ({}, "0.05"), ({"resolution": "1080p"}, "0.30"), ({"resolution": "1080p", "sound": True}, "0.50"),
    ({"resolution": "4k"}, "0.10")])
def test_the_cheapest_tier_that_is_possible(known: dict[str, Any], usd: str):
    """Likewise, of the rates that are known."""
    cheapest, tiers_only = FILM.cheapest(known), replace(FILM, usd=None)
    assert cheapest is not None and cheapest.usd == Decimal(usd)
    assert tiers_only.cheapest({"resolution": "4k"}) is None
    assert tiers_only.cheapest({}) == Rate(Decimal("0.05"))


def test_no_less_is_reserved_than_a_row_is_known_to_cost():
    """`per_row_usd` cannot lower it: a batch loaded without a cap may meet one later."""
    pricing = Pricing(RUN, 1, None, Decimal("0.003"), least_usd=Decimal("0.003"))
    assert Pricing.from_json(pricing.to_json()) == pricing
    for per_row, worst_usd in (("0.002", "0.003"), ("0.004", "0.004")):
        assert pricing.worst_case_usd(cancel_after_s=None, per_row_usd=Decimal(per_row)) == Decimal(worst_usd)


@given(st.fixed_dictionaries({}, optional={"resolution": st.sampled_from(["360p", "480p", "720p", "1080p", "4k"]),
                                           "sound": st.booleans()}), st.sets(st.sampled_from(["resolution", "sound"])))
def test_no_row_costs_more_than_its_worst_case(row: dict[str, Any], fed: set[str]):
    """Whatever a column may feed, the rate of a row is never above the dearest that was reserved, nor below the cheapest."""
    full = dict(FILM.defaults) | row
    known = {name: value for name, value in full.items() if name not in fed}
    rate, cheapest, dearest = FILM.rate_of(row), FILM.cheapest(known), FILM.dearest(known)
    assert rate is not None and cheapest is not None and dearest is not None and cheapest.usd <= rate.usd <= dearest.usd


@pytest.mark.parametrize("value,text", [(True, "true"), (8, "8"), (8.0, "8"), (2.5, "2.5"), ("8", "8"), ("True", "True")])
def test_values_are_spelled_alike(value: Any, text: str):
    """A cell 8 that the schema makes 8.0 is the book's 8."""
    assert spelled(value) == text


def test_only_tiers_ask_for_the_input():
    """Most prices do not, and then no fact reads its row's input."""
    texts = [Pricing(price, 1).to_json() for price in (FLUX, FILM, None)]
    assert [asks_input(text) for text in [*texts, "null", ""]] == [False, True, False, False, False]


def test_prices_survive_json():
    """A batch keeps the price it began with."""
    for price in (L40S, FLUX, LLAMA, FILM, RUN, Price("job", "second", None, failed="billed", is_estimate=True)):
        assert Price.from_json(json.loads(json.dumps(price.to_json()))) == price
    assert Price.from_json(None) is None


def test_a_price_of_an_older_ledger():
    """Prices written before failures had a word of their own: official ones stay unknown, others free; nothing gets dearer."""
    old = {"id": "x", "unit": "run", "usd": "1", "usd_out": None}
    assert [Price.from_json(old | {"official": official}).failed for official in (True, False)] == ["unknown", "free"]  # type: ignore[union-attr]
    pricing = Pricing.from_json(json.dumps({"price": old | {"failed": "free"}, "most_outputs": 3}))
    assert pricing.worst_case_usd(cancel_after_s=None, per_row_usd=None) == 1
