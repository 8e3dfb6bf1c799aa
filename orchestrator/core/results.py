"""How an item's outcome reads in the results table and in the summary. Pure."""

import json
from datetime import datetime
from typing import Any

from orchestrator.core.cost import to_usd
from orchestrator.core.inputs import OutputShape
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.records import Batch, Counts, ItemResult, ResultRow

_FINAL = {ItemState.SUCCEEDED: "succeeded", ItemState.FAILED: "failed", ItemState.CANCELED: "canceled"}


def result_row(item: ItemResult, *, shape: OutputShape, hidden: bool) -> ResultRow:
    """One final row. `hidden`: official models and deployments, whose version is not to be known."""
    succeeded = item.state is ItemState.SUCCEEDED
    return ResultRow(
        index=item.index,
        prediction_id=item.prediction_id,
        status=_FINAL.get(item.state, "pending"),
        output=_output(item.output_json, shape) if succeeded else None,
        files=item.files if succeeded else (),
        error=item.error,
        error_class=item.error_class,
        cost_usd=None if item.charge_units is None else to_usd(item.charge_units),
        seconds=item.seconds,
        attempts=item.attempts,
        version=None if item.prediction_id is None else ("hidden" if hidden else item.version),
    )


def _output(output_json: str | None, shape: OutputShape) -> str | None:
    """Text as text (a token list joined as the schema says), anything else as JSON; a data URI is in the files instead."""
    if output_json is None:
        return None
    value = json.loads(output_json)
    if value is None:
        return None
    text = shape.text(value)
    if text is not None:
        return text if not text.startswith("data:") else None
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def summary(batch: Batch, counts: Counts, *, results: str | None, now: datetime, state: BatchState) -> dict[str, Any]:
    """The document that `--json` prints and `summary.json` keeps (money as decimal strings)."""
    by = counts.by_state
    final = {name: by.get(state, 0) for state, name in _FINAL.items()}
    return {
        "batch": batch.id,
        "job": batch.job,
        "run_key": batch.run_key,
        "state": state.value,
        "items": {"total": counts.total, **final, "pending": counts.total - sum(final.values())},
        "cost_usd": format(counts.spent_usd, "f"),
        "cost_unknown_items": counts.cost_unknown_items,
        "results": results,
        **({"shared_items": sum(counts.shared.values())} if counts.shared else {}),
        "elapsed_s": round(((batch.finished_at or now) - batch.created_at).total_seconds(), 3),
    }
