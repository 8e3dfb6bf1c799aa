"""Rows of equal input: found while they are read, and what holds where two runs of a batch say different things of them. Pure."""

from array import array

from orchestrator.core.job import Duplicates

_FREE = 2**32 - 1  # of a slot: no row


class Equals:
    """Which rows equal an earlier one, by the first eight bytes of their input's hash; 14 to 20 bytes a row.

    Ten million different inputs have two that look alike in one file of 370,000."""

    def __init__(self) -> None:
        self._hashes = array("Q")  # by row
        self._slots = array("I", [_FREE]) * 1024  # of the row that was the first of its hash; a power of two of them
        self._taken = 0

    def add(self, row: int, input_hash: str) -> int | None:
        """Note a row, with a number greater than all before; the first of the earlier rows that it equals."""
        if 3 * self._taken >= 2 * len(self._slots):
            self._grow()
        key = int(input_hash[:16], 16)
        self._hashes.extend([0] * (row - len(self._hashes)))  # rows between that had no input
        self._hashes.append(key)
        slot = self._slot(key)
        earlier = self._slots[slot]
        if earlier != _FREE:
            return earlier
        self._slots[slot] = row
        self._taken += 1
        return None

    def _slot(self, key: int) -> int:
        """Where the first row of this hash is noted, or would be."""
        last = len(self._slots) - 1
        slot = key & last
        while (row := self._slots[slot]) != _FREE and self._hashes[row] != key:
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        rows, self._slots = self._slots, array("I", [_FREE]) * (2 * len(self._slots))
        for row in rows:
            if row != _FREE:
                self._slots[self._slot(self._hashes[row])] = row


def held(begun: Duplicates | None, now: Duplicates | None) -> Duplicates | None:
    """What holds for a batch that was begun with the one when its job says the other by now: its rows are in the ledger as they
    were begun. Only the consent to share in spite of an empty seed may still be given."""
    if begun is None or now is None:
        return begun
    return begun.model_copy(update={"empty_seed": now.empty_seed})


def said_otherwise(begun: Duplicates | None, now: Duplicates | None) -> str | None:
    """A sentence where a job asks for something that its batch was not begun with."""
    was, is_now = _word(begun), _word(now)
    if was == is_now:
        return None
    return f"this batch was begun with `duplicates: {was}` and stays so; --fresh begins one with `duplicates: {is_now}`"


def _word(duplicates: Duplicates | None) -> str:
    if duplicates is None:
        return "buy"
    return "once" if duplicates.once == "batch" else "{ once: ledger }"
