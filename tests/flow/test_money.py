"""What a person would remember: rows paid for twice, outputs paid for and lost, a cap that was none."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator import wiring
from orchestrator.core.errors import BadInput
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.ports import ClaimTerms, Fetched, Page
from orchestrator.core.records import Batch, Fact, Prediction
from orchestrator.core.tempo import Tempo
from orchestrator.flow.collect import collect
from orchestrator.flow.control import retry
from orchestrator.flow.homecoming import OUTPUTS_REFUSED
from orchestrator.flow.ingest import Order, load, prepare
from orchestrator.flow.reconcile import sweep
from orchestrator.flow.record import fact_of, record
from orchestrator.flow.submit import submit
from orchestrator.gateways.outputs import HttpOutputs
from orchestrator.gateways.testing import HandClock, MemoryLimiter
from orchestrator.settings import read_settings
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.e2e.desk import Provider
from tests.flow.conftest import QUICK, Stage
from tests.flow.test_stations import settle

PICTURES = "black-forest-labs/flux-schnell"


async def loaded(stage: Stage, job: str, *, rows: int = 1) -> Batch:
    """A batch of a job as written; the same job name and source make it the same batch."""
    (stage.folder / "rows.csv").write_text("text\n" + "".join(f"sentence {n}\n" for n in range(rows)))
    (stage.folder / "job.yaml").write_text(job)
    found = wiring.load_job(stage.folder / "job.yaml", changes={})
    order = Order(job=found.job, name="job", folder=str(stage.folder), output_to="out", output_base=str(stage.folder))
    return (await load(stage.rooms, await prepare(stage.rooms, order, book=None)))[0]


async def test_a_lost_answer_with_a_secret_input(stage: Stage):
    """The provider shows a secret in other words than it was sent: the purchase is found again all the same."""
    job = 'model: simulator/echo\nsource: { path: rows.csv }\ninput: { text: "{{ text }}", api_key: "sk-live-123" }\n'
    batch = await loaded(stage, job)
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, unsure_give_up_s=20, slice_s=0.2))
    stage.provider.put("faults", {"lost_answer": {"next": 1}})
    assert await settle(stage, batch, within_s=30) == {"succeeded": 1}
    assert len(stage.provider.purchases()) == 1


ECHO = 'model: simulator/echo\nsource: { path: rows.csv }\ninput: { text: "{{ text }}" }\n'


async def test_a_source_that_changes_while_it_is_read(stage: Stage):
    """Bought is what was looked at, or nothing: the run key is a hash of what was there before."""
    (stage.folder / "rows.csv").write_text("text\none\n")
    (stage.folder / "job.yaml").write_text(ECHO)
    found = wiring.load_job(stage.folder / "job.yaml", changes={})
    order = Order(job=found.job, name="job", folder=str(stage.folder), output_to="out", output_base=str(stage.folder))
    prepared = await prepare(stage.rooms, order, book=None)
    (stage.folder / "rows.csv").write_text("text\none\ntwo\n")
    with pytest.raises(BadInput, match=r"rows\.csv was changed while it was read\. Nothing was spent"):
        await load(stage.rooms, prepared)
    assert not await stage.rooms.ledger.known(prepared.run_key)
    assert (await load(stage.rooms, await prepare(stage.rooms, order, book=None)))[0].total == 2


async def test_a_cap_added_between_two_runs(stage: Stage):
    """Price and budget come later, as the program itself advises: from then on they hold."""
    batch = await loaded(stage, ECHO, rows=20)
    again = await loaded(stage, ECHO + "price: { per_run_usd: 0.50 }\nbudget: { usd: 1.00 }\n", rows=20)
    assert again.pk == batch.pk
    await settle(stage, again, within_s=5)
    counts = await stage.rooms.ledger.counts(batch.pk)
    assert len(stage.provider.purchases()) == 2
    assert (str(counts.spent_usd), str(counts.reserved_usd)) == ("1", "0")


async def test_outputs_deleted_before_anybody_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Away for longer than the provider keeps outputs: failed, class expired, and a cost that nobody made up."""
    config = SimulatorConfig(port=0, latency_s=0.05, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0, seed=3,
                             retention_s=0.3)
    with running(config) as url:
        monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_simulator")
        monkeypatch.setenv("REPLICATE_BASE_URL", url)
        settings = read_settings(tmp_path / "home").model_copy(update={"tempo": QUICK})
        async with wiring.rooms(settings) as rooms:
            limiter = MemoryLimiter(wiring.clock())
            stage = Stage(replace(rooms, limiter=limiter), Provider(url), tmp_path, limiter)
            batch = await stage.load(2, model=PICTURES, more="price: { per_output_usd: 0.003 }\n")
            await submit(stage.rooms, batch.id, 0)
            await asyncio.sleep(2)
            assert await settle(stage, batch) == {"failed": 2}
            (failure,) = await stage.rooms.ledger.failures(batch.pk)  # type: ignore[attr-defined]
            assert (failure.error_class, failure.count) == ("expired", 2)
            counts = await stage.rooms.ledger.counts(batch.pk)
            assert (str(counts.spent_usd), counts.cost_unknown_items) == ("0", 2)


