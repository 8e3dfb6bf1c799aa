"""The nearest right name, for messages about a wrong one."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """` (did you mean 'prompt'?)`, or nothing where no name is near."""
    by_folded: dict[str, str] = {name.casefold(): name for name in names}
    found = get_close_matches(wrong.casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean {by_folded[found[0]]!r}?)" if found else ""


def listed(names: Iterable[object], *, most: int = 20) -> str:
    """`a, b, c`, cut after `most` with the number of those left out."""
    texts = [str(name) for name in names]
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")
