"""What `plan` tells, and what `run` asks, on a stand-in for the provider and a ledger with a past."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.apps.cli import foresight, planning, run
from orchestrator.apps.cli.ending import Exit
from orchestrator.apps.cli.foresight import question
from orchestrator.apps.cli.options import RunOptions, order_of
from orchestrator.core.cost import Price
from orchestrator.core.errors import BadInput
from orchestrator.core.estimate import Estimate, Figure
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import OutputName, StoredOutput, Target
from orchestrator.core.retry import Policy
from orchestrator.flow.ingest import load, prepare
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.contract.conftest import NOW, Acts

SDXL = "stability-ai/sdxl"
HOUR = NOW.replace(hour=13)


@pytest.fixture(scope="module")
def provider_url() -> Iterator[str]:
    """A stand-in for Replicate."""
    with running(SimulatorConfig(port=0, creates_per_minute=0, reads_per_minute=0, seed=7)) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path, provider_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, and the environment that belongs to it."""
    (tmp_path / "jobs").mkdir()
    for name in ("ORCHESTRATOR_HOME", "ORCHESTRATOR_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_simulator")
    monkeypatch.setenv("REPLICATE_BASE_URL", provider_url)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(folder: Path, more: str = "", *, model: str = SDXL, rows: int = 10) -> RunOptions:
    """A job of so many rows, the last of which equals the first."""
    prompts = [f"picture {n}" for n in range(rows - 1)] + ["picture 0"]
    (folder / "jobs" / "rows.csv").write_text("prompt\n" + "\n".join(prompts) + "\n")
    (folder / "jobs" / "shots.yaml").write_text(f"model: {model}\nsource: {{ path: rows.csv }}\n{more}")
    return RunOptions("shots")


PRICED = "price: { per_run_usd: 0.003 }\n"
BY_SECOND = "price: { per_second_usd: 0.01 }\n"


async def target_of(folder: Path, options: RunOptions) -> tuple[str, Target]:
    """Account and target, as the provider tells them."""
    order, home = order_of(options)
    async with wiring.rooms(wiring.read_settings(home), ledger_needed=False) as rooms:
        prepared = await prepare(rooms, order)
    return prepared.account, prepared.target


@pytest.fixture
async def past(folder: Path) -> AsyncIterator[Any]:
    """Makes a past of the job's target: ten rows of 1 to 10 seconds, each with a file of a megabyte."""

    async def bought(options: RunOptions, *, file_bytes: int = 10**6) -> None:
        account, target = await target_of(folder, options)
        async with wiring.ledger(wiring.read_settings(folder / ".orchestrator")) as ledger:
            acts = Acts(ledger)
            acts.policy = Policy(3, 2.0, canceling=False, price=Price("then", "second", Decimal(9)), count_files=lambda _: 1)
            batch = await acts.loaded(10, "before", account=account, target=target)
            await acts.claim(batch, 10)
            for n in range(10):
                await acts.tell(acts.answered(f"a{n}", f"p{n}"), acts.ended(f"p{n}", seconds=n + 1.0))
            for item in await ledger.to_collect(batch.pk, count=10, now=HOUR, lease_until=HOUR):
                await ledger.grant_names([OutputName(item.item_pk, batch.pk, item.attempt_id, item.index, 0, item.row_id)])
                await ledger.store_outputs([StoredOutput(item.item_pk, 0, item.row_id, file_bytes, "0" * 64, "image/png",
                                                         "https://x", NOW, item.attempt_id)])

    yield bought


