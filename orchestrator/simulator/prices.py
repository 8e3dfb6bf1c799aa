"""What the simulated provider charges: its own price table, so that our dollars can be held against its dollars.

Figures and rules follow Replicate's public pricing and billing pages as of 2025 and 2026.
"""

from dataclasses import dataclass
from decimal import Decimal

HARDWARE: tuple[tuple[str, str, str], ...] = (
    ("cpu", "CPU", "0.000100"),
    ("gpu-t4", "Nvidia T4 GPU", "0.000225"),
    ("gpu-l40s", "Nvidia L40S GPU", "0.000975"),
    ("gpu-2x-l40s", "2x Nvidia L40S GPU", "0.001950"),
    ("gpu-a100-large", "Nvidia A100 (80GB) GPU", "0.001400"),
    ("gpu-a100-large-2x", "2x Nvidia A100 (80GB) GPU", "0.002800"),
    ("gpu-h100", "Nvidia H100 GPU", "0.001525"),
)
PER_SECOND = {sku: Decimal(usd) for sku, _, usd in HARDWARE}
ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Price:
    """How a model is billed, in USD: per second on a `hardware`, per output image (by what its input asks for as `quality`,
    where that matters), per run, per token in and out, or per second of film (by resolution, and whether it sounds)."""

    hardware: str | None = None
    image_usd: Decimal = ZERO
    run_usd: Decimal = ZERO
    token_in_usd: Decimal = ZERO
    token_out_usd: Decimal = ZERO
    image_by_quality: tuple[tuple[str, Decimal], ...] = ()
    film_second: tuple[tuple[str, bool, Decimal], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one ended prediction used."""

    status: str
    started: bool
    predict_s: float
    images: int
    tokens_in: int
    tokens_out: int
    quality: str = ""
    film_s: Decimal = ZERO
    resolution: str = ""
    sounds: bool = False


def charge(price: Price, usage: Usage, *, deployment: bool) -> Decimal:
    """Return the USD billed for one ended prediction.

    Public models by the second: succeeded and canceled ones pay active time, failed and aborted ones nothing. Official
    models pay per unit made. Deployments and private models (`deployment`) pay their active time whatever came of it (their
    idle time is not modelled).
    """
    if not usage.started or usage.status == "aborted" or (usage.status == "failed" and not deployment):
        return ZERO
    seconds = Decimal(repr(round(usage.predict_s, 6)))
    if deployment or price.hardware:
        return PER_SECOND[price.hardware or "gpu-l40s"] * seconds
    if usage.status != "succeeded":
        return ZERO
    bill = price.run_usd + price.token_in_usd * usage.tokens_in + price.token_out_usd * usage.tokens_out
    for quality, usd in price.image_by_quality:
        bill += usd * usage.images if quality == usage.quality else ZERO
    for resolution, sounds, usd in price.film_second:
        bill += usd * usage.film_s if (resolution, sounds) == (usage.resolution, usage.sounds) else ZERO
    return bill + price.image_usd * usage.images
