"""What the rows of a job ask for: how many units of its price each uses, at which rate, as far as that is known before. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple, Self

from orchestrator.core.bounds import Asks, asked_length_s, asked_outputs, counting
from orchestrator.core.cost import Pricing, Rate
from orchestrator.core.inputs import InputPlan, InputSchema
from orchestrator.core.job import Job

ONE, NONE = Decimal(1), Decimal(0)
KINDS = 1000  # of rows that are counted apart


class Amount(NamedTuple):
    """How many units one row that succeeds uses, or what they come to; None: not known. Where they are known, least <= usual <=
    most."""

    least: Decimal | None = None
    usual: Decimal | None = None
    most: Decimal | None = None

    @property
    def fixed(self) -> Decimal | None:
        """The number, where it is the same for every row."""
        return self.least if self.least is not None and self.least == self.most else None

    def plus(self, other: "Amount") -> "Amount":
        """Of two rows together."""
        return Amount(*(None if one is None or more is None else one + more for one, more in zip(self, other, strict=True)))

    def times(self, factor: Decimal) -> "Amount":
        """So many times as much."""
        return Amount(*(None if one is None else one * factor for one in self))

    def by(self, rows: int) -> "Amount":
        """Of one of so many rows."""
        return Amount(*(None if one is None else one / rows for one in self))


def asked_of(job: Job, pricing: Pricing, *, schema: Mapping[str, Any], plan: InputPlan) -> Amount:
    """What one row asks for, in the unit of the price. `schema`: the model's OpenAPI document."""
    unit = "" if pricing.price is None else pricing.price.unit
    if unit == "run":
        return Amount(ONE, ONE, ONE)
    if unit == "second":
        return Amount(most=None if job.limits.cancel_after is None else Decimal(str(job.limits.cancel_after)))
    if unit not in ("output", "output second"):
        return Amount()
    outputs = tuple(None if number is None else Decimal(number) for number in asked_outputs(schema, plan.constants, plan.fed))
    if unit == "output":
        return _product([outputs])
    return _product([outputs, asked_length_s(InputSchema.from_openapi(schema), plan.constants, plan.fed)])


def _product(factors: list[tuple[Decimal | None, ...]]) -> Amount:
    """Files, or files times the seconds of each."""
    found: tuple[Decimal | None, ...] = (ONE, ONE, ONE)
    for factor in factors:
        found = tuple(None if one is None or more is None else one * more for one, more in zip(found, factor, strict=True))
    return _ordered(*found)


def _ordered(least: Decimal | None, usual: Decimal | None, most: Decimal | None) -> Amount:
    """A schema may give a default beyond its own bounds."""
    if usual is not None:
        least = None if least is None else min(least, usual)
        most = None if most is None else max(most, usual)
    elif least is not None and most is not None:
        least = min(least, most)
    return Amount(least, usual, most)


@dataclass(frozen=True, slots=True)
class Told:
    """What so many rows ask for together. `units`: as is usual. `least_usd`: of the row that may cost least, `most_usd`: most."""

    rates: Mapping[Rate | None, int]
    units: Decimal | None
    usd: Amount
    least_usd: Decimal | None
    most_usd: Decimal | None

    @property
    def rows(self) -> int:
        """How many they are."""
        return sum(self.rates.values())

    @property
    def mean_usd(self) -> Amount:
        """Of one row."""
        return self.usd.by(self.rows)

    @property
    def mean_units(self) -> Decimal | None:
        """Of one row, as is usual."""
        return None if self.units is None else self.units / self.rows

    def plus(self, rows: int, rate: Rate | None, units: Amount) -> "Told":
        """With so many more that are alike."""
        each, many = Amount() if rate is None else units.times(rate.usd), Decimal(rows)
        return Told(Counter(self.rates) + Counter({rate: rows}), _all(self.units, units.times(many).usual, Decimal.__add__),
                    self.usd.plus(each.times(many)), _all(self.least_usd, each.least, min), _all(self.most_usd, each.most, max))


def _all(one: Decimal | None, other: Decimal | None, of: Callable[[Decimal, Decimal], Decimal]) -> Decimal | None:
    return None if one is None or other is None else of(one, other)


NOTHING_TOLD = Told({}, NONE, Amount(NONE, NONE, NONE), Decimal("Infinity"), NONE)


@dataclass(slots=True)
class AskedRows:
    """What the rows ask for that are bought, where it differs from row to row: counted as they are read, and added up when too
    many ask for something of their own."""

    _names: tuple[str, ...]  # the inputs that say it
    _rate_and_units: Callable[[Mapping[str, Any]], tuple[Rate | None, Amount]]
    _counted: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    _before: Told = NOTHING_TOLD

    @classmethod
    def of(cls, job: Job, pricing: Pricing, *, schema: Mapping[str, Any], plan: InputPlan) -> Self | None:
        """None where every row asks for the same at the same rate, or where there is no price."""
        price = pricing.price
        if price is None:
            return None
        lasting, asks = price.unit == "output second", Asks.of(schema)
        by_file = lasting or price.unit == "output"
        differ = [name for name in counting(asks.inputs, lasting=lasting) if by_file and name in plan.varying]
        names = tuple(dict.fromkeys([*differ, *(name for tier in price.tiers for name, _ in tier.when)]))
        alike = None if differ else asked_of(job, pricing, schema=schema, plan=plan)

        def rate_and_units(said: Mapping[str, Any]) -> tuple[Rate | None, Amount]:
            row = {**plan.constants, **said}
            return price.rate_of(row), _product(asks.of_row(row, lasting=lasting)) if alike is None else alike

        return cls(names, rate_and_units) if names else None

    def add(self, given: Mapping[str, Any]) -> None:
        """One row that is bought, by its input."""
        values = tuple([given.get(name) for name in self._names])
        try:
            self._counted[values] += 1
        except TypeError:  # lists and objects count nothing, and no tier asks for them
            self._counted[tuple("" if isinstance(value, list | dict) else value for value in values)] += 1
        if len(self._counted) > KINDS:
            self.told()

    def told(self) -> Told:
        """By all rows until now."""
        for values, rows in self._counted.items():
            said = {name: value for name, value in zip(self._names, values, strict=True) if value is not None}
            rate, units = self._rate_and_units(said)
            self._before = self._before.plus(rows, rate, units)
        self._counted.clear()
        return self._before


def mean_rate(rates: Mapping[Rate | None, int]) -> Rate | None:
    """Of rows, so many at each rate; None where one of them has none, or there are none."""
    total, usd, usd_out = sum(rates.values()), Decimal(0), Decimal(0)
    for rate, rows in rates.items():
        if rate is None:
            return None
        usd += rate.usd * rows
        usd_out += (rate.usd if rate.usd_out is None else rate.usd_out) * rows
    return Rate(usd / total, usd_out / total) if total else None