async def test_a_fresh_home(folder: Path):
    """What the price does not fix is not known and says what would make it known; no ledger is made by asking."""
    done = await planning.plan(job(folder, BY_SECOND))
    told = done.document
    assert told["estimate"]["expected_usd"] is told["worst_case_usd"] is told["history"] is told["storage_bytes"] is None
    assert (told["rows"], told["equal_rows"], told["rows_to_buy"], told["saved_by_once_usd"]) == (10, 1, 10, None)
    assert [one.partition(":")[0] for one in told["not_known"]] == [
        "low cost", "expected cost", "high cost", "at most", "storage", "cancel_after"]
    text = "\n".join(done.lines)
    assert "expected  not known  seconds show once some rows were bought: run it with --limit 3 first" in text
    assert "at most   not known" in text and "$0" not in text
    assert not (folder / ".orchestrator").exists()
    assert json.loads(json.dumps(told)) == told


async def test_a_number_that_the_schema_fixes(folder: Path):
    """One picture a row by the model's default; limit, key and folder are those of `run`."""
    options = job(folder, model="black-forest-labs/flux-schnell")
    told = (await planning.plan(options)).document
    assert (told["estimate"]["expected_usd"], told["worst_case_usd"], told["saved_by_once_usd"]) == ("0.03", "0.03", "0.003")
    done = await planning.plan(RunOptions("shots", limit=3, output="elsewhere", run_key="mine", fresh=True))
    assert (done.document["rows_to_buy"], done.document["estimate"]["high_usd"]) == (3, "0.009")
    assert done.document["run_key"].startswith("mine-")
    assert "3 rows of 10 (--limit)" in done.lines[2]
    assert done.lines[-1].endswith("orchestrator run shots --output elsewhere --run-key mine --fresh --limit 3")


async def test_by_what_such_rows_came_to(folder: Path, past: Any):
    """Seconds of then at the price of now; a deadline with what it reserves, time and storage; all in a block read at once."""
    options = job(folder, BY_SECOND, rows=100)
    await past(options)
    done = await planning.plan(options)
    told = done.document
    assert [told["estimate"][f"{name}_usd"] for name in ("low", "expected", "high")] == ["1", "5.5", "10"]
    assert (told["proposed_cancel_after_s"], told["reserved_per_row_then_usd"]) == (30.0, "0.3")
    assert (told["history"]["rows"], told["history"]["seconds_p50"], told["storage_bytes"]) == (10, 6.0, 10**8)
    assert told["not_known"] == ["at most: nothing bounds what a row may cost"]
    text = "\n".join(done.lines)
    for words in ("cost      low           $1.00  the cheapest tenth of 10 rows bought before",
                  "          expected      $5.50  the mean of 10 rows bought before",
                  "          at most   not known  nothing bounds what a row may cost",
                  "1 of all equals an earlier one: `duplicates: once` saves about $0.055", "half took 6.0 s before",
                  "deadline  none is set; `cancel_after: 30s`, 3 times as long as the slowest, at most $0.30 a row",
                  "storage   about 100 MB; ", "uses      5.50 seconds a prediction, on the average"):
        assert words in text, f"{words}\n{text}"


async def test_every_cap_that_is_too_low(folder: Path):
    """Also those that other batches share, each by its name."""
    told = (await planning.plan(job(folder, PRICED + "budget: { usd: 9, job_per_day_usd: 0.02 }\n"))).document["warnings"]
    assert told == ["the budget of $0.02 (budget.job_per_day_usd in the job) will not be enough for all rows: they are expected "
                    "to cost $0.03; it buys about 6 rows"]


