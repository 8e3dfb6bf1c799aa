"""`duplicates: once`, as it is typed: refused without a word about seeds, then bought once, told for all, and verified."""

from tests.e2e.desk import Desk, Provider

JOB = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv, id: sku }
input: { prompt: "{{ title }}", seed: "{{ seed }}" }
output: { to: "out/{{ batch }}" }
"""


def test_equal_rows_are_bought_once(desk: Desk, provider: Provider):
    """plan and run refuse alike; with the words that they name, what is asked for consent and bought is one of each, every row
    has its result, and nothing is missing or strange."""
    rows = [{"sku": f"s{n}", "title": f"a dog of kind {n % 4}", "seed": "" if n % 4 else 7} for n in range(10)]
    desk.job(JOB + "duplicates: once\n", rows=rows)
    for command in (("plan", "shots"), ("run", "shots", "--yes")):
        refused = desk(*command)
        assert refused.code == 2, str(refused)
        assert "jobs/shots.yaml:5: 4 rows have the same input as an earlier row and no `seed`" in refused.err
        assert "the first is row 5 (line 7), which equals row 1" in refused.err
    (words,) = [line for line in refused.err.splitlines() if line.startswith("  duplicates:")]
    assert provider.purchases() == []
    desk.job(JOB + words.strip() + "\n")
    asked = desk("run", "shots", ORCHESTRATOR_ASK_ABOVE_USD="0.005")
    assert asked.code == 2 and "4 rows of black-forest-labs/flux-schnell may cost up to" in asked.err, str(asked)
    done = desk("run", "shots", "--yes", "--json")
    assert (done.code, done.json["items"]["succeeded"], done.json["shared_items"]) == (0, 10, 6), f"{done}\n{desk.log()}"
    assert "6 rows share what an equal row buys (duplicates: once)" in done.err
    assert len(provider.purchases()) == 4
    results = desk.results()
    assert {row["prediction_status"] for row in results} == {"succeeded"}
    assert [row["prediction_files"] for row in results] == [[f"files/s{n % 4}-0.webp"] for n in range(10)]
    assert [row["prediction_attempts"] for row in results] == [1] * 4 + [0] * 6
    well = desk("verify", done.json["batch"])
    assert (well.code, well.out.splitlines()[-1]) == (0, "all is well"), str(well)
