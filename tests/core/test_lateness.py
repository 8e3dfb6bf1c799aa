"""When a machine is too slow to buy, and how it finds out that it no longer is."""

from orchestrator.core.lateness import ENOUGH, LONGEST_PAUSE_S, Lateness


def test_a_moment_is_not_enough():
    """A laptop that wakes up has missed all that was out, at once; what is made after it counts anew."""
    late = Lateness()
    for _ in range(100):
        late.note_missed(50.0)
    assert not late.is_slow and not late.wait_s(50.0)
    late.note_in_time()
    late.note_missed(60.0)
    assert not late.is_slow


def test_pauses_grow_and_end_with_one_in_time():
    """One at a time between pauses of up to a minute, for as long as it takes."""
    late, now_s, waits = Lateness(), 0.0, []
    for n in range(ENOUGH):
        late.note_missed(float(n))
    now_s = ENOUGH - 1.0
    for _ in range(6):
        waits.append(late.wait_s(now_s))
        now_s += waits[-1]
        late.note_missed(now_s)
    assert waits == [5.0, 10.0, 20.0, 40.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S] and late.is_slow
    late.note_in_time()
    assert not late.is_slow and not late.wait_s(now_s)