async def test_what_caps_have_spent(folder: Path):
    """By this batch, and by whoever shares a cap: what is spent and reserved, what is left, and about how many rows that buys."""
    def capped(usd: str) -> RunOptions:
        return job(folder, PRICED + f"budget: {{ {usd} }}\n")

    account, target = await target_of(folder, capped("usd: 1"))
    async with wiring.ledger(wiring.read_settings(folder / ".orchestrator")) as ledger:
        acts = Acts(ledger)
        acts.policy = Policy(3, 2.0, canceling=False, price=Price("r", "run", Decimal("0.003")), count_files=lambda _: 1)
        batch = await acts.loaded(10, "before", job="shots", account=account, target=target)
        today = wiring.clock().now()
        await acts.claim(batch, 4, reserve_units=3 * 10**9, now=today)
        for n in range(3):
            await acts.tell(acts.answered(f"a{n}", f"p{n}"), acts.ended(f"p{n}"))
    for usd, words, left in (
            ("job_usd: 0.02", "; $0.009 of it are spent and $0.003 are reserved, and what is left, $0.008, buys about 2 rows",
             "0.008"),
            ("job_per_day_usd: 0.02", " are reserved today (UTC), and what is left, $0.008, buys about 2 rows", "0.008"),
            ("job_usd: 0.014", ", and what is left, $0.002, buys about 0 rows", "0.002")):
        done = await planning.plan(capped(usd))
        assert (done.code, done.document["caps"][0]["left_usd"]) == (Exit.DONE, left)
        assert any(words in line for line in done.lines), (words, done.lines)
    async with wiring.ledger(wiring.read_settings(folder / ".orchestrator")) as ledger:
        acts = Acts(ledger)
        acts.policy = Policy(3, 2.0, canceling=False, price=Price("r", "run", Decimal("0.003")), count_files=lambda _: 1)
        await acts.tell(acts.answered("a3", "p3"), acts.ended("p3"))
    done = await planning.plan(capped("job_usd: 0.014"))
    assert done.code is Exit.BUDGET and "nothing can be bought: raise budget.job_usd in the job" in done.lines[-1]
    assert any("$0.012 of $0.014 are spent by all batches of this job, and the next row may need up to $0.003" in line
               for line in done.lines)
    assert (await planning.plan(capped("usd: 0.05"))).document["warnings"] == []


async def test_a_cap_that_buys_no_row(folder: Path):
    """One remedy, in the note and in the last line, and the exit code of a bad job."""
    done = await planning.plan(job(folder, PRICED + "budget: { usd: 0.001 }\n"))
    assert done.code is Exit.BAD_INPUT
    (note,) = done.document["warnings"]
    assert note.startswith("the budget of $0.001 is less than one row may cost at worst, $0.003: raise budget.usd in the job, or")
    assert done.lines[-1] == "Nothing was spent, and nothing can be bought: raise budget.usd in the job, and run it again."


async def test_nothing_is_reserved_without_a_cap(folder: Path):
    """What a row may cost at most is told, and that it is reserved only where it is."""
    assert any(line.endswith("$0.03  $0.003 a row") for line in (await planning.plan(job(folder, PRICED))).lines)
    capped = await planning.plan(job(folder, PRICED + "budget: { usd: 5 }\n"))
    assert any(line.endswith("$0.03  $0.003 a row is reserved") for line in capped.lines)


async def test_a_deployment_has_one_name(folder: Path):
    """That of the deployment, as everywhere else."""
    options = job(folder, model="x/y")
    text = (folder / "jobs" / "shots.yaml").read_text().replace("model: x/y", "deployment: acme/flux")
    (folder / "jobs" / "shots.yaml").write_text(text)
    done = await planning.plan(options)
    assert done.lines[0].startswith("shots: 10 rows for acme/flux, ") and done.document["model"] == "acme/flux"


async def test_a_batch_of_the_same_rows_that_fresh_began(folder: Path):
    """Who goes on without --fresh buys all rows again, and is told how not to; who asks for another one, or names his key, is
    not."""
    options = job(folder, PRICED)
    async with wiring.rooms(wiring.read_settings(order_of(options)[1])) as rooms:
        prepared = await prepare(rooms, order_of(replace(options, fresh=True))[0])
        batch, _ = await load(rooms, prepared)
        newest, _ = await load(rooms, await prepare(rooms, order_of(replace(options, fresh=True))[0]))
        note = (f"batch {newest.id} (--fresh, running) is of the same rows, and this one buys all of them again; to go on with "
                f"that one: orchestrator run shots --run-key {newest.run_key} --limit 2")
        limited = replace(options, limit=2)
        assert note in (await planning.plan(limited)).document["warnings"]
        assert await foresight.bought_fresh(rooms, await prepare(rooms, order_of(limited)[0]), limited) == note
        for other in (replace(options, fresh=True), replace(options, run_key=batch.run_key.partition("-")[0]),
                      replace(options, run_key=batch.run_key)):
            assert "is of the same rows" not in "\n".join((await planning.plan(other)).lines)
        await load(rooms, await prepare(rooms, order_of(options)[0]))
        assert "is of the same rows" not in "\n".join((await planning.plan(options)).lines)


