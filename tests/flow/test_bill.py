"""The bill: what the ledger says was spent is what the provider billed, to the last digit, for each way of pricing."""

import asyncio
import csv
import itertools
import sqlite3
import tomllib
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator import wiring
from orchestrator.core.caps import AccountBudget
from orchestrator.core.errors import BadInput
from orchestrator.core.pricebook import read_book
from orchestrator.core.prices import Book
from orchestrator.core.records import Batch
from orchestrator.core.verify import Document, Report
from orchestrator.flow.ingest import Order, Prepared, load, prepare
from orchestrator.flow.invoice import Request, lay_beside
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.submit import submit
from orchestrator.flow.unsure import look_for_all
from orchestrator.flow.verify_charges import verify_charges
from orchestrator.flow.verify_there import verify_there
from orchestrator.gateways.testing import MemoryLimiter
from orchestrator.settings import config_folder, read_settings, read_toml
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import Provider
from tests.flow.conftest import QUICK, Stage
from tests.flow.test_stations import settle

OWN = """
[models."stability-ai/sdxl"]
hardware = "gpu-l40s"

[models."simulator/echo"]
per_run_usd = "0.0001"

[models."simulator/portrait"]
tiers = [
  { when = { quality = "low" }, per_output_usd = "0.011" },
  { when = { quality = "medium" }, per_output_usd = "0.042" },
  { when = { quality = "high" }, per_output_usd = "0.167" },
]

[models."simulator/film"]
per_output_second_usd = "0.10"                     # 720p in silence
tiers = [
  { when = { resolution = "480p", generate_audio = true }, per_output_second_usd = "0.10" },
  { when = { resolution = "480p" }, per_output_second_usd = "0.05" },
  { when = { resolution = "1080p", generate_audio = true }, per_output_second_usd = "0.30" },
  { when = { resolution = "1080p" }, per_output_second_usd = "0.15" },
  { when = { generate_audio = true }, per_output_second_usd = "0.20" },
]

[models."acme/flux-finetune"]
hardware = "gpu-l40s"

[models."acme/quick-finetune"]
hardware = "gpu-h100"
fast_booting = true
"""
BOOK = read_book([("prices.toml", "project:", tomllib.loads(OWN)),
                  ("shipped", "", read_toml(config_folder() / "prices.toml"))])


@dataclass(frozen=True)
class Kind:
    """A way of pricing: the model, the inputs of its rows, and the basis of what is charged."""

    model: str
    columns: dict[str, list[Any]]
    basis: str
    failed_is_known: bool = False  # failed runs are free, or billed by what they tell
    more: str = ""  # of the job

    def rows(self, count: int) -> list[dict[str, Any]]:
        """So many rows, no two alike, walking through the values of each column."""
        combinations = itertools.cycle(itertools.product(*self.columns.values()))
        return [{"prompt": f"sentence {n}", **dict(zip(self.columns, next(combinations), strict=True))} for n in range(count)]


KINDS = {
    "second": Kind("stability-ai/sdxl", {"num_outputs": [1]}, "metrics", failed_is_known=True),
    "output": Kind("black-forest-labs/flux-schnell", {"num_outputs": [1, 4, ""]}, "counted outputs"),
    "output by quality": Kind("simulator/portrait", {"quality": ["low", "", "high"], "num_outputs": [1, 3]}, "metrics"),
    "token": Kind("meta/meta-llama-3-8b-instruct", {"max_tokens": [5, 40]}, "metrics"),
    "output second": Kind("simulator/film", {"resolution": ["480p", "", "1080p"], "generate_audio": ["true", "", "false"],
                                             "duration": [2, 12]}, "metrics"),
    "run": Kind("simulator/echo", {}, "run"),
    "private": Kind("acme/flux-finetune", {"num_outputs": [1]}, "estimate", failed_is_known=True),
    "deployment": Kind("acme/flux", {"num_outputs": [1]}, "estimate", failed_is_known=True,
                       more="price: { hardware: gpu-l40s }\n"),
    "fast-booting": Kind("acme/quick-finetune", {"num_outputs": [1]}, "metrics", failed_is_known=True),
}
ROWS = 18


