"""`verify` as a user types it, and a batch whose outputs had expired."""

from pathlib import Path

from tests.e2e.desk import Desk, Provider, wait_until

PICTURES = """\
model: black-forest-labs/flux-schnell
source: { path: rows.csv, id: name }
input: { prompt: "{{ text }}" }
output: { to: "out/{{ batch }}" }
"""


def test_a_file_that_is_lost_and_fetched_again(desk: Desk, provider: Provider):
    """All is well after a run; a lost file is exit 1 with its row and a command, which brings it back and buys nothing."""
    desk.job(PICTURES, rows=[{"name": f"n{i}", "text": f"a dog number {i}"} for i in range(5)])
    batch = desk("run", "shots", "--yes", "--json").json["batch"]
    well = desk("verify", batch)
    assert (well.code, well.out.splitlines()[-1]) == (0, "all is well"), str(well)
    assert "provider 5 predictions of this batch listed: each as in the ledger" in well.out
    lost = Path(desk.folder / "out" / batch / "files" / "n3-0.webp")
    was = lost.read_bytes()
    lost.unlink()
    wrong = desk("verify", batch)
    assert wrong.code == 1 and "row 3 (n3) files/n3-0.webp is missing" in wrong.out, str(wrong)
    assert f"orchestrator verify {batch} --fetch" in wrong.out
    mended = desk("verify", batch, "--fetch", "--json")
    assert (mended.code, mended.json["files"]["fetched_again"], mended.json["verdict"]) == (0, 1, "well"), str(mended)
    assert lost.read_bytes() == was
    assert len(provider.purchases()) == 5
    away = desk("verify", batch, REPLICATE_BASE_URL="http://127.0.0.1:1")
    assert away.code == 4 and "not asked: cannot reach" in away.out, str(away)
    assert desk("verify", batch, "--local", REPLICATE_BASE_URL="http://127.0.0.1:1").code == 0


def test_expired_rows_are_an_alarm(desk: Desk, provider: Provider):
    """Killed in the middle and gone for longer than outputs are kept: the next run says on stderr what was paid in vain; a run
    whose job says so buys it again."""
    env = {"ORCHESTRATOR_TEMPO__RETENTION_S": "3"}
    desk.job(PICTURES, rows=[{"name": f"n{i}", "text": f"a dog number {i}"} for i in range(4)])
    provider.put("faults", {"output_slow": {"p": 1.0, "seconds": 30}})
    run = desk.start("run", "shots", "--yes", **env)
    wait_until(lambda: len(provider.purchases()) == 4)
    batch = desk("status", "--json").json["batches"][0]["batch"]
    wait_until(lambda: desk("status", batch, "--json").json["by_state"].get("collecting", 0) == 4)
    run.kill()
    run.communicate()
    provider.put("faults", {"output_slow": None, "output_404": 1.0})
    told = desk("run", "shots", "--yes", **env)
    assert told.code == 1 and "warning: 4 rows were paid for" in told.err, f"{told}\n{desk.log()}"
    assert "4 × expired" in told.out
    assert "4 rows were paid for" in desk.log()
    assert len(provider.purchases()) == 4
    provider.put("faults", {"output_404": None})
    assert desk("retry", batch, "--class", "expired", "--json", **env).json["to_buy"] == 4
    done = desk("run", "shots", "--yes", "--json", **env)
    assert (done.code, done.json["items"]["succeeded"]) == (0, 4), f"{done}\n{desk.log()}"
    assert len(provider.purchases()) == 8
