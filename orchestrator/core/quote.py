"""What a row of a job costs and may cost at worst, settled before anything is bought, and what has to be said about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Any

from orchestrator.core.asked import asked_of
from orchestrator.core.bounds import longest_output_s, most_outputs
from orchestrator.core.caps import SETTING, AccountBudget, Cap, Scope, caps_of
from orchestrator.core.cost import Price, Pricing, usd_text
from orchestrator.core.errors import BadInput
from orchestrator.core.inputs import InputPlan, InputSchema
from orchestrator.core.job import Budget, Job
from orchestrator.core.nearest import did_you_mean
from orchestrator.core.ports import Model
from orchestrator.core.prices import Book, Seller, resolve
from orchestrator.core.records import Target


@dataclass(frozen=True, slots=True)
class Quote:
    """The pricing of a batch, by the price book of its first day."""

    model: str
    seller: Seller
    pricing: Pricing
    begins: date | None  # the first day of which the book knows a price of this model
    on: date
    unfit: str = ""  # why a price that there is cannot be used


def quote(book: Book, job: Job, *, model: Model, plan: InputPlan, on: date, places: Mapping[str, str]) -> Quote:
    """The quote for a job on a day. Raises BadInput where the job's own price cannot be used."""
    schema = InputSchema.from_openapi(model.openapi_schema)
    defaults = {name: spec.default for name, spec in schema.fields.items()}
    seller = _seller(job, model)
    given = job.price.model_dump(exclude_none=True) if job.price else None
    try:
        price = resolve(book, model=model.name, seller=seller, given=given, on=on, defaults=defaults)
    except BadInput as error:
        place = places.get("price.hardware") or places.get("price")
        raise BadInput(f"{place + ': ' if place else ''}price: {error}") from None
    unfit = _unfit(price, schema)
    price = None if unfit else price
    known = _known(defaults, plan)
    dearest = None if price is None else price.dearest(known)
    pricing = Pricing(price, most_outputs(model.openapi_schema, known), longest_output_s(schema, known),
                      None if dearest is None else dearest.usd, seller.failed)
    pricing = replace(pricing, least_usd=_least_usd(job, pricing, model=model, plan=plan, known=known))
    return Quote(model.name, seller, pricing, book.begins(model.name), on, unfit)


def _least_usd(job: Job, pricing: Pricing, *, model: Model, plan: InputPlan, known: Mapping[str, Any]) -> Decimal | None:
    """What every row that succeeds costs at least, as far as price and schema tell."""
    rate = None if pricing.price is None else pricing.price.cheapest(known)
    least = asked_of(job, pricing, schema=model.openapi_schema, plan=plan).least
    return None if rate is None or least is None else rate.usd * least


def pricing_now(book: Book, job: Job, *, schema: InputSchema, target: Target, kept: Pricing, on: date) -> Pricing:
    """The price that a batch begun on that day would get if it were run again now; its bounds are not asked for. Whose model it
    is was settled when it began. Raises BadInput where the job's own price cannot be used."""
    is_billed = kept.failed == "billed"
    seller = (Seller.DEPLOYMENT if target.endpoint == "deployments" else Seller.OFFICIAL if target.endpoint == "models"
              else Seller.PRIVATE if is_billed else Seller.PUBLIC)
    defaults = {name: spec.default for name, spec in schema.fields.items()}
    given = job.price.model_dump(exclude_none=True) if job.price else None
    price = resolve(book, model=target.name, seller=seller, given=given, on=on, defaults=defaults)
    return Pricing(None if _unfit(price, schema) else price, None, failed=kept.failed)


def _unfit(price: Price | None, schema: InputSchema) -> str:
    """A tier that asks for an input which the model does not have never fits: silently, the wrong figure would count."""
    asked = sorted({name for tier in (price.tiers if price else ()) for name, _ in tier.when} - set(schema.fields))
    if not asked or price is None:
        return ""
    near = did_you_mean(asked[0], schema.fields)
    return f": the tiers of {price.id} ask for an input {asked[0]!r}, which it does not have{near}"


def _seller(job: Job, model: Model) -> Seller:
    if job.deployment is not None:
        return Seller.DEPLOYMENT
    if model.is_private:
        return Seller.PRIVATE
    return Seller.OFFICIAL if model.is_official else Seller.PUBLIC


def _known(defaults: Mapping[str, Any], plan: InputPlan) -> dict[str, Any]:
    """Inputs that are alike for every row: constants, and the defaults of what nothing feeds."""
    return {name: value for name, value in defaults.items() if name not in plan.fed} | dict(plan.constants)


def worst_case_usd(job: Job, pricing: Pricing, *, is_capped: bool = True) -> Decimal | None:
    """The most that one row can cost, or None where that is not finite. `budget.per_row_usd` bounds nothing by itself: what is
    dearer pauses the batch, and this only under a cap."""
    per_row_usd = job.budget.per_row_usd if job.budget and is_capped else None
    return pricing.worst_case_usd(cancel_after_s=job.limits.cancel_after, per_row_usd=per_row_usd)


