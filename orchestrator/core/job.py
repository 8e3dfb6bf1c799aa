"""A job: the written definition, as a YAML file in `jobs/` holds it. Field descriptions become the JSON Schema for editors."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from orchestrator.core.cron import check_cron, check_zone
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import did_you_mean
from orchestrator.core.target import TargetRef, parse_deployment, parse_training, parse_version_or_model
from orchestrator.core.template import OutputNamer, check_output_folder, with_date

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_SECONDS = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_MONEY = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
MOST_USD = 1_000_000  # the ledger holds nine times as much; whoever writes more has slipped
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SHORTEST_CANCEL_AFTER_S = 5.0  # Replicate OpenAPI: Cancel-After, minimum 5 s


def duration_s(text: str) -> float:
    """Seconds of `10m`, `1h30m`, `90s`, `2.5h`, or `45` (seconds). Raises ValueError with a sentence."""
    text = text.strip()
    found = _DURATION.fullmatch(text)
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif text and found is not None:
        hours, minutes, rest = (float(part or 0) for part in found.groups())
        seconds = hours * 3600 + minutes * 60 + rest
    else:
        raise ValueError(f"{text!r} is not a duration; write 90s, 10m or 1h30m")
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r} is not a duration longer than zero")
    return seconds


def _duration(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is not a duration; write 90s, 10m or 1h30m")
    return duration_s(value if isinstance(value, str) else format(value, "f"))


def _money(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError("is not an amount in US dollars; write 25.00")
    text = repr(value) if isinstance(value, float) else str(value)  # repr is the shortest text that means this float
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in US dollars; write 25.00, without a sign or unit") from None
    if not _MONEY.fullmatch(format(amount, "f")):
        raise ValueError(f"{text!r} is not an amount in US dollars; write 25.00, without a sign or unit")
    if amount > MOST_USD:
        raise ValueError(f"{text!r} is more than {MOST_USD:,} US dollars")
    return amount


def _per_row(amount: Decimal) -> Decimal:
    """Nothing reserved is nothing bounded: a cap would let every row through."""
    if not amount:
        raise ValueError("must be more than 0: it is what is set aside for each row")
    return amount


def _text(value: Any) -> Any:
    """A name written as a bare number or word in YAML is text all the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else value


def _share(value: Any) -> str | int:
    """`5%`, or a number of rows."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value.strip(), re.ASCII)
        if found and Decimal(found[1]) <= 100:
            return f"{found[1]}%"
        if value.strip().isascii() and value.strip().isdigit():
            return int(value)
    raise ValueError("write a share such as 5%, or a number of rows")


def _duplicates(value: Any) -> Any:
    """`buy`, `once`, or the table that `once` is short for."""
    if value is None or isinstance(value, Mapping | Duplicates):
        return value
    if value not in ("buy", "once"):
        raise ValueError(f"{value!r} is not 'buy' or 'once'{did_you_mean(str(value), ['buy', 'once'])}, nor a table such as "
                         "{ once: batch, empty_seed: share }")
    return {"once": "batch"} if value == "once" else None


def _cancel_after(seconds: float) -> float:
    if seconds < SHORTEST_CANCEL_AFTER_S:
        raise ValueError("the provider takes no deadline shorter than 5 seconds")
    return seconds


def _model(text: str) -> str:
    parse_version_or_model(text)
    return text


def _deployment(text: str) -> str:
    parse_deployment(text)
    return text


def _folder(text: str) -> str:
    _checked(lambda: check_output_folder(text))
    return text


def _file_name(text: str) -> str:
    _checked(lambda: OutputNamer(text))
    return text


def _dated(where: str) -> AfterValidator:
    def path(text: str) -> str:
        _checked(lambda: with_date(text, date="2000-01-01", where=where))
        return text

    return AfterValidator(path)


def _checked(check: Any) -> None:
    try:
        check()
    except BadInput as error:
        raise ValueError(str(error)) from error


Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema({"type": ["string", "number"], "examples": ["10m"]})]
Money = Annotated[Decimal, BeforeValidator(_money),
                  WithJsonSchema({"type": ["number", "string"], "minimum": 0, "examples": [25.00]})]
Share = Annotated[str | int, BeforeValidator(_share),
                  WithJsonSchema({"type": ["string", "integer"], "minimum": 0, "examples": ["5%"]})]
Whole = Annotated[int, Field(strict=True)]


class _Part(BaseModel):
    """Every part of a job is frozen and knows all its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Part):
    """Where the rows come from."""

    path: Annotated[Text, _dated("source.path")] = Field(
        description="A CSV, TSV, Parquet or JSONL file, gzipped or not, or a glob; relative to the job file. {{ date }} is the "
        "day of the run.")
    id: Text | None = Field(None, description="A column that names rows in file names and messages; default: the row number.")
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="Rows that do not fit the model: refuse the batch, or skip them (they end failed, class "
        "invalid_input).")


