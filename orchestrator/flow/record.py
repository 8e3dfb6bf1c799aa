"""The one door for facts: whatever was learned, from a POST's answer, a list, a GET or a webhook, ends here."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import lru_cache

from orchestrator.core.caps import AccountBudget, caps_of
from orchestrator.core.cost import Pricing
from orchestrator.core.errors import Unreachable
from orchestrator.core.inputs import shape_of
from orchestrator.core.job import MOST_USD, Job
from orchestrator.core.lifecycle import ItemState
from orchestrator.core.ports import Decide, Rooms
from orchestrator.core.records import Change, Delivery, Fact, Prediction, Receipt, Rules, Standing, Wake
from orchestrator.core.retry import Policy, decide, event_of

log = logging.getLogger("orchestrator.flow")


def fact_of(prediction: Prediction, *, at: datetime, via: str, attempt_id: str | None = None,
            bound_by: str | None = None) -> Fact:
    """A provider's account of a prediction, as a fact; `via`: post, webhook, list or get; `bound_by`: why it is the attempt's."""
    return Fact(event_of(prediction), at, attempt_id=attempt_id, prediction=prediction, via=via, bound_by=bound_by)


async def record(rooms: Rooms, facts: Sequence[Fact]) -> list[Wake]:
    """Apply facts to the ledger in one transaction; the wakes that follow from what moved."""
    return (await news_of(rooms, facts))[1]


async def news_of(rooms: Rooms, facts: Sequence[Fact]) -> tuple[int, list[Wake]]:
    """`record`, for who wants to know how many of the facts were news."""
    if not facts:
        return 0, []
    changes = await rooms.ledger.move(facts, decide=judge(rooms))
    _warn(changes)
    return len(changes), wakes_of(changes)


async def receive(rooms: Rooms, deliveries: Sequence[Delivery]) -> tuple[list[Receipt], list[Wake]]:
    """Webhooks, through the same door: taken in and applied in one transaction; a receipt for each, and the wakes."""
    receipts, changes = await rooms.ledger.receive(deliveries, decide=judge(rooms))
    _warn(changes)
    return receipts, wakes_of(changes)


def judge(rooms: Rooms) -> Decide:
    """The decision that the ledger takes about each fact, by the rules it finds with it."""
    first_s, jitter = rooms.tempo.retry_first_s, rooms.clock.jitter

    def decided(standing: Standing, fact: Fact) -> Change | None:
        return decide(standing, fact, policy=_policy(standing.rules, first_s, rooms.budget), jitter=jitter())

    return decided


@lru_cache(maxsize=64)
def _policy(rules: Rules, retry_first_s: float, account: AccountBudget) -> Policy:
    """Asked for with every fact, so remembered. In a batch that has ended nothing is bought again."""
    shape = shape_of(rules.schema_json)
    pricing, job = Pricing.from_json(rules.price_json), Job.model_validate_json(rules.job_json)
    return Policy(
        max_attempts=rules.max_attempts if rules.is_live else 1,
        retry_first_s=retry_first_s,
        canceling=rules.canceling,
        price=pricing.price,
        count_files=lambda output: len(shape.files(output)),
        is_live=rules.is_live,
        buys_unsure=job.retry.unsure == "buy",
        failed=pricing.failed,
        is_capped=bool(caps_of(job, account)),
    )


def _warn(changes: Sequence[Change]) -> None:
    """Of what cost more than was reserved for it, or than anybody believes; one row of each batch will do."""
    absurd = {change.standing.rules.batch_id: change.standing.row for change in changes if change.is_absurd}
    for batch_id, row in absurd.items():
        log.warning("batch %s: by its price row %d cost more than $%s, which nobody believes: its cost is unknown; correct the "
                    "price or look at what the model tells", batch_id, row, f"{MOST_USD:,}")
    alarms = {change.standing.rules.batch_id: change.alarm for change in reversed(changes) if change.alarm is not None}
    for batch_id, alarm in alarms.items():
        log.warning("batch %s buys nothing more: %s", batch_id, alarm)


def wakes_of(changes: Iterable[Change]) -> list[Wake]:
    """Once per batch and station: outputs to bring home, rows to buy again."""
    wakes: list[Wake] = []
    seen: set[tuple[str, ItemState]] = set()
    for change in changes:
        rules, to = change.standing.rules, change.item_to
        if (rules.batch_id, to) in seen or not rules.is_live or to is change.standing.item_state:
            continue
        seen.add((rules.batch_id, to))
        if to is ItemState.COLLECTING:
            wakes.append(Wake("collect", rules.batch_id))
        elif to is ItemState.PENDING:
            wakes.append(Wake("submit", rules.batch_id, due_at=change.due_at))
    return wakes


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
        except Exception:
            log.exception("%d facts could not be recorded together; now one by one", len(facts))
            await self._one_by_one(facts)

    async def _one_by_one(self, facts: list[Fact]) -> None:
        """A fact that cannot be recorded must not cost the others: each is a purchase."""
        for place, fact in enumerate(facts):
            try:
                self.wakes.extend(await record(self._rooms, [fact]))
            except Unreachable:
                self._facts = facts[place:] + self._facts
                raise
            except Exception:
                log.exception("what became of attempt %s could not be recorded; the sweep will ask again", fact.attempt_id)

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