class Outputs:
    """Downloads that wait where a test wants it."""

    def __init__(self, real: Any, wait: Callable[[str], Any]) -> None:
        self._real = real
        self._wait = wait
        self.fetched: list[str] = []

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Fetched]:
        self.fetched.append(url)
        await self._wait(url)
        async with self._real.fetch(url) as fetched:
            yield fetched


async def completed(stage: Stage, rows: int) -> Batch:
    """A batch whose predictions have all succeeded and whose outputs still lie with the provider."""
    batch = await stage.load(rows, model=PICTURES)
    await submit(stage.rooms, batch.id, 0)
    while (await stage.states(batch)).get("collecting", 0) < rows:
        await sweep(stage.rooms, batch.account)
        await asyncio.sleep(0.05)
    return batch


async def test_a_slow_download_holds_up_nobody(stage: Stage):
    """One file hangs until the task is canceled: the others are home, and are not fetched again."""
    batch = await completed(stage, 30)
    hung: list[str] = []

    async def wait(url: str) -> None:
        if not hung or url in hung:
            hung.append(url)
            await asyncio.sleep(3600)

    outputs = Outputs(stage.rooms.outputs, wait)
    rooms = replace(stage.rooms, outputs=outputs, tempo=replace(QUICK, slice_s=2, collect_concurrency=4, collect_chunk=10))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(4):
            await collect(rooms, batch.id, 0)
    assert await stage.states(batch) == {"collecting": 1, "succeeded": 29}
    assert len(outputs.fetched) == 30


async def test_an_odd_address_is_its_row_own(stage: Stage):
    """An address that nobody foresaw costs its own row, and never its neighbours, and ends with the hour."""
    batch = await completed(stage, 10)
    odd: list[str] = []

    async def wait(url: str) -> None:
        if not odd or url in odd:
            odd.append(url)
            raise UnicodeError("label empty or too long")

    rooms = replace(stage.rooms, outputs=Outputs(stage.rooms.outputs, wait))
    await collect(rooms, batch.id, 0)
    assert await stage.states(batch) == {"collecting": 1, "succeeded": 9}
    late = replace(rooms, tempo=replace(QUICK, retention_s=0.1))
    until = asyncio.get_running_loop().time() + 10
    while (await stage.states(batch)).get("collecting") and asyncio.get_running_loop().time() < until:
        await collect(late, batch.id, 0)
    assert await stage.states(batch) == {"failed": 1, "succeeded": 9}


