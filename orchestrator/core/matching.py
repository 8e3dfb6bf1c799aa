"""Whose is this prediction? The logic by which a lost answer is adopted, bought again, or given up. Pure.

Adopting needs positive evidence: the webhook URL carries the attempt's id, or target and canonical input are equal,
nobody else owns the prediction, and there are candidates enough for every sent and unanswered attempt of that input.
Buying again needs every doubt explained, in a complete listing that already shows something of ours created later.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orchestrator.core.callback import attempt_of
from orchestrator.core.ports import OpenAttempt
from orchestrator.core.records import Prediction
from orchestrator.core.tempo import Tempo


@dataclass(frozen=True, slots=True)
class Listing:
    """A window of the provider's list, in the provider's time, and what our ledger says of it."""

    predictions: Sequence[Prediction]
    owned: frozenset[str]  # ids that belong to an attempt of ours
    complete: bool  # read down to the window's lower edge without a gap


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What is to be done with the unsure attempts; whoever is in none of the lists waits."""

    adopt: list[tuple[str, Prediction]] = field(default_factory=list)
    absent_once: list[str] = field(default_factory=list)  # look again after the confirmation time
    absent: list[str] = field(default_factory=list)
    give_up: list[str] = field(default_factory=list)


def resolve(attempts: Sequence[OpenAttempt], listing: Listing, *, now: datetime, offset_s: float | None, tempo: Tempo,
            hash_of: Callable[[dict[str, Any]], str], alive_targets: dict[str, tuple[str | None, str | None]]) -> Verdicts:
    """Judge every attempt of `attempts` in state unsure against the listing.

    `now` is this machine's time and `offset_s` the provider's clock minus it. An attempt's own times are those of the machine
    that made it, and its own offset says what they are by the provider's clock: machines differ, and clocks are set right.

    `hash_of` gives an input's canonical hash; `alive_targets` maps a target key to the (model, version) that answered
    attempts of it were echoed, as the echo of a target need not equal what was asked for.
    """
    free = [p for p in listing.predictions if p.id not in listing.owned]
    unsure = [a for a in attempts if a.state == "unsure"]
    named = _named(unsure, free)
    known = {attempt_id for attempt_id, _ in named}
    adopted = named + _adopt([a for a in attempts if a.attempt_id not in known], free, hash_of=hash_of,
                             alive_targets=alive_targets)
    verdicts = Verdicts(adopt=adopted)
    settled = {attempt_id for attempt_id, _ in adopted}
    taken = {p.id for _, p in adopted}
    rest = [p for p in free if p.id not in taken]
    for attempt in unsure:
        if attempt.attempt_id not in settled:
            _judge_absence(attempt, rest, listing, now=now, offset_s=offset_s, tempo=tempo, verdicts=verdicts)
    return verdicts


def _named(unsure: Iterable[OpenAttempt], free: Iterable[Prediction]) -> list[tuple[str, Prediction]]:
    """The best evidence: the prediction's webhook URL carries the attempt's id, where the list echoes it."""
    waiting = {attempt.attempt_id for attempt in unsure}
    by_attempt = {attempt_id: p for p in free if (attempt_id := attempt_of(p.webhook)) is not None}
    return [(attempt_id, by_attempt[attempt_id]) for attempt_id in sorted(waiting & by_attempt.keys())]


def is_of(prediction: Prediction, attempt: OpenAttempt, *, hash_of: Callable[[dict[str, Any]], str]) -> bool:
    """Whether a prediction that a genuine webhook ascribes to an attempt is really that attempt's.

    The signature does not cover the URL, so the provider's own account decides: the webhook it echoes, else the input."""
    if prediction.webhook is not None:
        return attempt_of(prediction.webhook) == attempt.attempt_id
    if not prediction.input or prediction.data_removed:
        return False
    return hash_of(_shown(prediction.input, attempt.secrets)) == _shown_hash(attempt, hash_of)


def _shown(values: dict[str, Any], secrets: frozenset[str]) -> dict[str, Any]:
    """An input as the provider shows it: what is secret comes back in other words, so it is left out on both sides."""
    return {name: value for name, value in values.items() if name not in secrets} if secrets else values


def _shown_hash(attempt: OpenAttempt, hash_of: Callable[[dict[str, Any]], str]) -> str:
    if not attempt.secrets:
        return attempt.input_hash
    return hash_of(_shown(json.loads(attempt.input_json), attempt.secrets))


