"""Submitting as Celery's tutorials teach it: a task for each row, an HTTP client, a database session for each change.

    BENCH_REDIS=… BENCH_DATABASE=… celery -A celery_plain worker --pool=prefork --concurrency=2
    BENCH_REDIS=… BENCH_DATABASE=… python celery_plain.py ROWS.csv

Generous: the client is kept and not made anew for each task, results are not stored, nothing is retried.
"""

import csv
import os
import sys
from pathlib import Path
from typing import Any

import httpx
from celery import Celery
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel, create_engine

MODEL = "black-forest-labs/flux-schnell"
app = Celery("plain", broker=os.environ["BENCH_REDIS"])
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=64, broker_connection_retry_on_startup=True)
engine = create_engine(os.environ["BENCH_DATABASE"], connect_args={"timeout": 30})
client: httpx.Client | None = None


class Attempt(SQLModel, table=True):
    """One row's purchase."""

    number: int = Field(primary_key=True)
    prompt: str
    status: str
    prediction_id: str | None = None


@event.listens_for(engine, "connect")
def _durable(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


@app.task(name="submit")
def submit(number: int, prompt: str) -> None:
    """Note it, buy it, note what was answered."""
    global client  # noqa: PLW0603
    if client is None:
        client = httpx.Client(base_url=os.environ["REPLICATE_BASE_URL"],
                              headers={"Authorization": f"Bearer {os.environ['REPLICATE_API_TOKEN']}"})
    with Session(engine) as session:
        session.add(Attempt(number=number, prompt=prompt, status="sent"))
        session.commit()
    answer = client.post(f"/v1/models/{MODEL}/predictions", json={"input": {"prompt": prompt}})
    answer.raise_for_status()
    with Session(engine) as session:
        attempt = session.get_one(Attempt, number)
        attempt.status, attempt.prediction_id = "running", answer.json()["id"]
        session.add(attempt)
        session.commit()


if __name__ == "__main__":
    SQLModel.metadata.create_all(engine)
    with Path(sys.argv[1]).open(newline="") as file:
        for place, row in enumerate(csv.DictReader(file)):
            submit.delay(place, row["prompt"])