@pytest.mark.parametrize("state,reason,words,last", [
    (BatchState.CANCELED, None, "`run` buys nothing of it, `orchestrator resume ID` goes", ". To go on: orchestrator resume"),
    (BatchState.PAUSED, "too many rows failed: x", "`orchestrator resume ID` buys the rest", ". To go on: orchestrator resume"),
    (BatchState.PAUSED, "start limit", "`run` goes on with it", ". To go on: orchestrator run shots"),
    (BatchState.FINISHED, None, "has finished; `run` buys nothing more", "nothing is left to buy"),
])
async def test_how_a_batch_stands(folder: Path, state: BatchState, reason: str | None, words: str, last: str):
    """What `run` would do with the batch that there is, and what has to be typed where it would do nothing."""
    options = job(folder, PRICED)
    async with wiring.rooms(wiring.read_settings(order_of(options)[1])) as rooms:
        batch, _ = await load(rooms, await prepare(rooms, order_of(options)[0]))
        if state is BatchState.FINISHED:
            await Acts(rooms.ledger).claim(batch, 10)
        await rooms.ledger.set_state(batch.pk, to=state, allowed=frozenset(BatchState), reason=reason, now=NOW)
    done = await planning.plan(options)
    assert words.replace("ID", batch.id) in "\n".join(done.lines) and last in done.lines[-1]


async def test_a_limit_that_is_reached(folder: Path):
    """Nothing is bought, though rows are left."""
    options = job(folder, PRICED)
    async with wiring.rooms(wiring.read_settings(order_of(options)[1])) as rooms:
        batch, _ = await load(rooms, await prepare(rooms, order_of(options)[0]))
        await Acts(rooms.ledger).claim(batch, 5)
    done = await planning.plan(replace(options, limit=5))
    assert done.document["rows_to_buy"] == 0 and done.lines[-1] == "Nothing was spent, and nothing is left to buy."
    assert "5 of its rows were started, no fewer than --limit says" in "\n".join(done.lines)


async def test_files_that_could_not_be_fetched(folder: Path, past: Any):
    """Where such rows brought nothing home since their downloads failed, nobody knows what they need."""
    options = job(folder, BY_SECOND)
    account, target = await target_of(folder, options)
    async with wiring.ledger(wiring.read_settings(folder / ".orchestrator")) as ledger:
        acts = Acts(ledger)
        batch = await acts.loaded(2, "before", account=account, target=target)
        await acts.claim(batch, 2)
        for n in range(2):
            await acts.tell(acts.answered(f"a{n}", f"p{n}"), acts.ended(f"p{n}"))
            await acts.tell(acts.said(Event.UNCOLLECTABLE, f"a{n}", error="refused", error_class="expired"))
    done = await planning.plan(options)
    assert done.document["storage_bytes"] is None
    assert any("storage   not known, as no such row has brought its files home; " in line for line in done.lines)


async def test_no_is_no_error(folder: Path, past: Any, monkeypatch: pytest.MonkeyPatch):
    """Who is asked and says no has spent nothing; nobody to ask is another thing."""
    options = job(folder, BY_SECOND, rows=100)
    await past(options)
    monkeypatch.setattr(run, "ask", lambda question: False)
    monkeypatch.setenv("ORCHESTRATOR_ASK_ABOVE_USD", "1")
    ended = await run.run(options)
    assert (ended.code, ended.lines) == (Exit.BAD_INPUT, ("Nothing was spent.",))


