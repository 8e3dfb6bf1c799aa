"""What `verify` finds, on real parts: files, documents, SQLite, and the simulator's own list."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.core.callback import callback_url
from orchestrator.core.errors import NotFound, ProviderAway
from orchestrator.core.findings import Kind
from orchestrator.core.lifecycle import BatchState, Event
from orchestrator.core.records import Batch, Fact
from orchestrator.core.verify import Report
from orchestrator.flow.control import cancel
from orchestrator.flow.record import record
from orchestrator.flow.report import report as end
from orchestrator.flow.submit import submit
from orchestrator.flow.verify import verify_home
from orchestrator.flow.verify_there import verify_there
from tests.flow.conftest import Stage
from tests.flow.test_money import PICTURES
from tests.flow.test_stations import Flaky, settle


async def again(stage: Stage, batch: Batch) -> Batch:
    found = await stage.rooms.ledger.batch(batch.id)
    assert found is not None
    return found


async def finished(stage: Stage, rows: int = 6, *, model: str = PICTURES, more: str = "") -> Batch:
    """A batch that has ended, all rows at home."""
    batch = await stage.load(rows, model=model, more=more)
    assert await settle(stage, batch) == {"succeeded": rows}
    await end(stage.rooms, batch.id)
    return await again(stage, batch)


async def whole(stage: Stage, batch: Batch) -> Report:
    """Both looks."""
    report = await verify_home(stage.rooms, batch)
    await verify_there(stage.rooms, batch, report)
    return report


def files(stage: Stage) -> list[Path]:
    return sorted((stage.folder / "out" / "files").iterdir())


def buy(stage: Stage, prompt: str, *, webhook: str | None = None, model: str = PICTURES) -> str:
    """A purchase that no ledger knows of; its id."""
    body: dict[str, Any] = {"input": {"prompt": prompt}} | ({"webhook": webhook} if webhook else {})
    answer = httpx.post(f"{stage.provider.url}/v1/models/{model}/predictions", json=body,
                        headers={"Authorization": "Bearer r8_simulator"})
    return str(answer.raise_for_status().json()["id"])


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
async def test_all_is_well(stage: Stage, kind: str):
    """A batch that went well has not one finding, whichever format its results have."""
    batch = await finished(stage, 25, more=f"output: {{ to: out, results: {kind} }}\n")
    report = await whole(stage, batch)
    assert (report.findings.kept, report.strangers, report.there.why_not) == ([], 0, None)
    assert (report.files, report.manifest.lines, report.results.lines, report.there.ours) == (25, 25, 25, 25)


async def test_files_that_are_not_what_came_home(stage: Stage):
    """Missing, cut, altered and replaced by a folder: each named with its row; the others are not."""
    batch = await finished(stage)
    missing, cut, altered, folder, *_ = files(stage)
    missing.unlink()
    folder.unlink()
    folder.mkdir()
    cut.write_bytes(cut.read_bytes()[:-1])
    altered.write_bytes(altered.read_bytes()[:-1] + b"?")
    report = await verify_home(stage.rooms, batch)
    found = {finding.row: finding.kind for finding in report.findings.kept}
    assert found == {0: Kind.MISSING, 1: Kind.CHANGED, 2: Kind.CHANGED, 3: Kind.UNREADABLE}
    assert report.findings.kept[0].path == f"files/{missing.name}"


async def test_missing_files_are_fetched_again(stage: Stage):
    """While the provider keeps them: the same bytes are back, and nothing is bought. A changed file is left alone."""
    batch = await finished(stage)
    missing, edited, *_ = files(stage)
    was = missing.read_bytes()
    missing.unlink()
    edited.write_bytes(b"mine")
    report = await verify_home(stage.rooms, batch, fetch=True)
    assert (report.fetched, report.findings.counts) == (1, {Kind.CHANGED: 1})
    assert (missing.read_bytes(), edited.read_bytes()) == (was, b"mine")
    assert len(stage.provider.purchases()) == 6


async def test_other_bytes_are_not_taken_for_a_missing_file(stage: Stage):
    """What is fetched again must have the hash that came home, else the file stays missing."""
    batch = await finished(stage, 2)
    one, other = files(stage)
    taken = {line["path"]: line async for line in stage.rooms.ledger.manifest(batch.pk)}
    other_url = taken[f"files/{other.name}"]["source_url"]
    one.unlink()
    outputs = stage.rooms.outputs
    stage.rooms = replace(stage.rooms, outputs=Flaky(outputs, fetch=lambda _: outputs.fetch(other_url)))
    report = await verify_home(stage.rooms, batch, fetch=True)
    assert (report.fetched, report.findings.counts) == (0, {Kind.MISSING: 1})
    assert files(stage) == [other]


async def test_what_helps_depends_on_the_hour(stage: Stage):
    """While the provider keeps a lost file: fetch it, and until when. Afterwards: only buying the row again."""
    batch = await finished(stage, 1)
    files(stage)[0].unlink()
    (now,) = (await verify_home(stage.rooms, batch)).findings.kept
    assert f"orchestrator verify {batch.id} --fetch" in (now.remedy or "")
    clock = stage.rooms.clock
    stage.rooms = replace(stage.rooms, clock=Flaky(clock, now=lambda: clock.now() + timedelta(hours=1)))
    (later,) = (await verify_home(stage.rooms, batch)).findings.kept
    assert "deleted it" in (later.remedy or "") and "--fetch" not in (later.remedy or "")


async def test_names_nobody_knows(stage: Stage):
    """Files and folders of others are named, and are no error; our own documents are not among them."""
    await finished(stage, 2)
    batch = await again(stage, await stage.rooms.ledger.find("job"))
    out = stage.folder / "out"
    for path in ("notes.txt", "files/stray.webp", "files/deep/er/stray.webp", "thumbs/a.png"):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text("x")
    report = await verify_home(stage.rooms, batch)
    assert sorted(report.stranger_names) == ["files/deep/er/stray.webp", "files/stray.webp", "notes.txt", "thumbs/"]
    assert (report.strangers, report.findings.total) == (4, 0)


async def test_documents_that_disagree(stage: Stage):
    """A line altered, one removed, one too many: each told, with the command that writes the document anew."""
    batch = await finished(stage, 5, more="output: { to: out, results: csv }\n")
    manifest, results = stage.folder / "out" / "manifest.jsonl", stage.folder / "out" / "results.csv"
    lines = manifest.read_text().splitlines()
    altered, strange = json.loads(lines[1]) | {"bytes": 1}, json.loads(lines[0]) | {"path": "files/none.png"}
    manifest.write_text("\n".join([lines[0], json.dumps(altered), *lines[3:], json.dumps(strange)]) + "\n")
    results.write_text(results.read_text().replace("succeeded", "failed", 1))
    report = await verify_home(stage.rooms, batch)
    told = sorted(finding.text for finding in report.findings.kept)
    assert told == [
        "manifest.jsonl has a line that the ledger does not have", "manifest.jsonl lacks a line that the ledger has",
        "manifest.jsonl says another bytes than the ledger", "results.csv says another prediction_status than the ledger"]
    assert all("orchestrator export" in (finding.remedy or "") for finding in report.findings.kept)
    manifest.unlink()
    results.write_bytes(b"\0\0")
    report = await verify_home(stage.rooms, batch)
    told = sorted(finding.text.split(":")[0] for finding in report.findings.kept)
    assert told == ["manifest.jsonl is missing", "results.csv cannot be read"]


async def test_a_batch_that_goes_on(stage: Stage):
    """Its documents tell of an earlier moment and are not compared; rows that wait are nothing wrong."""
    batch = await stage.load(3, model=PICTURES)
    await submit(stage.rooms, batch.id, 0)
    await asyncio.sleep(0.3)
    report = await whole(stage, batch)
    assert (report.findings.kept, report.files) == ([], 0)
    assert report.results.why_not is not None and report.there.why_not is None
    assert (report.there.ours, report.there.waiting) == (3, 3)


async def test_predictions_we_never_recorded(stage: Stage):
    """One with the input of a row, and one whose webhook names an attempt of ours: wrong. With an input that no row has, or with
    somebody else's webhook: not ours."""
    batch = await finished(stage, 3)
    some = [attempt async for chunk in stage.rooms.ledger.bought(batch.pk) for attempt in chunk]
    twice = buy(stage, "sentence 1")
    named = buy(stage, "sentence 2", webhook=callback_url("http://127.0.0.1:9", some[2].attempt_id))
    theirs = buy(stage, "sentence 0", webhook="http://127.0.0.1:9/theirs")
    buy(stage, "another")
    report = await whole(stage, batch)
    found = {finding.prediction_id: finding for finding in report.findings.kept}
    assert set(found) >= {twice}, found
    assert {finding.kind for finding in found.values()} == {Kind.UNRECORDED}
    assert (found[twice].row, found[twice].row_id) == (1, "1")
    assert theirs not in found
    assert named in found and "names attempt" in found[named].text and found[named].row == 2
    assert report.there.others == 2


