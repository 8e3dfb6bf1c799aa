"""The world alone, under a clock set by hand."""

import math
import tracemalloc
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from orchestrator.simulator.config import SimulatorConfig
from orchestrator.simulator.counting import busiest
from orchestrator.simulator.faults import Faults
from orchestrator.simulator.limits import Bucket
from orchestrator.simulator.models import catalogue
from orchestrator.simulator.prices import Price, Usage, charge
from orchestrator.simulator.world import Order, Target, World

SHOP = catalogue()
START = 1_800_000_000.0


def world(**settings: Any) -> World:
    """Return an empty world whose clock stands still."""
    return World(SimulatorConfig(**({"latency_s": 10} | settings)), clock=lambda: START, seed=3)


def order(slug: str = "stability-ai/sdxl", *, cancel_after_s: float | None = None, **given: Any) -> Order:
    """Return an order for a model's newest version."""
    model = SHOP.models[slug]
    return Order(
        account="simulator", target=Target(model, model.versions[0]), input=given, cancel_after_s=cancel_after_s
    )


def test_life_is_read_off_the_clock() -> None:
    """A prediction starts, runs and succeeds at the times decided at its creation, without any timer."""
    here = world()
    made = here.create(order(prompt="x"), at=START)
    moments = (made.created_at, made.start_at - 1e-6, made.start_at, made.end_at - 1e-6, made.end_at)
    seen = [made.status(moment) for moment in moments]
    assert seen == ["starting", "starting", "processing", "processing", "succeeded"]


def test_lives_between_two_numbers() -> None:
    """Told so, predictions of any model take from the least to the most seconds, all of them alike often, starts included."""
    here = world(latency_between_s=(0.1, 2.0))
    slugs = ("stability-ai/sdxl", "simulator/echo") * 300
    made = [here.create(order(slug, prompt="x"), at=START) for slug in slugs]
    lives = sorted(one.end_at - one.created_at for one in made)
    assert 0.1 <= lives[0] < 0.2 < 1.9 < lives[-1] <= 2.0
    assert 0.9 < lives[300] < 1.2
    assert all(one.created_at <= one.start_at < one.end_at for one in made)


def test_same_seed_same_lives() -> None:
    """Two worlds of one seed make equal ids, times and failures; another seed makes others."""
    lives = []
    for seed in (3, 3, 4):
        here = World(SimulatorConfig(failure_rate=0.3), clock=lambda: START, seed=seed)
        made = [here.create(order(prompt="x"), at=START) for _ in range(50)]
        lives.append([(one.id, one.start_at, one.end_at, one.end_status, one.error) for one in made])
    assert lives[0] == lives[1] != lives[2]
    assert 5 <= sum(life[3] == "failed" for life in lives[0]) <= 25


def test_ids_look_like_replicates() -> None:
    """Ids are 26 lower-case letters and digits, and never repeat."""
    here = world()
    ids = {here.create(order(prompt="x"), at=START).id for _ in range(500)}
    assert len(ids) == 500
    assert all(len(one) == 26 and one.isalnum() and one == one.lower() for one in ids)


def test_mean_latency_is_the_configured_one() -> None:
    """Over many images the mean from creation to completion is the latency asked for."""
    here = world(latency_s=4)
    spans = [here.create(order("black-forest-labs/flux-schnell", prompt="x"), at=0.0).end_at for _ in range(2000)]
    assert 3.7 < sum(spans) / len(spans) < 4.3


@pytest.mark.parametrize(("share", "status"), [(0.5, "aborted"), (1.01, "canceled")])
def test_deadline_before_and_after_the_start(share: float, status: str) -> None:
    """A deadline in the queue aborts, one during the run cancels, and either ends the prediction at that moment."""
    queue_s = world().create(order(prompt="x"), at=0.0).start_at
    cut = world().create(order(prompt="x", cancel_after_s=queue_s * share), at=0.0)
    assert (cut.end_status, cut.end_at, cut.error) == (status, queue_s * share, None)


def test_cancel_while_running_bills_the_time_until_then() -> None:
    """A public model canceled in mid-run is billed up to the cancellation, once, and stays canceled."""
    here = world()
    made = here.create(order(prompt="x"), at=START)
    here.cancel(made, now=made.start_at + 2)
    here.cancel(made, now=made.start_at + 3)
    here.settle(START + 10_000)
    here.settle(START + 20_000)
    assert made.end_status == "canceled"
    assert made.billed == here.account("simulator").spent_usd == Decimal("0.001950")


def test_cancel_in_the_queue_costs_nothing() -> None:
    """A prediction canceled before it starts is free."""
    here = world()
    made = here.create(order(prompt="x"), at=START)
    here.cancel(made, now=START)
    here.settle(START)
    assert (made.end_status, made.billed) == ("canceled", Decimal(0))


def test_stuck_never_ends_but_can_be_canceled() -> None:
    """A stuck prediction stays starting for ever, until somebody cancels it."""
    here = world()
    here.faults.put({"stuck": {"next": 1}})
    made = here.create(order(prompt="x"), at=START)
    assert made.status(START + 1e9) == "starting"
    assert math.isinf(made.end_at)
    here.cancel(made, now=START + 50)
    assert made.status(START + 50) == "canceled"


