"""What the rows of a job ask for: how many units of its price each uses, at which rate, as far as that is known before. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from orchestrator.core.bounds import asked_length_s, asked_outputs
from orchestrator.core.cost import Pricing, Rate
from orchestrator.core.inputs import InputPlan, InputSchema
from orchestrator.core.job import Job

ONE = Decimal(1)


@dataclass(frozen=True, slots=True)
class Amount:
    """How many units one row that succeeds uses; None: not known. Where they are known, least <= usual <= most."""

    least: Decimal | None = None
    usual: Decimal | None = None
    most: Decimal | None = None

    @property
    def fixed(self) -> Decimal | None:
        """The number, where it is the same for every row."""
        return self.least if self.least is not None and self.least == self.most else None


def asked_of(job: Job, pricing: Pricing, *, schema: Mapping[str, Any], plan: InputPlan) -> Amount:
    """What one row asks for, in the unit of the price. `schema`: the model's OpenAPI document."""
    unit = "" if pricing.price is None else pricing.price.unit
    if unit == "run":
        return Amount(ONE, ONE, ONE)
    if unit == "second":
        return Amount(most=None if job.limits.cancel_after is None else Decimal(str(job.limits.cancel_after)))
    if unit not in ("output", "output second"):
        return Amount()
    outputs = [None if number is None else Decimal(number) for number in asked_outputs(schema, plan.constants, plan.fed)]
    if unit == "output":
        return _ordered(*outputs)
    lengths = asked_length_s(InputSchema.from_openapi(schema), plan.constants, plan.fed)
    return _ordered(*(None if number is None or length is None else number * length
                      for number, length in zip(outputs, lengths, strict=True)))


def _ordered(least: Decimal | None, usual: Decimal | None, most: Decimal | None) -> Amount:
    """A schema may give a default beyond its own bounds."""
    if usual is not None:
        least = None if least is None else min(least, usual)
        most = None if most is None else max(most, usual)
    elif least is not None and most is not None:
        least = min(least, most)
    return Amount(least, usual, most)


def mean_rate(rates: Mapping[Rate | None, int]) -> Rate | None:
    """Of rows, so many at each rate; None where one of them has none, or there are none."""
    total, usd, usd_out = sum(rates.values()), Decimal(0), Decimal(0)
    for rate, rows in rates.items():
        if rate is None:
            return None
        usd += rate.usd * rows
        usd_out += (rate.usd if rate.usd_out is None else rate.usd_out) * rows
    return Rate(usd / total, usd_out / total) if total else None