async def test_while_answers_are_out_nothing_is_called_wrong(stage: Stage):
    """What was created since the oldest answer still out may be that attempt's: the sweep decides, not we."""
    batch = await stage.load(2, model=PICTURES)
    stage.provider.put("faults", {"lost_answer": {"next": 2}})
    await submit(stage.rooms, batch.id, 0)
    assert await stage.states(batch) == {"unsure": 2}
    report = await whole(stage, batch)
    assert (report.findings.kept, report.there.undecided) == ([], 2)


async def test_predictions_that_the_provider_does_not_know(stage: Stage):
    """Ours by the ledger, not in the list, and unknown to a GET as well: named, each with its row."""
    batch = await finished(stage, 2)
    api = stage.rooms.predictions
    hidden = (await stage.rooms.ledger.items(batch.pk))[1].prediction_id  # type: ignore[attr-defined]

    async def page(**values: Any) -> Any:
        found = await api.list_page(**values)
        return replace(found, predictions=[p for p in found.predictions if p.id != hidden])

    async def get(prediction_id: str) -> Any:
        if prediction_id == hidden:
            raise NotFound("no such prediction", status=404)
        return await api.get(prediction_id)

    stage.rooms = replace(stage.rooms, predictions=Flaky(api, list_page=page))
    assert (await whole(stage, batch)).findings.kept == []  # lagging lists leave out what a GET shows
    stage.rooms = replace(stage.rooms, predictions=Flaky(api, list_page=page, get=get))
    (finding,) = (await whole(stage, batch)).findings.kept
    assert (finding.kind, finding.row, finding.prediction_id) == (Kind.UNKNOWN_THERE, 1, hidden)


