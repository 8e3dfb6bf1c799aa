"""How `verify` and `cancel` end, and what they say to a person."""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.apps.cli import costs, look, steer
from orchestrator.apps.cli import verify as command
from orchestrator.apps.cli.ending import Exit
from orchestrator.apps.cli.panel import usd_text
from orchestrator.core.cost import to_usd
from orchestrator.core.errors import BadInput
from orchestrator.core.findings import Finding, Kind
from orchestrator.core.lifecycle import BatchState, Event, ItemState
from orchestrator.core.reckoning import Charges
from orchestrator.core.records import Batch, Counts, OutputName, StoredOutput, Target
from orchestrator.core.verify import Document, Report
from orchestrator.gateways.ledger import CanceledView, Database, SqlLedger
from tests.contract.conftest import NOW, Acts

JOB = '{"model": "acme/draw", "source": {"path": "rows.csv"}}'


@pytest.fixture
async def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Acts]:
    """The ledger of the home that the commands find; there is no token."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    async with Database.open(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        yield Acts(SqlLedger(database))


async def begun(acts: Acts, folder: Path, rows: int) -> Batch:
    """A running batch of a real job."""
    batch = await acts.loaded(rows, output_to=str(folder / "out"))
    await acts.ledger.amend(batch.pk, in_flight=99, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json=JOB)
    return await acts.again(batch)


async def at_home(acts: Acts, folder: Path, rows: int = 1) -> Batch:
    """A running batch whose rows have a file each, and so many bytes as their number."""
    batch = await begun(acts, folder, rows)
    (folder / "out" / "files").mkdir(parents=True)
    for claim in await acts.claim(batch, rows):
        blob = b"x" * (claim.index + 1)
        (folder / "out" / "files" / f"s{claim.index}.png").write_bytes(blob)
        await acts.tell(acts.ended(f"p{claim.index}", attempt_id=claim.attempt_id))
        await acts.ledger.grant_names([OutputName(claim.item_pk, batch.pk, claim.attempt_id, claim.index, 0, f"s{claim.index}")])
        await acts.ledger.store_outputs([StoredOutput(
            claim.item_pk, 0, f"files/s{claim.index}.png", len(blob), hashlib.sha256(blob).hexdigest(), "image/png",
            "https://x/1.png", NOW, claim.attempt_id)])
        await acts.tell(acts.said(Event.COLLECTED, claim.attempt_id))
    return batch


async def test_exit_codes_of_verify(acts: Acts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """0: all is well. 4: nothing is wrong, and the provider could not be asked. 1: something is wrong, asked or not."""
    await at_home(acts, tmp_path)
    assert (await command.verify("b", local=True, fetch=False)).code is Exit.DONE
    without = await command.verify("b", local=False, fetch=False)
    assert (without.code, without.document["verdict"]) == (Exit.UNREACHABLE, "incomplete")
    assert "no API token" in without.document["provider"]["why_not"]
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_simulator")
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", f"unix://{tmp_path}/nobody.sock")
    away = await command.verify("b", local=False, fetch=False)
    assert (away.code, "Redis" in away.document["provider"]["why_not"]) == (Exit.UNREACHABLE, True)
    (tmp_path / "out" / "files" / "s0.png").unlink()
    for local in (True, False):
        assert (await command.verify("b", local=local, fetch=False)).code is Exit.FAILED_ROWS
    with pytest.raises(BadInput, match="no batch or job 'nope'"):
        await command.verify("nope", local=True, fetch=False)


async def test_what_verify_says(acts: Acts, tmp_path: Path):
    """Each wrong file with its row, ten at most and how many more; what to do, once; one line of verdict."""
    await at_home(acts, tmp_path, rows=13)
    for path in (tmp_path / "out" / "files").iterdir():
        path.unlink()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    ending = await command.verify("b", local=True, fetch=False)
    lines = "\n".join(ending.lines)
    assert "files    13 files, 91 bytes: 13 missing" in lines
    assert "- row 3 (sku-3) files/s3.png is missing" in lines
    assert (lines.count("is missing"), "… and 3 more" in lines) == (10, True)
    assert lines.count("only buying this row again") == 1
    assert "that this batch knows nothing of (no harm): notes.txt" in lines
    assert (ending.lines[-1], ending.document["by_kind"]["missing"]) == ("13 things wrong", 13)
    assert ending.document["findings"][12]["row"] == 12
    spent = (await acts.ledger.find("b")).spent_units
    assert f"  charges  13 charges, {usd_text(to_usd(spent))}: each its quantity at its price" in ending.lines
    assert ending.document["charges"]["usd"] == format(to_usd(spent), "f") != "0"


def test_what_verify_says_of_charges():
    """How many agree, how many differ and by how much in all, what is told no longer, and what could be priced now."""
    report = Report(Document("m"), Document("r"))
    report.charges = Charges(reckoned=9, bare=1, units=2 * 10**12, compared=7, agree=5, difference_units=-10**9, untold=2,
                             unknown=1, priceable_units=10**10)
    report.charges.priceable.add(Finding(Kind.CHARGED_OTHERWISE, "could be priced now: …", 3, "sku-3", prediction_id="p3"))
    batch = Batch(1, "b", "shots", "key", "acme", BatchState.FINISHED, None, *[None] * 16)  # type: ignore[arg-type]
    batch = replace(batch, target=Target("models", "acme/draw", None), output_to="/out")
    lines = list(command.lines_of(batch, report, local=False))
    assert lines[5:8] == [
        "  charges  10 charges, $2.00: each its quantity at its price; 1 of an older version, which kept no quantity; 7 compared "
        "with the provider: 5 agree, 2 differ, by -$0.001 in all; 2 whose quantity it no longer tells; 1 of a cost unknown to "
        "both",
        "  unpriced 1 prediction of unknown cost, whose quantity the provider tells now: $0.01 that the ledger does not have "
        "(no harm)",
        "           - row 3 (sku-3) p3 could be priced now: …"]


async def test_a_price_that_came_after_buying(acts: Acts, tmp_path: Path):
    """`verify` and `costs` say what to do, and, once the job has a price, what the rows come to: before anything is run again."""
    acts.policy = replace(acts.policy, price=None)
    batch = await begun(acts, tmp_path, 3)
    await acts.claim(batch, 2)
    await acts.tell(acts.ended("p0", attempt_id="a0", seconds=2.0), acts.ended("p1", attempt_id="a1", seconds=4.0))
    told = await command.verify("b", local=True, fetch=False)
    assert any(line.startswith("  unpriced no price is known: write it under `price:` in the job") for line in told.lines)
    (tmp_path / "jobs").mkdir()
    job = "model: acme/draw\nsource: { path: rows.csv }\nprice: { per_second_usd: 0.002 }\n"
    (tmp_path / "jobs" / "shots.yaml").write_text(job)
    line = ("2 rows could be priced now: $0.012 in all, by the price in the job; the ledger keeps them as unknown, for a charge "
            "is made once, when a prediction ends")
    told = await command.verify("b", local=True, fetch=False)
    assert f"  unpriced {line}" in told.lines
    assert told.document["charges"]["priced_now"] == {"rows": 2, "usd": "0.012", "price": "job"}
    wrong = json.loads((await acts.again(batch)).job_json) | {"price": {"per_second_usd": "900000"}}
    await acts.ledger.amend(batch.pk, in_flight=9, max_attempts=3, cap_units=None, price_json="null", start_limit=None,
                            job_json=json.dumps(wrong))
    shown = await costs.costs("b", by="batch", to=None)  # the job file counts, not what the batch was begun with
    assert shown.lines[-1] == line and shown.document["priced_now"]["usd"] == "0.012"
    assert (await acts.again(batch)).spent_units == 0


async def test_a_folder_that_was_moved(acts: Acts, tmp_path: Path):
    """It is said as what it is, not only as so many lost files."""
    await at_home(acts, tmp_path)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert "is not here: was it moved?" in "\n".join((await command.verify("b", local=True, fetch=False)).lines)


def told(found: CanceledView, by_state: dict[ItemState, int], *, unknown: int = 0, trouble: str | None = None,
         go_on: str | None = None) -> str:
    """What `cancel` says of these numbers."""
    counts = Counts(by_state, Decimal("0.25"), Decimal(0), unknown)
    batch = Batch(1, "b", "shots", "key", "acme", *[None] * 18)  # type: ignore[arg-type]
    document = steer.canceled_document(batch, found, counts)
    return "\n".join(steer.canceled_lines(batch, document, trouble=trouble, go_on=go_on))


def test_what_cancel_says():
    """What was never bought, what was ended and its cost until then, what is still out, and what all of it came to."""
    said = told(CanceledView(48, 2, 12, Decimal("0.0123"), 3),
                {ItemState.CANCELED: 62, ItemState.RUNNING: 1, ItemState.UNSURE: 1, ItemState.COLLECTING: 4},
                unknown=3, go_on="GO")
    assert said.splitlines() == [
        "b is canceled: nothing more is bought",
        "  never bought  48 rows, and 2 rows between two attempts",
        "  ended         12 predictions at the provider, billed until then: $0.0123, and 3 of unknown cost",
        "  still out     2 rows, ended as soon as their answers are there",
        "  to fetch      4 rows had succeeded before; what they gave is brought home",
        "  spent         $0.25 in all and 3 rows of unknown cost",
        "  nobody is at work for it; to see to the rest: GO"]


def test_what_cancel_leaves_out():
    """Nothing was out: no word of it. No price: an unknown cost, never a zero. The provider away: what is not ended."""
    assert told(CanceledView(5, 0, 0, Decimal(0), 0), {ItemState.CANCELED: 5}, go_on="GO").splitlines()[1:] == [
        "  never bought  5 rows", "  spent         $0.25 in all"]
    assert "billed until then: cost unknown" in told(CanceledView(0, 0, 2, Decimal(0), 2), {})
    assert "1 row, not ended yet: cannot reach" in told(CanceledView(0, 0, 0, Decimal(0), 0), {ItemState.RUNNING: 1},
                                                        trouble="cannot reach it")


async def test_expired_rows_in_status(acts: Acts, tmp_path: Path):
    """Told apart from other failures, with the command that buys them again; nowhere else a word of it."""
    batch = await begun(acts, tmp_path, 3)
    await acts.claim(batch, 3)
    assert not [line for line in (await look.status("b")).lines if line.startswith("  expired")]
    await acts.tell(acts.ended("p0", attempt_id="a0"), acts.said(Event.REFUSED, "a1", error="no", error_class="refused"))
    await acts.tell(acts.said(Event.UNCOLLECTABLE, "a0", error="404", error_class="expired"))
    assert "2 failed (1 expired)" in (await look.status(None)).lines[0]
    (line,) = [line for line in (await look.status("b")).lines if line.startswith("  expired")]
    assert "1 row was paid for" in line and line.endswith("orchestrator retry b --class expired")