async def test_a_download_longer_than_a_slice(stage: Stage):
    """A large file keeps its lease for as long as it comes, and so nobody else fetches it meanwhile."""
    batch = await completed(stage, 1)
    outputs = Outputs(stage.rooms.outputs, lambda _: asyncio.sleep(2))
    tempo = replace(QUICK, slice_s=0.2, hold_s=0.4, collect_lease_s=0.6)
    rooms = replace(stage.rooms, outputs=outputs, tempo=tempo)
    task = asyncio.create_task(collect(rooms, batch.id, 0))
    await asyncio.sleep(1.2)
    assert await stage.rooms.ledger.to_collect(batch.pk, count=9, now=rooms.clock.now(), lease_until=rooms.clock.now()) == []
    await task
    assert await stage.states(batch) == {"succeeded": 1}
    assert len(outputs.fetched) == 1


async def test_what_was_not_begun_is_handed_back(stage: Stage):
    """A slice that ends with items in hand leaves them to whoever comes next, at once."""
    batch = await completed(stage, 12)
    outputs = Outputs(stage.rooms.outputs, lambda _: asyncio.sleep(0.3))
    rooms = replace(stage.rooms, outputs=outputs, tempo=replace(QUICK, slice_s=0.1, collect_concurrency=2))
    await collect(rooms, batch.id, 0)
    assert await stage.states(batch) == {"collecting": 10, "succeeded": 2}
    later = rooms.clock.now() + timedelta(seconds=0.01)
    assert len(await stage.rooms.ledger.to_collect(batch.pk, count=99, now=later, lease_until=later)) == 10


async def test_a_host_that_nobody_named(stage: Stage):
    """Outputs on a host that is not allowed: buying stops at the first, and naming the host fetches what was bought."""
    async with HttpOutputs(extra_hosts=frozenset()) as strict:
        batch = await stage.load(40, model=PICTURES)
        allowed, stage.rooms = stage.rooms, replace(stage.rooms, outputs=strict, tempo=replace(QUICK, submit_chunk=2,
                                                                                                submit_concurrency=2))
        until = asyncio.get_running_loop().time() + 10
        while (await stage.rooms.ledger.batch(batch.id)).state is BatchState.RUNNING:  # type: ignore[union-attr]
            assert asyncio.get_running_loop().time() < until
            await submit(replace(stage.rooms, tempo=replace(stage.rooms.tempo, slice_s=0.05)), batch.id, 0)
            await sweep(stage.rooms, batch.account)
            await collect(stage.rooms, batch.id, 0)
    paused = await stage.rooms.ledger.batch(batch.id)
    assert paused is not None
    assert (paused.reason or "").startswith(OUTPUTS_REFUSED)
    assert "ORCHESTRATOR_OUTPUT_HOSTS" in (paused.reason or "")
    bought = len(stage.provider.purchases())
    assert 0 < bought < 40
    stage.rooms = allowed
    failed = (await stage.states(batch)).get("failed", 0)
    assert await retry(stage.rooms, paused, classes=frozenset()) == (failed, 0)
    assert await settle(stage, batch, within_s=20) == {"succeeded": 40}
    assert len(stage.provider.purchases()) == 40


async def test_what_is_not_kept_any_more_is_bought_again(stage: Stage):
    """After the hour there is nothing to fetch: `retry` lets such a row wait for another attempt, and says so."""
    stage.provider.put("faults", {"output_404": 1.0})
    batch = await stage.load(2, model=PICTURES)
    stage.rooms = replace(stage.rooms, tempo=replace(stage.rooms.tempo, retention_s=0.3))
    assert await settle(stage, batch, within_s=15) == {"failed": 2}
    assert await retry(stage.rooms, batch, classes=frozenset({"expired"})) == (0, 2)


