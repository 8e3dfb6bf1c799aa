"""Rows of unknown cost at the price that there is by now: what they come to, and what would make the others known."""

import json
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.apps.money import rows_text
from orchestrator.core.cost import Pricing, to_usd, usd_text
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.inputs import InputSchema
from orchestrator.core.job import Job
from orchestrator.core.ports import Rooms
from orchestrator.core.quote import pricing_now
from orchestrator.core.reckoning import PricedNow
from orchestrator.core.records import Batch
from orchestrator.flow.verify_charges import priced_now
from orchestrator.wiring import Settings


async def at_todays_price(rooms: Rooms, batch: Batch, settings: Settings) -> PricedNow | None:
    """By the price that the job file or the price book has now, as the next `run` would go by it; where the job file is another
    or has none, by that of the batch's job. None: nothing is of unknown cost, or neither can be read."""
    counts = await rooms.ledger.counts(batch.pk)
    if not counts.cost_unknown_items:
        return None
    try:
        return await priced_now(rooms, batch, _pricing(batch, settings))
    except OrchestratorError:  # a price book that is just being written: who only looks is not sent away for it
        return None


def _pricing(batch: Batch, settings: Settings) -> Pricing:
    kept = Pricing(None, None) if batch.price_json == "null" else Pricing.from_json(batch.price_json)
    job = Job.model_validate_json(batch.job_json)
    job = job.model_copy(update={"price": _price_as_written(batch, job) or job.price})
    schema = InputSchema.from_openapi(json.loads(batch.schema_json))
    return pricing_now(wiring.price_book(settings), job, schema=schema, target=batch.target, kept=kept,
                       on=batch.created_at.date())


def _price_as_written(batch: Batch, job: Job) -> Any:
    """The price that the job file has by now, where there is one and it is of this batch."""
    try:
        now = wiring.load_job(wiring.find_job(batch.job, cwd=Path.cwd()), changes={}).job
    except OrchestratorError:
        return None
    return now.price if (now.target_as_written(), now.input) == (job.target_as_written(), job.input) else None


def now_line(found: PricedNow | None) -> str:
    """`30 rows could be priced now: $0.0139 in all`; or what would make them known; empty where there is nothing to be said."""
    if found is None:
        return ""
    if found.rows:
        return (f"{rows_text(found.rows)} could be priced now: {usd_text(to_usd(found.units))} in all, by {_where(found)}; the "
                "ledger keeps them as unknown, for a charge is made once, when a prediction ends")
    if found.price_id is None and found.unknown:
        return ("no price is known: write it under `price:` in the job, or in config/prices.toml beside jobs/, and what these "
                "rows come to is told here")
    return ""


def _where(found: PricedNow) -> str:
    """Where the price stands."""
    whose = (found.price_id or "").split(":")[0]
    return {"job": "the price in the job", "project": "the price in config/prices.toml"}.get(whose, f"price {found.price_id}")


def now_document(found: PricedNow | None) -> dict[str, Any] | None:
    """The same for programs."""
    return None if found is None else {"rows": found.rows, "usd": format(to_usd(found.units), "f"), "price": found.price_id}
