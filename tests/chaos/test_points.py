"""kill -9 at every step boundary: named points, real processes, then what a person would type, judged by what was bought.

Ten here; all of them with CHAOS=long (some minutes)."""

import ast
import inspect
import os
import socket
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.core import ports
from orchestrator.gateways.ledger import SqlLedger
from orchestrator.simulator.serve import SimulatorConfig, running
from tests.chaos.crashing.dying import CLASSES, LABELS, POINT, resolve
from tests.chaos.points import EVERY, FEW, NO_POINT, Case, chosen
from tests.chaos.points_plays import PLAYS, WITH_WEBHOOKS, Stage
from tests.e2e.desk import QUICK, Desk, Provider, interrupt, wait_until

ROOT = Path(__file__).resolve().parents[2]
PORTS = {"ledger": ports.Ledger, "predictions": ports.Predictions, "limiter": ports.Limiter, "queue": ports.Queue,
         "outputs": ports.Outputs, "storage": ports.Storage, "tables": ports.Tables, "results": ports.ResultsTable}
QUICKER = QUICK | {"REQUEST_TIMEOUT_S": "2", "LEASE_MARGIN_S": "1", "HOLD_S": "4", "SLICE_S": "3", "SWEEP_MIN_S": "0.3",
                   "COLLECT_LEASE_S": "6"}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A user's folder, and a stand-in for Replicate with quick predictions, small pictures and no limit of its own."""
    config = SimulatorConfig(port=0, latency_s=0.3, creates_per_minute=0, reads_per_minute=0, polls_per_minute=0, seed=7,
                             file_bytes=3000, webhook_retry_scale=0.02)
    with running(config) as url:
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ} | {
            "PYTHONPATH": str(ROOT), "REPLICATE_API_TOKEN": "r8_simulator", "REPLICATE_BASE_URL": url,
            "ORCHESTRATOR_OUTPUT_HOSTS": url.removeprefix("http://"), "ORCHESTRATOR_WEB_BIND": f"127.0.0.1:{_free_port()}"}
        env |= {f"ORCHESTRATOR_TEMPO__{name}": value for name, value in QUICKER.items()}
        with Desk(tmp_path, Provider(url), env) as one:
            yield one


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("case", chosen(), ids=str)
def test_killed_at(case: Case, desk: Desk, tmp_path: Path):
    """Nothing is bought twice, no row and no file is lost, nothing half-made stays, and the same command ends it."""
    if case.play in WITH_WEBHOOKS:
        desk.env["ORCHESTRATOR_PUBLIC_URL"] = f"http://{desk.env['ORCHESTRATOR_WEB_BIND']}"
    stage = Stage(desk, case, tmp_path / "marks")
    PLAYS[case.play](stage)
    stage.all_died()


@pytest.mark.skipif(os.environ.get("CHAOS") != "long", reason="minutes long: CHAOS=long")
@pytest.mark.timeout(1800)
def test_a_large_batch_goes_on_within_seconds(desk: Desk, capsys: pytest.CaptureFixture[str]):
    """kill -9 at a third of 100,000 rows: from typing the command again to the first new purchase it takes less than 5 s.

    On a busy machine the CPU time that is told beside it says more; CHAOS_BOUGHT lets it be killed sooner."""
    rows = int(os.environ.get("CHAOS_ROWS", "100000"))
    third = int(os.environ.get("CHAOS_BOUGHT", rows // 3))
    desk.job("model: simulator/echo\nsource: { path: rows.csv }\n", rows=[{"text": f"sentence {n}"} for n in range(rows)])
    process = desk.start("run", "shots", "--yes")
    wait_until(lambda: _creates(desk) > third, timeout_s=1500)
    process.kill()
    process.communicate()
    wait_until(lambda: not desk.processes(), timeout_s=30)
    before, began_s = _creates(desk), time.monotonic()
    again = desk.start("run", "shots", "--yes")
    wait_until(lambda: _creates(desk) > before)
    took_s, cpu_s = time.monotonic() - began_s, _cpu_s(desk.folder)
    interrupt(again)
    with capsys.disabled():
        sys.stderr.write(f"\n{before:,} of {rows:,} bought; the first new submission came {took_s:.1f} s after the command; "
                         f"its processes had used {cpu_s:.1f} s of CPU by then (load {os.getloadavg()[0]:.1f})\n")
    assert took_s < 5


def _cpu_s(folder: Path) -> float:
    """What the living processes that were started in a folder have used."""
    ticks = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink() == folder:
                ticks += sum(int(field) for field in (entry / "stat").read_text("utf-8").rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def _creates(desk: Desk) -> int:
    return int(desk.provider.admin("calls")["creates_received"])


# The house rules of the list


def test_every_method_of_a_port_has_a_point_or_a_reason():
    """A new method of a port is either an effect, and somebody dies there, or it says why there is nothing to lose."""
    methods = {f"{port}.{name}" for port, protocol in PORTS.items() for name in vars(protocol) if not name.startswith("_")}
    dying = {name for case in EVERY for name in case.names}
    assert methods - dying - set(NO_POINT) == set()
    assert set(NO_POINT) - methods == set(), "reasons for what is not there any more"
    assert set(NO_POINT) & dying == set(), "a reason to have no point, and a point"
    protocols = {name for name, found in vars(ports).items() if getattr(found, "_is_protocol", False) and name != "Protocol"}
    assert {port.__name__ for port in PORTS.values()} | {"Clock"} == protocols, "a port that this test does not know"


def test_every_point_names_something():
    """A misspelt point would wait for ever, or fail far from here."""
    for case in EVERY:
        assert case.play in PLAYS
        for death in case.deaths:
            found = POINT.fullmatch(death)
            assert found is not None, death
            assert found["label"] is None or found["name"] in LABELS, death
            if found["name"].partition(".")[0] in CLASSES:
                resolve(found["name"])
    assert len({str(case) for case in EVERY}) == len(EVERY)
    assert {str(case) for case in EVERY} >= FEW


def test_verbs_of_several_transactions_have_points_between_them():
    """A method of the ledger that commits more than once has a boundary inside, which before and after do not reach."""
    dying = {name for case in EVERY for name in case.names}
    for name, method in inspect.getmembers(SqlLedger, inspect.isfunction):
        steps = _steps(method)
        if len(steps) > 1 or (steps and _repeats(method)):
            assert dying & {f"sql.{step}" for step in steps}, f"{name} commits {steps}"


def _calls(method: object) -> list[ast.Call]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(method)))  # type: ignore[arg-type]
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _steps(method: object) -> list[str]:
    """The names of the steps that a method writes."""
    return [ast.unparse(call.args[0]).rpartition(".")[2] for call in _calls(method) if ast.unparse(call.func) == "self._db.write"]


def _repeats(method: object) -> bool:
    return "_in_steps" in {ast.unparse(call.func) for call in _calls(method)} or "while" in inspect.getsource(method)  # type: ignore[arg-type]
