"""What `verify` finds in charges, on real parts: SQLite, and the simulator's own list."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from orchestrator.core.cost import Price, Pricing, to_units
from orchestrator.core.findings import Kind
from orchestrator.core.records import Batch
from orchestrator.core.verify import Report
from orchestrator.flow.verify import verify_home
from orchestrator.flow.verify_charges import priced_now
from orchestrator.flow.verify_there import verify_there
from tests.flow.conftest import Stage
from tests.flow.test_bill import in_sql
from tests.flow.test_money import PICTURES
from tests.flow.test_stations import Flaky, settle
from tests.flow.test_verify import again, whole

SDXL = "stability-ai/sdxl"
PRICED = "price: { per_second_usd: 0.000975 }\n"


async def priced(stage: Stage, rows: int = 4, *, model: str = SDXL, more: str = PRICED) -> Batch:
    """A batch whose first row fails, which costs nothing."""
    batch = await stage.load(rows, model=model, more=more)
    stage.provider.put("faults", {"fail": {"next": 1, "text": "NSFW content detected"}})
    assert await settle(stage, batch) == {"succeeded": rows - 1, "failed": 1}
    return await again(stage, batch)


def retold(stage: Stage, prediction_id: str, **metrics: Any) -> None:
    """The list tells other metrics of one prediction from now on, and nobody may ask for it by itself."""
    api = stage.rooms.predictions

    async def page(**values: Any) -> Any:
        shown = await api.list_page(**values)
        return replace(shown, predictions=[p._replace(metrics=metrics) if p.id == prediction_id else p
                                           for p in shown.predictions])

    async def get(_: str) -> Any:
        raise AssertionError("a GET for what the list has told")

    stage.rooms = replace(stage.rooms, predictions=Flaky(api, list_page=page, get=get))


async def charges_only(stage: Stage, batch: Batch) -> Report:
    """Both looks, on a batch that has no documents yet."""
    report = await whole(stage, batch)
    assert set(report.findings.counts) <= {Kind.CHARGE, Kind.SPENT, Kind.CHARGED_OTHERWISE}
    return report


async def test_charges_as_the_provider_tells_them(stage: Stage):
    """Each is compared with what the provider says of it: no difference, to the last digit. Where it says another quantity: the
    row, what the ledger has, what the provider says, and by how much; by the list alone."""
    batch = await priced(stage)
    charges = (await charges_only(stage, batch)).charges
    assert (charges.reckoned, charges.bare, charges.compared, charges.agree) == (4, 0, 4, 4)
    assert (charges.difference_units, charges.untold, charges.unknown) == (0, 0, 0)
    assert charges.units == batch.spent_units == to_units(Decimal(stage.provider.admin("ledger")["billed_usd"])) > 0
    (kept,) = in_sql(stage, "SELECT * FROM attempts WHERE charge_units > 0 ORDER BY id LIMIT 1")
    retold(stage, kept["prediction_id"], predict_time=100)
    report = await charges_only(stage, batch)
    (finding,) = report.findings.kept
    more = 100 * Decimal("0.000975") - Decimal(kept["charge_units"]).scaleb(-12)
    assert (finding.kind, finding.prediction_id) == (Kind.CHARGED_OTHERWISE, kept["prediction_id"])
    assert finding.text.startswith(f"is charged {kept['charge_quantity']} × $0.000975 = $")
    assert finding.text.endswith(f"the provider now says 100 × $0.000975 = $0.0975 (second), ${more.normalize():f} more")
    assert (report.charges.compared, report.charges.agree, report.charges.difference_units) == (4, 3, to_units(more))


async def test_a_ledger_that_does_not_add_up(stage: Stage):
    """Found without asking anybody: a sum, a quantity, and a charge that is not what its quantity comes to."""
    batch = await priced(stage)
    for sql, kinds in (("UPDATE batches SET spent_units = spent_units - 1", {Kind.SPENT: 1}),
                       ("UPDATE attempts SET charge_quantity = '7' WHERE charge_units > 0", {Kind.SPENT: 1, Kind.CHARGE: 3}),
                       ("UPDATE batches SET spent_units = spent_units + 1", {Kind.CHARGE: 3})):
        in_sql(stage, sql)
        assert (await verify_home(stage.rooms, batch)).findings.counts == kinds


async def test_what_the_provider_tells_no_longer(stage: Stage):
    """After an hour the outputs are gone and what was counted with them: no difference, and counted apart. Metrics stay."""
    batch = await priced(stage, model=PICTURES, more="price: { per_output_usd: 0.003 }\n")
    timed = await priced(stage)
    assert (await charges_only(stage, batch)).charges.agree == 3
    stage.provider.post("advance", {"seconds": 3700})
    gone, kept = (await charges_only(stage, batch)).charges, (await charges_only(stage, timed)).charges
    assert (gone.compared, gone.untold, gone.unknown) == (0, 3, 1)
    assert (kept.compared, kept.agree, kept.untold) == (4, 4, 0)


async def test_what_could_be_priced_now(stage: Stage):
    """An unknown cost of a batch that has a price by now is told as such, and is nothing wrong."""
    batch = await priced(stage, more="")
    first = (await charges_only(stage, batch)).charges
    assert (first.compared, first.unknown, first.priceable.total) == (1, 3, 0)  # the failed run is free
    later = replace(batch, price_json=Pricing(Price("job", "second", Decimal("0.000975")), 4, failed="free").to_json())
    report = await charges_only(stage, later)
    assert (report.findings.total, report.charges.unknown, report.charges.priceable.total) == (0, 0, 3)
    assert report.charges.priceable_units == to_units(Decimal(stage.provider.admin("ledger")["billed_usd"])) > 0


async def test_what_the_ledger_can_price_by_itself(stage: Stage):
    """A price that is known by now prices what the ledger kept of the predictions, to the last digit of the provider's own bill,
    without asking it; no price, nothing."""
    batch = await priced(stage, more="")
    price = Price("job", "second", Decimal("0.000975"))
    found = await priced_now(stage.rooms, batch, Pricing(price, None, failed="free"))
    assert (found.rows, found.unknown, found.price_id) == (3, 0, "job")
    assert found.units == to_units(Decimal(stage.provider.admin("ledger")["billed_usd"])) > 0
    without = await priced_now(stage.rooms, batch, Pricing(None, None))
    assert (without.rows, without.units, without.unknown, without.price_id) == (0, 0, 3, None)


async def test_an_end_recorded_otherwise_has_its_charge(stage: Stage):
    """What the ledger took for free and succeeded there: the dollars are told with it, by the answer that confirms the end."""
    batch = await priced(stage)
    in_sql(stage, "UPDATE attempts SET state = 'failed', charge_units = 0, charge_basis = 'free', charge_unit = NULL, "
                  "charge_quantity = NULL, charge_price = NULL WHERE id = (SELECT min(id) FROM attempts WHERE charge_units > 0)")
    in_sql(stage, "UPDATE batches SET spent_units = (SELECT sum(charge_units) FROM attempts)")
    report = Report(*[None] * 2)  # type: ignore[arg-type]
    await verify_there(stage.rooms, batch, report)
    assert report.findings.counts == {Kind.ENDED_OTHERWISE: 1, Kind.CHARGED_OTHERWISE: 1}
    billed = to_units(Decimal(stage.provider.admin("ledger")["billed_usd"]))
    assert report.charges.difference_units == billed - (await again(stage, batch)).spent_units > 0
