"""What was proven never to have been bought, and then turns up all the same: later than anything that the protocol waits for."""

from decimal import Decimal

from tests.e2e.desk import Desk, Provider

JOB = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv, id: name }
input: { prompt: "{{ prompt }}" }
limits: { per_minute: 300 }
price: { per_output_usd: 0.003 }
output: { to: "out" }
"""


ROWS = 150  # half a minute: a purchase that turns up is only believed when no answer can be on its way any more


def test_surplus_is_canceled_told_and_paid_for(desk: Desk, provider: Provider):
    """Two purchases are made six seconds after their POST, when their rows were bought again: the surplus is known as such,
    its money is in the sum, each row has one picture, and nobody finds out by the provider's bill."""
    provider.put("faults", {"late_creation": {"next": 2, "seconds": 6}})
    desk.job(JOB, rows=[{"name": f"n{i:02}", "prompt": f"a teapot of kind {i}"} for i in range(ROWS)])
    done = desk("run", "shots", "--yes", "--json")
    assert done.code == 0, f"{done}\n{desk.log()}"
    assert done.json["items"]["succeeded"] == ROWS
    purchases = provider.purchases()
    assert len(purchases) == ROWS + 2, f"{len(purchases)} purchases\n{desk.log()}"
    assert len({purchase["input"]["prompt"] for purchase in purchases}) == ROWS
    billed = sum((Decimal(purchase["billed_usd"] or 0) for purchase in purchases), Decimal(0))
    assert Decimal(done.json["cost_usd"]) == billed
    assert "2 predictions were bought beyond need" in done.err
    assert len(list((desk.folder / "out" / "files").iterdir())) == ROWS
