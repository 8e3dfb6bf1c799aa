"""Switches that make the simulated provider misbehave, by chance or for the next few times."""

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Any

# Of a create, before anything is bought.
BEFORE = ("reset_before", "close_before", "error_before", "late_creation")
# Of a create, after it was bought: the answer is lost, spoiled or slow.
AFTER = ("lost_answer", "lost_answer_reset", "error_after", "cut_answer", "garbage_answer", "slow_answer")
# Of the listing, the clock and the limiter.
AROUND = ("storm_429", "list_lag", "list_error", "get_error", "list_webhook", "next_drops_filters", "internal_names",
          "untold_counts")
# Of the prediction itself.
INSIDE = ("fail", "stuck", "sync_data_uris")
# Of a webhook on its way: not sent, sent twice, with the create still open, later; or others besides the genuine one.
WEBHOOK = ("webhook_dropped", "webhook_doubled", "webhook_early", "webhook_late", "webhook_reordered", "webhook_forged",
           "webhook_old", "webhook_two_signatures", "webhook_misaddressed")
# Of an output file being fetched.
OUTPUT = ("output_404", "output_truncated", "output_wrong_type", "output_slow", "output_error", "output_reset")
NAMES = frozenset((*BEFORE, *AFTER, *AROUND, *INSIDE, *WEBHOOK, *OUTPUT))
FIELDS = frozenset(("p", "next", "seconds", "status", "text", "body"))


@dataclass(slots=True)
class Switch:
    """One fault: struck with probability `p`, or the `next` so many times; with what it needs to know."""

    p: float = 0.0
    next: int = 0
    seconds: float = 5.0
    status: int = 500
    text: str = ""
    body: str = ""

    @property
    def on(self) -> bool:
        """Say whether the switch can strike at all."""
        return self.p > 0 or self.next > 0

    def as_json(self) -> dict[str, Any]:
        """Return the switch as the admin route shows it."""
        return {name: getattr(self, name) for name in sorted(FIELDS)}


class Faults:
    """All switches, drawn from one seeded source."""

    def __init__(self, seed: int) -> None:
        """Start with everything off."""
        self._random = Random(seed)
        self._switches: dict[str, Switch] = {}
        self._struck: Counter[str] = Counter()

    def put(self, settings: dict[str, Any]) -> None:
        """Merge switches: a number is a probability, null is off, an object names its fields.

        `{"lost_answer": {"next": 1}, "fail": 0.1, "list_lag": {"p": 1, "seconds": 5}}`. Raises ValueError on a name,
        field or value that does not exist, and then changes nothing.
        """
        made = {name: _switch(name, value) for name, value in settings.items()}
        for name, switch in made.items():
            if switch.on:
                self._switches[name] = switch
            else:
                self._switches.pop(name, None)

    @property
    def any_on(self) -> bool:
        """Say whether there is any switch to draw at all."""
        return bool(self._switches)

    def strike(self, name: str) -> Switch | None:
        """Return the switch if it strikes this time, counting down a `next`."""
        switch = self._switches.get(name)
        if switch is None or not self._hits(name, switch):
            return None
        self._struck[name] += 1
        return switch

    def _hits(self, name: str, switch: Switch) -> bool:
        if switch.next > 0:
            switch.next -= 1
            if not switch.on:
                del self._switches[name]
            return True
        return switch.p >= 1 or self._random.random() < switch.p

    def first(self, names: tuple[str, ...]) -> tuple[str, Switch] | None:
        """Return the first of `names` that strikes, with its switch."""
        if not self.any_on:
            return None
        for name in names:
            if (switch := self.strike(name)) is not None:
                return name, switch
        return None

    def standing(self, name: str) -> Switch | None:
        """Return a switch that describes a condition rather than a blow, without counting it down."""
        return self._switches.get(name)

    def struck(self) -> dict[str, int]:
        """Return how often each switch has struck so far; a condition is not counted."""
        return dict(sorted(self._struck.items()))

    def as_json(self) -> dict[str, Any]:
        """Return every switch that is on."""
        return {name: switch.as_json() for name, switch in sorted(self._switches.items())}


def _switch(name: str, value: Any) -> Switch:
    if name not in NAMES:
        raise ValueError(f"no fault switch {name!r}; there are {', '.join(sorted(NAMES))}")
    if value is None or value is False:
        return Switch()
    if value is True:
        return Switch(p=1.0)
    if isinstance(value, int | float):
        return _probable(Switch(p=float(value)), name)
    if not isinstance(value, dict) or not set(value) <= FIELDS:
        raise ValueError(f"fault switch {name!r} takes a number or an object of {', '.join(sorted(FIELDS))}")
    if value and "p" not in value and "next" not in value:
        value = {"p": 1.0, **value}
    return _probable(Switch(**value), name)


def _probable(switch: Switch, name: str) -> Switch:
    if not 0 <= switch.p <= 1 or switch.next < 0:
        raise ValueError(f"fault switch {name!r}: p lies between 0 and 1, next is 0 or more")
    return switch