def _adopt(attempts: Sequence[OpenAttempt], free: Iterable[Prediction], *, hash_of: Callable[[dict[str, Any]], str],
           alive_targets: dict[str, tuple[str | None, str | None]]) -> list[tuple[str, Prediction]]:
    waiting: dict[tuple[str, frozenset[str], str], list[OpenAttempt]] = defaultdict(list)
    for attempt in attempts:
        waiting[(attempt.target_key, attempt.secrets, _shown_hash(attempt, hash_of))].append(attempt)
    legible = [p for p in free if p.input and not p.data_removed and p.webhook is None]
    by_input: dict[tuple[frozenset[str], str], list[Prediction]] = defaultdict(list)
    for secrets in {attempt.secrets for attempt in attempts}:
        for prediction in legible:
            by_input[secrets, hash_of(_shown(prediction.input or {}, secrets))].append(prediction)
    adopted: list[tuple[str, Prediction]] = []
    used: set[str] = set()
    for (target_key, secrets, shown_hash), group in waiting.items():
        echo = alive_targets.get(target_key)
        fits = [p for p in by_input.get((secrets, shown_hash), ()) if p.id not in used
                and _same_target(p, target_key, echo) and _after(p, group)]
        if len(fits) < len(group):
            continue  # a match set, not a pair: which of the group each belongs to could not be said
        oldest_first = sorted(fits, key=lambda p: (p.created_at is None, p.created_at, p.id))
        for attempt, prediction in zip(sorted(group, key=lambda a: a.created_at), oldest_first, strict=False):
            if attempt.state == "unsure":
                adopted.append((attempt.attempt_id, prediction))
                used.add(prediction.id)
    return adopted


def _same_target(prediction: Prediction, target_key: str, echo: tuple[str | None, str | None] | None) -> bool:
    """Equal to what answered attempts of this target were given; without any, to what the target itself says."""
    if echo is not None:
        return (prediction.model, prediction.version) == echo
    _, _, rest = target_key.partition("/")
    name, _, version = rest.partition(":")
    return prediction.model == name and (not version or prediction.version == version)


def _after(prediction: Prediction, group: Sequence[OpenAttempt]) -> bool:
    """Not created long before the first attempt of its group: five minutes of grace for clocks."""
    first = min(a.created_at for a in group)
    return prediction.created_at is None or prediction.created_at > first - timedelta(minutes=15)


def last_moment(attempt: OpenAttempt, *, tempo: Tempo) -> datetime:
    """Our clock: after this the POST can no longer create anything."""
    ended = attempt.sent_until_at or attempt.created_at + timedelta(
        seconds=0.5 + tempo.permit_life_s + tempo.request_timeout_s)
    return ended + timedelta(seconds=tempo.unsure_margin_s)


def _judge_absence(attempt: OpenAttempt, rest: Sequence[Prediction], listing: Listing, *, now: datetime,
                   offset_s: float | None, tempo: Tempo, verdicts: Verdicts) -> None:
    last, is_confirmed = last_moment(attempt, tempo=tempo), attempt.next_check_at is not None and now >= attempt.next_check_at
    if offset_s is not None and attempt.offset_s is not None:
        now, last = now + timedelta(seconds=offset_s), last + timedelta(seconds=attempt.offset_s)
    if now > last + timedelta(seconds=tempo.unsure_give_up_s):
        verdicts.give_up.append(attempt.attempt_id)
        return
    if offset_s is None or attempt.offset_s is None or not listing.complete or now <= last:
        return
    if any(_could_be(p, attempt) for p in rest):
        return
    canary = any(p.id in listing.owned and p.created_at is not None and p.created_at > last for p in listing.predictions)
    if not canary and now <= last + timedelta(seconds=tempo.unsure_no_canary_s):
        return
    if attempt.next_check_at is None:
        verdicts.absent_once.append(attempt.attempt_id)
    elif is_confirmed:
        verdicts.absent.append(attempt.attempt_id)


def _could_be(prediction: Prediction, attempt: OpenAttempt) -> bool:
    """Whether this unowned prediction could be the attempt's: nothing explains it away.

    Explained is only a prediction that carries a webhook (another attempt's or somebody else's: with this attempt's id it
    would have been adopted), or that differs in a plain value which we sent and which is no secret. An input that was
    removed, in whatever words, explains nothing.
    """
    if prediction.webhook is not None:
        return attempt_of(prediction.webhook) == attempt.attempt_id
    if prediction.data_removed or not prediction.input:
        return True
    return not _differs(prediction.input, _shown(json.loads(attempt.input_json), attempt.secrets))


def _differs(seen: dict[str, Any], sent: dict[str, Any]) -> bool:
    return any(isinstance(value, str | int | float | bool) and _is_file_free(value) and not _equal(seen.get(name), value)
               for name, value in sent.items())


def _is_file_free(value: object) -> bool:
    """File inputs may be rewritten by the provider: they explain nothing."""
    return not (isinstance(value, str) and value.startswith(("http://", "https://", "data:")))


def _equal(seen: object, sent: object) -> bool:
    if isinstance(seen, bool) or isinstance(sent, bool):
        return seen is sent
    if isinstance(seen, int | float) and isinstance(sent, int | float):
        return float(seen) == float(sent)
    return seen == sent