async def test_another_folder_while_outputs_are_fetched(stage: Stage):
    """Once a file has its name the folder stays: what the ledger says and where files lie is one place."""
    batch = await completed(stage, 3)

    async def wait(_: str) -> None:
        job = 'model: black-forest-labs/flux-schnell\nsource: { path: rows.csv }\ninput: { prompt: "{{ text }}" }\n'
        (stage.folder / "job.yaml").write_text(job)
        found = wiring.load_job(stage.folder / "job.yaml", changes={})
        order = Order(job=found.job, name="job", folder=str(stage.folder), output_to="elsewhere", output_base=str(stage.folder))
        await load(stage.rooms, await prepare(stage.rooms, order, book=None))

    await collect(replace(stage.rooms, outputs=Outputs(stage.rooms.outputs, wait)), batch.id, 0)
    known = await stage.rooms.ledger.batch(batch.id)
    assert known is not None
    assert len(list(Path(known.output_to, "files").iterdir())) == 3


class RightClock:
    """A provider whose clock is right, with a list and nothing else."""

    offset_s = 0.0
    reads_left = None

    def __init__(self) -> None:
        self.made: list[Prediction] = []

    async def get(self, prediction_id: str) -> Prediction:
        """As in the list."""
        (found,) = (p for p in self.made if p.id == prediction_id)
        return found

    async def list_page(self, *, url: str | None = None, created_after: datetime | None = None, **_: Any) -> Page:
        """What was created after a moment, by this clock."""
        return Page([p for p in self.made if created_after is None or p.created_at is None or p.created_at >= created_after],
                    None, 0.0)


async def test_a_lost_answer_of_a_machine_that_is_fast(stage: Stage):
    """Bought by a machine three minutes fast, looked for by one that is right: found, and not bought again."""
    batch, provider, began = await stage.load(2), RightClock(), stage.rooms.clock.now()
    clock = HandClock(start_at=began)
    rooms = replace(stage.rooms, clock=clock, predictions=provider, tempo=Tempo(reads_per_minute=0))

    async def claimed(name: str, *, at_s: float, fast_s: float) -> Prediction:
        now = began + timedelta(seconds=at_s + fast_s)
        terms = ClaimTerms(now, now + timedelta(seconds=152), now + timedelta(seconds=1), "a:1", 0, offset_s=-fast_s)
        (claim,) = await rooms.ledger.claim(batch.pk, attempt_ids=[name * 26], terms=terms)
        made = Prediction(f"p_{name}", "succeeded", model="simulator/echo", version="hidden", output="x",
                          input=json.loads(claim.input_json), created_at=began + timedelta(seconds=at_s))
        provider.made.insert(0, made)
        return made

    await claimed("a", at_s=0, fast_s=180)
    lost = Fact(Event.ANSWER_LOST, began + timedelta(seconds=181), "a" * 26, error="reset", error_class="unsure")
    await record(rooms, [lost])
    canary = await claimed("b", at_s=310, fast_s=0)
    await record(rooms, [fact_of(canary, at=began + timedelta(seconds=311), via="post", attempt_id="b" * 26)])
    for _ in range(4):
        clock.advance(95)
        await sweep(rooms, batch.account, 1)
    assert await stage.states(batch) == {"collecting": 2}


async def _watch(stage: Stage, batch: Batch, *, until: Callable[[], Any], within_s: float = 20.0) -> None:
    """Sweep for what is unsure or gone, as the roles do while anything lives on this account."""
    ends_at = asyncio.get_running_loop().time() + within_s
    while not await until() and asyncio.get_running_loop().time() < ends_at:
        await sweep(stage.rooms, batch.account)
        await sweep(stage.rooms, batch.account, 1)
        await asyncio.sleep(0.1)


