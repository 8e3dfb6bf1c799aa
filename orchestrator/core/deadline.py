"""A deadline (`limits.cancel_after`) for rows whose cost nothing else bounds, from how long such rows took before. Pure."""

from orchestrator.core.history import History

SHORTEST_S = 30.0
TIMES_THE_SLOWEST = 3  # what is slower than this is stuck rather than slow
SLOWEST = 0.99
_READABLE_S = (30, 45, 60, 90, *(60 * minutes for minutes in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 45)))
_HOUR_S = 3600


def proposed_s(past: History | None) -> float | None:
    """Seconds well above the slowest of what succeeded, rounded up to what one writes; None where nothing is known of it."""
    slowest_s = None if past is None else past.took_s(SLOWEST)
    if slowest_s is None:
        return None
    least_s = max(SHORTEST_S, TIMES_THE_SLOWEST * slowest_s)
    hours = -(-least_s // _HOUR_S)
    return float(next((seconds for seconds in _READABLE_S if seconds >= least_s), hours * _HOUR_S))


def duration_text(seconds: float) -> str:
    """As a job file has it: `90s`, `10m`, `2h`."""
    for size, unit in ((_HOUR_S, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"
