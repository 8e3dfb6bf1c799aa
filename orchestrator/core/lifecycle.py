"""The one table of states and moves. `docs/lifecycle.md` is drawn from it and a test holds the two together.

An *item* is one row with a life; an *attempt* is one try at buying it. Every fact about an attempt is an *event*; a row
of `MOVES` says from which states it may move the attempt and its item, and to which. A fact that finds its subject in
any other state changes nothing: that is how doubled, late and out-of-order facts are harmless.
"""

from dataclasses import dataclass, replace
from enum import StrEnum


class ItemState(StrEnum):
    """Where a row stands. `succeeded`, `failed` and `canceled` are ends; a `shared` row has no life of its own."""

    PENDING = "pending"  # waiting for a permit, a retry's due time, or an operator
    CLAIMED = "claimed"  # an attempt is committed; its POST may be in the air
    UNSURE = "unsure"  # the answer was lost: money may or may not have been spent
    RUNNING = "running"  # the provider has it: prediction id known
    COLLECTING = "collecting"  # succeeded there; its outputs are on their way home
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    SHARED = "shared"  # its input equals that of an earlier row of the batch: where that one stands, it stands


class AttemptState(StrEnum):
    """Where one try at buying stands."""

    OPEN = "open"  # committed before the POST
    UNSURE = "unsure"  # the POST may have bought something
    RUNNING = "running"  # answered: the prediction exists
    NOT_SENT = "not_sent"  # proven never to have reached the provider
    REFUSED = "refused"  # answered with a status that buys nothing
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    ABORTED = "aborted"  # ended by the provider before it started: not billed
    ABSENT = "absent"  # unsure once; every doubt explained: it was never created
    LOST = "lost"  # unsure for good: nobody can say whether it was bought


class Event(StrEnum):
    """What a fact can say."""

    ANSWERED = "answered"  # a prediction of this attempt exists (POST answer, echo in a list, webhook)
    NOT_SENT = "not_sent"
    THROTTLED = "throttled"  # 429: a pause for everybody, not a failure of this row
    REFUSED = "refused"  # 4xx that will not change by waiting
    HELD = "held"  # refused for a reason that concerns the account: credit or token; the row waits
    ANSWER_LOST = "answer_lost"
    SUCCEEDED = "succeeded"
    EXPIRED = "expired"  # succeeded, and what it gave is deleted already
    FAILED = "failed"
    FAILED_AGAIN = "failed_again"  # failed, and worth another attempt
    CANCELED = "canceled"
    DEADLINE = "deadline"  # canceled or aborted by the provider though nobody here asked for it
    ABSENT = "absent"
    GIVEN_UP = "given_up"
    DOUBTED = "doubted"  # given up, and the job wants it bought again
    SURFACED = "surfaced"  # given up or found absent, and there after all; the row still wants it
    SURPLUS = "surplus"  # there after all, when the row had been bought again or withdrawn
    VANISHED = "vanished"  # once answered, and for hours the provider has not known it any more
    EVICTED = "evicted"  # its prediction, adopted for its input, turned out to be another attempt's
    POISONED = "poisoned"  # absent, after its workers died again and again
    COLLECTED = "collected"
    UNCOLLECTABLE = "uncollectable"


@dataclass(frozen=True, slots=True)
class Move:
    """One row of the table: what an event does, and from where. `item_to` None: the item stays where it is."""

    event: Event
    attempt_from: frozenset[AttemptState]
    attempt_to: AttemptState
    item_from: frozenset[ItemState]
    item_to: ItemState | None
    why: str


_A, _I = AttemptState, ItemState
_IN_AIR_A = frozenset({_A.OPEN, _A.UNSURE})
_ALIVE_A = _IN_AIR_A | {_A.RUNNING}
_IN_AIR_I = frozenset({_I.CLAIMED, _I.UNSURE})
_ALIVE_I = _IN_AIR_I | {_I.RUNNING}


def _row(event: Event, attempt: tuple[frozenset[AttemptState], AttemptState],
         item: tuple[frozenset[ItemState], ItemState | None], why: str) -> Move:
    return Move(event, attempt[0], attempt[1], item[0], item[1], why)


_OPEN_A, _CLAIMED_I = frozenset({_A.OPEN}), frozenset({_I.CLAIMED})
_UNSURE_A, _UNSURE_I = frozenset({_A.UNSURE}), frozenset({_I.UNSURE})
_DONE_A, _COLLECTING_I = frozenset({_A.SUCCEEDED}), frozenset({_I.COLLECTING})
GONE_ATTEMPT = frozenset({_A.ABSENT, _A.LOST})
_RUNNING_A, _RUNNING_I = frozenset({_A.RUNNING}), frozenset({_I.RUNNING})

