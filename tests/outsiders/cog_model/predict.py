"""A small model for a real Cog server: words, files, and failing on demand."""
# ruff: noqa: B008, T201 - Cog reads its inputs from the defaults, and its logs from stdout

import time

from cog import BaseModel, BasePredictor, Input, Path, Secret


class Output(BaseModel):
    words: str
    pictures: list[Path]


class Predictor(BasePredictor):
    def setup(self) -> None:
        self.runs = 0

    def predict(
        self,
        prompt: str = Input(description="What to say", min_length=1, max_length=200),
        count: int = Input(description="How many files", default=1, ge=0, le=4),
        strength: float = Input(default=0.5, ge=0, le=1),
        style: str = Input(default="plain", choices=["plain", "loud"]),
        size: int = Input(default=512, choices=[256, 512]),
        shiny: bool = Input(default=False),
        image: Path | None = Input(description="A picture to look at", default=None),
        tags: list[str] = Input(default=["a"]),
        api_key: Secret | None = Input(default=None),
        suffix: str = Input(default=".txt"),
        fail: str = Input(description="Fail with these words", default=""),
        sleep_s: float = Input(default=0.0, ge=0, le=30),
    ) -> Output:
        self.runs += 1
        print(f"run {self.runs}: {prompt}")
        until = time.monotonic() + sleep_s
        while time.monotonic() < until:
            time.sleep(0.02)
        if fail:
            raise RuntimeError(fail)
        words = prompt.upper() if style == "loud" else prompt
        if image is not None:
            words += f" {len(image.read_bytes())} bytes"
        pictures = [Path(f"out-{place}{suffix}") for place in range(count)]
        for place, picture in enumerate(pictures):
            picture.write_text(f"{words} {place}", "utf-8")
        return Output(words=words, pictures=pictures)