@pytest.fixture
async def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A provider whose predictions last long enough to be canceled in the middle."""
    config = SimulatorConfig(port=0, latency_between_s=(0.5, 1.5), creates_per_minute=0, reads_per_minute=0, polls_per_minute=0,
                             seed=5)
    with running(config) as url:
        monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_simulator")
        monkeypatch.setenv("REPLICATE_BASE_URL", url)
        monkeypatch.setenv("ORCHESTRATOR_OUTPUT_HOSTS", url.removeprefix("http://"))
        tempo = replace(QUICK, unsure_give_up_s=20, slice_s=0.2, request_timeout_s=1.5)
        settings = read_settings(tmp_path / "home").model_copy(update={"tempo": tempo})
        async with wiring.rooms(settings) as rooms:
            limiter = MemoryLimiter(wiring.clock())
            yield Stage(replace(rooms, limiter=limiter), Provider(url), tmp_path, limiter)


async def prepared(stage: Stage, model: str, rows: list[dict[str, Any]], *, more: str = "", book: Book = BOOK) -> Prepared:
    """A job that feeds each column to the input of its name, examined."""
    with (stage.folder / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    fed = {"text" if model == "simulator/echo" and name == "prompt" else name: name for name in rows[0]}
    inputs = ", ".join(f'{name}: "{{{{ {column} }}}}"' for name, column in fed.items())
    target = f"deployment: {model}" if model == "acme/flux" else f"model: {model}"
    (stage.folder / "job.yaml").write_text(f"{target}\nsource: {{ path: rows.csv }}\ninput: {{ {inputs} }}\n{more}")
    found = wiring.load_job(stage.folder / "job.yaml", changes={})
    order = Order(job=found.job, name="job", folder=str(stage.folder), output_to="out", output_base=str(stage.folder),
                  places=found.places)
    return await prepare(stage.rooms, order, book=book)


def in_sql(stage: Stage, query: str) -> list[dict[str, Any]]:
    """Asked of the ledger's own file."""
    with closing(sqlite3.connect(stage.folder / "home" / "ledger.db", timeout=30)) as connection, connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]


async def cancel_some(stage: Stage, count: int) -> None:
    """Cancel so many predictions in the middle of their run, as somebody on the provider's page might."""
    asked: set[str] = set()
    canceled = 0
    while canceled < count:
        running_now = [p["id"] for p in stage.provider.purchases() if p["status"] == "processing" and p["id"] not in asked]
        for prediction_id in running_now[: count - canceled]:
            told = httpx.post(f"{stage.provider.url}/v1/predictions/{prediction_id}/cancel",
                              headers={"authorization": "Bearer r8_simulator"}, verify=False, timeout=60).json()
            asked.add(prediction_id)
            canceled += told["status"] == "canceled"  # else it had ended meanwhile
        await asyncio.sleep(0.02)


LATER_S = 20.0


async def let_time_pass(stage: Stage) -> None:
    """Once a row has been bought again whose purchase was never made, that is made after all; what never starts meets its
    deadline."""
    async with asyncio.timeout(30):
        while not in_sql(stage, "SELECT 1 FROM attempts a JOIN attempts b ON a.item_pk = b.item_pk "
                                "WHERE a.state = 'absent' AND b.prediction_id IS NOT NULL"):
            await asyncio.sleep(0.05)
    await asyncio.to_thread(stage.provider.post, "advance", {"seconds": LATER_S})


async def see_it_all(stage: Stage, batch: Batch) -> None:
    """Sweep until every purchase is known, and over."""
    async with asyncio.timeout(60):
        while not {p["id"] for p in stage.provider.purchases()} <= {a["prediction_id"] for a in in_sql(
                stage, "SELECT prediction_id FROM attempts WHERE state NOT IN ('open', 'unsure', 'running')")}:
            await sweep(stage.rooms, batch.account)
            await look_for_all(stage.rooms, batch.account)
            await asyncio.sleep(0.05)
    await settle(stage, batch, within_s=60)


