"""From a job and its source to rows in the ledger: the model asked, every row checked, nothing bought.

`plan` and `run` share this path: `prepare` asks and compiles, `check` reads every row without keeping any, `load` reads
every row into the ledger. All that is wrong with the rows is told at once.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from orchestrator.core import examined as examining
from orchestrator.core.asked import AskedRows, asked_of, mean_rate
from orchestrator.core.caps import AccountBudget, Cap, Scope
from orchestrator.core.cost import Pricing, to_units
from orchestrator.core.duplicates import held
from orchestrator.core.errors import BadInput, Discarded, NameTaken, NotFound, RowProblem
from orchestrator.core.estimate import Estimate, Terms, estimate
from orchestrator.core.examined import Examined, missing_seed, seeds_of, to_buy
from orchestrator.core.history import History, history_of
from orchestrator.core.inputs import InputPlan, InputSchema, canonical, plan_inputs
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.naming import batch_id
from orchestrator.core.ports import Model, Rooms
from orchestrator.core.prices import Book
from orchestrator.core.quote import kept_caps, quote, remarks, worst_case_usd
from orchestrator.core.records import Batch, NewBatch, NewChunk, NewItem, Row, RowChunk, SourceFile, Target
from orchestrator.core.runkey import FRESH_KEY_CHARACTERS, hash_text, run_key
from orchestrator.core.schedule import date_of
from orchestrator.core.template import output_folder
from orchestrator.flow.asking import paced
from orchestrator.flow.sharing import with_earlier

CHUNK_ROWS = 1000
ROUNDS = 5  # that another run may take the batch out which this one loads


@dataclass(frozen=True, slots=True)
class Order:
    """What the user asked for, as the command line or a schedule puts it."""

    job: Job
    name: str
    folder: str  # of the job file: sources are relative to it
    output_to: str  # as asked: a template of batch and date
    output_base: str  # what a relative output folder is relative to
    places: Mapping[str, str] = field(default_factory=dict)  # where each field stands in the job file, for messages
    run_key: str | None = None
    fresh: bool = False
    limit: int | None = None
    attended: bool = False  # as of `core.records.Batch`
    date: str | None = None  # what {{ date }} means; None: the day of creation, in the zone of the job's schedule


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that can be run: the model is known, the mapping fits it, the source is there."""

    order: Order
    account: str
    target: Target
    model: Model
    paths: list[str]
    files: list[SourceFile]
    columns: list[str]
    plan: InputPlan
    pricing: Pricing
    run_key: str
    caps: tuple[Cap, ...]
    warnings: list[str]
    book: Book
    seeds: tuple[str, ...] = ()  # inputs of the model: without one of them every run comes out differently

    @property
    def cap_units(self) -> int | None:
        """The batch's own cap; None: it has none."""
        return next((cap.units for cap in self.caps if cap.scope is Scope.BATCH), None)


async def prepare(rooms: Rooms, order: Order, *, book: Book | None = None) -> Prepared:
    """Ask the provider for account, model and schema; compile the mapping; find and fingerprint the source."""
    job = order.job
    paths = await asyncio.to_thread(rooms.tables.resolve, job.source.path, base=order.folder)
    columns = await asyncio.to_thread(rooms.tables.columns, paths)
    account = await paced(rooms, None, rooms.predictions.account)
    target, model = await _target(rooms, job)
    schema = InputSchema.from_openapi(model.openapi_schema)
    plan = plan_inputs(job.input, columns=columns, schema=schema, row_id_column=job.source.id,
                       places=order.places)
    files = await asyncio.to_thread(rooms.tables.fingerprint, paths)
    key = order.run_key or run_key(job_name=order.name, target_as_written=job.target_as_written(),
                                   input_mapping=job.input, source_hashes=[f.sha256 for f in files])
    if order.fresh:
        key = f"{key}-{rooms.clock.token()[:FRESH_KEY_CHARACTERS]}"
    quoted = quote(book or Book(), job, model=model, plan=plan, on=rooms.clock.now().date(), places=order.places)
    return Prepared(order, account, target, model, paths, files, columns, plan, quoted.pricing, key,
                    kept_caps(job, quoted, rooms.budget), remarks(job, quoted), book or Book(), seeds_of(schema))


