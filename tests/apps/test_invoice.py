"""How `costs --invoice` reads, ends, and what it says to a person."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from orchestrator.apps.cli.costs import costs
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.invoice import InvoiceOptions, invoice
from orchestrator.core.errors import BadInput
from orchestrator.core.records import Target
from orchestrator.gateways.ledger import Database, SqlLedger
from tests.contract.conftest import NOW, Acts


@pytest.fixture
async def acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Acts]:
    """A ledger with three rows at $1, $2 and $3 of acme/draw, the last one a day later, and one of unknown cost of acme/film."""
    monkeypatch.setenv("ORCHESTRATOR_HOME", str(tmp_path))
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    async with Database.open(f"sqlite:///{tmp_path / 'ledger.db'}") as database:
        acts = Acts(SqlLedger(database))
        await acts.claim(await acts.loaded(3), 3)
        for row, (seconds, days) in enumerate(((2.0, 0), (4.0, 0), (6.0, 1))):
            fact = acts.ended(f"p{row}", attempt_id=f"a{row}", seconds=seconds)
            assert fact.prediction is not None
            ended = fact.prediction._replace(completed_at=NOW + timedelta(days=days))
            await acts.tell(fact._replace(prediction=ended))
        await acts.claim(await acts.loaded(1, "films", target=Target("models", "acme/film", None)), 1, prefix="f")
        unpriced = acts.ended("q0", attempt_id="f0")
        assert unpriced.prediction is not None
        await acts.tell(unpriced._replace(prediction=unpriced.prediction._replace(metrics={})))
        yield acts


async def laid(text: str, *columns: str, name: str = "invoice.csv", **values: Any) -> Ending:
    """The ending with an invoice of this text."""
    Path(name).write_text(text, encoding="utf-8")
    return await invoice(InvoiceOptions(name, columns, **values))


@pytest.mark.usefixtures("acts")
async def test_sums_by_model():
    """However the lines are spelled; what was taken as what is said, and what is left out as well."""
    ending = await laid('Description;Usage,Amount,Note\n"acme/draw, Nvidia L40S","$6.00",x\nacme/other,5.00 USD,\nHeading,,\n',
                        "model=Description;Usage")
    assert ending.code is Exit.DONE
    assert ending.lines == (
        "invoice.csv: 2 lines, $11.00",
        "columns  model = Description;Usage, amount = Amount; not used: Note",
        "ledger   all days (UTC), account acme",
        "         the invoice has no days; --from and --until say which of the ledger's it is of",
        "         1 line without an amount left out",
        "         'acme/draw, Nvidia L40S' is taken as acme/draw",
        "",
        "model       invoice   ledger  difference  unknown",
        "acme/draw     $6.00    $6.00           –        –  agrees",
        "acme/film         –  unknown           –    1 row  not known here",
        "acme/other    $5.00        –      +$5.00        –  not bought here",
        "together     $11.00    $6.00      +$5.00    1 row",
        "",
        "what 1 row costs is not known here, and the invoice has nothing for it; the rest of what was bought here agrees; 1 "
        "model on it was not bought here")


@pytest.mark.parametrize("text", ["model,amount\nacme/draw,6\nacme/film,138.799713\n",
                                  "prediction id,amount\np0,1\np1,2\np2,3\nq0,138.799713\n"])
@pytest.mark.usefixtures("acts")
async def test_rows_of_unknown_cost_are_never_confirmed(text: str):
    """By sums or by single lines: how much of the bill nobody here can confirm is the last word, and no difference."""
    ending = await laid(text)
    assert (ending.code, ending.document["verdict"]) == (Exit.DONE, "not known here")
    assert (ending.document["unconfirmed_usd"], ending.document["unconfirmed_rows"]) == ("138.799713", 1)
    assert ["acme/film", "$138.799713", "unknown", "+$138.799713", "1", "row", "not", "known", "here"] in [
        line.split() for line in ending.lines]
    assert ending.lines[-1] == ("$138.799713 of the invoice cannot be confirmed: what 1 row costs is not known here; the rest of "
                                "what was bought here agrees")
    dearer = await laid(text.replace(",6", ",7").replace("p2,3", "p2,4"))
    assert (dearer.code, dearer.document["verdict"]) == (Exit.FAILED_ROWS, "differs")
    assert dearer.lines[-1].startswith("the invoice and the ledger differ; $138.799713 of the invoice cannot be confirmed: ")


@pytest.mark.usefixtures("acts")
async def test_days():
    """Those of the invoice, or those asked for; of a model that differs, the days on which it does."""
    text = "Date,Model,Amount\n2026-01-05,acme/draw,3.50\n2026-01-06,acme/draw,2.00\n2026-01-07,acme/draw,9.00\n"
    ending = await laid(text, last="2026-01-06")
    assert (ending.code, ending.document["from"], ending.document["until"]) == (Exit.FAILED_ROWS, "2026-01-05", "2026-01-06")
    assert [line.split() for line in ending.lines[6:9]] == [
        ["acme/draw", "$5.50", "$6.00", "-$0.50", "–", "differs"],
        ["2026-01-05", "$3.50", "$3.00", "+$0.50", "–"], ["2026-01-06", "$2.00", "$3.00", "-$1.00", "–"]]
    assert "         1 line of other days left out" in ending.lines
    first = await laid(text.replace("3.50", "3.00"), first="2026-01-05", last="2026-01-05")
    assert (first.code, first.document["models"][0]["ledger_usd"]) == (Exit.DONE, "3")
    nothing = await laid(text, first="2026-01-07")
    assert nothing.lines[-1] == "nothing was bought here on these days: there is nothing to compare"
    assert nothing.document["compared"] is False


@pytest.mark.usefixtures("acts")
async def test_predictions():
    """Several lines of one are added up; a cost that only the invoice knows is told, and no difference; the table as a file."""
    text = "prediction id,usd\np0,0.25\np1,2\np0,0.75\np2,3\nq0,0.125\n"
    ending = await laid(text)
    assert ending.code is Exit.DONE, ending.lines
    assert "1 prediction of a cost that the ledger does not know, and the invoice has" in ending.lines
    assert "  - q0 acme/film, row 0 (sku-0) of films: invoice $0.125" in ending.lines
    assert ending.document["predictions"]["by_kind"] == {"differs": 0, "not_on_invoice": 0, "unknown_here": 1,
                                                         "not_bought_here": 0}
    wrong = await laid(text.replace("p1,2", "p9,2"), to="beside.parquet")
    assert wrong.code is Exit.FAILED_ROWS
    assert [(word["kind"], word["prediction_id"], word["line"]) for word in wrong.document["predictions"]["list"]] == [
        ("not_bought_here", "p9", 3), ("not_on_invoice", "p1", None), ("unknown_here", "q0", None)]
    (draw, *_) = [row for row in pq.read_table("beside.parquet").to_pylist() if row["model"] == "acme/draw"]
    assert (draw["invoice_usd"], draw["ledger_usd"], draw["verdict"]) == (Decimal(4), Decimal(6), "differs")


@pytest.mark.parametrize(("values", "text"), [
    ({"columns": ("amount=Total",)}, r"invoice .*invoice.csv: --columns amount=Total: there is no such column"),
    ({"first": "05.01.2026"}, "--from 05.01.2026: write a day like 2026-01-31"),
    ({"first": "2026-02-01", "last": "2026-01-01"}, "the first day comes first"),
    ({"account": "acm"}, r"--account acm: nothing here was bought by it \(did you mean 'acme'\?\)"),
    ({"to": "x.xlsx"}, r"--to x.xlsx: end the name in .parquet or .csv"),
    ({"is_whole": False}, "leave out BATCH and --by"),
    ({"path": "none.csv"}, r"invoice .*none.csv: cannot be opened"),
    ({"path": "invoice.pdf"}, r"invoice .*invoice.pdf: the format .pdf is not supported"),
])
@pytest.mark.usefixtures("acts")
async def test_what_is_refused(values: dict[str, Any], text: str):
    """Each with what is wrong and what to type."""
    Path("invoice.csv").write_text("model,amount\nacme/draw,1\n")
    with pytest.raises(BadInput, match=text):
        await invoice(InvoiceOptions(**{"path": "invoice.csv"} | values))


async def test_lines_that_cannot_be_read(acts: Acts):
    """The line is named; and with several accounts in the ledger the invoice's has to be."""
    for text, line in (("model,amount\na/b,1\na/b,\"1,5\"\n", r"invoice .*: line 3: '1,5' is no amount"),
                       ("model,amount\na/b,1,2\n", "line 2: expected 2 cells, found 3"), ("", "the file is empty")):
        with pytest.raises(BadInput, match=line):
            await laid(text)
    with pytest.raises(BadInput, match="are for --invoice FILE"):
        await costs(None, by="batch", to=None, of_invoice=True)
    await acts.loaded(1, "theirs", account="other")
    with pytest.raises(BadInput, match=r"several accounts; say whose invoice it is: --account acme \(there are acme, other\)"):
        await laid("model,amount\na/b,1\n")
    assert (await laid("model,amount\na/b,1\n", account="other")).code is Exit.DONE