def made_after_all(kept: list[dict[str, Any]]) -> dict[str, Any]:
    """The attempt that was found absent, and was bought all the same when its row had been bought again. It is surplus, unless
    that purchase had failed by then: then it is the row's."""
    (late,) = (a for a in kept if a["n"] == 1 and a["prediction_id"]
               and _seconds(a["provider_created_at"]) - _seconds(a["created_at"]) > LATER_S / 2)
    (again,) = (a for a in kept if a["item_pk"] == late["item_pk"] and a["n"] == 2)
    assert late["surplus_at"] is not None or again["state"] == "failed"
    return late


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize("name", KINDS)
async def test_the_bill_to_the_last_digit(market: Stage, name: str):
    """With failures that are tried again and some that are not, cancellations in the middle, one that the deadline ends before it
    starts, lost answers, and a purchase that turns up when its row was bought again: the ledger's total is the provider's bill,
    what is unknown was billed nothing, is counted apart, and alone is still reserved."""
    kind = KINDS[name]
    more = kind.more + "limits: { cancel_after: 5s }\n"
    batch, _ = await load(market.rooms, await prepared(market, kind.model, kind.rows(ROWS), more=more))
    market.provider.put("faults", {"late_creation": {"next": 1, "seconds": LATER_S}, "stuck": {"next": 1}, "fail": {"next": 4},
                                   "lost_answer": {"next": 2}})
    await asyncio.gather(submit(market.rooms, batch.id, 0), asyncio.to_thread(asyncio.run, cancel_some(market, 3)))
    market.provider.put("faults", {"fail": {"next": 2, "text": "the model did not like it"}})
    states, _ = await asyncio.gather(settle(market, batch, within_s=60), let_time_pass(market))
    await see_it_all(market, batch)
    ledger, bought = market.provider.admin("ledger"), market.provider.purchases()
    counts, kept = await market.rooms.ledger.counts(batch.pk), in_sql(market, "SELECT * FROM attempts")
    assert states["failed"] >= 3 and sum(states.values()) == ROWS, states
    assert ledger["by_status"]["canceled"] == 3 and ledger["by_status"]["failed"] >= 3 and len(bought) > ROWS
    struck = market.provider.admin("struck")
    assert struck["lost_answer"] == 2 and struck["fail"] >= 3
    assert (struck["late_creation"], ledger["by_status"]["aborted"]) == (1, 1)
    assert made_after_all(kept)["charge_basis"] != "not bought"
    assert counts.spent_usd == Decimal(ledger["billed_usd"]) > 0
    billed = {p["id"]: Decimal(p["billed_usd"]) for p in bought}
    assert {a["prediction_id"] for a in kept if a["prediction_id"]} == set(billed)
    for attempt in kept:
        if attempt["prediction_id"] is not None:
            known = 0 if attempt["charge_units"] is None else attempt["charge_units"]
            assert Decimal(known).scaleb(-12) == billed[attempt["prediction_id"]], attempt
    unknown = [a for a in kept if a["charge_units"] is None]
    assert counts.reserved_usd == Decimal(sum(a["reserved_units"] for a in unknown)).scaleb(-12)
    assert not any(a["reserved_units"] for a in kept if a["charge_units"] is not None)
    assert len(unknown) == (0 if kind.failed_is_known else sum(p["status"] in ("failed", "canceled") for p in bought))
    _reckoned(kept, kind)
    await _told_again(market, batch, unknown=len(unknown))


def _reckoned(kept: list[dict[str, Any]], kind: Kind) -> None:
    """Every charge above zero can be reckoned again from what is kept beside it."""
    charged = [a for a in kept if a["charge_units"]]
    assert {a["charge_basis"] for a in charged} == {kind.basis}
    for attempt in charged:
        usd = Decimal(attempt["charge_quantity"]) * Decimal(attempt["charge_price"])
        if attempt["charge_quantity_out"] is not None:
            usd += Decimal(attempt["charge_quantity_out"]) * Decimal(attempt["charge_price_out"])
        assert usd.scaleb(12) == attempt["charge_units"]
        assert attempt["charge_price_id"].startswith(("job:gpu-l40s@", f"project:{kind.model}@", f"{kind.model}@"))