async def test_something_listed_that_cannot_be_read(stage: Stage):
    """It may be one more than the ledger recorded: "all is well" would be said of something that nobody saw."""
    batch = await finished(stage, 2)
    api = stage.rooms.predictions

    async def page(**values: Any) -> Any:
        return replace(await api.list_page(**values), unreadable=("a prediction without a readable id",))

    stage.rooms = replace(stage.rooms, predictions=Flaky(api, list_page=page))
    report = await whole(stage, batch)
    assert (report.findings.kept, report.there.ours) == ([], 2)
    assert report.there.why_not is not None and report.there.why_not.startswith("1 of the predictions listed cannot be read")


async def test_an_end_recorded_otherwise(stage: Stage):
    """A row recorded as failed whose prediction succeeded there: paid for and not at home."""
    batch = await stage.load(2, model=PICTURES)
    await submit(stage.rooms, batch.id, 0)
    first, second = [attempt async for chunk in stage.rooms.ledger.bought(batch.pk) for attempt in chunk]
    assert first.prediction_id is not None
    there = await stage.rooms.predictions.get(first.prediction_id)
    await record(stage.rooms, [Fact(Event.FAILED, stage.rooms.clock.now(), first.attempt_id,
                                    there._replace(status="failed", error="it was said to have failed"))])
    assert await settle(stage, batch) == {"succeeded": 1, "failed": 1}
    await end(stage.rooms, batch.id)
    report = await whole(stage, await again(stage, batch))
    (finding,) = report.findings.kept
    assert (finding.kind, finding.row) == (Kind.ENDED_OTHERWISE, first.row)
    assert finding.text == "is recorded as failed; the provider says succeeded"
    assert second.row != first.row


