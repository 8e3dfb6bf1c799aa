"""Whose is this prediction? The logic by which a lost answer is adopted, bought again, or given up. Pure.

Adopting needs positive evidence: the webhook URL carries the attempt's id, or target and canonical input are equal,
nobody else owns the prediction, and there are candidates enough for every sent and unanswered attempt of that input.
Buying again needs every doubt explained, in a complete listing that already shows something of ours created later. What was
found absent or given up is looked for on, as it may turn up after all.
"""

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

from orchestrator.core.callback import attempt_of
from orchestrator.core.ports import OpenAttempt
from orchestrator.core.records import Prediction
from orchestrator.core.tempo import Tempo


@dataclass(frozen=True, slots=True)
class Listing:
    """What a window of the provider's list shows that belongs to no attempt of ours. Times are the provider's."""

    predictions: Sequence[Prediction]
    complete: bool  # read down to the window's lower edge without a gap
    canary_at: datetime | None  # when the newest one in it that is ours was created
    unasked: frozenset[str] = frozenset()  # whose webhooks nobody knows yet: doubts, and no candidates


class Bound(NamedTuple):
    """A prediction found to be an attempt's, and by what: `url`, our id in its webhook's URL, or `input`, an equal one."""

    attempt_id: str
    prediction: Prediction
    by: str


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What is to be done with the unsure attempts; whoever is in none of the lists waits."""

    adopt: list["Bound"] = field(default_factory=list)
    absent_once: list[str] = field(default_factory=list)  # look again after the confirmation time
    absent: list[str] = field(default_factory=list)
    give_up: list[str] = field(default_factory=list)
    contested: list[str] = field(default_factory=list)  # gone; what is there may be theirs, or that of an equal row in the air


def resolve(attempts: Sequence[OpenAttempt], listing: Listing, *, now: datetime, offset_s: float | None, tempo: Tempo,
            hash_of: Callable[[dict[str, Any]], str], alive_targets: dict[str, tuple[str | None, str | None]]) -> Verdicts:
    """Judge every attempt of `attempts` that is unsure against the listing, and look for those that are absent or lost.

    `now` is this machine's time and `offset_s` the provider's clock minus it. An attempt's own times are those of the machine
    that made it, and its own offset says what they are by the provider's clock: machines differ, and clocks are set right.

    `hash_of` gives an input's canonical hash; `alive_targets` maps a target key to the (model, version) that answered
    attempts of it were echoed, as the echo of a target need not equal what was asked for.
    """
    free = listing.predictions
    unsure, gone = [a for a in attempts if a.state == "unsure"], [a for a in attempts if a.state in GONE]
    named = _named(unsure + gone, free)
    known = {bound.attempt_id for bound in named}
    waiting = [a for a in attempts if a.attempt_id not in known and a.state not in GONE]
    fits = _Fits([p for p in free if p.id not in listing.unasked], hash_of=hash_of, echoes=alive_targets, tempo=tempo)
    verdicts = Verdicts(adopt=named + _adopt(waiting, fits))
    settled = {bound.attempt_id for bound in verdicts.adopt}
    missed = [a for a in gone if a.attempt_id not in known]
    _turned_up(missed, fits, wanted=waiting, now=now, offset_s=offset_s, tempo=tempo, verdicts=verdicts)
    taken = {bound.prediction.id for bound in verdicts.adopt}
    left = [a for a in unsure if a.attempt_id not in settled]
    doubted = _Suspects(left, tempo=tempo).of_all([p for p in free if p.id not in taken])
    for attempt in left:
        _judge_absence(attempt, listing, is_doubted=attempt.attempt_id in doubted, now=now, offset_s=offset_s, tempo=tempo,
                       verdicts=verdicts)
    return verdicts


GONE = frozenset({"absent", "lost"})


def _named(waiting: Iterable[OpenAttempt], free: Iterable[Prediction]) -> list[Bound]:
    """The best evidence: the prediction's webhook URL carries the attempt's id, where the list echoes it."""
    by_attempt = {attempt_id: p for p in free if (attempt_id := attempt_of(p.webhook)) is not None}
    return [Bound(i, by_attempt[i], "url") for i in sorted({a.attempt_id for a in waiting} & by_attempt.keys())]


def doubts(attempts: Sequence[OpenAttempt], listing: Listing, *, tempo: Tempo) -> list[Prediction]:
    """Predictions of nobody that could be one of the attempts', oldest first. The list does not show where their webhooks went;
    a GET may, and so say whose each is."""
    suspects = _Suspects([a for a in attempts if a.state != "open"], tempo=tempo)
    unexplained = [p for p in listing.predictions if p.webhook is None and suspects.any_of(p)]
    return sorted(unexplained, key=lambda p: (p.created_at is None, p.created_at, p.id))


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


_Group = tuple[str, frozenset[str], str]  # target, secret inputs, hash of the rest of the input


class _Fits:
    """Predictions that nobody owns, by the groups of attempts that they could belong to; those given away are remembered."""

    def __init__(self, free: Iterable[Prediction], *, hash_of: Callable[[dict[str, Any]], str],
                 echoes: Mapping[str, tuple[str | None, str | None]], tempo: Tempo) -> None:
        self._hash_of, self._echoes, self._tempo = hash_of, echoes, tempo
        self._legible = [p for p in free if p.input and not p.data_removed and p.webhook is None]
        self._by_input: dict[frozenset[str], dict[str, list[Prediction]]] = {}
        self.taken: set[str] = set()

    def groups(self, attempts: Iterable[OpenAttempt]) -> dict[_Group, list[OpenAttempt]]:
        """Attempts that no input tells apart, oldest first."""
        grouped: dict[_Group, list[OpenAttempt]] = defaultdict(list)
        for attempt in sorted(attempts, key=lambda a: (a.created_at, a.attempt_id)):
            grouped[attempt.target_key, attempt.secrets, _shown_hash(attempt, self._hash_of)].append(attempt)
        return grouped

    def pairs(self, group: _Group, attempts: Iterable[OpenAttempt], *,
              until: datetime | None = None) -> list[tuple[OpenAttempt, Prediction]]:
        """Each attempt, oldest first, with the oldest prediction that fits, is not taken, and was created while the attempt could
        create (`until`: provider's time, and before that)."""
        target_key, secrets, shown_hash = group
        left = sorted((p for p in self._shown(secrets).get(shown_hash, ()) if p.id not in self.taken
                       and _same_target(p, target_key, self._echoes.get(target_key))
                       and (until is None or (p.created_at is not None and p.created_at < until))), key=_by_age, reverse=True)
        pairs: list[tuple[OpenAttempt, Prediction]] = []
        for attempt in attempts:
            window = _window(attempt, tempo=self._tempo)
            while left and left[-1].created_at is not None and left[-1].created_at < window[0]:
                left.pop()  # too old for this attempt, and for all that were made later
            if left and _is_within(left[-1], window):
                pairs.append((attempt, left.pop()))
        return pairs

    def _shown(self, secrets: frozenset[str]) -> dict[str, list[Prediction]]:
        if secrets not in self._by_input:
            by_hash = self._by_input[secrets] = defaultdict(list)
            for prediction in self._legible:
                by_hash[self._hash_of(_shown(prediction.input or {}, secrets))].append(prediction)
        return self._by_input[secrets]


def _adopt(attempts: Sequence[OpenAttempt], fits: _Fits) -> list[Bound]:
    """A match set, not a pair: with fewer predictions than attempts nobody could say to which of these each belongs."""
    adopted: list[Bound] = []
    for group, waiting in fits.groups(attempts).items():
        pairs = fits.pairs(group, waiting)
        if len(pairs) < len(waiting):
            continue
        for attempt, prediction in pairs:
            if attempt.state == "unsure":
                adopted.append(Bound(attempt.attempt_id, prediction, "input"))
                fits.taken.add(prediction.id)
    return adopted


def _turned_up(gone: Sequence[OpenAttempt], fits: _Fits, *, wanted: Sequence[OpenAttempt], now: datetime,
               offset_s: float | None, tempo: Tempo, verdicts: Verdicts) -> None:
    """Predictions of attempts that were found absent or given up.

    Stricter than adopting, for what is left over is canceled: it must not have been created in the time of anybody with this
    input who waits, the provider's clock must be known, and it be too old to be one whose answer is just on its way."""
    if offset_s is None:
        return
    until = now + timedelta(seconds=offset_s - tempo.request_timeout_s - tempo.unsure_margin_s)
    rivals = fits.groups(wanted)
    for group, attempts in fits.groups(gone).items():
        windows = [_window(rival, tempo=tempo) for rival in rivals.get(group, ())]
        for attempt, prediction in fits.pairs(group, attempts, until=until):
            if any(_is_within(prediction, window) for window in windows):
                verdicts.contested.append(attempt.attempt_id)
                continue
            verdicts.adopt.append(Bound(attempt.attempt_id, prediction, "input"))
            fits.taken.add(prediction.id)


CLOCKS_DIFFER_S = 60.0  # grace between the provider's clock and ours, once the known difference is taken off


_Window = tuple[datetime, datetime | None]
_NEVER = datetime.max.replace(tzinfo=UTC)


def _window(attempt: OpenAttempt, *, tempo: Tempo) -> _Window:
    """Provider's time in which the attempt can have created something; with an unknown clock from fifteen minutes before it was
    made, and without an end. What is outside is not its own: a colleague's run of the same input half an hour later was."""
    if attempt.offset_s is None:
        return attempt.created_at - timedelta(seconds=900), None
    there = timedelta(seconds=attempt.offset_s)
    grace = timedelta(seconds=CLOCKS_DIFFER_S)
    return attempt.created_at + there - grace, last_moment(attempt, tempo=tempo) + there + grace


def _is_within(prediction: Prediction, window: _Window) -> bool:
    at, (since, until) = prediction.created_at, window
    return at is None or (since <= at and (until is None or at <= until))


def _by_age(prediction: Prediction) -> tuple[bool, float, str]:
    at = prediction.created_at
    return at is None, at.timestamp() if at is not None else 0.0, prediction.id


def _same_target(prediction: Prediction, target_key: str, echo: tuple[str | None, str | None] | None) -> bool:
    """Equal to what answered attempts of this target were given; without any, to what the target itself says."""
    if echo is not None:
        return (prediction.model, prediction.version) == echo
    _, _, rest = target_key.partition("/")
    name, _, version = rest.partition(":")
    return prediction.model == name and (not version or prediction.version == version)


def last_moment(attempt: OpenAttempt, *, tempo: Tempo) -> datetime:
    """Our clock: after this the POST can no longer create anything."""
    ended = attempt.sent_until_at or attempt.created_at + timedelta(
        seconds=0.5 + tempo.permit_life_s + tempo.request_timeout_s)
    return ended + timedelta(seconds=tempo.unsure_margin_s)


def _judge_absence(attempt: OpenAttempt, listing: Listing, *, is_doubted: bool, now: datetime, offset_s: float | None,
                   tempo: Tempo, verdicts: Verdicts) -> None:
    """By a complete listing only. Time alone gives nobody up: a program that was away for a quarter of an hour, or a provider,
    has not looked once; so without a listing an attempt waits, as long as what it bought could be fetched."""
    last, is_confirmed = last_moment(attempt, tempo=tempo), attempt.next_check_at is not None and now >= attempt.next_check_at
    knows_clock = offset_s is not None and attempt.offset_s is not None
    if knows_clock:
        now, last = now + timedelta(seconds=offset_s or 0.0), last + timedelta(seconds=attempt.offset_s or 0.0)
    if listing.complete and knows_clock and now > last and not is_doubted:
        has_canary = listing.canary_at is not None and listing.canary_at > last
        if not has_canary and now <= last + timedelta(seconds=tempo.unsure_no_canary_s):
            return
        if attempt.next_check_at is None:
            verdicts.absent_once.append(attempt.attempt_id)
        elif is_confirmed:
            verdicts.absent.append(attempt.attempt_id)
    elif now > last + timedelta(seconds=tempo.unsure_give_up_s if listing.complete else tempo.retention_s):
        verdicts.give_up.append(attempt.attempt_id)


class _Suspects:
    """Which attempts an unowned prediction could be of: nothing explains it away.

    Explained is only a prediction from outside an attempt's time, one that carries a webhook (another attempt's or somebody
    else's: with this attempt's id it would have been adopted), and one that differs in a plain value which we sent and which is
    no secret. An input that was removed, in whatever words, explains nothing.

    Attempts are found by the plain values that they sent, each looked at once: pair by pair, ten thousand attempts and as many
    predictions took minutes, in the loop that also hears the answers of POSTs."""

    def __init__(self, attempts: Iterable[OpenAttempt], *, tempo: Tempo) -> None:
        self._windows = {attempt.attempt_id: _window(attempt, tempo=tempo) for attempt in attempts}
        spans = sorted((since, until or _NEVER) for since, until in self._windows.values())
        self._since = [since for since, _ in spans]
        self._until = list(accumulate((until for _, until in spans), max))  # the latest end of those that began by then
        self._tables: dict[tuple[str, ...], dict[tuple[object, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
        for attempt in attempts:
            sent = _plain(_shown(json.loads(attempt.input_json), attempt.secrets))
            self._tables[tuple(sent)][tuple(sent.values())].append(attempt.attempt_id)

    def of(self, prediction: Prediction) -> list[str]:
        """The attempts that it could be of."""
        if prediction.webhook is not None:
            named = attempt_of(prediction.webhook)
            return [named] if named in self._windows and named is not None else []
        if _is_illegible(prediction):
            return [i for i, window in self._windows.items() if _is_within(prediction, window)]
        seen = prediction.input or {}
        alike = (i for names, table in self._tables.items() for i in table.get(tuple(_value(seen.get(n)) for n in names), ()))
        return [i for i in alike if _is_within(prediction, self._windows[i])]

    def any_of(self, prediction: Prediction) -> bool:
        """Whether there is one."""
        if prediction.webhook is not None or not _is_illegible(prediction):
            return bool(self.of(prediction))
        if prediction.created_at is None:
            return bool(self._windows)
        before = bisect_right(self._since, prediction.created_at)
        return before > 0 and prediction.created_at <= self._until[before - 1]

    def of_all(self, predictions: Iterable[Prediction]) -> set[str]:
        """The attempts that any of these could be of."""
        illegible: list[Prediction] = []
        doubted: set[str] = set()
        for prediction in predictions:
            if prediction.webhook is None and _is_illegible(prediction):
                illegible.append(prediction)
            else:
                doubted.update(self.of(prediction))
        times = sorted(p.created_at for p in illegible if p.created_at is not None)
        is_anywhen = len(times) < len(illegible)
        for attempt_id, (since, until) in self._windows.items():
            later = bisect_left(times, since)
            if is_anywhen or (later < len(times) and (until is None or times[later] <= until)):
                doubted.add(attempt_id)
        return doubted


def _is_illegible(prediction: Prediction) -> bool:
    return prediction.data_removed or not prediction.input


def _plain(sent: Mapping[str, Any]) -> dict[str, object]:
    """The values that come back as they were sent, in the order of their names. Files may be rewritten by the provider."""
    return {name: _value(value) for name, value in sorted(sent.items())
            if isinstance(value, str | int | float | bool) and not str(value).startswith(("http://", "https://", "data:"))}


def _value(value: Any) -> object:
    """Comparable as JSON is meant: 7 is 7.0, and neither is true."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, int | float):  # an integer of others may be more than a float can hold
        return float(value) if abs(value) < 2**64 else value
    return value if isinstance(value, str) else None