def kept_caps(job: Job, quoted: Quote, account: AccountBudget) -> tuple[Cap, ...]:
    """The caps that the job is bought under. Raises BadInput with the lines to add where they could not be kept."""
    caps = caps_of(job, account)
    if caps and worst_case_usd(job, quoted.pricing) is None:
        raise BadInput(f"budget: what one row of {quoted.model} may cost at worst is not known, so {_named(caps)} cannot be kept"
                       f"{_why(quoted)}.\n{_lines_to_add(job.budget, quoted.pricing)}")
    per_row_usd, least_usd = job.budget.per_row_usd if job.budget else None, quoted.pricing.least_usd
    if caps and per_row_usd is not None and least_usd is not None and per_row_usd < least_usd:
        raise BadInput(f"budget: per_row_usd sets {usd_text(per_row_usd)} aside for a row, and one of {quoted.model} costs at "
                       f"least {usd_text(least_usd.normalize())} by its price, so {_named(caps)} cannot be kept.\n"
                       f"{_lines_to_change(job, quoted.pricing, least_usd)}")
    return caps


def _named(caps: Sequence[Cap]) -> str:
    """A cap of the job's own is there to be read in it; one of the settings may be somebody else's."""
    if any(cap.scope in (Scope.BATCH, Scope.JOB, Scope.JOB_DAY) for cap in caps):
        return "a cap"
    return f"a cap ({SETTING[caps[0].scope]})"


_MANY = ": nothing bounds how many files it gives"
_WHY = {"output": _MANY, "token": ": nothing bounds how many tokens it reads and writes",
        "output second": ": nothing bounds how long its outputs last (no input `duration` with a maximum)",
        "second": ": nothing bounds how long it runs"}


def _why(quoted: Quote) -> str:
    price = quoted.pricing.price
    if price is None:
        return f": no price is known{_since(quoted)}"
    is_short = price.unit == "output second" and quoted.pricing.most_seconds is not None
    return _MANY if is_short else _WHY.get(price.unit, "")


_INSTEAD = "in place of the `budget:` that is there"


def _budget_line(budget: Budget | None, per_row_usd: Decimal, note: str) -> str:
    said = (budget.model_dump(exclude_none=True) if budget else {}) | {"per_row_usd": format(per_row_usd, "f")}
    return f"budget: {{ {', '.join(f'{name}: {usd}' for name, usd in said.items())} }}   # {note}"


def _lines_to_change(job: Job, pricing: Pricing, least_usd: Decimal) -> str:
    worst = pricing.worst_case_usd(cancel_after_s=job.limits.cancel_after, per_row_usd=None)
    note = "the least that it can be" if worst is None else "or leave per_row_usd out: as much is reserved then"
    line = _budget_line(job.budget, (least_usd if worst is None else worst).normalize(), f"{_INSTEAD}; {note}")
    return f"Write in the job\n{line}"


def _lines_to_add(budget: Budget | None, pricing: Pricing) -> str:
    example = max(Decimal("0.05"), (pricing.least_usd or Decimal(0)).normalize())
    per_row = _budget_line(budget, example, f"{example:f} is an example" + (f"; {_INSTEAD}" if budget else ""))
    deadline = "limits: { cancel_after: 5m }"
    if pricing.price is None:
        return (f"Add to the job either\n{per_row}\nor, where the price is per second,\n"
                f"price: {{ hardware: gpu-l40s }}\n{deadline}")
    if pricing.price.unit == "second":
        return f"Add to the job either\n{deadline}\nor\n{per_row}"
    return f"Add to the job\n{per_row}"


def remarks(job: Job, quoted: Quote) -> list[str]:
    """What has to be said about money before anything is spent."""
    price = quoted.pricing.price
    if price is None:
        return [_unpriced(job, quoted)]
    if price.is_estimate:
        return [f"{_owned(job, quoted)}, so what a row costs cannot be derived: costs are estimates, from what its "
                "predictions tell"]
    if price.unit == "output second":
        return [f"{quoted.model} is billed by the second that comes out: the cost of a row is known only if its prediction tells "
                "how long that is, else unknown"]
    if price.unit == "second" and worst_case_usd(job, quoted.pricing) is None:
        return [f"nothing bounds how long a row of {quoted.model} runs, and so what it costs; `limits: {{ cancel_after: 10m }}` "
                "does"]
    return []


def _unpriced(job: Job, quoted: Quote) -> str:
    unknown = "the cost of this batch will be unknown, not zero"
    if not quoted.seller.bills_instances:
        return (f"no price is known for {quoted.model}{_since(quoted)}: {unknown}; write it under `price:` in the job, or in "
                "config/prices.toml beside jobs/")
    return (f"{_owned(job, quoted)}, so what a row costs cannot be derived: {unknown}. With `price: {{ hardware: … }}` in the "
            "job it is estimated by the seconds its predictions run"
            + ("; for a fast-booting fine-tune, billed by just these, add `fast_booting: true` there"
               if quoted.seller is Seller.PRIVATE else ""))


def _owned(job: Job, quoted: Quote) -> str:
    name = f"the deployment {job.deployment}" if quoted.seller is Seller.DEPLOYMENT else f"the private model {quoted.model}"
    return f"{name} is billed for all the time its instances are online, set-up and idling included"


def _since(quoted: Quote) -> str:
    """That there is a price, which cannot be used or is of a later day."""
    if quoted.unfit:
        return quoted.unfit
    if quoted.begins is None or quoted.begins <= quoted.on or quoted.seller.bills_instances:
        return ""
    return f" on {quoted.on}, when this batch began (the price book has one from {quoted.begins} on)"
