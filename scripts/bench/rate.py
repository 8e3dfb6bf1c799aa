"""Measure the rate at which rows are bought, as the stand-in's ledger saw it; the limits are the stand-in's own.

    python scripts/bench/rate.py [--quick] [full] [shared] [low] [halved] [small] [many] [fast]

Workers, a scheduler and commands are processes on one PostgreSQL and one Redis, as docker-compose.yml has them; predictions take
0.1 to 2 s. `share` is (accepted - 1) of what the rate allows from the first accepted create to the last; with the burst taken
off, (accepted - burst). `above` is seconds beyond (accepted - burst) at the rate. The busiest minute counts what was sent,
accepted or not. Two measurements at once disturb each other.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import judge  # noqa: E402
from house import MODEL, House, cpu_of, house  # noqa: E402
from processes import StandIn, stand_in  # noqa: E402

PER_MINUTE, BURST = 600, 10
HALF = PER_MINUTE / 2
SETTLING_S = 10.0  # after a change the figures count from here
OTHER_TOKEN = "r8_other"
RATE = {"creates_per_minute": PER_MINUTE, "create_burst": BURST}
Row = dict[str, Any]


@contextmanager
def account(*more: str, per_minute: int = PER_MINUTE) -> Iterator[StandIn]:
    """A stand-in with so many creates per minute, burst 10, and two tokens of one account: ours, and another client's."""
    argv = ["--rate-limit", str(per_minute), "--burst", str(BURST), "--latency-between", "0.1", "2", "--file-bytes", "1024",
            "--token", "r8_simulator", "--token", f"{OTHER_TOKEN}=simulator", *more]
    with stand_in(*argv, latency_s=1) as simulator:
        yield simulator


