"""What a batch was expected to cost, what it will have cost in the end, and how fast money goes: for who looks from outside."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from orchestrator.apps.money import about_text, in_all_text, spread_text
from orchestrator.core.cost import to_usd
from orchestrator.core.lifecycle import LIVE_BATCH
from orchestrator.core.projecting import projected_usd
from orchestrator.core.records import Batch, Counts
from orchestrator.wiring import LedgerViews

LATELY_S = 60.0


def projected(batch: Batch, counts: Counts) -> str | None:
    """As decimal text; None: nobody can say, or the batch has ended."""
    usd = projected_usd(batch, counts)
    return None if usd is None else format(usd.normalize(), "f")


async def ahead(views: LedgerViews, batch: Batch, counts: Counts, *, now: datetime) -> dict[str, Any]:
    """The estimate of the day it was loaded, the projected total, and US dollars per minute by what ended in the last one."""
    spent_usd = None
    if batch.state in LIVE_BATCH:
        since = now + timedelta(seconds=(await views.offset(batch.account) or 0.0) - LATELY_S)
        spent_usd = await views.spent_since(batch.account, batch.pk, since=since)
    return {"estimate": None if batch.estimate_json is None else json.loads(batch.estimate_json),
            "projected_usd": projected(batch, counts),
            "budget_usd": None if batch.cap_units is None else format(to_usd(batch.cap_units), "f"),
            "usd_per_minute": format(spent_usd, "f") if spent_usd else None}


def ahead_lines(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people, each with its label; what is not known is left out."""
    told, lines = document["estimate"], []
    if document["projected_usd"] is not None and Decimal(document["projected_usd"]) != Decimal(document["cost_usd"]):
        lately = document["usd_per_minute"]
        rate = f", {about_text(Decimal(lately))} per minute" if lately else ""
        budget = document["budget_usd"]
        in_all = in_all_text(Decimal(document["projected_usd"]), ends_at_usd=None if budget is None else Decimal(budget))
        lines.append(("in all", f"{in_all}{rate}"))
    if told is not None and told["expected_usd"] is not None:
        figures = (told[f"{name}_usd"] and Decimal(told[f"{name}_usd"]) for name in ("low", "expected", "high"))
        lines.append(("expected", spread_text(*figures)))
    return lines
