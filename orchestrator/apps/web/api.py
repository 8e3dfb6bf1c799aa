"""A small read-only API on the ledger's views, for dashboards and pipelines. It shows prompts, so it does not show itself to
everybody: without a token it answers this machine only, and never what came through a proxy or a tunnel."""

import hmac
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from orchestrator.apps.foretelling import ahead, projected
from orchestrator.apps.hints import why
from orchestrator.core.errors import BadInput, Unreachable
from orchestrator.core.lifecycle import ItemState
from orchestrator.core.ports import Clock
from orchestrator.core.records import Batch
from orchestrator.core.results import summary
from orchestrator.wiring import LedgerViews


class WebState(Protocol):
    """How this web part fares."""

    def trouble(self) -> str | None:
        """Why webhooks cannot be taken in now, or None."""

    def webhooks(self) -> dict[str, int]:
        """Webhooks by what became of them, since this process began."""


LOCAL = ("127.0.0.1", "::1", "localhost")
_PROXIED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "cf-connecting-ip", "via")


def create_api(views: LedgerViews, *, token: str | None, state: WebState, clock: Clock) -> FastAPI:
    """The application. `token`: what `Authorization: Bearer` must carry from elsewhere; `state`: of this process."""
    api = FastAPI(title="orchestrator", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")

    @api.middleware("http")
    async def _gate(request: Request, go_on: Any) -> Any:
        if request.url.path != "/healthz" and not _may_look(request, token):
            return JSONResponse({"detail": "not found"}, status_code=404)
        return await go_on(request)

    @api.exception_handler(Unreachable)
    async def _away(_: Request, error: Unreachable) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=503)

    @api.exception_handler(BadInput)
    async def _unknown(_: Request, error: BadInput) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=404)

    @api.get("/", include_in_schema=False)
    async def index() -> dict[str, Any]:
        """What this is, for who opens the address that `up` prints."""
        return {"what": "the web part of orchestrator: it takes in webhooks, and answers these read-only paths",
                "paths": _paths(api)}

    @api.get("/healthz")
    async def healthz() -> JSONResponse:
        """Whether webhooks can be taken in."""
        trouble = state.trouble()
        return JSONResponse({"status": "ok" if trouble is None else "waiting"}, status_code=200 if trouble is None else 503)

    @api.get("/api/state")
    async def web_state() -> dict[str, Any]:
        """This process: trouble, and webhooks by what became of them."""
        return {"trouble": state.trouble(), "webhooks": state.webhooks()}

    @api.get("/api/batches")
    async def batches(limit: int = Query(50, ge=1, le=500)) -> list[dict[str, Any]]:
        """The latest batches, newest first, as `status --json` tells them."""
        return [await _document(views, batch, clock) for batch in await views.batches(limit=limit)]

    @api.get("/api/batches/{name}")
    async def batch(name: str) -> dict[str, Any]:
        """One batch: counts, money, reason, where the ends of its predictions were learned."""
        found = await views.find(name)
        ahead_of_it = await ahead(views, found, await views.counts(found.pk), now=clock.now())
        return await _document(views, found, clock) | ahead_of_it | {"ended_via": await views.endings(found.pk)}

    @api.get("/api/batches/{name}/items")
    async def items(name: str, state: str | None = None, after: int = -1,
                    limit: int = Query(100, ge=1, le=1000)) -> list[dict[str, Any]]:
        """Rows in order, those behind `after`."""
        if state is not None and state not in set(ItemState):
            raise HTTPException(422, f"state: one of {', '.join(ItemState)}")
        found = await views.find(name)
        rows = await views.items(found.pk, state=ItemState(state) if state else None, after_idx=after, limit=limit)
        return [{"index": r.index, "id": r.row_id, "state": r.state.value, "prediction_id": r.prediction_id,
                 "error": r.error, "error_class": r.error_class, "attempts": r.attempts, "seconds": r.seconds,
                 "shares_row": r.shares_row, "shares_batch": r.shares_batch} for r in rows]

    return api


def _paths(api: FastAPI) -> dict[str, str]:
    """Each path that can be read, and the first line of what stands at its function."""
    return {route.path: (route.endpoint.__doc__ or "").partition("\n")[0]
            for route in api.routes if isinstance(route, APIRoute) and route.include_in_schema}


async def _document(views: LedgerViews, batch: Batch, clock: Clock) -> dict[str, Any]:
    counts = await views.counts(batch.pk)
    document = summary(batch, counts, results=None, now=clock.now(), state=batch.state)
    return document | {"reason": why(batch), "model": batch.target.name, "projected_usd": projected(batch, counts)}


def _may_look(request: Request, token: str | None) -> bool:
    """By token from anywhere; without one from this machine, spoken to by its own name."""
    scheme, _, offered = request.headers.get("authorization", "").partition(" ")
    if token is not None and scheme.lower() == "bearer":
        return hmac.compare_digest(offered.strip().encode(), token.encode())
    is_direct = not any(name in request.headers for name in _PROXIED)
    peer = request.client.host if request.client else ""
    return is_direct and peer in LOCAL and request.url.hostname in LOCAL
