"""What `jobs` says of schedules: the next slot, and what became of the last one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.core.cron import zone_of
from orchestrator.core.errors import Unreachable
from orchestrator.core.job import Schedule
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.schedule import Slot, SlotState, job_key, next_slot


@dataclass(frozen=True, slots=True)
class Kept:
    """What the ledger keeps of some jobs, by their paths. `trouble`: why their schedules are not kept, where they are not."""

    last: Mapping[Path, Slot]
    trouble: str | None


async def kept(paths: Sequence[Path]) -> Kept:
    """The last slot of each of these jobs, and whether anybody keeps their schedules."""
    idle = "no scheduler is at work here, so no slot is started: `orchestrator up` brings one"
    settings = wiring.own_settings()
    if not paths or (settings.database_url is None and wiring.is_new(settings)):
        return Kept({}, idle if paths else None)
    last = {}
    try:
        async with wiring.ledger(settings) as ledger:
            for path in paths:
                for slot in await ledger.slots_of(job_key(path.resolve(), home=settings.home), limit=1):
                    last[path] = slot
            there = await ledger.present(now=wiring.clock().now(), within_s=settings.tempo.alive_s)
            roles = {role.role for role in there}
    except Unreachable as error:
        return Kept({}, str(error))
    return Kept(last, None if "scheduler" in roles else idle)


def document(schedule: Schedule, *, last: Slot | None, now: datetime) -> dict[str, Any]:
    """For `--json`: times in UTC, ISO 8601, and the next slot as the clocks there show it."""
    following = next_slot(schedule, after=now)
    return schedule.model_dump() | {
        "next_at": _iso(following),
        "next_local": following.astimezone(zone_of(schedule.timezone)).isoformat(),
        "last": None if last is None else {
            "slot_at": _iso(last.slot_at), "state": last.state.value, "reason": last.reason, "batch": last.batch_id,
            "batch_state": last.batch_state.value if last.batch_state else None},
    }


def line(schedule: Schedule, *, last: Slot | None, now: datetime) -> str:
    """The same for people."""
    zone = zone_of(schedule.timezone)
    following = next_slot(schedule, after=now)
    utc = "" if schedule.timezone == "UTC" else f" ({following:%Y-%m-%d %H:%M} UTC)"
    told = f"  next {following.astimezone(zone):%a %Y-%m-%d %H:%M} {schedule.timezone}{utc}"
    if last is None:
        return f"{told}; no slot yet"
    return f"{told}; last {last.slot_at.astimezone(zone):%Y-%m-%d %H:%M}: {_outcome(last)}"


def _outcome(slot: Slot) -> str:
    word = slot.state.value
    if slot.state is SlotState.RUNNING and slot.batch_state is not None and slot.has_ended:
        word = SlotState.DONE.value  # no scheduler has looked since
    if slot.state is SlotState.RUNNING and slot.batch_state is BatchState.PAUSED:
        word = BatchState.PAUSED.value  # until a person has looked, and the slots to come wait for that
    return word + (f", {slot.reason}" if slot.reason else "") + (f" (batch {slot.batch_id})" if slot.batch_id else "")


def _iso(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
