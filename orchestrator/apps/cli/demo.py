"""`demo`: the main job on the stand-in for Replicate, from nothing, in one command."""

import os
import tempfile
from pathlib import Path

from orchestrator import wiring
from orchestrator.apps.cli import run as command
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.speech import say

PER_MINUTE = 600


async def demo(*, rows: int) -> Ending:
    """200 prompts, a simulated account at the usual 600 per minute, 200 pictures, a table of results."""
    folder = Path.cwd() / "out" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    async with wiring.simulator(("--creates-per-minute", str(PER_MINUTE), "--latency", "1.5")) as url:
        say(f"a stand-in for Replicate listens on {url}: nothing here costs money")
        with tempfile.TemporaryDirectory(prefix="orchestrator-demo-") as home:
            os.environ |= {"REPLICATE_API_TOKEN": "r8_simulator", "REPLICATE_BASE_URL": url, "ORCHESTRATOR_HOME": home,
                           "ORCHESTRATOR_OUTPUT_HOSTS": url.removeprefix("http://")}
            ending = await command.run(command.RunOptions(
                job=str(wiring.demo_job()), output=str(folder / "{{ batch }}"), limit=rows, yes=True))
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
        "  export REPLICATE_API_TOKEN=r8_…       # from https://replicate.com/account/api-tokens",
        "  orchestrator plan jobs/yours.yaml      # every row checked, time and cost estimated, nothing spent",
        "  orchestrator run jobs/yours.yaml --limit 3",
    ))