def _of_its_day(prepared: Prepared, batch: Batch, account: AccountBudget) -> Prepared:
    """By the prices of the day on which the batch began, whenever it goes on."""
    job = prepared.order.job
    quoted = quote(prepared.book, job, model=prepared.model, plan=prepared.plan, on=batch.created_at.date(),
                   places=prepared.order.places)
    return replace(prepared, pricing=quoted.pricing, caps=kept_caps(job, quoted, account))


async def _target(rooms: Rooms, job: Job) -> tuple[Target, Model]:
    """Which endpoint buys this model, and which version is pinned (Replicate changelog 2025-08-05)."""
    ref = job.target()
    try:
        if ref.kind == "deployment":
            return Target("deployments", ref.name, None), await paced(rooms, None, rooms.predictions.deployment, ref.name)
        model = await paced(rooms, None, rooms.predictions.model, ref.name, version=ref.version)
    except NotFound as error:
        raise BadInput(f"the provider does not know {job.target_as_written()!r}: {error}") from error
    if ref.version is None and model.is_official:
        return Target("models", ref.name, None), model
    return Target("predictions", ref.name, ref.version or model.version), model


async def check(rooms: Rooms, prepared: Prepared) -> Examined:
    """Read and check every row, keeping nothing."""
    examined = _to_examine(prepared)
    async for _ in _chunks(rooms, prepared, examined, keep_from=None):
        pass
    return examined


async def load(rooms: Rooms, prepared: Prepared) -> tuple[Batch, bool]:
    """The batch of this run key, loaded whole, and whether it is new. Raises BadRows, and then nothing is kept.

    Another run of the same job may load the same batch beside this one, find its file wrong and take the batch out again: this
    one then loads a batch of its own, and judges by its own reading."""
    trouble: Discarded | None = None
    for _ in range(ROUNDS):
        try:
            return await _loaded(rooms, prepared)
        except Discarded as error:
            trouble = error
    raise BadInput(f"the batch cannot be loaded: {trouble}. Nothing was spent. Run it once no other command loads it, or --fresh")


async def _loaded(rooms: Rooms, prepared: Prepared) -> tuple[Batch, bool]:
    batch, new = await _opened(rooms, prepared)
    _same_content(batch, prepared)
    prepared = _of_its_day(_as_begun(prepared, batch), batch, rooms.budget)
    job = prepared.order.job
    worst = worst_case_usd(job, prepared.pricing)
    await rooms.ledger.amend(batch.pk, in_flight=job.limits.in_flight, max_attempts=job.retry.attempts,
                             cap_units=prepared.cap_units, price_json=prepared.pricing.to_json(),
                             start_limit=prepared.order.limit, job_json=job.model_dump_json(),
                             output_to=output_to(prepared.order, batch.id, batch.created_at),
                             estimate_json=await _learned(rooms, prepared, batch),
                             reserve_units=None if worst is None else to_units(worst))
    if batch.attended != prepared.order.attended:
        await rooms.ledger.attend(batch.pk, attended=prepared.order.attended)
    if batch.state is BatchState.LOADING:
        await _fill(rooms, prepared, batch)
    loaded = await rooms.ledger.batch(batch.id)
    if loaded is None:
        raise Discarded(f"the batch {batch.id} was taken out before it was loaded")
    return loaded, new


def _as_begun(prepared: Prepared, batch: Batch) -> Prepared:
    """Rows that are in the ledger share, or do not, by what the batch was begun with."""
    job = prepared.order.job
    duplicates = held(Job.model_validate_json(batch.job_json).duplicates, job.duplicates)
    return replace(prepared, order=replace(prepared.order, job=job.model_copy(update={"duplicates": duplicates})))