@pytest.mark.parametrize("away", ["provider", "redis", "account"])
async def test_the_provider_cannot_be_asked(stage: Stage, away: str):
    """It is said why, and what was found at home stands."""
    batch = await finished(stage, 2)
    files(stage)[0].unlink()
    if away == "redis":
        stage.limiter.away = True
    elif away == "account":
        batch = replace(batch, account="somebody")
    else:
        async def gone(**_: Any) -> Any:
            raise ProviderAway("cannot reach the provider")
        stage.rooms = replace(stage.rooms, predictions=Flaky(stage.rooms.predictions, list_page=gone))
    report = await whole(stage, batch)
    assert report.there.why_not
    assert report.findings.counts == {Kind.MISSING: 1}


async def test_reads_stay_within_the_budget(stage: Stage):
    """Every call to the provider has its permit of the account's reads, the budget that the sweep spends from."""
    batch = await finished(stage, 3)
    buy(stage, "sentence 1")
    limiter, calls = Counting(stage.limiter), Counted(stage.rooms.predictions)
    stage.rooms = replace(stage.rooms, limiter=limiter, predictions=calls)  # type: ignore[arg-type]
    await whole(stage, batch)
    assert calls.made == limiter.permits > 2


class Counting:
    """A limiter that counts the permits for reads."""

    def __init__(self, room: Any) -> None:
        self._room = room
        self.permits = 0

    async def reserve(self, budgets: Any, *, count: int) -> Any:
        grant = await self._room.reserve(budgets, count=count)
        assert all(budget.key.startswith("reads:") for budget in budgets)
        self.permits += grant.count
        return grant


class Counted:
    """The provider, and how often it was asked. What would change anything is not there."""

    def __init__(self, room: Any) -> None:
        self._room = room
        self.made = 0
        self.offset_s, self.reads_left = room.offset_s, None  # what it said before: no call

    def __getattr__(self, name: str) -> Any:
        assert name in ("account", "list_page", "get"), f"{name} is no read"
        self.made += 1
        return getattr(self._room, name)


async def test_a_batch_that_is_canceled(stage: Stage):
    """Rows withdrawn, and predictions ended on request, are recorded as the provider tells them."""
    stage.provider.put("faults", {"stuck": 1.0})
    batch = await stage.load(4, model=PICTURES)
    await submit(stage.rooms, batch.id, 0)
    await cancel(stage.rooms, batch)
    await end(stage.rooms, batch.id)
    over = await again(stage, batch)
    assert over.state is BatchState.CANCELED
    report = await whole(stage, over)
    assert (report.findings.kept, report.there.ours) == ([], 4)


async def test_a_list_older_than_the_ledger(stage: Stage):
    """The list still shows as running what a webhook has told to be over: a GET decides, and nothing is called wrong."""
    batch = await finished(stage, 2)
    api = stage.rooms.predictions

    async def stale(**values: Any) -> Any:
        found = await api.list_page(**values)
        return replace(found, predictions=[p._replace(status="processing") for p in found.predictions])

    stage.rooms = replace(stage.rooms, predictions=Flaky(api, list_page=stale))
    report = await whole(stage, batch)
    assert (report.findings.kept, report.there.ours) == ([], 2)


async def test_an_answer_that_is_recorded_meanwhile(stage: Stage):
    """Unowned when its page was read, owned when it is looked at again: not a prediction that was never recorded."""
    batch = await finished(stage, 2)
    ledger, asked = stage.rooms.ledger, 0

    async def owners(**wanted: Any) -> Any:
        nonlocal asked
        asked += 1
        return [] if asked == 1 else await ledger.owners(**wanted)

    stage.rooms = replace(stage.rooms, ledger=Flaky(ledger, owners=owners))
    report = await whole(stage, batch)
    assert (report.findings.kept, report.there.others) == ([], 0)
    assert asked > 1


async def test_a_row_left_behind(stage: Stage):
    """A batch that ended over a row on its way is not well: its picture is paid for, and its hour runs."""
    batch = await finished(stage, 1)
    assert (await verify_home(stage.rooms, batch)).findings.total == 0
    left = await stage.load(2, model=PICTURES)
    await stage.rooms.ledger.set_state(left.pk, to=BatchState.FINISHED, allowed=frozenset(BatchState), reason=None,
                                       now=stage.rooms.clock.now())
    found = (await verify_home(stage.rooms, await again(stage, left))).findings
    assert (found.of(Kind.UNFINISHED), found.kept[0].remedy) == (1, f"orchestrator retry {left.id}")