async def test_less_set_aside_than_a_row_costs(folder: Path):
    """`plan` refuses it as `run` does, with both figures."""
    with pytest.raises(BadInput, match=r"sets \$0\.002 aside for a row, and one of .* costs at least \$0\.003 by its price"):
        await planning.plan(job(folder, PRICED + "budget: { usd: 9, per_row_usd: 0.002 }\n"))


async def test_under_a_deadline(folder: Path, past: Any):
    """The worst case is finite; a deadline that would have ended many rows is said, and that few in flight make it slower."""
    options = job(folder, BY_SECOND + "limits: { cancel_after: 5s, in_flight: 2 }\nbudget: { usd: 2.00 }\n", rows=100)
    await past(options)
    done = await planning.plan(options)
    text = "\n".join(done.lines)
    assert done.document["worst_case_usd"] == "5" and done.document["estimate"]["high_usd"] == "5"
    assert "at most   $5.00  $0.05 a row is reserved; the budget ends it at $2.00" in text
    assert "the budget of $2.00 will not be enough for all rows: they are expected to cost $4.00" in text  # none runs longer
    assert "limits.cancel_after of 5 s would have ended one in ten of the rows bought before" in text
    assert "at least 5:00, as 2 in flight come to 20 per minute" in text


async def test_a_row_is_said_to_cost_less_than_it_does(folder: Path, past: Any):
    """`per_row_usd` bounds nothing without a cap; under one it is what is reserved, and what is known is told as it is."""
    options = job(folder, BY_SECOND + "budget: { per_row_usd: 0.0001 }\n", rows=100)
    await past(options)
    told = (await planning.plan(options)).document
    assert (told["estimate"]["expected_usd"], told["worst_case_usd"]) == ("5.5", None)
    order, home = order_of(options)
    settings = wiring.read_settings(home)
    async with wiring.rooms(settings) as rooms:
        prepared = await prepare(rooms, order, book=wiring.price_book(settings))
        with pytest.raises(BadInput, match=r"may cost about \$5\.50 \(\$1\.00 to \$10\.00\), by .*; nothing bounds it"):
            await run._consent(rooms, prepared, options, ask_above_usd=9.99)
    figure = Figure(Decimal("0.10"), "")
    at_stake_usd, words = question(prepared, Estimate(100, figure, figure, figure, Decimal("0.0001")))
    assert at_stake_usd == 10 and "may cost about $10.00, more than the $0.01 that their worst case comes to" in words
    options = job(folder, BY_SECOND + "budget: { usd: 50, per_row_usd: 0.0001 }\n", rows=100)
    done = await planning.plan(options)
    assert [done.document["estimate"][f"{name}_usd"] for name in ("low", "expected", "high")] == ["1", "5.5", "10"]
    assert done.document["worst_case_usd"] == "0.01"
    assert any("a row may cost $0.10, more than its worst case of $0.0001: `budget.per_row_usd`, the price or" in line
               for line in done.lines)


async def test_what_does_not_fit(folder: Path, past: Any):
    """A note with the remedy where the disk has less than the files need; of `run` too, before it buys, and of what is left."""
    options = job(folder, BY_SECOND)
    await past(options, file_bytes=10**18)
    assert any("the files will not fit" in line and "--output" in line for line in (await planning.plan(options)).lines)
    order, home = order_of(options)
    async with wiring.rooms(wiring.read_settings(home)) as rooms:
        prepared = await prepare(rooms, order)
        batch, _ = await load(rooms, prepared)
        (told,) = (await run._storage(rooms, prepared, batch)).warnings()
        assert f"the files will not fit: {batch.output_to} has " in told and "about 10000000 TB" in told
        acts = Acts(rooms.ledger)
        assert len(await rooms.ledger.claim(batch.pk, attempt_ids=[f"n{n}" for n in range(10)], terms=acts.terms())) == 10
        assert (await run._storage(rooms, prepared, batch)).warnings() == []


