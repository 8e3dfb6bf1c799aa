"""`demo`: the main job on the stand-in for Replicate, from nothing, in one command."""

import os
from pathlib import Path

from orchestrator import wiring
from orchestrator.apps.cli import run as command
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.options import RunOptions
from orchestrator.apps.cli.speech import say

RATE = ("--rate-limit", "600", "--latency", "1.5")


async def demo(*, rows: int) -> Ending:
    """200 prompts, a simulated account at the usual 600 per minute, 200 pictures, a table of results."""
    folder = Path.cwd() / "out" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    role, ready = wiring.simulator_role(folder, arguments=RATE)
    stand_in = await wiring.start(role)
    try:
        url = await wiring.ready_url(ready, stand_in, clock=wiring.clock())
        say(f"a stand-in for Replicate listens on {url}: nothing here costs money, and its pictures are drawn")
        os.environ |= {"REPLICATE_API_TOKEN": "r8_simulator", "REPLICATE_BASE_URL": url,
                       "ORCHESTRATOR_HOME": str(folder / ".orchestrator"),
                       "ORCHESTRATOR_OUTPUT_HOSTS": url.removeprefix("http://")}
        ending = await command.run(RunOptions(
            job=str(wiring.demo_job()), output=str(folder / "{{ batch }}"), limit=rows, yes=True, fresh=True,
            rehearsal=True))
    finally:
        await stand_in.terminate(grace_s=5)
    return _with_next_steps(ending)


def _with_next_steps(ending: Ending) -> Ending:
    if ending.code is not Exit.DONE:
        return ending
    results = Path(str(ending.document["results"]))
    return Ending(ending.code, ending.document, (
        *ending.lines,
        f"  pictures: {results.parent / 'files'}",
        "",
        "Now your own: copy jobs/parti-images.yaml, name your model and your file of rows in it, then",
        "  export REPLICATE_API_TOKEN=r8_…              # from https://replicate.com/account/api-tokens",
        "  .venv/bin/orchestrator plan jobs/yours.yaml  # every row checked, time and cost estimated, nothing spent",
        "  .venv/bin/orchestrator run jobs/yours.yaml --limit 3",
    ))
