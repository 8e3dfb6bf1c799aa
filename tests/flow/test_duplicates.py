"""Rows of equal input with `duplicates: once`: each input is bought once, and every row has its result."""

import asyncio
import csv
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.core.errors import BadInput, BadRows, Unreachable
from orchestrator.core.examined import to_buy
from orchestrator.core.job import Job
from orchestrator.core.lifecycle import BatchState
from orchestrator.core.ports import Rooms
from orchestrator.core.records import Batch, NewChunk
from orchestrator.flow import ingest
from orchestrator.flow.collect import collect
from orchestrator.flow.ingest import Order, check, load, prepare, refusal
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.report import report
from orchestrator.flow.submit import submit
from orchestrator.flow.verify import verify_home
from tests.flow.conftest import Stage
from tests.flow.test_stations import Flaky

SHARE = "duplicates: { once: batch, empty_seed: share }\n"


def order(stage: Stage, texts: list[str], more: str = SHARE, *, output: str = "out", **options: Any) -> Order:
    """A job over these prompts; its results are CSV."""
    with (stage.folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    (stage.folder / "job.yaml").write_text(
        'model: black-forest-labs/flux-schnell\nsource: { path: rows.csv }\ninput: { prompt: "{{ text }}", num_outputs: 1 }\n'
        f"price: {{ per_output_usd: 0.003 }}\noutput: {{ results: csv }}\n{more}")
    loaded = wiring.load_job(stage.folder / "job.yaml", changes={})
    return Order(job=loaded.job, name="job", folder=str(stage.folder), output_to=output, output_base=str(stage.folder),
                 places=loaded.places, **options)


async def to_the_end(rooms: Rooms, batch: Batch) -> Batch:
    """Every station beside the others, until the batch is over."""
    async def bring() -> None:
        while await rooms.ledger.unsettled(batch.pk):
            await asyncio.gather(sweep(rooms, batch.account), sweep(rooms, batch.account, 1),
                                 *(collect(rooms, batch.id, lane) for lane in range(2)))
            await asyncio.sleep(0.02)

    async def buy() -> None:
        while (await rooms.ledger.counts(batch.pk)).by_state.get("pending", 0):
            await submit(rooms, batch.id, 0)
            await asyncio.sleep(0.02)

    await asyncio.gather(buy(), bring())
    await report(rooms, batch.id)
    ended = await rooms.ledger.batch(batch.id)
    assert ended is not None and ended.state is BatchState.FINISHED
    return ended


def results(folder: Path) -> list[dict[str, str]]:
    """The results as they are read."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


LONG = pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.skipif(os.environ.get("CHAOS") != "long", reason="long")])


@pytest.mark.parametrize("rows", [500, LONG])
async def test_each_input_is_bought_once(stage: Stage, monkeypatch: pytest.MonkeyPatch, rows: int):
    """Of so many rows 40 % equal an earlier one: the provider sells each input once, all rows have an output and a file, the
    costs add up to the bill, and `verify` finds nothing."""
    monkeypatch.setattr(ingest, "CHUNK_ROWS", min(rows // 3, ingest.CHUNK_ROWS))
    rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, submit_chunk=500, collect_concurrency=32, collect_chunk=200))
    inputs = rows * 6 // 10
    batch, _ = await load(rooms, await prepare(rooms, order(
        stage, [f"dog {n * 7 % inputs}" for n in range(rows)], SHARE + "limits: { in_flight: 3000 }\n")))
    assert (await rooms.ledger.counts(batch.pk)).own("pending") == inputs
    batch = await to_the_end(rooms, batch)
    sold = Counter(purchase["input"]["prompt"] for purchase in stage.provider.purchases())
    assert len(sold) == inputs and set(sold.values()) == {1}
    told = results(stage.folder / "out")
    assert len(told) == rows and {row["prediction_status"] for row in told} == {"succeeded"}
    outputs: dict[str, set[tuple[str, str]]] = {}
    for row in told:
        outputs.setdefault(row["text"], set()).add((row["prediction_id"], row["prediction_files"]))
    assert len(outputs) == inputs and all(len(found) == 1 and "[]" not in str(found) for found in outputs.values())
    costs = Counter(Decimal(row["prediction_cost_usd"]) for row in told)
    assert costs == {Decimal("0.003"): inputs, Decimal(0): rows - inputs}
    assert (await rooms.ledger.counts(batch.pk)).spent_usd == Decimal("0.003") * inputs
    found = await verify_home(rooms, batch)
    assert (found.findings.total, found.strangers, found.files, found.results.lines) == (0, 0, inputs, rows)


def plain_order(stage: Stage, more: str, **options: Any) -> Order:
    """Four rows of two inputs, without a seed."""
    return order(stage, ["dog", "cat", "dog", "cat"], more, **options)


async def test_equal_rows_without_a_seed_are_refused(stage: Stage):
    """Without a word of consent: how many, the first of them, and the words to add; nothing is kept. A seed is consent enough."""
    prepared = await prepare(stage.rooms, plain_order(stage, "duplicates: once\n"))
    with pytest.raises(BadInput) as caught:
        await load(stage.rooms, prepared)
    told = str(caught.value)
    assert "job.yaml:6: 2 rows have the same input as an earlier row and no `seed`" in told
    assert "the first is row 2 (line 4), which equals row 0" in told and "duplicates: { once: batch, empty_seed: share }" in told
    assert str(refusal(prepared, await check(stage.rooms, prepared))) == told
    assert not await stage.rooms.ledger.known(prepared.run_key)
    seeded = plain_order(stage, "duplicates: once\n")
    assert seeded.job.input is not None
    seeded = replace(seeded, job=seeded.job.model_copy(update={"input": seeded.job.input | {"seed": 7}}))
    batch, _ = await load(stage.rooms, await prepare(stage.rooms, seeded))
    assert (await stage.rooms.ledger.counts(batch.pk)).own("pending") == 2


@pytest.mark.parametrize("name", ["random_seed", "noise_seed"])
async def test_a_seed_by_another_name(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str):
    """Some models call it otherwise: no consent to share is taken for given there either, in one batch or from an earlier one."""
    ask = type(stage.rooms.predictions).model

    async def renamed(self: Any, *args: Any, **values: Any) -> Any:
        model = await ask(self, *args, **values)
        return replace(model, openapi_schema=json.loads(json.dumps(model.openapi_schema).replace('"seed"', f'"{name}"')))

    monkeypatch.setattr(type(stage.rooms.predictions), "model", renamed)
    with pytest.raises(BadInput, match=f"no `{name}`.*\n.*\nIf each is wanted, give them a `{name}` of their own"):
        await load(stage.rooms, await prepare(stage.rooms, plain_order(stage, "duplicates: once\n")))
    first, _ = await load(stage.rooms, await prepare(stage.rooms, order(stage, ["dog"], SHARE)))
    await to_the_end(stage.rooms, first)
    with pytest.raises(BadInput, match=f"row 1 has the same input as row 0 of batch {first.id} and no `{name}`"):
        await load(stage.rooms, await prepare(stage.rooms, order(stage, ["owl", "dog"], "duplicates: { once: ledger }\n")))


async def test_what_a_batch_was_begun_with_stays(stage: Stage):
    """The job says otherwise by the next run: the rows stay as they are, also those of a load that goes on."""
    first = await prepare(stage.rooms, plain_order(stage, SHARE))
    batch, _ = await load(stage.rooms, first)
    again, is_new = await load(stage.rooms, await prepare(stage.rooms, plain_order(stage, "duplicates: buy\n")))
    assert (again.pk, is_new) == (batch.pk, False)
    assert (await stage.rooms.ledger.counts(batch.pk)).own("pending") == 2
    kept = Job.model_validate_json(again.job_json).duplicates
    assert kept is not None and kept.once == "batch"
    other, _ = await load(stage.rooms, await prepare(stage.rooms, plain_order(stage, "", run_key="buys")))
    await load(stage.rooms, await prepare(stage.rooms, plain_order(stage, SHARE, run_key="buys")))
    assert (await stage.rooms.ledger.counts(other.pk)).own("pending") == 4


async def test_a_load_that_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """Killed between two chunks, and begun again with another word: it comes out as it would have."""
    monkeypatch.setattr(ingest, "CHUNK_ROWS", 2)
    real, calls = stage.rooms.ledger.add_chunk, 0

    async def add_chunk(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Unreachable("killed")
        await real(*args)

    rooms = replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, add_chunk=add_chunk))
    with pytest.raises(Unreachable):
        await load(rooms, await prepare(rooms, plain_order(stage, SHARE)))
    batch, is_new = await load(stage.rooms, await prepare(stage.rooms, plain_order(stage, "duplicates: buy\n")))
    assert not is_new
    assert (await stage.rooms.ledger.counts(batch.pk)).own("pending") == 2


async def test_two_loads_of_a_file_that_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    """One of two runs gives the batch up while the other one still reads: both refuse, and the corrected file is bought whole."""
    monkeypatch.setattr(ingest, "CHUNK_ROWS", 5)
    texts = [f"old {n}" for n in range(20)]
    quick, slow = [await prepare(stage.rooms, _counted(stage, texts, [1] * 19 + ["seven"])) for _ in range(2)]
    has_begun, gone = asyncio.Event(), asyncio.Event()

    async def add_chunk(batch_pk: int, chunk: NewChunk) -> None:
        if chunk.first_index == 10:
            has_begun.set()
            await gone.wait()
        await stage.rooms.ledger.add_chunk(batch_pk, chunk)

    async def give_up() -> None:
        await has_begun.wait()
        with pytest.raises(BadRows):
            await load(stage.rooms, quick)
        gone.set()

    async def read_on() -> None:
        with pytest.raises(BadRows):
            await load(replace(stage.rooms, ledger=Flaky(stage.rooms.ledger, add_chunk=add_chunk)), slow)

    await asyncio.gather(give_up(), read_on())
    new = [f"new {n}" for n in range(20)]
    batch, is_new = await load(stage.rooms, await prepare(stage.rooms, _counted(stage, new, [1] * 20)))
    assert is_new and await stage.states(batch) == {"pending": 20}
    await to_the_end(stage.rooms, batch)
    assert [row["text"] for row in results(stage.folder / "out")] == new


def _counted(stage: Stage, texts: list[str], counts: list[object]) -> Order:
    """A job over these prompts and numbers of pictures."""
    made = order(stage, texts, "")
    with (stage.folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "n"], *zip(texts, counts, strict=True)])
    return replace(made, job=made.job.model_copy(update={"input": {"prompt": "{{ text }}", "num_outputs": "{{ n }}"}}))


async def test_what_will_be_bought(stage: Stage):
    """For consent and plan: equal rows count where each is bought; how many there are is known whatever the job says."""
    for more, bought in ((SHARE, 2), ("", 4)):
        prepared = await prepare(stage.rooms, plain_order(stage, more))
        examined = await check(stage.rooms, prepared)
        assert (to_buy(prepared.order.job, examined), examined.equal_rows, examined.seedless_equal_rows) == (bought, 2, 2)


LEDGER = "duplicates: { once: ledger, empty_seed: share }\n"


async def test_what_an_earlier_batch_bought_serves_again(stage: Stage):
    """By its word only, while the files are in place: not bought, told with the files of the other folder, and `verify` agrees.
    What was lost or changed is bought as usual."""
    rooms = stage.rooms
    texts = ["dog", "cat", "dog", "cow", "elk"]
    first, _ = await load(rooms, await prepare(rooms, order(stage, texts, SHARE)))
    await to_the_end(rooms, first)
    (stage.folder / "out" / "files" / "3-0.webp").unlink()
    changed = stage.folder / "out" / "files" / "4-0.webp"
    changed.write_bytes(changed.read_bytes()[::-1])
    later, _ = await load(rooms, await prepare(rooms, order(stage, [*texts, "owl", "cat"], LEDGER, output="later")))
    counts = await rooms.ledger.counts(later.pk)
    assert (counts.own("pending"), counts.earlier) == (3, 4)
    later = await to_the_end(rooms, later)
    assert Counter(purchase["input"]["prompt"] for purchase in stage.provider.purchases()) == {
        "dog": 1, "cat": 1, "cow": 2, "elk": 2, "owl": 1}
    told = results(stage.folder / "later")
    files = [json.loads(row["prediction_files"])[0] for row in told]
    assert [path.startswith(f"{stage.folder}/out/files/") for path in files] == [True, True, True, False, False, False, True]
    assert all((stage.folder / "later" / path).exists() for path in files)  # of an absolute path it is the path itself
    found = await verify_home(rooms, later)
    assert (found.findings.total, found.strangers, found.files, found.elsewhere) == (0, 0, 3, {first.id: 4})
    other, _ = await load(rooms, await prepare(rooms, order(stage, texts, SHARE, run_key="alone")))
    assert (await rooms.ledger.counts(other.pk)).earlier == 0


async def test_an_earlier_batch_is_no_consent(stage: Stage):
    """A row without a seed that an earlier batch bought is refused like one of the same file, and nothing is kept."""
    first, _ = await load(stage.rooms, await prepare(stage.rooms, order(stage, ["dog", "cat"], SHARE)))
    await to_the_end(stage.rooms, first)
    prepared = await prepare(stage.rooms, order(stage, ["owl", "cat"], "duplicates: { once: ledger }\n", output="later"))
    with pytest.raises(BadInput, match=rf"row 1 has the same input as row 1 of batch {first.id} and no `seed`"):
        await load(stage.rooms, prepared)
    assert not await stage.rooms.ledger.known(prepared.run_key)
    shutil.rmtree(stage.folder / "out")
    batch, _ = await load(stage.rooms, prepared)
    assert (await stage.rooms.ledger.counts(batch.pk)).own("pending") == 2
    assert not (stage.folder / "out").exists()