def test_runs_end_after_half_an_hour() -> None:
    """No run lasts longer than 30 minutes."""
    here = world(latency_s=100_000)
    made = here.create(order(prompt="x"), at=START)
    assert made.end_at - made.start_at == 1800
    assert made.end_status == "failed"


def test_late_creation_happens_in_its_own_time() -> None:
    """A create stuck inside the provider becomes a prediction when its moment comes, dated then."""
    here = world()
    here.create_later(order(prompt="x"), at=START + 60)
    here.settle(START + 59)
    assert not here.predictions
    here.settle(START + 200)
    (made,) = here.predictions.values()
    assert made.created_at == START + 60


def test_predictions_are_small() -> None:
    """A hundred thousand predictions fit into 150 MB: each holds under 1,200 bytes of memory, all told."""
    here = world()
    tracemalloc.start()
    try:
        for number in range(2_000):
            here.create(order(prompt=f"a studio photo of corgi {number}", seed=number), at=START + number)
        here.settle(START + 10_000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / 2_000 < 1_200


@pytest.mark.parametrize(
    ("status", "deployment", "usd"),
    [
        ("succeeded", False, "0.001950"),
        ("canceled", False, "0.001950"),
        ("failed", False, "0"),
        ("aborted", False, "0"),
        ("failed", True, "0.001950"),
    ],
)
def test_seconds_are_billed_by_the_rules(status: str, deployment: bool, usd: str) -> None:
    """Public models bill success and cancellation; deployments bill failure too; aborted ones nobody pays."""
    usage = Usage(status=status, started=True, predict_s=2.0, images=1, tokens_in=0, tokens_out=0)
    assert charge(Price(hardware="gpu-l40s"), usage, deployment=deployment) == Decimal(usd)


def test_units_are_billed_by_the_piece() -> None:
    """Official models bill per image or per token, whatever time they took."""
    usage = Usage(status="succeeded", started=True, predict_s=9.0, images=3, tokens_in=100, tokens_out=10)
    assert charge(Price(image_usd=Decimal("0.003")), usage, deployment=False) == Decimal("0.009")
    price = Price(token_in_usd=Decimal("0.00000005"), token_out_usd=Decimal("0.00000025"))
    assert charge(price, usage, deployment=False) == Decimal("0.0000075")


def test_what_the_input_asks_for_has_its_price() -> None:
    """Images by quality, films by the second, resolution and sound; what failed or was canceled pays for nothing made."""
    prices = {model.slug: model.price for model in SHOP.models.values()}
    usage = Usage(status="succeeded", started=True, predict_s=9.0, images=2, tokens_in=0, tokens_out=0)
    portrait = replace(usage, quality="high")
    film = replace(usage, film_s=Decimal("4.97"), resolution="480p", sounds=True)
    assert charge(prices["simulator/portrait"], portrait, deployment=False) == Decimal("0.334")
    assert charge(prices["simulator/film"], film, deployment=False) == Decimal("0.497")
    assert charge(prices["simulator/film"], replace(film, status="canceled"), deployment=False) == 0
    assert charge(prices["simulator/echo"], usage, deployment=False) == Decimal("0.0001")


def test_a_private_model_pays_for_failures() -> None:
    """Like a deployment, and unlike a public model on the same hardware."""
    here = world()
    here.faults.put({"fail": {"next": 1}})
    made = here.create(order("acme/flux-finetune", prompt="x"), at=START)
    here.settle(START + 10_000)
    assert made.end_status == "failed" and made.billed is not None and made.billed > 0


def test_bucket_allows_its_burst_then_its_rate() -> None:
    """A bucket of 60 a minute and burst 2 grants two at once, then one a second, and names the wait."""
    bucket = Bucket(60, 2)
    assert [bucket.take(0.0), bucket.take(0.0)] == [0.0, 0.0]
    assert bucket.take(0.25) == pytest.approx(0.75)
    assert bucket.take(1.0) == 0.0
    assert bucket.take(1.0) == pytest.approx(1.0)


def test_busiest_minute_slides() -> None:
    """The busiest span is found across minute boundaries, half open."""
    assert busiest([0.0, 50.0, 59.9, 60.0, 119.0], 60.0) == 3


def test_faults_count_down_and_refuse_nonsense() -> None:
    """`next` strikes so often and no more; an unknown name or field changes nothing at all."""
    faults = Faults(1)
    faults.put({"lost_answer": {"next": 2}})
    assert [faults.strike("lost_answer") is not None for _ in range(3)] == [True, True, False]
    for wrong in ({"fail": 1, "nonsense": 1}, {"fail": {"often": 1}}, {"fail": 2}):
        with pytest.raises(ValueError, match="fault switch"):
            faults.put(wrong)
    assert faults.as_json() == {}


def test_fault_probability_is_seeded() -> None:
    """A switch of 0.25 strikes about a quarter of the time, and in the same places for the same seed."""
    blows = []
    for _ in range(2):
        faults = Faults(5)
        faults.put({"fail": 0.25})
        blows.append([faults.strike("fail") is not None for _ in range(1000)])
    assert blows[0] == blows[1]
    assert 200 < sum(blows[0]) < 300


def test_config_refuses_senseless_numbers() -> None:
    """A negative rate or a share above one is refused by name."""
    with pytest.raises(ValueError, match="latency_s"):
        SimulatorConfig(latency_s=-1)
    with pytest.raises(ValueError, match="failure_rate"):
        SimulatorConfig(failure_rate=1.5)