async def test_the_question_has_all_figures(folder: Path, past: Any):
    """With a worst case it asks by that; without one by what such rows cost before; with neither nothing can be asked."""
    options = job(folder, BY_SECOND, rows=100)
    await past(options)
    order, home = order_of(options)
    settings = wiring.read_settings(home)
    async with wiring.rooms(settings) as rooms:
        prepared = await prepare(rooms, order, book=wiring.price_book(settings))
        with pytest.raises(BadInput, match=r"may cost about \$5\.50 \(\$1\.00 to \$10\.00\), by .*; nothing bounds it"):
            await run._consent(rooms, prepared, options, ask_above_usd=9.99)
        await run._consent(rooms, prepared, options, ask_above_usd=10.0)
        few = RunOptions("shots", limit=3)
        await run._consent(rooms, prepared, few, ask_above_usd=0.31)
        bounded, _ = order_of(RunOptions("shots", changes={"limits.cancel_after": "1m"}))
        capped = await prepare(rooms, bounded, book=wiring.price_book(settings))
        with pytest.raises(BadInput, match=r"may cost up to \$60\.00; expected: \$5\.50 \(\$1\.00 to \$10\.00\)"):
            await run._consent(rooms, capped, options, ask_above_usd=59.0)
    unknown = Figure(None, "")
    assert question(prepared, Estimate(5, unknown, unknown, unknown, None))[0] is None


async def test_the_estimate_stays_with_the_batch(folder: Path, past: Any):
    """Loaded before anything is known, the batch has an unknown one; going on fills it in once rows have ended, and once."""
    options = job(folder, BY_SECOND, rows=100)
    order, home = order_of(options)
    async with wiring.rooms(wiring.read_settings(home)) as rooms:
        prepared = await prepare(rooms, order)
        batch, new = await load(rooms, prepared)
        first = Estimate.from_json(batch.estimate_json)
        assert new and first is not None and (first.rows, first.expected.usd) == (100, None)
        await past(options)
        learned = Estimate.from_json((await load(rooms, prepared))[0].estimate_json)
        assert learned is not None and learned.in_all(learned.expected.usd) == Decimal("5.5")
        dearer, _ = order_of(RunOptions("shots", changes={"price.per_second_usd": "0.05"}))
        again, new = await load(rooms, await prepare(rooms, dearer))
        assert not new and Estimate.from_json(again.estimate_json) == learned
    done = await planning.plan(options)
    assert any("there is a batch of this run key already: `run` goes on" in line for line in done.lines)


async def test_a_batch_that_is_begun(folder: Path, past: Any):
    """Only the rows that are left are priced, as `run` would buy them; where none is, there is nothing more to pay."""
    options = job(folder, PRICED, rows=10)
    order, home = order_of(options)
    async with wiring.rooms(wiring.read_settings(home)) as rooms:
        batch, _ = await load(rooms, await prepare(rooms, order))
        acts = Acts(rooms.ledger)
        await acts.claim(batch, 7)
        done = await planning.plan(options)
        assert (done.document["rows_to_buy"], done.document["estimate"]["expected_usd"]) == (3, "0.009")
        assert done.document["saved_by_once_usd"] is None
        assert "3 rows of 10, those that were never started" in "\n".join(done.lines) and "To go on: " in done.lines[-1]
        assert (await planning.plan(RunOptions("shots", limit=8))).document["rows_to_buy"] == 1
        await acts.claim(batch, 3, prefix="b")
        done = await planning.plan(options)
        assert (done.document["rows_to_buy"], done.document["estimate"]["expected_usd"]) == (0, "0")
        text = "\n".join(done.lines)
        assert "all of its rows were started" in text and "cost " not in text and "Nothing was spent, and nothing is left" in text
        assert (await planning.plan(RunOptions("shots", fresh=True))).document["rows_to_buy"] == 10
