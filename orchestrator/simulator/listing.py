"""The listing of predictions: newest first, a hundred per page, with opaque cursors."""

import base64
import binascii
from bisect import bisect_left
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlencode

from orchestrator.simulator import answers
from orchestrator.simulator.render import Renderer
from orchestrator.simulator.wire import Reply, Request
from orchestrator.simulator.world import Account, Prediction, World

PAGE = 100


def page(request: Request, *, world: World, renderer: Renderer, account: Account) -> Reply:
    """Return one page; `created_after` is inclusive, `created_before` exclusive, cursors point at our own host.

    A date that cannot be read, a cursor that is not ours or a `source` other than `web` is a 400.
    """
    query = request.query
    if query.get("source") not in (None, "web"):
        return answers.problem(400, "source must be web", title="Bad request")
    try:
        first = _edge(account, query.get("created_after"), default=0)
        stop = _edge(account, query.get("created_before"), default=len(account.predictions))
        start = _position(account, query.get("cursor"))
    except (ValueError, binascii.Error, KeyError):
        return answers.problem(400, "created_after, created_before or cursor cannot be read", title="Bad request")
    now = world.now()
    newest = max(first, min(stop, world.listed(account, now=now)))
    if query.get("source") == "web":
        newest = first
    high = newest if start is None else min(start, newest)
    low = max(first, high - PAGE)
    shown = account.predictions[low:high][::-1]
    results = [renderer.stored(known, base_url=request.base_url, now=now, listed=True) for known in shown]
    kept = {} if world.faults.standing("next_drops_filters") else _filters(query)
    older = _link(request, kept, before=account.predictions[low]) if low > first else None
    newer = None
    if high < newest:
        later = high + PAGE
        newer = _link(request, kept, before=account.predictions[later] if later < newest else None)
    return answers.json_reply({"next": older, "previous": newer, "results": results})


def _filters(query: dict[str, str]) -> dict[str, str]:
    return {name: query[name] for name in ("created_after", "created_before", "source") if name in query}


def _link(request: Request, kept: dict[str, str], *, before: Prediction | None) -> str:
    cursor: dict[str, Any] = {}
    if before is not None:
        position = urlencode({"p": str(before.key[0]), "i": str(before.key[1])})
        cursor = {"cursor": base64.b64encode(position.encode()).decode()}
    return f"{request.base_url}/v1/predictions?{urlencode(cursor | kept)}"


def _position(account: Account, cursor: str | None) -> int | None:
    """Return the index before which the page of a cursor ends."""
    if cursor is None:
        return None
    parts = parse_qs(base64.b64decode(cursor, validate=True).decode())
    return bisect_left(account.predictions, (int(parts["p"][0]), int(parts["i"][0])), key=lambda known: known.key)


def _edge(account: Account, moment: str | None, *, default: int) -> int:
    """Return the index of the first prediction created at or after a moment; a moment without a zone is UTC."""
    if moment is None:
        return default
    at = datetime.fromisoformat(moment.replace(" ", "+"))
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    micros = round((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    return bisect_left(account.predictions, (micros, 0), key=lambda known: known.key)