class Duplicates(_Part):
    """Rows of equal input are bought once and share what comes of it."""

    once: Literal["batch", "ledger"] = Field(
        "batch", description="Among which rows: those of the batch (what `duplicates: once` means), or also those that earlier "
        "batches with `once` bought from the same model, pinned version and all, while their files are still in place.")
    empty_seed: Literal["refuse", "share"] = Field(
        "refuse", description="Equal rows that leave the model's `seed` empty would each have come out differently: refuse the "
        "batch, or let them share one output.")


class Limits(_Part):
    """How fast, and how long."""

    per_minute: Annotated[Whole, Field(ge=1)] | None = Field(
        None, description="Predictions started per minute at most; default: as many as the account allows.")
    in_flight: Annotated[Whole, Field(ge=1, le=100_000)] = Field(
        200, description="Predictions alive at the provider at most.")
    priority: Annotated[Whole, Field(ge=0, le=9)] = Field(
        5, description="From 0 to 9: batches that wait for the same account share its rate in proportion, so 6 gets twice what 3 "
        "gets; 0 gets little beside others, and never nothing. May be changed while the batch runs.")
    cancel_after: Annotated[Duration, AfterValidator(_cancel_after)] | None = Field(
        None, description="The provider cancels a prediction this long after its creation: 90s, 10m, 1h30m. At least 5s.")


class Retry(_Part):
    """What happens to rows that fail."""

    attempts: Annotated[Whole, Field(ge=1, le=100)] = Field(
        3, description="How often a row is tried; only failures of the provider count.")
    tolerate_failed: Share = Field(
        0, description="Failed rows with which the batch still counts as done: a share such as 5%, or a number of rows. With "
        "more the batch pauses before it buys the rest; 0 stops nothing, and is judged at the end.")
    stop_after: Annotated[Whole, Field(ge=0)] = Field(
        20, description="Failed rows after which the batch pauses if not one has succeeded by then; 0: go on all the same.")
    unsure: Literal["refuse", "buy"] = Field(
        "refuse", description="A purchase whose answer was lost and cannot be cleared up: end the row as failed, or buy again "
        "(it may then be paid twice).")
    expired: Literal["refuse", "buy"] = Field(
        "refuse", description="A row that succeeded and whose outputs the provider deleted before they were fetched: end it as "
        "failed, class expired, or buy it again, once (with attempts: 1 not at all). It is paid for again.")

    def tolerated(self, total: int) -> int:
        """How many of `total` rows may fail, rounded down."""
        if isinstance(self.tolerate_failed, int):
            return self.tolerate_failed
        return int(Decimal(self.tolerate_failed.rstrip("%")) * total / 100)


class Budget(_Part):
    """Caps on money, kept at every moment."""

    usd: Money | None = Field(None, description="US dollars that the batch may cost in all.")
    job_usd: Money | None = Field(
        None, description="US dollars that all batches of this job may cost together, in one ledger and account.")
    job_per_day_usd: Money | None = Field(
        None, description="The same for what is bought on one day (UTC).")
    per_row_usd: Annotated[Money, AfterValidator(_per_row)] | None = Field(
        None, description="The most that one row can cost, where neither price book nor deadline tells.")


class JobPrice(_Part):
    """What the model costs, where the price book does not know it: one of the units. It wins over the price book."""

    hardware: Text | None = Field(None, description="Billed by the second on this hardware: gpu-l40s, gpu-h100, cpu, …")
    per_second_usd: Money | None = Field(None, description="US dollars per second of prediction time.")
    per_output_usd: Money | None = Field(None, description="US dollars per output file.")
    per_output_second_usd: Money | None = Field(None, description="US dollars per second of video that comes out.")
    per_run_usd: Money | None = Field(None, description="US dollars per prediction.")
    per_input_token_usd: Money | None = Field(None, description="US dollars per input token.")
    per_output_token_usd: Money | None = Field(None, description="US dollars per output token; with per_input_token_usd.")
    fast_booting: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="true for a fast-booting fine-tune: though private, it is billed like a public model.")

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        units = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len([name for name in units if name not in ("per_output_token_usd", "fast_booting")]) != 1:
            raise ValueError("say exactly one of hardware, per_second_usd, per_output_usd, per_output_second_usd, per_run_usd, "
                             "per_input_token_usd (the last with per_output_token_usd)")
        if "per_output_token_usd" in units and "per_input_token_usd" not in units:
            raise ValueError("per_output_token_usd goes with per_input_token_usd")
        return self


class OutputPlace(_Part):
    """Where outputs go and what they are called."""

    to: Annotated[Text, AfterValidator(_folder)] = Field(
        "out/{{ batch }}", description="A folder; names in it: batch, date. --output overrides.")
    name: Annotated[Text, AfterValidator(_file_name)] = Field(
        "{{ id }}-{{ index }}{{ ext }}",
        description="The name of each output file; names in it: id (of the row), index (of the output), row (number), batch, "
        "ext (last).")
    results: Literal["parquet", "csv", "jsonl"] = Field("parquet", description="The format of the results table.")