async def _told_again(stage: Stage, batch: Batch, *, unknown: int) -> None:
    """What the provider's list says of them still, and its invoice, agree with every charge."""
    report = Report(Document(""), Document(""))
    await verify_charges(stage.rooms, batch, report)
    await verify_there(stage.rooms, batch, report)
    charges, counts = report.charges, report.findings.counts
    assert not counts and report.there.why_not is None, report.findings.kept
    assert (charges.agree, charges.difference_units, charges.untold) == (charges.compared, 0, 0)
    assert charges.compared == report.there.ours - unknown > 0 and charges.unknown == unknown
    path = stage.folder / "invoice.csv"
    path.write_bytes(httpx.get(f"{stage.provider.url}/_admin/invoice", verify=False).content)
    beside = (await lay_beside(stage.rooms, Request(str(path)))).beside
    assert beside.agrees() and not beside.words, beside.words
    assert beside.together().difference_usd == 0 and beside.compared == beside.lines > 0


async def test_seconds_of_film_that_nobody_tells(market: Stage):
    """Where the provider does not say how long a film is, its cost is unknown, and not what was asked for."""
    market.provider.put("faults", {"untold_counts": True})
    batch, _ = await load(market.rooms, await prepared(market, "simulator/film", KINDS["output second"].rows(3)))
    assert await settle(market, batch, within_s=30) == {"succeeded": 3}
    counts = await market.rooms.ledger.counts(batch.pk)
    assert (counts.spent_usd, counts.cost_unknown_items) == (0, 3)
    assert Decimal(market.provider.admin("ledger")["billed_usd"]) > 0


async def test_a_community_model_without_a_price(market: Stage):
    """It runs with a warning; its successes are an honest unknown, and its failures, which are free, are not."""
    found = await prepared(market, "stability-ai/sdxl", KINDS["second"].rows(4), book=Book())
    assert found.warnings == [
        "no price is known for stability-ai/sdxl: the cost of this batch will be unknown, not zero; write it under `price:` in "
        "the job, or in config/prices.toml beside jobs/"]
    batch, _ = await load(market.rooms, found)
    market.provider.put("faults", {"fail": {"next": 1, "text": "the model did not like it"}})
    assert await settle(market, batch, within_s=30) == {"succeeded": 3, "failed": 1}
    counts = await market.rooms.ledger.counts(batch.pk)
    assert (counts.spent_usd, counts.cost_unknown_items) == (0, 3)


BUDGET = "budget: { usd: 1.50, per_row_usd: 0.05 }   # 0.05 is an example; in place of the `budget:` that is there"


@pytest.mark.parametrize("model,more,lines", [
    ("stability-ai/sdxl", "", "so a cap cannot be kept: no price is known.\nAdd to the job either\n"
     f"{BUDGET}\nor, where the price is per second,\n"
     "price: { hardware: gpu-l40s }\nlimits: { cancel_after: 5m }"),
    ("stability-ai/sdxl", "price: { hardware: gpu-l40s }\n", "so a cap cannot be kept: nothing bounds how long it runs.\n"
     f"Add to the job either\nlimits: {{ cancel_after: 5m }}\nor\n{BUDGET}"),
    ("simulator/echo", "price: { per_input_token_usd: 0.001 }\n", "so a cap cannot be kept: nothing bounds how many tokens it "
     f"reads and writes.\nAdd to the job\n{BUDGET}"),
    ("simulator/echo", "price: { per_output_second_usd: 0.001 }\n", "so a cap cannot be kept: nothing bounds how long its "
     f"outputs last (no input `duration` with a maximum).\nAdd to the job\n{BUDGET}"),
    ("simulator/shapes", "price: { per_output_usd: 0.01 }\n", "so a cap cannot be kept: nothing bounds how many files it gives.\n"
     f"Add to the job\n{BUDGET}"),
])
async def test_under_a_cap_the_lines_to_add(market: Stage, model: str, more: str, lines: str):
    """Refused, and the lines that are named are enough: with them the job is taken."""
    rows = [{"prompt": "a", "shape": "list"} if model == "simulator/shapes" else {"prompt": "a"}]
    with pytest.raises(BadInput) as caught:
        await prepared(market, model, rows, more=more + "budget: { usd: 1.50 }\n", book=Book(BOOK.layers[1:]))
    assert str(caught.value) == f"budget: what one row of {model} may cost at worst is not known, {lines}"
    for way in lines.partition("Add to the job")[2].removeprefix(" either\n").strip("\n").split("\nor"):
        added = "\n".join(line for line in way.splitlines() if line.startswith(("budget:", "price:", "limits:")))
        budget = "" if "budget" in added else "budget: { usd: 1.50 }\n"
        taken = await prepared(market, model, rows, more=("" if "price:" in added else more) + budget + added + "\n",
                               book=Book(BOOK.layers[1:]))
        assert taken.cap_units == 1_500_000_000_000