async def test_what_was_found_absent_and_turns_up(stage: Stage):
    """A provider slower than anybody thought: the row is bought again, the first purchase is seen, canceled where it still can
    be, and in the bill."""
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, request_timeout_s=1, slice_s=0.2))
    stage.provider.put("faults", {"late_creation": {"next": 1, "seconds": 4}})
    batch = await stage.load(3, model=PICTURES, more="price: { per_output_usd: 0.003 }\n")
    assert await settle(stage, batch, within_s=20) == {"succeeded": 3}
    assert len(stage.provider.purchases()) == 3
    views = wiring.views(stage.rooms)

    async def seen() -> bool:
        beyond = await views.bought_beyond_need(batch.pk)
        return beyond.predictions > 0 and not await stage.rooms.ledger.surplus(batch.account)

    await _watch(stage, batch, until=seen)
    assert len(stage.provider.purchases()) == 4
    assert await stage.states(batch) == {"succeeded": 3}
    beyond = await views.bought_beyond_need(batch.pk)
    assert beyond.predictions == 1
    counts = await stage.rooms.ledger.counts(batch.pk)
    assert counts.cost_unknown_items == 0
    bill = sum(Decimal(p["billed_usd"]) for p in stage.provider.purchases())
    assert counts.spent_usd == bill


async def test_what_was_given_up_and_turns_up(stage: Stage):
    """Nobody could say whether it was bought, and the batch goes on: what turns up is the row's, and nothing is bought again."""
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, request_timeout_s=1, slice_s=0.2))
    batch = await stage.load(1, model=PICTURES)
    stage.provider.put("faults", {"lost_answer": {"next": 1}, "list_error": 1.0})
    while not (await stage.states(batch)).get("unsure"):
        await submit(stage.rooms, batch.id, 0)
    (attempt,) = await stage.rooms.ledger.unsure(batch.account)
    given_up = Fact(Event.GIVEN_UP, stage.rooms.clock.now(), attempt.attempt_id, error="?", error_class="unsure")
    await record(stage.rooms, [given_up])
    assert await stage.states(batch) == {"failed": 1}
    stage.provider.put("faults", {"list_error": 0.0})

    async def home() -> bool:
        await collect(stage.rooms, batch.id, 0)
        return (await stage.states(batch)).get("succeeded") == 1

    await _watch(stage, batch, until=home)
    assert await stage.states(batch) == {"succeeded": 1}
    assert len(stage.provider.purchases()) == 1


async def test_unsure_bought_again_where_the_job_says_so(stage: Stage):
    """`retry: { unsure: buy }`: a doubt that nothing clears up costs another purchase, and the first one stays unknown."""
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, unsure_give_up_s=0.5, slice_s=0.2))
    job = f'model: {PICTURES}\nsource: {{ path: rows.csv }}\ninput: {{ prompt: "{{{{ text }}}}" }}\nretry: {{ unsure: buy }}\n'
    batch = await loaded(stage, job)
    stage.provider.put("faults", {"lost_answer": {"next": 1}})
    while not (await stage.states(batch)).get("unsure"):
        await submit(stage.rooms, batch.id, 0)
    (attempt,) = await stage.rooms.ledger.unsure(batch.account)
    given_up = Fact(Event.GIVEN_UP, stage.rooms.clock.now(), attempt.attempt_id, error="?", error_class="unsure")
    await record(stage.rooms, [given_up])
    assert await stage.states(batch) == {"pending": 1}
    while not (await stage.states(batch)).get("running"):
        await submit(stage.rooms, batch.id, 0)
    assert len(stage.provider.purchases()) == 2


async def test_equal_rows_told_apart_by_single_looks(stage: Stage):
    """Four equal rows, no answer heard, one never bought; the list shows no webhooks, a GET does: the three are found, and
    the fourth is bought."""
    stage.rooms = replace(stage.rooms, tempo=replace(QUICK, unsure_give_up_s=20, slice_s=0.2), public_url="http://127.0.0.1:9")
    job = f'model: {PICTURES}\nsource: {{ path: rows.csv }}\ninput: {{ prompt: "a teapot" }}\n'
    batch = await loaded(stage, job, rows=4)
    stage.provider.put("faults", {"lost_answer": {"next": 3}, "close_before": {"next": 1}, "webhook_dropped": 1.0})
    assert await settle(stage, batch, within_s=30) == {"succeeded": 4}
    assert len(stage.provider.purchases()) == 4
