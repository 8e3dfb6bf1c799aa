"""Rows that end whoever holds them: how deaths are counted, and when a row is set aside.

A lease that ran out without a word means that its holder died; a row whose content is at fault would do so for ever. One death
says little, for a worker that is killed takes a hundred innocent rows with it. So after two in a row such rows are handled one at
a time, and only one whose turn ends in a third death is set aside.
"""

from orchestrator.core.lifecycle import AttemptState, Event
from orchestrator.core.records import Fact, Standing

SUSPECT = 2  # deaths in a row after which at most one of such rows is in hand at a time
MOST_ABSENT = 10  # purchases in a row that came to nothing, and nobody heard why
POISON = 3  # deaths in a row after which a row is set aside
VIA_LEASE = "lease"  # how a fact was learned that is nobody's word but a lease that ran out
CLASS = "poison"
NEVER_TAKEN = (f"the provider was asked {MOST_ABSENT} times, never gave an answer that can be read, and never made a prediction; "
               "`orchestrator retry --class infrastructure` asks again")
_SAYS_NOTHING = frozenset({Event.NOT_SENT, Event.ABSENT, Event.GIVEN_UP, Event.DOUBTED, Event.POISONED})


def reason(doing: str) -> str:
    """What a row is set aside with; `doing`: sent, fetched."""
    return (f"the worker ended {POISON} times in a row while this row was being {doing}, so it is set aside; if the worker had "
            f"another reason to end (killed, out of memory), `orchestrator retry --class {CLASS}` tries the row again")


def deaths_after(standing: Standing, fact: Fact) -> int | None:
    """The item's new count of deaths in a row, or None where the fact says nothing about it."""
    deaths = standing.deaths
    if fact.event is Event.NOT_SENT and standing.attempt_state is AttemptState.UNSURE:
        return max(0, deaths - 1)  # its lease had run out, and its holder lives
    if fact.event is Event.ANSWER_LOST and fact.via == VIA_LEASE:
        return deaths + 1
    return 0 if deaths and fact.event not in _SAYS_NOTHING else None


def set_aside(standing: Standing, fact: Fact) -> Fact:
    """A row that was proven not to be bought is bought again, but not for ever. One that may have been bought stays `unsure`:
    what a plain `retry` buys again must not have been paid already."""
    if fact.event is Event.ABSENT and standing.absences + 1 >= MOST_ABSENT:
        return fact._replace(event=Event.POISONED, error=NEVER_TAKEN, error_class="infrastructure")
    if fact.event is not Event.ABSENT or standing.deaths < POISON:
        return fact
    return fact._replace(event=Event.POISONED, error=reason("sent"), error_class=CLASS)