@pytest.mark.parametrize("model,row,more,least,worst", [
    ("simulator/echo", {}, "price: { per_run_usd: 0.003 }\n", "0.003", "0.003"),
    ("black-forest-labs/flux-schnell", {"num_outputs": 4}, "", "0.003", "0.012"),  # a column: one at least, four at most
    ("simulator/portrait", {"num_outputs": 2, "quality": "high"}, "", "0.011", "0.668"),  # the cheapest tier, and the dearest
    ("simulator/film", {"resolution": "480p"}, "", "0.25", "0.75"),
])
async def test_less_set_aside_than_a_row_costs(market: Stage, model: str, row: dict[str, Any], more: str, least: str, worst: str):
    """Under any cap it is refused with both figures, and the line that is named is enough; at the least, and without a cap, it
    is taken."""
    rows = [{"prompt": "a"} | row]

    async def asked(budget: str) -> Prepared:
        return await prepared(market, model, rows, more=f"{more}budget: {budget}\n")

    with pytest.raises(BadInput) as caught:
        await asked("{ job_usd: 9, per_row_usd: 0.0001 }")
    said, _, change = str(caught.value).partition("\nWrite in the job\nbudget: ")
    assert said == (f"budget: per_row_usd sets $0.0001 aside for a row, and one of {model} costs at least ${least} by its price, "
                    "so a cap cannot be kept.")
    assert change == (f"{{ job_usd: 9, per_row_usd: {worst} }}   # in place of the `budget:` that is there; or leave per_row_usd "
                      "out: as much is reserved then")
    for budget in (change.partition("   #")[0], f"{{ job_usd: 9, per_row_usd: {least} }}", "{ per_row_usd: 0.0001 }"):
        assert (await asked(budget)).pricing.least_usd == Decimal(least)
    market.rooms = replace(market.rooms, budget=AccountBudget(account_usd=Decimal(9)))
    with pytest.raises(BadInput, match=r"so a cap \(account_usd under \[budget\] in the settings\) cannot be kept"):
        await asked("{ per_row_usd: 0.0001 }")


@pytest.mark.parametrize("model,price", [
    ("simulator/shapes", "per_output_usd: 0.01"), ("stability-ai/sdxl", "hardware: gpu-l40s"),
    ("simulator/echo", "per_input_token_usd: 0.001")])
async def test_what_is_not_known_is_no_least(market: Stage, model: str, price: str):
    """Seconds, tokens, and lists without a bound: a job says what it will bear, and the first row that is dearer stops it."""
    rows = [{"prompt": "a"} | ({"shape": "list"} if model == "simulator/shapes" else {})]
    found = await prepared(market, model, rows, more=f"price: {{ {price} }}\nbudget: {{ usd: 9, per_row_usd: 0.0001 }}\n")
    assert not found.pricing.least_usd


