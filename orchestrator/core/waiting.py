"""Why a batch waits, in words: the kind of reason first, then what is behind it. The ledger keeps one sentence for all."""

import errno
import re
from collections.abc import Sequence
from datetime import datetime

from orchestrator.core.caps import BUDGET, is_spent
from orchestrator.core.pacing import LIMIT_REASON, PROVIDER_DOWN
from orchestrator.core.permits import Budget, Grant

BACKOFF = "backoff"
DOWNLOADS = "downloads"
IN_FLIGHT = "in flight"
LOW_CREDIT = "low credit"
LOW_CREDIT_PER_MINUTE = 6  # Replicate docs, rate limits
OUTAGE = "cannot"
CANNOT_WRITE = f"{OUTAGE} write to "
# What every batch waits for that has more rows than may go at once: no news, and nothing to be done.
USUAL = (LIMIT_REASON, IN_FLIGHT)

LAST_ROWS = f"{BUDGET}: the last rows that there is money for"
TRIED_AGAIN = f"{BACKOFF}: rows wait for their next try, after failures"
THROTTLED = f"{BACKOFF}: throttled by the provider (429)"
NO_PERMIT_LEFT = f"{BACKOFF}: the provider has no permit left"
TOO_SLOW = ("this machine is too slow: purchases are not sent within a second of their permits (it is busy, or its line is "
            "slow), so one at a time is tried; give it less to do")
CREDIT_IS_LOW = (f"{LOW_CREDIT}: the provider takes 6 predictions per minute until the account has more credit or a payment "
                 "method (https://replicate.com/account/billing)")


def in_short(trouble: str) -> str:
    """What went wrong, on one line: a proxy in between answers with a page."""
    text = " ".join(_TAG.sub(" ", trouble).split())
    return text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"


_KIND = re.compile(r": | until ")
_TAG = re.compile(r"<[^<>]{0,200}>")
LONGEST = 160
_END = re.compile(r"until (\d\d):(\d\d):(\d\d) UTC")
CLOCKS_APART_S = 2
SHARED = ", shared with other batches by priority"
SLOWER = 0.8  # of the rate: above, it is only the end of a burst


def is_usual(reason: str | None) -> bool:
    """Whether a reason is no news."""
    return reason is None or reason.startswith(USUAL)


def is_outage(reason: str) -> bool:
    """Whether nothing can be bought before something is there again: what `--patience` is for."""
    return reason.startswith((OUTAGE, PROVIDER_DOWN))


def until(reason: str, at: datetime) -> str:
    """A pause with its end, where that is the end: `backoff until 12:03:10 UTC: throttled by the provider (429)`. Nobody knows
    when an outage will be over, or low credit."""
    kind, _, rest = reason.partition(": ")
    return f"{kind} until {at:%H:%M:%S} UTC: {rest}" if kind in (BACKOFF, PROVIDER_DOWN) else reason


def kind_of(reason: str | None) -> str | None:
    """The kind of a reason: what stands before the particulars, and before a time."""
    return None if reason is None else _KIND.split(reason, maxsplit=1)[0]


def is_same(one: str | None, other: str | None) -> bool:
    """Whether two sentences say the same: the end of one pause, by several clocks, may differ by a second or two."""
    if one is None or other is None or one == other:
        return one == other
    ends_s = _end_s(one), _end_s(other)
    is_one_pause = _END.sub("", one) == _END.sub("", other) and None not in ends_s
    return is_one_pause and abs((ends_s[0] or 0) - (ends_s[1] or 0)) <= CLOCKS_APART_S


def _end_s(sentence: str) -> int | None:
    found = _END.search(sentence)
    return None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3])


def limited(grant: Grant, budgets: Sequence[Budget]) -> str | None:
    """What holds a batch back whose permits come late or one after the other; None: nothing.

    `budgets`: the account's, the batch's own, and the model's where it has one."""
    if grant.is_low_credit:
        return CREDIT_IS_LOW
    if grant.count and not grant.first_in_s and not grant.every_s:
        return None
    own, whose = min(((budget.per_minute, whose) for budget, whose in zip(
        budgets, ("", ", this batch", ", this model"), strict=False) if budget.per_minute > 0), default=(0.0, ""))
    if 0 < grant.per_minute < SLOWER * (own or float("inf")):
        of = f" than {own:,.0f} per minute" if own else ""
        return (f"{LIMIT_REASON}: slower{of}, as the provider has few permits left (somebody else uses the account, or its limit "
                "is lower than creates_per_minute in the settings)")
    return f"{LIMIT_REASON}: {own:,.0f} per minute{whose or SHARED * grant.is_shared}" if own else None


def behind(late_s: float, part: float) -> str:
    """Downloads wait for so long that this part of the rate is left to buy at."""
    minutes = max(1, round(late_s / 60))
    return (f"{DOWNLOADS}: {minutes:,} {'minute' if minutes == 1 else 'minutes'} behind; buying "
            f"{'slows down' if part else 'waits'} until they catch up")


def cannot_write(folder: str, error: OSError) -> str:
    """Files cannot be stored, with the folder and what to do."""
    remedy = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see that it can be written to"
    return f"{CANNOT_WRITE}{folder}: {error.strerror or error}; buying waits: {remedy}, and it goes on by itself"


def is_of_storage(reason: str | None) -> bool:
    """Whether files cannot be stored."""
    return (reason or "").startswith(CANNOT_WRITE)


def in_words(reason: str | None, *, batch: int, model: int | None) -> str | None:
    """What the ledger says holds rows back (`core.ports.Claimable`), as a sentence; None: there is no row to hold back.

    `batch`, `model`: predictions that may be in flight."""
    if reason is None or reason in ("none due", "not running"):
        return None
    if is_spent(reason):
        return LAST_ROWS
    if not reason.startswith(IN_FLIGHT):
        return reason
    whose, most = ("model", model or 0) if reason.endswith("model") else ("batch", batch)
    return f"{IN_FLIGHT}: {most:,} predictions are out, the most for this {whose}"
