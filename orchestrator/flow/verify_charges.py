"""Are the charges right: each by itself, in sum, and by what the provider says of the predictions now? Reads only."""

from collections.abc import Sequence

from orchestrator.core.cost import Pricing
from orchestrator.core.inputs import shape_of
from orchestrator.core.ports import Rooms
from orchestrator.core.reckoning import PricedNow, is_comparable, judge_sum, note_line, note_now, price_now, reckon
from orchestrator.core.records import Batch, Prediction
from orchestrator.core.verify import Report


async def verify_charges(rooms: Rooms, batch: Batch, report: Report) -> None:
    """Each charge against what is kept beside it, and what the batch spent against the sum of its charges: where something was
    charged meanwhile the sum says nothing, and is not judged."""
    before = await rooms.ledger.batch(batch.id)
    async for some in rooms.ledger.booked(batch.pk):
        for booked in some:
            report.findings.add(note_line(report.charges, booked))
    after = await rooms.ledger.batch(batch.id)
    if before is not None and after is not None and before.spent_units == after.spent_units:
        report.findings.add(judge_sum(report.charges, spent_units=after.spent_units))


async def compare_charges(rooms: Rooms, batch: Batch, report: Report, shown: Sequence[Prediction]) -> None:
    """Predictions of this batch, as the provider shows them now, against what the ledger charges for them."""
    pricing, shape = Pricing.from_json(batch.price_json), shape_of(batch.schema_json)
    known = await rooms.ledger.booked_of([prediction.id for prediction in shown], with_input=True)
    for prediction in shown:
        booked = known.get(prediction.id)
        if booked is not None and booked.batch_pk == batch.pk and is_comparable(prediction, booked):
            now = reckon(prediction, booked, pricing, count_files=lambda output: len(shape.files(output)))
            report.findings.add(note_now(report.charges, booked, prediction, now))


async def priced_now(rooms: Rooms, batch: Batch, pricing: Pricing) -> PricedNow:
    """What the rows of unknown cost come to at this price, by what the ledger keeps of their predictions. Nobody is asked."""
    shape, found = shape_of(batch.schema_json), PricedNow(None if pricing.price is None else pricing.price.id)
    async for some in rooms.ledger.unpriced(batch.pk):
        for one in some:
            found.add(one, price_now(one, pricing, count_files=lambda output: len(shape.files(output))))
    return found
