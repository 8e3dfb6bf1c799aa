"""`run`: from a job file to results and an exit code."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace

from rich.console import Console

from orchestrator import wiring
from orchestrator.apps.cli.closing import ThisRun, close, still_out
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.follow import Follower
from orchestrator.apps.cli.foresight import Storage, bought_fresh, foresee, no_rows, question, storage_of
from orchestrator.apps.cli.options import RunOptions, order_of
from orchestrator.apps.cli.panel import screen
from orchestrator.apps.cli.speech import ask, say
from orchestrator.apps.hints import again
from orchestrator.apps.machine import Machine, anybody_lives, is_present, is_served, machine
from orchestrator.apps.orders import check_folder
from orchestrator.core.caps import Scope, is_budget
from orchestrator.core.duplicates import said_otherwise
from orchestrator.core.errors import BadInput, Unreachable
from orchestrator.core.history import history_of
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch, Fact
from orchestrator.flow import control
from orchestrator.flow.ingest import Prepared, check, load, output_to, prepare, refusal
from orchestrator.flow.record import record
from orchestrator.wiring import Settings, read_settings


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[tuple[Rooms, wiring.Hold]]:
    """The home, its Redis (private unless told otherwise) and all rooms."""
    async with wiring.redis(settings) as hold, wiring.rooms(settings, redis_url=hold.redis_url) as rooms:
        yield rooms, hold


async def run(options: RunOptions) -> Ending:
    """A batch, from its job file to its end."""
    order, home = order_of(options)
    settings = read_settings(home)
    new_ledger, began_s = wiring.is_new(settings), wiring.clock().boottime()
    async with _open(settings) as (rooms, hold):
        this = ThisRun(rooms, options, began_s)
        alone = hold.alone and not await anybody_lives(rooms)
        served = not alone and await is_served(rooms)
        await _can_start(rooms, settings, served=served, detach=options.detach)
        prepared = await prepare(rooms, replace(order, attended=not served), book=wiring.price_book(settings))
        await check_folder(rooms, prepared)
        if (note := await bought_fresh(rooms, prepared, options)) is not None:
            say(f"note: {note}")
        if not await _consent(rooms, prepared, options, ask_above_usd=settings.ask_above_usd):
            return Ending(Exit.BAD_INPUT, {"run_key": prepared.run_key}, ("Nothing was spent.",))
        alone = alone and hold.alone and not await anybody_lives(rooms)  # asked again: consent can take a person minutes
        if alone:
            await _bury_the_dead(rooms)
        left = [] if await anybody_lives(rooms) else await control.set_aside(rooms, but=prepared.run_key)
        batch, new = await load(rooms, prepared)
        news = "new" if new_ledger else f"new batch {batch.id}" if new else f"resuming {batch.id}"
        say(f"ledger: {settings.home if settings.database_url is None else settings.ledger_shown} ({news})")
        notes = [*_notes(prepared, batch, new=new, is_polled=settings.public_url is None),
                 *(await _storage(rooms, prepared, batch)).warnings(), *map(_left, left)]
        for note in notes:
            say(f"note: {note}")
        wiring.claim_folder(batch, settings)
        await wiring.tidy(batch, alone=alone)
        ended = await _already_over(this, batch)
        if ended is not None:
            return ended
        if options.detach:
            return await _detached(this, batch)
        return await _to_the_end(this, batch, settings=settings, hold=hold, served=served)


def _notes(prepared: Prepared, batch: Batch, *, new: bool, is_polled: bool) -> Iterator[str]:
    """What has to be known of a batch before it goes on."""
    yield from prepared.warnings if new else []
    if is_polled:
        yield "ORCHESTRATOR_PUBLIC_URL is not set: completions are found by polling the list in bulk"
    if not batch.total:
        yield no_rows(prepared)
    if other := said_otherwise(Job.model_validate_json(batch.job_json).duplicates, prepared.order.job.duplicates):
        yield other
    if batch.output_to != output_to(prepared.order, batch.id, batch.created_at):
        yield f"this batch has files in {batch.output_to} already, and goes on there"


def _left(batch: Batch) -> str:
    """Of another batch, that it stands still."""
    return (f"{batch.id} was left by a command that ended too soon: it is paused, and what it has out is brought home. To go on "
            f"with it: {again(batch)}; to end it: orchestrator cancel {batch.id}")


async def _storage(rooms: Rooms, prepared: Prepared, batch: Batch) -> Storage:
    """Of the rows that were never started."""
    left = await rooms.ledger.left(batch.run_key, limit=batch.start_limit) or 0
    past = history_of(await rooms.ledger.past(prepared.account, prepared.target)) if left else None
    return storage_of(past, rows=left, folder=batch.output_to)


async def _can_start(rooms: Rooms, settings: Settings, *, served: bool, detach: bool) -> None:
    """What would stop the batch from moving is said before anything is read or spent."""
    if detach and not served:
        raise BadInput("--detach leaves the batch to roles that are at work for this ledger, and there is no worker with a "
                       "scheduler: start `orchestrator up` first, or leave --detach out")
    if not served and settings.public_url is not None and not await is_present(rooms, "web"):
        try:
            wiring.listening(settings).close()
        except BadInput:  # perhaps it is a web part that was started just now and has not announced itself
            await rooms.clock.sleep(rooms.tempo.beat_s)
            if not await is_present(rooms, "web"):
                raise


async def _detached(this: ThisRun, batch: Batch) -> Ending:
    """The batch is left to those who are at work."""
    rooms = this.rooms
    if batch.state is BatchState.PAUSED:
        await control.go_on(rooms, batch)
    await control.wake_all(rooms, batch)
    counts = await rooms.ledger.counts(batch.pk)
    return await close(this, await rooms.ledger.batch(batch.id) or batch, counts, code=Exit.DONE,
                       lines=[f"left to the roles at work here; follow it with: orchestrator watch {batch.id}"])


async def _consent(rooms: Rooms, prepared: Prepared, options: RunOptions, *, ask_above_usd: float) -> bool:
    """Above the threshold, by the worst case or, where there is none, by the past: a budget of the job's own, a terminal's yes,
    or --yes. Raises BadInput where there is none of these, and nobody can be asked."""
    has_budget = any(cap.scope in (Scope.BATCH, Scope.JOB) for cap in prepared.caps)
    left = await rooms.ledger.left(prepared.run_key, limit=options.limit)
    if options.yes or has_budget or left == 0:
        return True
    examined = await check(rooms, prepared)  # of a batch that was begun, a yes to three rows is none to the rest of them
    found = await foresee(rooms, prepared, examined, options=options, is_new=False)
    at_stake_usd, words = question(prepared, found.estimate)
    if at_stake_usd is None or at_stake_usd <= ask_above_usd:
        return True
    if (refused := refusal(prepared, examined)) is not None:  # before anybody is asked for what cannot be run
        raise refused
    if (said := ask(f"{words} Buy them?")) is None:
        raise BadInput(f"{words} Nothing was spent. Say yes to it with budget.usd in the job, with --yes, or on a "
                       f"terminal; ask_above_usd in config/orchestrator.toml sets the threshold (${ask_above_usd:g}).")
    return said


async def _bury_the_dead(rooms: Rooms) -> None:
    """Nobody else is at home, so whoever held a lease is dead: what it had in the air is unsure."""
    now = rooms.clock.now()
    ids = await rooms.ledger.expire_leases(now=now, offset_s=rooms.predictions.offset_s, owner_not=rooms.owner)
    lost = [Fact(Event.ANSWER_LOST, now, i, error="the program ended before the answer was recorded",
                 error_class="unsure") for i in ids]
    await record(rooms, lost)
    await rooms.ledger.release_holds(now=now)  # and what it was about to bring home comes due now, not after its lease


async def _already_over(this: ThisRun, batch: Batch) -> Ending | None:
    """A finished batch stays finished; a canceled one needs a word."""
    rooms = this.rooms
    counts = await rooms.ledger.counts(batch.pk)
    if batch.state is BatchState.CANCELED:
        return await close(this, batch, counts, code=Exit.CANCELED,
                           lines=[f"canceled before: orchestrator resume {batch.id}, or run it with --fresh"])
    if batch.state is not BatchState.FINISHED:
        return None
    follower = Follower(rooms, batch.id, screen(quiet=True), None, 0, rooms.clock.boottime())
    return await close(this, batch, counts, code=await _verdict(follower),
                       lines=["this batch had finished before; nothing was bought"])


async def _verdict(follower: Follower) -> Exit:
    code = await follower.follow(asyncio.Event())
    assert code is not None
    return code


async def _to_the_end(this: ThisRun, batch: Batch, *, settings: Settings, hold: wiring.Hold, served: bool) -> Ending:
    """Worker up, stations woken, followed to the end, everything taken down."""
    rooms, options = this.rooms, this.options
    if batch.state is BatchState.PAUSED:
        await control.go_on(rooms, batch)
    await control.wake_all(rooms, batch)
    with _signals() as heard:
        async with machine(settings, rooms, hold=hold, served=served) as here:
            with screen(quiet=False) as shown:
                follower = Follower(rooms, batch.id, shown, here, options.patience_s, rooms.clock.boottime())
                code = await follower.follow(heard.first)
            if code is None:
                return await _interrupted(this, batch, here, heard)
    try:
        return await _ended(this, batch, follower, code)
    except Unreachable as error:
        raise Unreachable(f"stopped after waiting for {options.patience_s:g} s: {error}. Nothing is lost: what was bought is "
                          f"fetched when the batch goes on within the hour; to go on: {options.again(batch)}") from error


async def _ended(this: ThisRun, batch: Batch, follower: Follower, code: Exit) -> Ending:
    """The last words of a run that nobody interrupted. Raises Unreachable where not even these can be found out."""
    rooms, options = this.rooms, this.options
    latest = await rooms.ledger.batch(batch.id)
    counts = await rooms.ledger.counts(batch.pk)
    why = [f"stopped: {follower.last_trouble}"] if follower.last_trouble else []
    if code is Exit.UNREACHABLE:
        why += await still_out(this, latest or batch, counts, why="left")
    if code is Exit.BUDGET and latest is not None:
        is_said = is_budget(latest.reason) and not options.fresh  # that the same command goes on
        why = [f"stopped: {latest.reason}" + ("" if is_said else f"; {options.again(batch)}")]
    return await close(this, latest or batch, counts, code=code, lines=why)


@dataclass(slots=True)
class _Heard:
    """Which signals came."""

    first: asyncio.Event
    second: asyncio.Event
    code: Exit = Exit.INTERRUPTED


LEAVES_WITHIN_S = 5.0


def _leave(code: Exit) -> None:
    """End this process at once. A database that hung, or one locked by another program, held whoever wanted to leave."""
    Console(stderr=True).show_cursor()  # which the panel hides
    say("left without its last words: something does not answer in time; the next run finds out what is still out")
    os._exit(code)


@contextmanager
def _signals() -> Iterator[_Heard]:
    """The first Ctrl-C or SIGTERM asks for a good end, the second for a quick one, which comes even where nothing answers."""
    loop, heard = asyncio.get_running_loop(), _Heard(asyncio.Event(), asyncio.Event())

    def on(code: Exit) -> None:
        if heard.first.is_set() and not heard.second.is_set():
            heard.second.set()
            loop.call_later(LEAVES_WITHIN_S, _leave, code)
        heard.code = code
        heard.first.set()

    loop.add_signal_handler(signal.SIGINT, on, Exit.INTERRUPTED)
    loop.add_signal_handler(signal.SIGTERM, on, Exit.TERMINATED)
    try:
        yield heard
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGTERM)


async def _interrupted(this: ThisRun, batch: Batch, here: Machine, heard: _Heard) -> Ending:
    """Say what is still out and until when, or that others go on with it; a ledger that is away changes no exit code."""
    rooms, others = this.rooms, list[str]()
    if here.keeper is not None:
        await _wind_down(here, heard, stopping=_stop_buying(rooms, batch))
    else:
        others = [f"the batch goes on without this command; follow it with: orchestrator watch {batch.id}, "
                  f"stop it with: orchestrator pause {batch.id}"]
    try:
        counts = await rooms.ledger.counts(batch.pk)
        latest = await rooms.ledger.batch(batch.id)
        return await close(this, latest or batch, counts, code=heard.code, lines=others or await still_out(this, batch, counts))
    except Unreachable as error:
        untold = f"what is still out cannot be told. To go on: {this.options.again(batch)}"
        return Ending(heard.code, {"batch": batch.id}, (f"interrupted: {error}; {(others or [untold])[0]}",))


async def _stop_buying(rooms: Rooms, batch: Batch) -> None:
    """Of this batch, whoever else is at work: only who names it goes on with it."""
    with suppress(Unreachable):
        await control.pause(rooms, batch, reason=control.INTERRUPTED)


async def _both(one: Awaitable[None], other: Awaitable[None]) -> None:
    await asyncio.gather(one, other)


async def _wind_down(here: Machine, heard: _Heard, *, stopping: Awaitable[None]) -> None:
    """Finish what is in the air, or at a second signal leave at once."""
    say("stopping: nothing new is bought; requests and downloads under way are finished (again to leave at once)")
    good = asyncio.create_task(_both(stopping, here.stop()))
    quick = asyncio.create_task(heard.second.wait())
    await asyncio.wait({good, quick}, return_when=asyncio.FIRST_COMPLETED)
    if not good.done():
        await here.stop(grace_s=0)
        await asyncio.gather(good, return_exceptions=True)
    quick.cancel()
