"""A webhook receiver as FastAPI's and SQLModel's tutorials teach it: a plain route, a session, a commit for each webhook.

    BENCH_DATABASE=… BENCH_SECRET=whsec_… uvicorn webhook_app:app --no-access-log

It verifies the signature over the raw body, looks the prediction up by its primary key and commits before it answers.
"""

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel, create_engine

KEY = base64.b64decode(os.environ["BENCH_SECRET"].removeprefix("whsec_"))
engine = create_engine(os.environ["BENCH_DATABASE"], connect_args={"timeout": 30, "check_same_thread": False})
app = FastAPI()


class Attempt(SQLModel, table=True):
    """One purchase and how it ended."""

    id: str = Field(primary_key=True)
    prediction_id: str = Field(index=True)
    status: str
    output: str | None = None
    metrics: str | None = None
    logs: str | None = None


@event.listens_for(engine, "connect")
def _durable(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def session() -> Iterator[Session]:
    """A session for one request."""
    with Session(engine) as opened:
        yield opened


async def raw(request: Request) -> bytes:
    """The body as it came: signatures are over bytes."""
    return await request.body()


Signed = Annotated[str, Header()]
Opened = Annotated[Session, Depends(session)]


@app.post("/webhooks/replicate")
def webhook(attempt: str, body: Annotated[bytes, Depends(raw)], webhook_id: Signed, webhook_timestamp: Signed,
            webhook_signature: Signed, opened: Opened) -> dict[str, str]:
    """As FastAPI's documentation has it for work that blocks: a plain function, run in a thread."""
    return record(attempt, body, webhook_id, webhook_timestamp, webhook_signature, opened)


@app.post("/webhooks/async")
async def webhook_async(attempt: str, request: Request, webhook_id: Signed, webhook_timestamp: Signed,
                        webhook_signature: Signed, opened: Opened) -> dict[str, str]:
    """The shortcut that many take: quicker, and nothing else is answered while the database writes."""
    return record(attempt, await request.body(), webhook_id, webhook_timestamp, webhook_signature, opened)


def record(attempt: str, body: bytes, message_id: str, stamp: str, signature: str, opened: Session) -> dict[str, str]:
    """Verify, record, commit."""
    wanted = hmac.new(KEY, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    if f"v1,{base64.b64encode(wanted).decode()}" not in signature.split():
        raise HTTPException(401)
    told = json.loads(body)
    row = opened.get(Attempt, attempt)
    if row is None or row.prediction_id != told["id"]:
        raise HTTPException(404)
    row.status, row.output = told["status"], json.dumps(told["output"])
    row.metrics, row.logs = json.dumps(told["metrics"]), told["logs"]
    opened.add(row)
    opened.commit()
    return {"detail": "recorded"}