class Schedule(_Part):
    """When the job runs by itself, wherever a scheduler is at work."""

    cron: Annotated[Text, AfterValidator(check_cron)] = Field(
        description="Five fields: minute, hour, day of month, month, day of week. Where the clocks are changed, a time that is "
        "left out comes as much later, and one that comes twice runs once.")
    timezone: Annotated[Text, AfterValidator(check_zone)] = Field(
        "UTC", description="An IANA time zone, such as Europe/Berlin: of cron, and of {{ date }}.")
    missed: Literal["run-once", "skip"] = Field(
        "run-once", description="Slots missed while no scheduler was at work: run the newest of them, or none.")
    overlap: Literal["skip", "queue"] = Field(
        "skip", description="A slot that comes while the last one is still running: leave it out, or run it afterwards.")
    source: Annotated[Text, _dated("schedule.source")] | None = Field(
        None, description="The source of a slot, with {{ date }} in it; default: source.path.")


_DUPLICATES_SCHEMA = {"anyOf": [{"type": "string", "enum": ["buy", "once"]}, Duplicates.model_json_schema()]}
_TARGETS = ("model", "deployment", "cog", "training")


class Job(_Part):
    """What to run, on which rows, within which limits. Frozen; JSON and back is the same job."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", title="Job file of the Replicate orchestrator",
        json_schema_extra={"oneOf": [{"required": [name]} for name in _TARGETS]})

    model: Annotated[Text, AfterValidator(_model)] | None = Field(
        None, description="owner/name, owner/name:version, or a version of 64 hex digits.")
    deployment: Annotated[Text, AfterValidator(_deployment)] | None = Field(
        None, description="owner/name of a deployment, instead of a model.")
    cog: Text | None = Field(None, description="The URL of a Cog server, instead of a model.")
    training: Text | None = Field(None, description="owner/name:version to train, instead of a model.")
    destination: Text | None = Field(None, description="owner/name of the model that a training writes to.")
    source: Source
    input: dict[str, Any] | None = Field(
        None, description="Model input <- columns: prompt: \"{{ title }}, studio light\". Left out: each column feeds the input "
        "of its name. Values are typed by the model's schema.")
    duplicates: Annotated[Duplicates | None, BeforeValidator(_duplicates), WithJsonSchema(_DUPLICATES_SCHEMA)] = Field(
        None, description="Rows of equal input: buy each, or buy once and share. A batch keeps what it was begun with.",
        json_schema_extra={"default": "buy"})
    limits: Limits = Limits()
    retry: Retry = Retry()
    budget: Budget | None = None
    price: JobPrice | None = None
    output: OutputPlace = OutputPlace()
    schedule: Schedule | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        said = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(said) != 1:
            found = f"found {' and '.join(said)}" if said else "found none"
            raise ValueError(f"say exactly one of {', '.join(_TARGETS)}: {found}")
        if (self.training is None) != (self.destination is None):
            raise ValueError("training and destination go together")
        if self.training is not None:
            parse_training(self.training, destination=self.destination or "")
        return self

    def target(self) -> TargetRef:
        """What the job names. Raises ValueError with a sentence (never after validation)."""
        if self.deployment is not None:
            return parse_deployment(self.deployment)
        if self.cog is not None:
            return TargetRef("cog", self.cog, None)
        if self.training is not None:
            return parse_training(self.training, destination=self.destination or "")
        assert self.model is not None
        return parse_version_or_model(self.model)

    def target_as_written(self) -> str:
        """The target as the file has it; kinds other than `model` with their word in front."""
        word = next(name for name in _TARGETS if getattr(self, name) is not None)
        written = str(getattr(self, word))
        return written if word == "model" else f"{word}:{written}"

    def unsupported(self) -> list[str]:
        """A sentence for each feature used that this version does not run."""
        return [sentence for used, sentence in (
            (self.cog is not None, "cog: Cog servers are not supported yet"),
            (self.training is not None, "training: trainings are not supported yet"),
            (self.model is not None and self.target().kind == "version",
             "model: a version alone does not tell its model; write owner/name:version"),
            (bool(_REMOTE.match(self.source.path)),
             f"source.path: remote sources are not read yet ({self.source.path}); copy the file to a folder"),
            (bool(self.schedule and _REMOTE.match(self.schedule.source or "")),
             "schedule.source: remote sources are not read yet; name a file in a folder"),
            (bool(_REMOTE.match(self.output.to)),
             f"output.to: buckets are not written yet ({self.output.to}); name a folder"),
        ) if used]


def job_schema() -> dict[str, Any]:
    """The JSON Schema of job files, for editors: what `config/job.schema.json` holds."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}