async def test_deployments_say_that_they_have_no_price(market: Stage):
    """Neither unknown nor an estimate is passed over in silence."""
    rows = [{"prompt": "a"}]
    owned = ("is billed for all the time its instances are online, set-up and idling included, so what a row costs cannot be "
             "derived")
    (bare,) = (await prepared(market, "acme/flux", rows)).warnings
    assert bare.startswith(f"the deployment acme/flux {owned}: the cost of this batch will be unknown, not zero. With `price: ")
    (told,) = (await prepared(market, "acme/flux", rows, more="price: { hardware: gpu-l40s }\n")).warnings
    assert told == f"the deployment acme/flux {owned}: costs are estimates, from what its predictions tell"
    (private,) = (await prepared(market, "acme/flux-finetune", rows, book=Book())).warnings
    assert private.startswith(f"the private model acme/flux-finetune {owned}") and "fast_booting: true" in private
    tuned = await prepared(market, "acme/flux-finetune", rows, more="price: { hardware: gpu-l40s, fast_booting: true }\n")
    assert tuned.pricing.price is not None and not tuned.pricing.price.is_estimate
    assert tuned.warnings == ["nothing bounds how long a row of acme/flux-finetune runs, and so what it costs; "
                              "`limits: { cancel_after: 10m }` does"]


async def test_a_batch_keeps_the_prices_of_its_first_day(market: Stage):
    """A price that begins after a batch did is not the batch's, whenever it goes on; a batch begun today has it."""
    rows = KINDS["run"].rows(2)
    later = tomllib.loads('[[models."simulator/echo"]]\nper_run_usd = 1\n[[models."simulator/echo"]]\nper_run_usd = 9\n'
                          'as_of = "2020-01-01"\n')
    found = await prepared(market, "simulator/echo", rows, book=read_book([("p", "", later)]))
    batch, _ = await load(market.rooms, found)
    assert '"usd": "9"' in batch.price_json

    in_sql(market, "UPDATE batches SET created_at = '2019-12-31 12:00:00.000000'")
    again, new = await load(market.rooms, await prepared(market, "simulator/echo", rows, book=read_book([("p", "", later)])))
    assert (new, again.pk) == (False, batch.pk)
    assert '"usd": "1"' in again.price_json


async def test_tiers_that_ask_for_what_the_model_does_not_have(market: Stage):
    """A misspelt condition would never fit and the wrong figure would count: the price is not used, and that is said."""
    wrong = tomllib.loads('[models."simulator/portrait"]\nper_output_usd = 1\n'
                          'tiers = [{ when = { qualty = "low" }, per_output_usd = 2 }]\n')
    found = await prepared(market, "simulator/portrait", [{"prompt": "a"}], book=read_book([("p", "", wrong)]))
    assert found.pricing.price is None
    assert "ask for an input 'qualty', which it does not have (did you mean 'quality'?)" in found.warnings[0]


@pytest.mark.parametrize("model,row,more,usd", [
    ("simulator/film", {"prompt": "a"}, "", "0.50"),  # the model's default: 5 s at 720p in silence, as nothing feeds these
    ("simulator/film", {"prompt": "a", "duration": "3"}, "", "1.20"),  # a column: 12 s at most
    ("simulator/film", {"prompt": "a", "resolution": "480p"}, "", "0.75"),  # any of them
    ("simulator/film", {"prompt": "a", "generate_audio": "true"}, "", "1.00"),
    ("simulator/portrait", {"prompt": "a"}, "", "0.042"),
    ("simulator/portrait", {"prompt": "a", "num_outputs": "2"}, "", "0.168"),
    ("simulator/portrait", {"prompt": "a", "quality": "low"}, "", "0.167"),
    ("stability-ai/sdxl", {"prompt": "a"}, "limits: { cancel_after: 10s }\n", "0.00975"),
    ("simulator/echo", {"prompt": "a"}, "", "0.0001"),
])
async def test_the_worst_case_of_a_row(market: Stage, model: str, row: dict[str, Any], more: str, usd: str):
    """By what the schema bounds and by the dearest tier that is possible."""
    found = await prepared(market, model, [row], more=more)
    job = found.order.job
    assert found.pricing.worst_case_usd(cancel_after_s=job.limits.cancel_after, per_row_usd=None) == Decimal(usd)


async def test_the_sweep_charges_once(market: Stage):
    """A list read ten times over changes no bill."""
    batch: Batch = (await load(market.rooms, await prepared(market, "simulator/echo", KINDS["run"].rows(3))))[0]
    await settle(market, batch, within_s=30)
    for _ in range(10):
        await sweep(market.rooms, batch.account)
    assert (await market.rooms.ledger.counts(batch.pk)).spent_usd == Decimal("0.0003")