async def _learned(rooms: Rooms, prepared: Prepared, batch: Batch) -> str | None:
    """An estimate of a loaded batch that had none: a first `--limit 3`, or a price, has told what it lacked. None: as it was."""
    before = Estimate.from_json(batch.estimate_json)
    if before is None or before.expected.usd is not None:
        return None
    past = history_of(await rooms.ledger.past(prepared.account, prepared.target))
    found = estimate(_terms(prepared, Examined()), past, rows=before.rows)
    return None if found.expected.usd is None else json.dumps(found.to_json())


async def _opened(rooms: Rooms, prepared: Prepared) -> tuple[Batch, bool]:
    """The last four characters of a batch's id are drawn: of a hundred batches a day now and then two draw the same."""
    while True:
        with suppress(NameTaken):
            return await rooms.ledger.open_batch(_new_batch(prepared, now=rooms.clock.now(), token=rooms.clock.token()))


def _new_batch(prepared: Prepared, *, now: datetime, token: str) -> NewBatch:
    order, job = prepared.order, prepared.order.job
    new_id = batch_id(order.name, when=now, token=token)
    return NewBatch(
        id=new_id, job=order.name, run_key=prepared.run_key, account=prepared.account, created_at=now,
        target=prepared.target, job_json=job.model_dump_json(), schema_json=json.dumps(prepared.model.openapi_schema),
        source_json=json.dumps([{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in prepared.files]),
        price_json=prepared.pricing.to_json(),
        output_to=output_to(order, new_id, now), in_flight=job.limits.in_flight,
        max_attempts=job.retry.attempts, cap_units=prepared.cap_units, attended=order.attended)


def output_to(order: Order, batch: str, created_at: datetime) -> str:
    """The output folder that an order means for a batch of this id."""
    folder = output_folder(order.output_to, batch=batch, date=order.date or date_of(order.job, at=created_at))
    return str(Path(order.output_base) / folder)


def _same_content(batch: Batch, prepared: Prepared) -> None:
    """A run key given by hand may not be met again with other content."""
    then = [f["sha256"] for f in json.loads(batch.source_json)]
    now = [f.sha256 for f in prepared.files]
    before = Job.model_validate_json(batch.job_json)
    job = prepared.order.job
    if then != now or before.input != job.input or before.target_as_written() != job.target_as_written():
        raise BadInput(f"the run key {batch.run_key!r} already names batch {batch.id}, which had another source, model or "
                       "input mapping. Nothing was spent. Choose another --run-key, or use --fresh.")


async def _fill(rooms: Rooms, prepared: Prepared, batch: Batch) -> None:
    """All rows into the ledger, or none: where they are refused, the batch is forgotten again."""
    examined = _to_examine(prepared)
    present = await rooms.ledger.loaded_rows(batch.pk)
    async for chunk in _chunks(rooms, prepared, examined, keep_from=present):
        if refusal(prepared, examined) is None and (ready := await _shared(rooms, prepared, batch, chunk, examined)) is not None:
            await rooms.ledger.add_chunk(batch.pk, ready)
    if (refused := refusal(prepared, examined)) is not None:
        await rooms.ledger.discard(batch.pk)
        raise refused
    if await asyncio.to_thread(rooms.tables.fingerprint, prepared.paths) != prepared.files:
        await rooms.ledger.discard(batch.pk)
        raise BadInput(f"{prepared.order.job.source.path} was changed while it was read. Nothing was spent. Run the command "
                       "again when it is whole")
    past = history_of(await rooms.ledger.past(prepared.account, prepared.target))
    await rooms.ledger.seal(batch.pk, total=examined.rows, now=rooms.clock.now(),
                            source_schema_json=examined.source_schema_json or rooms.tables.empty_schema(prepared.columns),
                            estimate_json=json.dumps(estimate_of(prepared, examined, past).to_json()))


def estimate_of(prepared: Prepared, examined: Examined, past: History | None, *, limit: int | None = None) -> Estimate:
    """What these rows are expected to cost; `past`: what came of such rows before."""
    return estimate(_terms(prepared, examined), past, rows=to_buy(prepared.order.job, examined, limit=limit))


def _to_examine(prepared: Prepared) -> Examined:
    """Nothing read yet."""
    return Examined(asked=AskedRows.of(prepared.order.job, prepared.pricing, schema=prepared.model.openapi_schema,
                                       plan=prepared.plan))


def _terms(prepared: Prepared, examined: Examined) -> Terms:
    job, pricing, price = prepared.order.job, prepared.pricing, prepared.pricing.price
    told = None if examined.asked is None else examined.asked.told()
    rate = None if price is None else price.rate
    if price is not None and price.tiers:
        rate = None if told is None else mean_rate(told.rates)
    asked = asked_of(job, pricing, schema=prepared.model.openapi_schema, plan=prepared.plan)
    worst = worst_case_usd(job, pricing, is_capped=bool(prepared.caps))
    return Terms(price, rate, asked, worst, told if told is not None and told.rows else None)


async def _shared(rooms: Rooms, prepared: Prepared, batch: Batch, chunk: NewChunk, examined: Examined) -> NewChunk | None:
    """The chunk, with rows that share what earlier batches bought where the job has it so; None: it lacks the consent to that."""
    duplicates = prepared.order.job.duplicates
    if duplicates is None or duplicates.once != "ledger":
        return chunk
    ready, earlier = await with_earlier(rooms, batch, chunk)
    if not prepared.seeds or duplicates.empty_seed == "share":
        return ready
    seedless = ((item.index, missing) for item in chunk.items if item.index in earlier
                and (missing := missing_seed(prepared.seeds, json.loads(item.input_json or "{}"))) is not None)
    if (found := next(seedless, None)) is None:
        return ready
    row, examined.missing_seed = found
    examined.first_earlier = (f"row {row}", f"row {earlier[row].row} of batch {earlier[row].batch_id}")
    return None


def refusal(prepared: Prepared, examined: Examined) -> BadInput | None:
    """Why these rows are not run as the job has it; None: they are."""
    return examining.refusal(prepared.order.job, prepared.target.name, examined, places=prepared.order.places)


async def _chunks(rooms: Rooms, prepared: Prepared, examined: Examined, *, keep_from: int | None) -> AsyncIterator[NewChunk]:
    """Every chunk read and checked, off the loop; those the ledger does not have yet are yielded."""
    source = rooms.tables.read(prepared.paths, chunk_rows=CHUNK_ROWS)
    while True:
        chunk = await asyncio.to_thread(_next, rooms, prepared, examined, source)
        if chunk is None:
            return
        if keep_from is not None and chunk.first_index >= keep_from:
            yield chunk


def _next(rooms: Rooms, prepared: Prepared, examined: Examined, source: Iterator[RowChunk]) -> NewChunk | None:
    chunk = next(source, None)
    if chunk is None:
        return None
    examined.source_schema_json = rooms.tables.merge_schema(examined.source_schema_json, chunk.blob)
    items = [_item(prepared, row, examined) for row in chunk.rows]
    return NewChunk(chunk.first_index, items, chunk.blob)


def _item(prepared: Prepared, row: Row, examined: Examined) -> NewItem:
    """One row: typed and checked, or entered with all that is wrong with it."""
    examined.rows += 1
    id_column = prepared.order.job.source.id
    row_id = str(row.cells.get(id_column) or row.index) if id_column else str(row.index)
    value, problems = (None, [RowProblem(row.index, row.line, None, None, row.problem)]) if row.problem else \
        prepared.plan.build(row.cells, index=row.index)
    if value is None or problems:
        return NewItem(row.index, row_id, None, None, examined.note_bad(row, problems))
    text = canonical(value)
    input_hash = hash_text(text)
    is_equal = examined.note_good(row, input_hash, missing_seed=missing_seed(prepared.seeds, value))
    shares = prepared.order.job.duplicates is not None
    if examined.asked is not None and not (is_equal and shares):
        examined.asked.add(value)
    return NewItem(row.index, row_id, text, input_hash, shares=shares)
