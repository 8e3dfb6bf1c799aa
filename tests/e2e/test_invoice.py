"""An invoice laid beside the ledger, and a model without a price, as a user types it."""

import csv
from typing import Any

import httpx

from tests.e2e.desk import Desk, Provider, wait_until

TIMED = """\
model: stability-ai/sdxl
source: { path: rows.csv }
input: { prompt: "{{ text }}" }
price: { hardware: gpu-l40s }
output: { to: "out/{{ batch }}" }
"""


def write(desk: Desk, name: str, lines: list[dict[str, Any]]) -> None:
    with (desk.folder / name).open("w", newline="") as file:
        table = csv.DictWriter(file, list(lines[0]))
        table.writeheader()
        table.writerows(lines)


def test_an_invoice_beside_the_ledger(desk: Desk, provider: Provider):
    """With failures and cancellations: all agrees, and a colleague's model is no error. A line changed, one left
    out and one too many: each is named, exit 1."""
    desk.job(TIMED, rows=[{"text": f"sentence {n}"} for n in range(10)])
    provider.put("faults", {"stuck": {"next": 2}, "fail": {"next": 2, "text": "NSFW content detected"}})
    run = desk.start("run", "shots", "--yes")
    wait_until(lambda: sum(p["status"] in ("succeeded", "failed") for p in provider.purchases()) == 8)
    canceled = desk("cancel", "shots")
    assert canceled.code == 0, str(canceled)
    run.communicate(timeout=60)
    httpx.post(f"{provider.url}/v1/models/black-forest-labs/flux-schnell/predictions", json={"input": {"prompt": "theirs"}},
               headers={"Authorization": "Bearer r8_simulator"}).raise_for_status()
    wait_until(lambda: all(p["billed_usd"] is not None for p in provider.purchases()))

    lines = list(csv.DictReader(httpx.get(f"{provider.url}/_admin/invoice").text.splitlines()))
    write(desk, "invoice.csv", lines)
    well = desk("costs", "--invoice", "invoice.csv")
    assert well.code == 0, str(well)
    assert "columns  prediction = prediction_id, model = model, amount = amount_usd, day = date" in well.out
    last = "all that was bought here agrees with the invoice; 1 model on it was not bought here"
    assert well.out.splitlines()[-1] == last and "1 prediction that the ledger does not know" in well.out

    dearer, dropped, doubled = [line for line in lines if line["model"] == "stability-ai/sdxl"][:3]
    changed = [line | {"amount_usd": "0.5"} if line is dearer else line for line in lines if line is not dropped]
    write(desk, "changed.csv", [*changed, doubled | {"prediction_id": "nobody"}])
    wrong = desk("costs", "--invoice", "changed.csv")
    assert wrong.code == 1 and wrong.out.splitlines()[-1].startswith("the invoice and the ledger differ"), str(wrong)
    for prediction_id, words in ((dearer["prediction_id"], "invoice $0.50, ledger $"), (dropped["prediction_id"], ": ledger $"),
                                 ("nobody", f"stability-ai/sdxl, line {len(lines) + 1}: invoice $")):
        assert any(prediction_id in line and words in line for line in wrong.out.splitlines()), str(wrong)


def ways_of(refusal: str) -> list[list[str]]:
    """The lines to add that a refusal names, one list for each way."""
    ways: list[list[str]] = [[]]
    for line in refusal.partition("Add to the job")[2].splitlines()[1:]:
        if line.startswith(("budget:", "price:", "limits:")):
            ways[-1].append(line)
        elif line.startswith("or"):
            ways.append([])
    return ways


def test_a_model_without_a_price(desk: Desk, provider: Provider):
    """It runs with a warning, its cost an honest unknown. Under a cap it is refused and nothing is bought; the lines that the
    refusal names are enough, each way of them: pasted into the job, they let it run."""
    unpriced = TIMED.replace("price: { hardware: gpu-l40s }\n", "")
    desk.job(unpriced, rows=[{"text": "a dog"}])
    warned = desk("run", "shots", "--yes", "--json")
    assert warned.code == 0 and "no price is known for stability-ai/sdxl: the cost of this batch will be unknown" in warned.err
    assert (warned.json["cost_usd"], warned.json["cost_unknown_items"]) == ("0", 1), str(warned)
    assert [row["prediction_cost_usd"] for row in desk.results()] == [None]

    capped = "budget: { usd: 1.50 }\n"
    desk.job(unpriced + capped, name="capped")
    refused = desk("run", "capped")
    assert refused.code == 2 and "so a cap cannot be kept: no price is known" in refused.err, str(refused)
    assert len(provider.purchases()) == 1
    ways = ways_of(refused.err)
    assert len(ways) == 2 and all(ways), refused.err
    for n, lines in enumerate(ways):
        kept = "" if any(line.startswith("budget:") for line in lines) else capped
        desk.job(unpriced + kept + "".join(f"{line}\n" for line in lines), name=f"way{n}")
        done = desk("run", f"way{n}", "--json")
        assert done.code == 0 and done.json["items"]["succeeded"] == 1, f"{lines}\n{done}"
    assert len(provider.purchases()) == 3