MOVES: tuple[Move, ...] = (
    _row(Event.ANSWERED, (_IN_AIR_A, _A.RUNNING), (_IN_AIR_I, _I.RUNNING), "the prediction's id is known"),
    # Also from unsure: an attempt is one POST, and its own answer proves what became of it, however late it is recorded.
    _row(Event.NOT_SENT, (_IN_AIR_A, _A.NOT_SENT), (_IN_AIR_I, _I.PENDING), "the connection never stood"),
    _row(Event.THROTTLED, (_IN_AIR_A, _A.REFUSED), (_IN_AIR_I, _I.PENDING), "429: everybody waits, nothing is counted"),
    _row(Event.HELD, (_IN_AIR_A, _A.REFUSED), (_IN_AIR_I, _I.PENDING), "credit or token: the batch waits for a person"),
    _row(Event.REFUSED, (_IN_AIR_A, _A.REFUSED), (_IN_AIR_I, _I.FAILED), "the provider does not take this input"),
    _row(Event.ANSWER_LOST, (_OPEN_A, _A.UNSURE), (_CLAIMED_I, _I.UNSURE), "the POST may have bought"),
    _row(Event.SUCCEEDED, (_ALIVE_A, _A.SUCCEEDED), (_ALIVE_I, _I.COLLECTING), "bring its outputs home"),
    _row(Event.EXPIRED, (_ALIVE_A, _A.SUCCEEDED), (_ALIVE_I, _I.FAILED), "succeeded, heard of too late: its outputs are gone"),
    _row(Event.FAILED, (_ALIVE_A, _A.FAILED), (_ALIVE_I, _I.FAILED), "failed, and not worth repeating"),
    _row(Event.FAILED_AGAIN, (_ALIVE_A, _A.FAILED), (_ALIVE_I, _I.PENDING), "infrastructure failure: one more attempt"),
    _row(Event.CANCELED, (_ALIVE_A, _A.CANCELED), (_ALIVE_I, _I.CANCELED), "an operator asked for it"),
    _row(Event.DEADLINE, (_ALIVE_A, _A.ABORTED), (_ALIVE_I, _I.FAILED), "the provider's deadline ended it"),
    _row(Event.ABSENT, (_UNSURE_A, _A.ABSENT), (_UNSURE_I, _I.PENDING), "every doubt explained: never bought"),
    _row(Event.GIVEN_UP, (_UNSURE_A, _A.LOST), (_UNSURE_I, _I.FAILED), "nobody can say: the honest end"),
    _row(Event.DOUBTED, (_UNSURE_A, _A.LOST), (_UNSURE_I, _I.PENDING), "nobody can say, and the job wants it bought again"),
    _row(Event.SURFACED, (GONE_ATTEMPT, _A.RUNNING), (frozenset({_I.PENDING, _I.FAILED}), _I.RUNNING),
         "it had been bought after all, and the row takes it"),
    _row(Event.SURPLUS, (GONE_ATTEMPT, _A.RUNNING), (frozenset(_I), None), "bought once more than needed: canceled at once"),
    _row(Event.VANISHED, (_RUNNING_A, _A.LOST), (_RUNNING_I, _I.FAILED), "the provider no longer knows the prediction"),
    _row(Event.EVICTED, (_RUNNING_A, _A.UNSURE), (_RUNNING_I, _I.UNSURE), "its prediction is another attempt's: in doubt again"),
    _row(Event.POISONED, (_UNSURE_A, _A.ABSENT), (_UNSURE_I, _I.FAILED), "never bought, and the row ended its worker every time"),
    _row(Event.COLLECTED, (_DONE_A, _A.SUCCEEDED), (_COLLECTING_I, _I.SUCCEEDED), "outputs are home and hashed"),
    _row(Event.UNCOLLECTABLE, (_DONE_A, _A.SUCCEEDED), (_COLLECTING_I, _I.FAILED), "outputs expired or unusable"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """A move of an item that no fact causes: a claim before its POST, or an operator's verb."""

    name: str
    item_from: frozenset[ItemState]
    item_to: ItemState
    why: str


CLAIM = Step("claim", frozenset({_I.PENDING}), _I.CLAIMED, "an attempt is committed, before its POST")
WITHDRAW = Step("withdraw", frozenset({_I.PENDING}), _I.CANCELED, "`cancel`: never bought")
REOPEN = Step("reopen", frozenset({_I.CANCELED}), _I.PENDING, "`resume` of a canceled batch")
RETRY = Step("retry", frozenset({_I.FAILED}), _I.PENDING, "`retry`: an operator wants it tried again")
REFETCH = Step("refetch", frozenset({_I.FAILED}), _I.COLLECTING, "`retry`: bought and still kept there, so only fetched again")
REJOIN = Step("rejoin", frozenset({_I.FAILED}), _I.RUNNING, "`retry`: given up, and out at the provider after all")
STEPS = (CLAIM, WITHDRAW, REOPEN, RETRY, REFETCH, REJOIN)

BY_EVENT: dict[Event, Move] = {move.event: move for move in MOVES}
FINAL_ITEM = frozenset({ItemState.SUCCEEDED, ItemState.FAILED, ItemState.CANCELED})
IN_AIR_ITEM = frozenset({ItemState.CLAIMED, ItemState.UNSURE, ItemState.RUNNING})
ALIVE_ATTEMPT = _ALIVE_A


def advance(event: Event, *, attempt: AttemptState, item: ItemState) -> Move | None:
    """The move this event makes from these states, or None: the fact is late, doubled or already known."""
    move = BY_EVENT[event]
    if attempt in move.attempt_from and item in move.item_from:
        return move
    return None


def alone(event: Event, *, attempt: AttemptState) -> Move | None:
    """The same for an attempt whose item goes on without it: the prediction is paid for, so its end is recorded; or None."""
    move = BY_EVENT[event]
    return replace(move, item_from=frozenset(ItemState), item_to=None) if attempt in move.attempt_from else None


class BatchState(StrEnum):
    """Where a batch stands."""

    LOADING = "loading"  # rows are being read and checked; nothing may be bought yet
    RUNNING = "running"
    PAUSED = "paused"  # nothing new is bought; what is out is still brought home
    CANCELING = "canceling"  # nothing new is bought; what is out is being canceled at the provider
    CANCELED = "canceled"
    FINISHED = "finished"


LIVE_BATCH = frozenset(BatchState) - {BatchState.CANCELED, BatchState.FINISHED}
