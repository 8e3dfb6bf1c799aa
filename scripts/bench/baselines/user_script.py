"""The script that a competent user writes with the official client: asyncio, a semaphore, polling, files written.

    REPLICATE_API_TOKEN=… REPLICATE_BASE_URL=… python user_script.py ROWS.csv FOLDER

Generous: nothing is recorded before it is bought, no error is handled, nothing is hashed or flushed to the disk, no rate is
kept, and a second start would buy everything again. Concurrency 64 was its best on the machine this was written on.
"""

import asyncio
import csv
import sys
from pathlib import Path

import httpx
import replicate

MODEL = "black-forest-labs/flux-schnell"
CONCURRENCY = 64


async def picture(http: httpx.AsyncClient, free: asyncio.Semaphore, folder: Path, number: int, prompt: str) -> list[object]:
    """One row: create, wait by polling as the client does it, download."""
    async with free:
        prediction = await replicate.models.predictions.async_create(model=MODEL, input={"prompt": prompt})
        await prediction.async_wait()
        files = []
        for index, url in enumerate(prediction.output or []):
            answer = await http.get(url)
            answer.raise_for_status()
            path = folder / f"{number}-{index}{Path(url).suffix}"
            path.write_bytes(answer.content)
            files.append(path.name)
        return [number, prompt, prediction.id, prediction.status, " ".join(files)]


async def pictures(prompts: list[str], folder: Path) -> list[list[object]]:
    """All rows at once, as far as the semaphore lets them."""
    free = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient() as http:
        return await asyncio.gather(*(picture(http, free, folder, n, prompt) for n, prompt in enumerate(prompts)))


def main(source: Path, folder: Path) -> None:
    """From a CSV file to files and a table of results."""
    folder.mkdir(parents=True, exist_ok=True)
    with source.open(newline="") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    rows = asyncio.run(pictures(prompts, folder))
    with (folder / "results.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "prompt", "prediction_id", "status", "files"])
        table.writerows(rows)


main(Path(sys.argv[1]), Path(sys.argv[2]))
