"""The one door for facts: whatever was learned, from a POST's answer, a list, a GET or a webhook, ends here."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime

from orchestrator.core.cost import Pricing
from orchestrator.core.errors import Unreachable
from orchestrator.core.inputs import shape_of
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch, Change, Delivery, Fact, Prediction, Receipt, Standing, Wake
from orchestrator.core.retry import Policy, decide, event_of


def fact_of(prediction: Prediction, *, at: datetime, via: str, attempt_id: str | None = None) -> Fact:
    """A provider's account of a prediction, as a fact; `via`: post, webhook, list or get."""
    return Fact(event_of(prediction), at, attempt_id=attempt_id, prediction=prediction, via=via)


async def record(rooms: Rooms, facts: Sequence[Fact]) -> list[Wake]:
    """Apply facts to the ledger in one transaction; the wakes that follow from what moved."""
    return (await news_of(rooms, facts))[1]


async def news_of(rooms: Rooms, facts: Sequence[Fact]) -> tuple[int, list[Wake]]:
    """`record`, for who wants to know how many of the facts were news."""
    if not facts:
        return 0, []
    rules = await rules_of(rooms)
    changes = await rooms.ledger.move(facts, decide=rules.judge)
    return len(changes), rules.wakes(changes)


async def receive(rooms: Rooms, deliveries: Sequence[Delivery]) -> tuple[list[Receipt], list[Wake]]:
    """Webhooks, through the same door: taken in and applied in one transaction; a receipt for each, and the wakes."""
    rules = await rules_of(rooms)
    receipts, changes = await rooms.ledger.receive(deliveries, decide=rules.judge)
    return receipts, rules.wakes(changes)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the live batches want done with facts, at one moment."""

    ids: dict[int, str]
    policies: dict[int, Policy]
    lone: Policy  # for attempts of batches that have ended
    jitter: Callable[[], float]

    def judge(self, standing: Standing, fact: Fact) -> Change | None:
        """The change that a fact makes, or None."""
        policy = self.policies.get(standing.batch_pk, self.lone)
        return decide(standing, fact, policy=policy, jitter=self.jitter())

    def wakes(self, changes: Iterable[Change]) -> list[Wake]:
        """Whom the changes concern."""
        return list(_wakes(changes, self.ids))


async def rules_of(rooms: Rooms) -> Rules:
    """The rules that hold now."""
    batches = await rooms.ledger.live_batches()
    first_s = rooms.tempo.retry_first_s
    return Rules({batch.pk: batch.id for batch in batches},
                 {batch.pk: policy_of(batch, retry_first_s=first_s) for batch in batches},
                 Policy(1, first_s, canceling=False, price=None, count_files=lambda _: 0), rooms.clock.jitter)


def policy_of(batch: Batch, *, retry_first_s: float) -> Policy:
    """What this batch wants done with its facts."""
    shape = shape_of(batch.schema_json)
    return Policy(
        max_attempts=batch.max_attempts,
        retry_first_s=retry_first_s,
        canceling=batch.state is BatchState.CANCELING,
        price=Pricing.from_json(batch.price_json).price,
        count_files=lambda output: len(shape.files(output)),
    )


def _wakes(changes: Iterable[Change], ids: dict[int, str]) -> Iterable[Wake]:
    """Once per batch and station: outputs to bring home, rows to buy again, an end to report."""
    seen: set[tuple[int, ItemState]] = set()
    for change in changes:
        pk, to = change.standing.batch_pk, change.item_to
        if (pk, to) in seen or pk not in ids:
            continue
        seen.add((pk, to))
        if to is ItemState.COLLECTING:
            yield Wake("collect", ids[pk])
        elif to is ItemState.PENDING:
            yield Wake("submit", ids[pk], due_at=change.due_at)


class FactsBuffer:
    """Facts gathered by many coroutines and recorded together, every quarter second."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._facts: list[Fact] = []
        self.wakes: list[Wake] = []

    def add(self, fact: Fact) -> None:
        """Keep a fact for the next recording."""
        self._facts.append(fact)

    async def flush(self) -> None:
        """Record what is there. Facts are money: with the ledger away they are kept, and recorded when it is back."""
        facts, self._facts = self._facts, []
        try:
            self.wakes.extend(await record(self._rooms, facts))
        except Unreachable:
            self._facts = facts + self._facts
            raise

    async def pulse(self, done: asyncio.Event) -> None:
        """Record every quarter second, and to the last fact once `done`; give up only after the leases have lapsed."""
        tempo = self._rooms.tempo
        failing_since: float | None = None
        while not done.is_set() or self._facts:
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), tempo.record_every_s)
            try:
                await self.flush()
                failing_since = None
            except Unreachable:
                failing_since = failing_since or self._rooms.clock.boottime()
                if done.is_set() and self._rooms.clock.boottime() - failing_since > tempo.lease_margin_s:
                    raise
                await self._rooms.clock.sleep(1.0)


@asynccontextmanager
async def buffered(rooms: Rooms) -> AsyncIterator[FactsBuffer]:
    """A buffer that records itself while the block runs, and what is left at its end, whatever ends it."""
    buffer, done = FactsBuffer(rooms), asyncio.Event()
    pulse = asyncio.create_task(buffer.pulse(done))
    try:
        yield buffer
    finally:
        done.set()
        await asyncio.shield(pulse)