def full(*, quick: bool) -> list[Row]:
    """One batch at the full rate, answered at once, and one whose creates are each answered after a second."""
    rows = 500 if quick else 3000
    print(f"\n## The full rate: {rows:,} rows, 4 workers\n")
    table = [_full("one", rows, answer_s=0.0), _full("one, answers after 1 s", rows // 2, answer_s=1.0)]
    _rate_table(table)
    return table


def _full(name: str, rows: int, *, answer_s: float) -> Row:
    with account() as simulator, house(simulator, workers=4, tempo=RATE) as home:
        simulator.put("faults", {"slow_answer": {"p": 1, "seconds": answer_s} if answer_s else None})
        home.job("single", rows=rows)
        home.run("single")
        _bought(home, simulator, rows)
        row = {"batches": name} | judge.figures(judge.creates(simulator), per_minute=PER_MINUTE, burst=BURST)
        row["home"] = _came_home(home, "single")
    return row


def shared(*, quick: bool) -> list[Row]:
    """Two batches at once, one with twice the weight of the other."""
    rows, weights = 250 if quick else 1500, {"light": 4, "heavy": 8}
    print(f"\n## Two batches at once: {rows:,} rows each, 4 workers, priorities {list(weights.values())}\n")
    with account() as simulator, house(simulator, workers=4, tempo=RATE) as home:
        for name, weight in weights.items():
            home.job(name, rows=rows, limits=f"priority: {weight}")
        for name in weights:
            home.run(name)
        _bought(home, simulator, 2 * rows)
        found, both_s = judge.shares(judge.by_batch(simulator, list(weights)))
        row = {"batches": "two"} | judge.figures(judge.creates(simulator), per_minute=PER_MINUTE, burst=BURST)
        row |= {"home": all(_came_home(home, name) for name in weights), "both_s": both_s, "shares": found}
    _rate_table([row])
    total = sum(weights.values())
    print("\n| batch | weight | share while both buy | due | off by |\n|---|---|---|---|---|")
    for name, weight in weights.items():
        due = weight / total
        print(f"| {name} | {weight} | {found[name]:.1%} | {due:.1%} | {found[name] / due - 1:+.1%} |")
    print(f"\nBoth bought for {both_s:.1f} s.", flush=True)
    return [row]


def low(*, quick: bool) -> list[Row]:
    """An account of little credit, whose limit nobody had told us."""
    rows = 4 if quick else 8
    print(f"\n## Low-credit mode: {rows} rows at 6 per minute, burst 1, 2 workers that were told 600\n\n"
          "| answers after s | rows bought | 429s | of these after the second | last 429 after s | seconds | at least |\n"
          "|---|---|---|---|---|---|---|", flush=True)
    return [_low(rows, answer_s=answer_s) for answer_s in (0.0, 0.7)]


def _low(rows: int, *, answer_s: float) -> Row:
    least_s = (rows - 1) * 10.0
    with account() as simulator, house(simulator, workers=2, tempo=RATE) as home:
        simulator.put("limits", {"reduced": "credit"})
        simulator.put("faults", {"slow_answer": {"p": 1, "seconds": answer_s} if answer_s else None})
        home.job("poor", rows=rows)
        home.run("poor")
        reasons: set[object] = set()
        home.wait(lambda: _noted(home, reasons) and simulator.created() >= rows, timeout_s=3 * least_s + 60)
        given = judge.creates(simulator)
        refused = given.throttled
        row = {"answer_s": answer_s, "accepted": len(given.accepted), "throttled": len(refused),
               "after_the_second": max(0, len(refused) - 2),
               "last_429_s": refused[-1] - given.all[0][0] if refused else None,
               "seconds": given.accepted[-1] - given.all[0][0], "least_s": least_s,
               "reasons": sorted(str(reason) for reason in reasons if reason)}
    print(f"| {answer_s:g} "
          f"| {row['accepted']} of {rows} | {row['throttled']} | {row['after_the_second']} | {_s(row['last_429_s'])} | "
          f"{row['seconds']:.1f} | {least_s:.0f} |", flush=True)
    return row


def _noted(home: House, reasons: set[object]) -> bool:
    """Add the reason that the ledger gives for waiting."""
    reasons.update(row[0] for row in home.ask("SELECT reason FROM batches"))
    return True


def halved(*, quick: bool) -> list[Row]:
    """Half of the limit taken in mid-batch, by another client of the account or by the provider, and given back."""
    rows, for_s = (700, 30.0) if quick else (2000, 90.0)
    print(f"\n## Half of the limit taken for {for_s:.0f} s: {rows:,} rows, 4 workers\n\n"
          "| by | bought | our 429s from 10 s on | share of our creates | ours against 300 per minute | 429s in the first 10 s | "
          "back above 95 % after s | theirs bought | their 429s |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    return [_halved(name, change, rows=rows, for_s=for_s)
            for name, change in (("another client", _other_client), ("the provider", _lower_limit))]


def _halved(name: str, change: Callable[[StandIn, float], None], *, rows: int, for_s: float) -> Row:
    with account() as simulator, house(simulator, workers=4, tempo=RATE) as home:
        home.job("single", rows=rows)
        home.run("single")
        home.wait(lambda: simulator.created() >= rows / 3, timeout_s=rows / 3 / (PER_MINUTE / 60) * 3 + 60)
        begin = time.time()
        change(simulator, for_s)
        end = time.time()
        home.wait(lambda: len(judge.creates(simulator).accepted) >= rows, timeout_s=rows / (PER_MINUTE / 60) * 2, every_s=1)
        ours, theirs = judge.creates(simulator), judge.creates(simulator, client=1)
    both = len(ours.between(begin + SETTLING_S, end).accepted) + len(theirs.between(begin + SETTLING_S, end).accepted)
    row = {"by": name} | _of_the_change(ours, begin, end) | {
        "account_used": both / ((PER_MINUTE if theirs.all else HALF) / 60 * (end - begin - SETTLING_S)),
        "theirs": len(theirs.accepted), "theirs_throttled": len(theirs.throttled), "bought": len(ours.accepted), "rows": rows,
        "per_10_s": [len(ours.between(at, at + 10).accepted) for at in _every(10.0, ours)],
        "throttled_per_10_s": [len(ours.between(at, at + 10).throttled) for at in _every(10.0, ours)]}
    print(f"| {name} | {row['bought']:,} of {rows:,} | {row['throttled']} | {row['share_of_429']:.2%} | {row['used']:.1%} | "
          f"{row['throttled_at_once']} | {_s(row['back_s'])} | {row['theirs']} | {row['theirs_throttled']} |", flush=True)
    return row


def _of_the_change(ours: judge.Creates, begin: float, end: float) -> Row:
    judged = ours.between(begin + SETTLING_S, end)
    allowed = HALF / 60 * (end - begin - SETTLING_S)
    return {"throttled": len(judged.throttled), "share_of_429": judge.share_of_429(judged), "sent": len(judged.all),
            "used": len(judged.accepted) / allowed, "throttled_at_once": len(ours.between(begin, begin + SETTLING_S).throttled),
            "throttled_after": len(ours.between(end, float("inf")).throttled),
            "back_s": judge.back_at(ours, after=end, per_minute=PER_MINUTE)}


def _every(seconds: float, given: judge.Creates) -> list[float]:
    first, last = given.all[0][0], given.all[-1][0]
    return [first + n * seconds for n in range(int((last - first) / seconds) + 1)]


def _lower_limit(simulator: StandIn, for_s: float) -> None:
    simulator.put("limits", {"creates_per_minute": HALF, "burst": BURST})
    time.sleep(for_s)
    simulator.put("limits", {"creates_per_minute": PER_MINUTE, "burst": BURST})


def _other_client(simulator: StandIn, for_s: float) -> None:
    """Buy steadily at half of the rate, a POST every 200 ms whatever the answers say; every connection is its own thread's."""
    began, gap_s = time.monotonic(), 60 / HALF
    for number in range(int(for_s / gap_s)):
        time.sleep(max(0.0, began + number * gap_s - time.monotonic()))
        threading.Thread(target=_buy, args=(simulator, number), daemon=True).start()


def _buy(simulator: StandIn, number: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(simulator.url).netloc, timeout=10)
    body = json.dumps({"input": {"prompt": f"stranger {number}"}})
    connection.request("POST", f"/v1/models/{MODEL}/predictions", body, {"Authorization": f"Bearer {OTHER_TOKEN}"})
    connection.getresponse().read()
    connection.close()


def small(*, quick: bool) -> list[Row]:
    """A few rows behind very many."""
    rows, times = (20_000, 2) if quick else (100_000, 4)
    print(f"\n## 10 rows behind {rows:,}, 4 workers\n\n"
          "| batch | from its command to its first create s | from `running` to its first create s | to its tenth s |\n"
          "|---|---|---|---|", flush=True)
    with account() as simulator, house(simulator, workers=4, tempo=RATE) as home:
        home.job("large", rows=rows)
        home.run("large", "--detach")
        if not home.wait(lambda: simulator.created() > 15 * PER_MINUTE / 60, timeout_s=300):
            raise SystemExit(f"the large batch does not buy:\n{home.said('run-large')}\n{home.said('worker-1')}")
        found = [_small(home, simulator, f"little{number}") for number in range(times)]
    median = {key: statistics.median(row[key] for row in found) for key in ("command_s", "running_s")}
    print(f"\nMedians: {median['command_s']:.2f} s from the command, {median['running_s']:.2f} s from `running`.", flush=True)
    return found


def _small(home: House, simulator: StandIn, name: str) -> Row:
    home.job(name, rows=10)
    asked = f"SELECT 1 FROM batches WHERE job = '{name}' AND state IN ('running', 'finished')"
    began = time.time()
    home.run(name, "--detach")
    home.wait(lambda: bool(home.ask(asked)), timeout_s=60, every_s=0.02)
    running = time.time()
    home.wait(lambda: len(judge.by_batch(simulator, [name])[name]) == 10, timeout_s=120, every_s=0.5)
    moments = judge.by_batch(simulator, [name])[name] or [float("nan")]
    row = {"batch": name, "command_s": moments[0] - began, "running_s": moments[0] - running, "bought": len(moments),
           "tenth_s": moments[-1] - running}
    print(f"| {name} | {row['command_s']:.2f} | {row['running_s']:.2f} | {row['tenth_s']:.2f} |", flush=True)
    return row


def many(*, quick: bool) -> list[Row]:
    """Many small batches at once, left to the roles: none of them has rows for long."""
    batches, rows, per_minute = (10 if quick else 30), 20, 200
    print(f"\n## {batches} batches at once, {rows} rows each, at {per_minute} per minute, 2 workers\n")
    tempo = RATE | {"creates_per_minute": per_minute}
    with account(per_minute=per_minute) as simulator, house(simulator, workers=2, tempo=tempo) as home:
        names = [f"small{number}" for number in range(batches)]
        for name in names:
            home.job(name, rows=rows)
        for name in names:  # one after the other: thirty commands at once are what would be measured
            home.run(name, "--detach")
            home.wait(lambda name=name: home.processes[f"run-{name}"].poll() == 0, timeout_s=60, every_s=0.05)
        home.wait(lambda: simulator.created() >= batches * rows, timeout_s=2 * batches * rows / (per_minute / 60) + 60)
        given = judge.creates(simulator)
        row = {"batches": f"{batches}"} | judge.figures(given, per_minute=per_minute, burst=BURST)
        row["per_10_s"] = [len(given.between(at, at + 10).accepted) for at in _every(10.0, given)]
        row["home"] = home.wait(lambda: home.ask("SELECT 1 FROM batches WHERE state != 'finished'") == [], timeout_s=60)
    _rate_table([row])
    return [row]


FAST, FAST_BURST = 30_000, 500
KINDS_OF_PROCESS = ("worker", "run", "scheduler", "Redis", "PostgreSQL", "simulator")


def fast(*, quick: bool) -> list[Row]:
    """What one machine can use of an account of 30,000 per minute, and where its CPU goes."""
    rows = 6000 if quick else 30_000
    print(f"\n## {FAST:,} per minute, burst {FAST_BURST}: {rows:,} rows, outputs of 1 KB, 2 workers; CPU in us per row\n\n"
          f"| path | bought | rate per minute | share | 429s | s to the last | s until home | "
          f"{' | '.join(KINDS_OF_PROCESS)} |\n|" + "---|" * (7 + len(KINDS_OF_PROCESS)), flush=True)
    submit_only = {"latency_s": 36000.0, "more": (), "tempo": {"sweep_min_s": 3600}}
    whole = {"latency_s": 1.0, "more": ("--latency-between", "0.1", "2"), "tempo": {}}
    return [_fast(name, rows, **how) for name, how in (("submit only", submit_only), ("whole", whole))]


def _fast(name: str, rows: int, *, latency_s: float, more: tuple[str, ...], tempo: dict[str, object]) -> Row:
    rate = {"creates_per_minute": FAST, "create_burst": FAST_BURST, "reads_per_minute": 0, **tempo}
    argv = ["--rate-limit", str(FAST), "--burst", str(FAST_BURST), "--read-limit", "0", "--poll-limit", "0", *more]
    with stand_in(*argv, latency_s=latency_s, file_bytes=1024) as simulator, house(simulator, workers=2, tempo=rate) as home:
        home.job("many", rows=rows, limits="in_flight: 100000")
        home.run("many")
        home.wait(lambda: simulator.created() > 0, timeout_s=120, every_s=0.05)
        before = _cpu(home, simulator)
        enough = (lambda: simulator.created() >= rows) if name == "submit only" else (lambda: _is_finished(home))
        home.wait(enough, timeout_s=rows / FAST * 60 * 8 + 60)
        ended = time.time()
        after, given = _cpu(home, simulator), judge.creates(simulator)
    found = judge.figures(given, per_minute=FAST, burst=FAST_BURST)
    bought = found["accepted"]
    row = {"path": name, "rows": rows, "rate": (bought - 1) / found["span_s"] * 60} | found
    row["home_s"] = None if name == "submit only" else ended - given.accepted[0]
    row["cpu_us"] = {kind: (after[kind] - before[kind]) / bought * 1e6 for kind in KINDS_OF_PROCESS}
    cells = [f"{row['cpu_us'][kind]:,.0f}" for kind in KINDS_OF_PROCESS]
    print(f"| {name} | {bought:,} of {rows:,} | {row['rate']:,.0f} | {row['share']:.1%} | {row['throttled']} | "
          f"{row['span_s']:.1f} | {_s(row['home_s'])} | {' | '.join(cells)} |", flush=True)
    return row


def _cpu(home: House, simulator: StandIn) -> dict[str, float]:
    return home.cpu_s() | {"simulator": cpu_of(simulator.pid)}


def _is_finished(home: House) -> bool:
    return bool(home.ask("SELECT 1 FROM batches WHERE state = 'finished'"))


def _bought(home: House, simulator: StandIn, rows: int) -> None:
    """Wait until everything is bought, for twice as long as the rate needs and a minute; the table shows what is missing."""
    home.wait(lambda: simulator.created() >= rows, timeout_s=2 * rows / (PER_MINUTE / 60) + 60)


def _came_home(home: House, name: str) -> bool:
    """Whether `run` ended well soon after the last purchase."""
    return home.wait(lambda: home.processes[f"run-{name}"].poll() == 0, timeout_s=30)


def _rate_table(rows: list[Row]) -> None:
    print("| batches | bought | seconds | share | burst taken off | above s | 429s | of creates | busiest 60 s sent | allowed | "
          "all home |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['batches']} | {row['accepted']:,} | {row['span_s']:.1f} | {row['share']:.2%} | "
              f"{row['share_burst_off']:.2%} | {row['above_s']:.2f} | {row['throttled']} | {row['share_of_429']:.2%} | "
              f"{row['busiest_minute']} | {row['allowed_minute']:.0f} | {'yes' if row['home'] else 'no'} |", flush=True)


def _s(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.1f}"


SCENARIOS: dict[str, Callable[..., list[Row]]] = {
    "full": full, "shared": shared, "low": low, "halved": halved, "small": small, "many": many, "fast": fast}


def measure(names: list[str], *, quick: bool) -> dict[str, list[Row]]:
    """Play these scenarios one after the other; figures go to out/bench/rate.json, beside those of scenarios played before."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is ended
    path = ROOT / "out" / "bench" / "rate.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Row]] = {}
    for name in names:
        found[name] = SCENARIOS[name](quick=quick)
        print(f"\nLoad of this machine: {os.getloadavg()[0]:.1f} (last minute).", flush=True)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {f"{name}, quick" if quick else name: found[name]}, indent=1))
    return found


def everything(*, quick: bool) -> list[Row]:
    """All scenarios, for the bench of everything."""
    return [{"scenario": name} | row for name, rows in measure(list(SCENARIOS), quick=quick).items() for row in rows]


def main() -> None:
    """Play what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=[], help=f"{', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rows: about a minute each")
    given = parser.parse_args()
    if wrong := set(given.what) - set(SCENARIOS):
        parser.error(f"no scenario {', '.join(sorted(wrong))}; there are {', '.join(SCENARIOS)}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start", flush=True)
    measure(given.what or list(SCENARIOS), quick=given.quick)


if __name__ == "__main__":
    main()
