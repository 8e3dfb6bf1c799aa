"""What people are told of rows that share: which row they share, how many there are, and whose the files are."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.apps.cli import look
from orchestrator.apps.cli import verify as command
from orchestrator.gateways.ledger import Database, SqlLedger
from tests.apps.test_verify import JOB
from tests.contract.conftest import NOW, Acts
from tests.contract.test_ledger_sharing import chunk, succeed


@pytest.fixture
async def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Acts]:
    """The ledger of the home that the commands find."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    async with Database.open(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        yield Acts(SqlLedger(database))


async def test_whose_row_it_is(acts: Acts, tmp_path: Path):
    """Two rows of one input, and in a later batch one that shares with them beside two of its own."""
    first, _ = await acts.ledger.open_batch(acts.new("first", job_json=JOB))
    await acts.ledger.add_chunk(first.pk, chunk("aa"))
    await acts.ledger.seal(first.pk, total=2, source_schema_json="{}", now=NOW)
    (claim,) = await acts.claim(first, 2)
    await succeed(acts, "a0", item_pk=claim.item_pk, batch=first, row=0)
    later, _ = await acts.ledger.open_batch(acts.new("later", job_json=JOB, output_to=str(tmp_path / "later")))
    rows = chunk("abb")
    await acts.ledger.add_chunk(later.pk, replace(rows, items=[replace(rows.items[0], twin_of=claim.item_pk), *rows.items[1:]]))
    await acts.ledger.seal(later.pk, total=3, source_schema_json="{}", now=NOW)
    status = await look.status("later")
    assert [line for line in status.lines if "shared" in line] == [
        "  shared   1 row shares what an equal row buys (duplicates: once)",
        "  shared   1 row shares what earlier batches bought (duplicates: once)"]
    assert (status.document["shared_items"], status.document["by_state"]) == (2, {"succeeded": 1, "pending": 2})
    told = await look.items("later", state=None, limit=9)
    assert [line.split("  as ")[1:] for line in told.lines] == [["row 0 of first"], [], ["row 1"]]
    assert [row["shares_batch"] for row in told.document["items"]] == ["first", None, None]
    cut = await look.items("later", state=None, limit=2)
    assert (len(cut.document["items"]), cut.document["has_more"], told.document["has_more"]) == (2, True, False)
    assert cut.lines[-1] == "and more: --limit 20 shows them"
    verified = await command.verify("later", local=True, fetch=False)
    assert verified.document["shared_with"] == {"first": 1}
    assert "  shared   1 row from first, which bought them: orchestrator verify first looks at them" in verified.lines
    assert "shared_items" in (await look.status("first")).document
