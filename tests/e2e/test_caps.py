"""Caps on money as a user meets them: exit 3, what is spent of how much, and what to type."""

from tests.e2e.desk import Desk, Provider

JOB = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv }
input: { prompt: "{{ text }}", num_outputs: 1 }
output: { to: "out/{{ batch }}" }
"""
TEXTS = [{"text": f"sentence {n}"} for n in range(12)]


def test_a_row_that_costs_more_and_a_day(desk: Desk, provider: Provider):
    """What is known to be dearer than what is set aside for it is never bought; what turns out to be stops the batch; and one
    that is well goes on until a day's cap stops it."""
    desk.env["ORCHESTRATOR_ASK_ABOVE_USD"] = "0.005"
    budget = "budget: { job_usd: 99, per_row_usd: 0.001 }\nlimits: { in_flight: 2 }\n"
    desk.job(JOB + budget, rows=TEXTS)
    for command in ("plan", "run"):
        refused = desk(command, "shots")
        assert (refused.code, provider.purchases()) == (2, []), refused
        for words in ("per_row_usd sets $0.001 aside for a row", "costs at least $0.003 by its price", "per_row_usd: 0.003 }"):
            assert words in refused.err, refused

    desk.job(JOB + budget + "price: { per_second_usd: 1 }\n", name="dear")
    dear = desk("run", "dear")
    assert dear.code == 3, f"{dear}\n{desk.log()}"
    assert ("and only $0.001 were reserved for it, so the cap may not hold; raise budget.per_row_usd, correct the price or look "
            "at the model, and run it again\n") in dear.out
    assert "WARNING" in desk.log() and "buys nothing more: budget: row " in desk.log()
    bought = len(provider.purchases())
    assert 0 < bought < 12

    desk.job(JOB + "budget: { job_usd: 1.00, job_per_day_usd: 0.03 }\n")
    day = desk("run", "shots", "--json")
    assert (day.code, day.json["cost_usd"], len(provider.purchases()) - bought) == (3, "0.03", 10), f"{day}\n{desk.log()}"
    assert "stopped: budget: $0.03 of $0.03 are spent by this job on 20" in day.err
    assert "it goes on after 00:00 UTC: run it again then, or raise budget.job_per_day_usd in the job first\n" in day.err


def test_a_days_cap_is_no_consent(desk: Desk, provider: Provider):
    """Nor is the account's: neither says that all these rows may be bought. A cap on all that the job may cost does (above)."""
    desk.job(JOB + "budget: { job_per_day_usd: 1.00 }\n", rows=TEXTS)
    done = desk("run", "shots", ORCHESTRATOR_ASK_ABOVE_USD="0.005", ORCHESTRATOR_BUDGET__ACCOUNT_USD="9")
    assert done.code == 2 and "--yes" in done.err, done
    assert provider.purchases() == []
