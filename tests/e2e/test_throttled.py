"""A whole run on an account whose reads somebody else uses up: real workers, a real Redis."""

import httpx

from tests.e2e.desk import Desk, Provider, wait_until

ECHO = """\
model: simulator/echo
source: { path: rows.csv }
input: { text: "{{ text }}" }
output: { to: "out/{{ batch }}" }
"""
THEIRS = 60  # reads per minute


def test_reads_that_somebody_else_uses_up(desk: Desk, provider: Provider):
    """A run asks ten times a second, and may ask once: it comes home all the same, and is hardly ever refused."""
    desk.job(ECHO, rows=[{"text": f"sentence {n}"} for n in range(60)])
    run = desk.start("run", "shots", "--yes", "--json", ORCHESTRATOR_TEMPO__READS_PER_MINUTE="600",
                     ORCHESTRATOR_TEMPO__SWEEP_MIN_S="0.05", ORCHESTRATOR_TEMPO__CREATES_PER_MINUTE="600")
    wait_until(lambda: len(provider.purchases()) > 5)
    provider.put("limits", {"reads_per_minute": THEIRS})
    with httpx.Client(base_url=provider.url, headers={"authorization": "Bearer r8_simulator"}, verify=False) as somebody:
        for _ in range(THEIRS):
            somebody.get("/v1/account")
    _, err = run.communicate(timeout=120)
    assert run.returncode == 0, f"{err}\n{desk.log()}"
    assert len(provider.purchases()) == 60
    told = provider.admin("calls")["routes"]["list predictions"]
    assert told.get("429", 0) <= 5, told
