"""Every waiting time and size that the stations work with, in one value that tests can scale down."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

_Limit = Annotated[int, Field(ge=1, strict=True)]


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What one model, or deployment, is given of the account, by all batches together; None: as much as there is."""

    per_minute: _Limit | None = None  # creates
    in_flight: _Limit | None = None  # predictions alive


_UNLIMITED = ModelLimits()


@dataclass(frozen=True, slots=True)
class Tempo:
    """Rates per minute, durations in seconds, sizes in items. The defaults are the ones meant for Replicate."""

    creates_per_minute: float = 600.0  # Replicate docs: rate limits, create predictions
    create_burst: int = 10  # permits usable at once after idling; the provider tolerates short bursts
    reads_per_minute: float = 3000.0  # Replicate docs: rate limits, all other endpoints

    slice_s: float = 20.0  # a station's task ends after so long and is sent again: a worker stays steerable
    hold_s: float = 40.0  # a message not seen to act for so long counts as lost and is sent again
    idle_s: float = 2.0  # a station without work looks again after this
    tick_s: float = 0.25

    submit_lanes: int = 2
    submit_concurrency: int = 100  # POSTs in the air per task
    submit_chunk: int = 100  # items per claim
    permit_life_s: float = 1.0  # a permit not used within this lapses: a late POST would break the rate
    request_timeout_s: float = 30.0
    lease_margin_s: float = 120.0  # a lease outlives the last possible write of its POST by this
    record_every_s: float = 0.25  # a kill between two of these leaves at most so many unsure rows

    sweep_min_s: float = 2.0
    sweep_webhooks_s: float = 15.0  # between two looks while webhooks tell everything; one that finds news returns to sweep_min_s
    kept_webhook_s: float = 5.0  # a webhook ahead of its attempt's own answer waits so long before a GET asks
    straggler_min_s: float = 60.0  # younger than this, a prediction is looked for in the list only
    straggler_gets: int = 20  # single GETs per sweep

    unsure_margin_s: float = 120.0  # after the end of our request, the last moment at which it may still be created
    unsure_confirm_s: float = 30.0  # absence is looked at twice, so far apart
    unsure_no_canary_s: float = 300.0  # without a later prediction of ours in the list, absence waits this long
    unsure_give_up_s: float = 600.0  # still in doubt after this: failed, class unsure

    collect_lanes: int = 2
    collect_concurrency: int = 24
    collect_chunk: int = 100
    collect_lease_s: float = 180.0
    retention_s: float = 3600.0  # Replicate docs: data retention of API predictions, one hour
    retry_first_s: float = 2.0  # first pause before another attempt at a row; doubles, at most ten minutes
    slots_s: float = 5.0  # between two looks at what is scheduled
    beat_s: float = 5.0  # a role says so often that it is at work
    alive_s: float = 16.0  # a role not seen for so long has gone: three beats and a little
    outage_pause_s: float = 5.0  # nobody submits for so long after the provider could not be reached

    models: tuple[tuple[str, ModelLimits], ...] = ()  # by `owner/name`; pairs, as this value can be hashed

    def of_model(self, name: str) -> ModelLimits:
        """The limits of the model or deployment that is called `owner/name`; without any where none are set."""
        return next((limits for of, limits in self.models if of == name), _UNLIMITED)
