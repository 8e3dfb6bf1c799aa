"""The ledger as flow and apps meet it: `core.ports.Ledger`, a transaction around each function of this room."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from orchestrator.core.caps import Bound, Cap
from orchestrator.core.cost import to_usd
from orchestrator.core.failing import Cause, Tally
from orchestrator.core.history import PastAttempt
from orchestrator.core.lifecycle import BatchState, ItemState
from orchestrator.core.ports import Claimable, ClaimTerms, Decide, KeptDelivery, Met, OpenAttempt, OpenWindow
from orchestrator.core.reckoning import Booked, Unpriced
from orchestrator.core.records import (
    Batch,
    Change,
    Claim,
    Counts,
    Delivery,
    Earlier,
    Fact,
    ItemResult,
    NewBatch,
    NewChunk,
    OutputName,
    Receipt,
    Role,
    StoredOutput,
    Surplus,
    Target,
    ToCollect,
    Wake,
)
from orchestrator.core.schedule import NewSlot, Slot, SlotsStanding, SlotState
from orchestrator.core.spending import BatchNames, Spent
from orchestrator.core.verify import Bought, HomeFile, HomeRow, Owner
from orchestrator.gateways.ledger import (
    claims,
    collecting,
    failing,
    foreseeing,
    history,
    loading,
    money,
    moves,
    naming,
    presence,
    receiving,
    sharing,
    slots,
    spending,
    steering,
    sweeping,
    verifying,
    views,
)
from orchestrator.gateways.ledger.session import Database


async def _in_steps(step: Callable[[], Awaitable[int]]) -> int:
    """Repeat a verb that moves a bounded number of rows until it has moved all; how many."""
    total = 0
    while moved := await step():
        total += moved
    return total


class SqlLedger:
    """All of SQL. Every method raises Unreachable when the database is away, full or locked for too long."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # Loading and the batch itself

    async def open_batch(self, new: NewBatch) -> tuple[Batch, bool]:
        """As the port says."""
        return await self._db.write(loading.open_batch, new)

    async def batch(self, batch_id: str) -> Batch | None:
        """As the port says."""
        return await self._db.read(loading.batch, batch_id)

    async def live_batches(self) -> list[Batch]:
        """As the port says."""
        return await self._db.read(loading.live_batches)

    async def note_reason(self, batch_pk: int, reason: str | None) -> None:
        """As the port says."""
        await self._db.write(loading.note_reason, batch_pk, reason)

    async def known(self, run_key: str) -> bool:
        """As the port says."""
        return await self._db.read(loading.known, run_key)

    async def left(self, run_key: str, *, limit: int | None) -> int | None:
        """As the port says."""
        return await self._db.read(loading.left, run_key, limit=limit)

    async def met(self, run_key: str, *, account: str, job: str, caps: Sequence[Cap], reserve_units: int | None,
                  now: datetime) -> Met:
        """As the port says."""
        return await self._db.read(foreseeing.met, run_key, account=account, job=job, caps=caps, reserve_units=reserve_units,
                                   now=now)

    async def loaded_rows(self, batch_pk: int) -> int:
        """As the port says."""
        return await self._db.read(loading.loaded_rows, batch_pk)

    async def add_chunk(self, batch_pk: int, chunk: NewChunk) -> None:
        """As the port says."""
        await self._db.write(loading.add_chunk, batch_pk, chunk)

    async def bought_before(self, batch_pk: int, hashes: Sequence[str]) -> dict[str, Earlier]:
        """As the port says."""
        return await self._db.read(sharing.bought_before, batch_pk, hashes) if hashes else {}

    async def shared_with(self, batch_pk: int) -> dict[str, int]:
        """As the port says."""
        return await self._db.read(sharing.shared_with, batch_pk)

    async def seal(self, batch_pk: int, *, total: int, source_schema_json: str, now: datetime,
                   estimate_json: str | None = None) -> None:
        """As the port says; then statistics, in a transaction of their own."""
        await self._db.write(loading.seal, batch_pk, total=total, source_schema_json=source_schema_json,
                             estimate_json=estimate_json)
        await self._db.write(loading.analyze)

    async def discard(self, batch_pk: int) -> None:
        """As the port says, chunk by chunk from the end."""
        while await self._db.write(loading.discard_last, batch_pk):
            pass

    async def amend(self, batch_pk: int, *, in_flight: int, max_attempts: int, cap_units: int | None, price_json: str,
                    start_limit: int | None, job_json: str, output_to: str | None = None,
                    estimate_json: str | None = None, reserve_units: int | None = None) -> None:
        """As the port says. What has to be reserved for thousands of rows is so in steps; the last is in the amendment itself."""
        after = 0 if reserve_units else None
        while reserve_units and after is not None:
            after = await self._db.write(money.reserve_some, batch_pk, units=reserve_units, after=after)
        await self._db.write(loading.amend, batch_pk, in_flight=in_flight, max_attempts=max_attempts, cap_units=cap_units,
                             price_json=price_json, start_limit=start_limit, job_json=job_json, output_to=output_to,
                             estimate_json=estimate_json, reserve_units=reserve_units)

    async def lift_limit(self, batch_pk: int, *, start_limit: int) -> None:
        """As the port says."""
        await self._db.write(loading.lift_limit, batch_pk, start_limit=start_limit)

    async def set_state(self, batch_pk: int, *, to: BatchState, allowed: frozenset[BatchState], reason: str | None,
                        now: datetime, wakes: Sequence[Wake] = ()) -> bool:
        """As the port says."""
        return await self._db.write(steering.steer, batch_pk, to=to, allowed=allowed, reason=reason, now=now, wakes=wakes)

    async def end_batch(self, batch_pk: int, *, to: BatchState, of: BatchState, reason: str | None, told: Counts,
                        now: datetime) -> bool:
        """As the port says."""
        return await self._db.write(steering.end, batch_pk, to=to, of=of, reason=reason, told=told, now=now)

    # Buying

    async def pause_for_budget(self, batch_pk: int, *, terms: ClaimTerms) -> bool:
        """As the port says."""
        return await self._db.write(claims.pause_for_budget, batch_pk, terms=terms)

    async def tally(self, batch_pk: int, *, most: int) -> Tally:
        """As the port says."""
        return await self._db.read(failing.tally, batch_pk, most=most)

    async def pause_for_failures(self, batch_pk: int, *, most: int, decide: Callable[[Batch, Tally], str | None],
                                 now: datetime) -> bool:
        """As the port says. `decide` must be pure: it may be asked again."""
        return await self._db.write(failing.pause, batch_pk, most=most, decide=decide, now=now)

    async def attend(self, batch_pk: int, *, attended: bool) -> None:
        """As the port says."""
        await self._db.write(loading.attend, batch_pk, attended=attended)

    async def know_failures(self, batch_pk: int) -> None:
        """As the port says."""
        await self._db.write(failing.know, batch_pk)

    async def claimable(self, batch_pk: int, *, count: int, terms: ClaimTerms) -> Claimable:
        """As the port says."""
        return await self._db.read(claims.claimable, batch_pk, count=count, terms=terms)

    async def claim(self, batch_pk: int, *, attempt_ids: Sequence[str], terms: ClaimTerms) -> list[Claim]:
        """As the port says."""
        return await self._db.write(claims.claim, batch_pk, attempt_ids=attempt_ids, terms=terms)

    async def move(self, facts: Sequence[Fact], *, decide: Decide) -> list[Change]:
        """As the port says. Facts of one attempt are applied in order; `decide` must be pure: it may be asked again."""
        return await self._db.write(moves.move, facts, decide=decide) if facts else []

    # Webhooks

    async def receive(self, deliveries: Sequence[Delivery], *, decide: Decide) -> tuple[list[Receipt], list[Change]]:
        """As the port says."""
        return await self._db.write(receiving.receive, deliveries, decide=decide) if deliveries else ([], [])

    async def kept(self, account: str, *, before: datetime) -> list[KeptDelivery]:
        """As the port says, a hundred at most."""
        return await self._db.read(receiving.kept, before=before, account=account)

    async def drop_kept(self, message_ids: Sequence[str]) -> None:
        """As the port says."""
        await self._db.write(receiving.drop_kept, message_ids)

    async def attempts_of(self, attempt_ids: Sequence[str]) -> list[OpenAttempt]:
        """As the port says."""
        return await self._db.read(sweeping.attempts_of, attempt_ids)

    # What is out

    async def expire_leases(self, *, now: datetime, offset_s: float | None, owner_not: str | None) -> list[str]:
        """As the port says."""
        return await self._db.read(sweeping.expire_leases, now=now, offset_s=offset_s, owner_not=owner_not)

    # Bringing home

    async def to_collect(self, batch_pk: int, *, count: int, now: datetime, lease_until: datetime) -> list[ToCollect]:
        """As the port says."""
        return await self._db.write(collecting.to_collect, batch_pk, count=count, now=now, lease_until=lease_until)

    async def grant_names(self, names: Sequence[OutputName]) -> list[str | None]:
        """As the port says."""
        return await self._db.write(naming.grant_names, names)

    async def store_outputs(self, outputs: Sequence[StoredOutput]) -> list[StoredOutput]:
        """As the port says."""
        return await self._db.write(naming.store_outputs, outputs)

    async def superseded(self, item_pks: Sequence[int]) -> list[HomeFile]:
        """As the port says."""
        return await self._db.read(naming.superseded, item_pks)

    async def lease_collect(self, leases: Mapping[int, datetime], *, until: datetime) -> set[int]:
        """As the port says."""
        return await self._db.write(collecting.lease_collect, leases, until=until)

    async def hand_back(self, leases: Mapping[int, datetime], *, now: datetime) -> None:
        """As the port says."""
        await self._db.write(collecting.hand_back, leases, now=now)

    async def delay_collect(self, leases: Mapping[int, datetime], *, due_at: datetime, error: str) -> None:
        """As the port says."""
        await self._db.write(collecting.delay_collect, leases, due_at=due_at, error=error)

    async def open_window(self, account: str) -> OpenWindow:
        """As the port says."""
        return await self._db.read(sweeping.open_window, account)

    async def stragglers(self, account: str, *, older_than: datetime, now: datetime, count: int) -> list[OpenAttempt]:
        """As the port says."""
        return await self._db.read(sweeping.stragglers, account, older_than=older_than, now=now, count=count)

    async def checked(self, attempt_ids: Sequence[str], *, next_check_at: datetime) -> None:
        """As the port says."""
        await self._db.write(sweeping.checked, attempt_ids, next_check_at=next_check_at)

    async def unsure(self, account: str) -> list[OpenAttempt]:
        """As the port says."""
        return await self._db.read(sweeping.unsure, account)

    async def being_sent(self, account: str) -> list[OpenAttempt]:
        """As the port says."""
        return await self._db.read(sweeping.being_sent, account)

    async def gone(self, account: str, *, since: datetime, now: datetime) -> list[OpenAttempt]:
        """As the port says."""
        return await self._db.read(sweeping.gone, account, since=since, now=now)

    async def surplus(self, account: str) -> list[tuple[str, str]]:
        """As the port says."""
        return await self._db.read(sweeping.surplus, account)

    async def echoes(self, account: str) -> dict[str, tuple[str | None, str | None]]:
        """As the port says, over the account's newest batches."""
        return await self._db.read(sweeping.echoes, account)

    async def owned(self, prediction_ids: Sequence[str]) -> set[str]:
        """As the port says."""
        return await self._db.read(sweeping.owned, prediction_ids)

    async def in_air(self, batch_pk: int, *, count: int) -> list[tuple[str, str]]:
        """As the port says."""
        return await self._db.read(sweeping.in_air, batch_pk, count=count)

    async def oldest_out_at(self, batch_pk: int) -> datetime | None:
        """Since when the batch's oldest paid prediction is out, alive or not yet brought home."""
        return await self._db.read(views.oldest_out_at, batch_pk)

    async def note_offset(self, account: str, *, offset_s: float, now: datetime) -> None:
        """As the port says."""
        await self._db.write(sweeping.note_offset, account, offset_s=offset_s, now=now)

    async def offset(self, account: str) -> float | None:
        """As the port says."""
        return await self._db.read(sweeping.offset, account)

    # An operator's verbs

    async def cancel_pending(self, batch_pk: int) -> int:
        """As the port says."""
        return await _in_steps(lambda: self._db.write(steering.cancel_pending, batch_pk))

    async def reopen_canceled(self, batch_pk: int) -> int:
        """As the port says."""
        return await _in_steps(lambda: self._db.write(steering.reopen_canceled, batch_pk))

    async def refetch(self, batch_pk: int, *, classes: frozenset[str], after: datetime) -> int:
        """As the port says."""
        return await _in_steps(lambda: self._db.write(steering.refetch, batch_pk, classes=classes, after=after))

    async def rejoin(self, batch_pk: int, *, classes: frozenset[str]) -> int:
        """As the port says."""
        return await _in_steps(lambda: self._db.write(steering.rejoin, batch_pk, classes=classes))

    async def reopen_failed(self, batch_pk: int, *, classes: frozenset[str]) -> int:
        """As the port says. Class `unsure` must be named: its rows may have been bought already."""
        return await _in_steps(lambda: self._db.write(steering.reopen_failed, batch_pk, classes=classes))

    async def expired(self, batch_pk: int) -> int:
        """As the port says."""
        return await self._db.read(collecting.expired, batch_pk)

    async def reopen_expired(self, batch_pk: int) -> int:
        """As the port says."""
        return await _in_steps(lambda: self._db.write(collecting.reopen_expired, batch_pk))

    async def unsettled(self, batch_pk: int) -> bool:
        """As the port says."""
        return await self._db.read(steering.unsettled, batch_pk)

    # Wakes

    async def schedule(self, wakes: Sequence[Wake], *, now: datetime, force: bool = False) -> None:
        """As the port says."""
        if wakes:
            await self._db.write(steering.schedule, wakes, now=now, force=force)

    async def hold(self, wake: Wake, *, until: datetime) -> bool:
        """As the port says."""
        return await self._db.write(steering.hold, wake, until=until)

    async def dismiss(self, wake: Wake, batch_pk: int, *, told: Counts) -> bool:
        """As the port says."""
        return await self._db.write(steering.dismiss, wake, batch_pk, told=told)

    async def take_due(self, *, now: datetime, hold_s: float) -> list[Wake]:
        """As the port says; writes only when something is due."""
        due = await self._db.read(steering.due, now=now)
        return await self._db.write(steering.take, due, now=now, hold_s=hold_s) if due else []

    async def hasten(self, *, now: datetime, latest: datetime) -> None:
        """As the port says."""
        await self._db.write(steering.hasten, now=now, latest=latest)

    async def release_holds(self, *, now: datetime) -> None:
        """The only receiver died: wakes whose messages are out, and outputs it was fetching, are due now."""
        await self._db.write(steering.release_holds, now=now)
        await self._db.write(collecting.release_leases)

    # Who is at work

    async def beat(self, role: Role) -> None:
        """As the port says."""
        await self._db.write(presence.beat, role)

    async def present(self, *, now: datetime, within_s: float) -> list[Role]:
        """As the port says."""
        return await self._db.read(presence.present, now=now, within_s=within_s)

    async def depart(self, role_ids: Sequence[str], *, now: datetime, within_s: float) -> None:
        """As the port says."""
        await self._db.write(presence.depart, role_ids, now=now, within_s=within_s)

    # Schedules

    async def slots_standing(self, job: str, *, rule: str) -> SlotsStanding:
        """As the port says."""
        return await self._db.read(slots.standing, job, rule=rule)

    async def know_schedule(self, job: str, *, rule: str, now: datetime) -> None:
        """As the port says."""
        await self._db.write(slots.know, job, rule=rule, now=now)

    async def note_slots(self, job: str, new: Sequence[NewSlot], *, now: datetime) -> None:
        """As the port says."""
        if new:
            await self._db.write(slots.note, job, new=new, now=now)

    async def claim_slot(self, job: str, *, slot_at: datetime, owner: str, now: datetime, lease_until: datetime) -> bool:
        """As the port says."""
        return await self._db.write(slots.claim, job, slot_at=slot_at, owner=owner, now=now, lease_until=lease_until)

    async def hold_slot(self, job: str, *, slot_at: datetime, owner: str, lease_until: datetime) -> bool:
        """As the port says."""
        return await self._db.write(slots.hold, job, slot_at=slot_at, owner=owner, lease_until=lease_until)

    async def finish_slot(self, job: str, *, slot_at: datetime, owner: str | None, state: SlotState, reason: str | None = None,
                          batch_id: str | None = None, lease_until: datetime | None = None) -> bool:
        """As the port says."""
        return await self._db.write(slots.finish, job, slot_at=slot_at, owner=owner, values=slots.Values(
            state=state, reason=reason, batch_id=batch_id, lease_until=lease_until))

    async def slots_of(self, job: str, *, limit: int) -> list[Slot]:
        """As the port says."""
        return await self._db.read(slots.latest, job, limit=limit)

    # Looking

    async def counts(self, batch_pk: int) -> Counts:
        """As the port says."""
        return await self._db.read(views.counts, batch_pk)

    async def results(self, batch_pk: int) -> AsyncIterator[tuple[bytes, list[ItemResult]]]:
        """As the port says; each chunk is a transaction of its own, so that nothing waits for a slow reader."""
        for first, end in await self._db.read(views.chunk_places, batch_pk):
            yield await self._db.read(views.results_of_chunk, batch_pk, first=first, end=end)

    async def manifest(self, batch_pk: int) -> AsyncIterator[dict[str, Any]]:
        """As the port says, read chunk by chunk."""
        for first, end in await self._db.read(views.chunk_places, batch_pk):
            for line in await self._db.read(views.manifest_of_chunk, batch_pk, first=first, end=end):
                yield line

    async def home(self, batch_pk: int) -> AsyncIterator[list[HomeRow]]:
        """As the port says, a transaction for each chunk."""
        for first, end in await self._db.read(views.chunk_places, batch_pk):
            yield await self._db.read(verifying.home_of_chunk, batch_pk, first=first, end=end)

    async def known_paths(self, batch_pk: int, paths: Sequence[str]) -> set[str]:
        """As the port says."""
        return await self._db.read(verifying.known_paths, batch_pk, paths)

    async def bought(self, batch_pk: int) -> AsyncIterator[list[Bought]]:
        """As the port says, a transaction for each chunk."""
        for first, end in await self._db.read(views.chunk_places, batch_pk):
            yield await self._db.read(verifying.bought_of_chunk, batch_pk, first=first, end=end)

    async def booked(self, batch_pk: int) -> AsyncIterator[list[Booked]]:
        """As the port says, a transaction for each chunk."""
        for first, end in await self._db.read(views.chunk_places, batch_pk):
            yield await self._db.read(verifying.booked_of_chunk, batch_pk, first=first, end=end)

    async def unpriced(self, batch_pk: int) -> AsyncIterator[list[Unpriced]]:
        """As the port says, a transaction for each thousand."""
        after = (0, 0)
        while some := await self._db.read(verifying.unpriced, batch_pk, after=after, limit=1000):
            yield some
            after = some[-1].item_pk, some[-1].n

    async def booked_of(self, prediction_ids: Sequence[str], *, with_input: bool = False) -> dict[str, Booked]:
        """As the port says."""
        return await self._db.read(verifying.booked_of, prediction_ids, with_input=with_input) if prediction_ids else {}

    async def owners(self, *, prediction_ids: Sequence[str] = (), attempt_ids: Sequence[str] = ()) -> list[Owner]:
        """As the port says."""
        return await self._db.read(verifying.owners, prediction_ids=prediction_ids, attempt_ids=attempt_ids)

    async def rows_of_inputs(self, batch_pk: int, hashes: Sequence[str]) -> dict[str, tuple[int, str]]:
        """As the port says."""
        return await self._db.read(verifying.rows_of_inputs, batch_pk, hashes) if hashes else {}

    async def unanswered_since(self, account: str) -> datetime | None:
        """As the port says."""
        return await self._db.read(verifying.unanswered_since, account)

    async def past(self, account: str, target: Target) -> list[PastAttempt]:
        """As the port says."""
        return await self._db.read(history.newest, account, target)

    async def spent_since(self, account: str, batch_pk: int, *, since: datetime) -> Decimal:
        """USD that predictions of this batch cost which ended at the provider after `since`."""
        return to_usd(await self._db.read(history.spent_since, account, batch_pk, since=since))

    async def batch_names(self) -> list[BatchNames]:
        """As the port says."""
        return await self._db.read(spending.batch_names)

    async def spent_by_batch(self, batch_pks: Sequence[int] | None) -> dict[int, Spent]:
        """As the port says."""
        return await self._db.read(spending.by_batch, batch_pks)

    async def spent_by_day(self, batch_pks: Sequence[int] | None) -> list[tuple[str, Spent]]:
        """As the port says."""
        return await self._db.read(spending.by_day, batch_pks)

    async def spent_by_batch_and_day(self, *, account: str | None, first: str | None,
                                     last: str | None) -> list[tuple[int, str, Spent]]:
        """As the port says."""
        return await self._db.read(spending.by_batch_and_day, account=account, first=first, last=last)

    async def estimated_usd(self, batch_pk: int) -> Decimal:
        """How much of what a batch has spent is only estimated."""
        return to_usd(await self._db.read(spending.estimated_units, batch_pk))

    async def accounts(self) -> list[str]:
        """As the port says."""
        return await self._db.read(spending.accounts)

    async def spent_by_row(self, batch_pk: int) -> AsyncIterator[tuple[int, bytes, dict[int, Spent]]]:
        """As the port says, a transaction for each chunk."""
        for first, end in await self._db.read(views.chunk_places, batch_pk):
            blob, spent = await self._db.read(spending.by_row, batch_pk, first=first, end=end)
            yield first, blob, spent

    async def canceled(self, batch_pk: int) -> views.CanceledView:
        """What canceling came to so far: rows withdrawn, predictions ended, and what these cost until then."""
        return await self._db.read(views.canceled, batch_pk)

    async def batches(self, *, limit: int = 50) -> list[Batch]:
        """The latest batches, newest first."""
        return await self._db.read(views.newest_batches, limit=limit)

    async def find(self, name: str) -> Batch:
        """The batch meant by an id, a unique beginning of one, or a job's name (its latest). Raises BadInput."""
        return await self._db.read(views.find, name)

    async def items(self, batch_pk: int, *, state: ItemState | None = None, after_idx: int = -1,
                    limit: int = 1000) -> list[views.ItemView]:
        """A page of rows in order, those behind `after_idx`."""
        return await self._db.read(views.items_of, batch_pk, state=state, after_idx=after_idx, limit=limit)

    async def failures(self, batch_pk: int) -> tuple[Cause, ...]:
        """Failed rows by class, the most frequent first."""
        return await self._db.read(failing.causes, batch_pk)

    async def recent_rate(self, batch_pk: int, *, since: datetime) -> int:
        """Predictions created since then."""
        return await self._db.read(views.recent_rate, batch_pk, since=since)

    async def caps_standing(self, batch_pk: int, caps: Sequence[Cap], *, now: datetime) -> list[Bound]:
        """What is spent and reserved under each of these caps, the batch's own first."""
        return await self._db.read(views.caps_standing, batch_pk, caps, now=now) if caps else []

    async def waiting(self, batch_pk: int, *, now: datetime) -> views.WaitingView:
        """Rows that wait: due, not yet due, and the next due time."""
        return await self._db.read(views.waiting, batch_pk, now=now)

    async def endings(self, batch_pk: int) -> dict[str, int]:
        """Ended predictions by where their end was learned first: post, webhook, list, get."""
        return await self._db.read(views.endings, batch_pk)

    async def bought_beyond_need(self, batch_pk: int) -> Surplus:
        """Predictions of rows that had been bought again, or withdrawn, when these turned up."""
        return await self._db.read(views.bought_beyond_need, batch_pk)

    async def ended_by_deadline(self, batch_pk: int) -> Surplus:
        """Predictions that the provider ended at their deadline, and what they cost."""
        return await self._db.read(views.ended_by_deadline, batch_pk)

    async def latencies(self, batch_pk: int) -> views.LatencyView | None:
        """Provider time of the latest ended predictions; None where none has ended."""
        return await self._db.read(views.latencies, batch_pk)
