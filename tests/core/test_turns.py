from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.core.pacing import HORIZON_S, MICROSECONDS, Bucket, Rate
from orchestrator.core.permits import Budget, Flow, flow_of
from orchestrator.core.turns import GRACE_US, KEPT_US, UNIT, Turn, reserve_in_turn
from orchestrator.gateways.testing import HandClock, MemoryLimiter
from tests.core.market import Market, Provider, Worker, now

HORIZON_US = int(HORIZON_S * MICROSECONDS)
GRACE_S = GRACE_US / MICROSECONDS
SECONDS = {60: 600, 600: 120, 30_000: 20}  # enough permits to tell a share from chance


def market(per_minute: float, *, burst: int = 10, seed: int = 1) -> Market:
    """A provider that lets everything in and says nothing, so that only turns and the budget count."""
    return Market(Provider(1e9, 1e9, says=False), Budget("creates:a", per_minute, burst), delay=lambda dice: 0.01, seed=seed)


def shares(per_minute: int, *workers: Worker, burst: int = 10, warm_s: float = 2.0) -> dict[str, float]:
    """What each flow gets of the rate, once all are there."""
    play = market(per_minute, burst=burst)
    start_s = play.now_s
    play.join(*workers)
    play.run(SECONDS[per_minute])
    return play.shares(start_s + warm_s, play.now_s)


def a_to(weights: list[int], **each: object) -> list[Worker]:
    """One lane a flow: a, b, c with these weights."""
    return [replace(Worker(Flow(name, weight)), **each) for name, weight in zip("abc", weights, strict=False)]  # type: ignore[arg-type]


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("per_minute", [60, 600, 30_000])
@pytest.mark.parametrize("weights", [[50, 50], [60, 30], [90, 10], [50, 30, 20]])
def test_shares_are_weights(per_minute: int, burst: int, weights: list[int]) -> None:
    """Flows that always want get the whole rate, each in proportion to its weight: within 3 % of it, or two permits."""
    got = shares(per_minute, *a_to(weights), burst=burst)
    few = 2 / (per_minute * SECONDS[per_minute] / 60)
    for worker in a_to(weights):
        fair = worker.flow.weight / sum(weights)
        assert got[worker.flow.key] == pytest.approx(fair, rel=0.03, abs=few)
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("per_minute", [60, 600, 30_000])
def test_nobody_gains_by_asking_more_often(per_minute: int) -> None:
    """One lane with chunks of a hundred against eight lanes with chunks of five: half and half, of the whole rate."""
    lanes = [Worker(Flow("b", 50), chunk=5) for _ in range(8)]
    got = shares(per_minute, Worker(Flow("a", 50)), *lanes)
    assert got["a"] == pytest.approx(0.5, rel=0.03)
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("chunk", [1, 2, 3, 30])
def test_small_chunks_get_their_share(chunk: int) -> None:
    """Who asks for a few at a time gets as much as who asks for a hundred."""
    got = shares(600, Worker(Flow("a", 50), chunk=chunk), Worker(Flow("b", 50)))
    assert got["a"] == pytest.approx(0.5, rel=0.03)
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("per_minute", [600, 30_000])
def test_many_lanes_of_one_flow(per_minute: int) -> None:
    """Four lanes of one batch share that batch's part, also where the other has twice the weight and a single lane."""
    lanes = [Worker(Flow("b", 30)) for _ in range(4)]
    got = shares(per_minute, Worker(Flow("a", 60)), *lanes)
    assert got["a"] == pytest.approx(2 / 3, rel=0.03)
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("per_minute", [60, 600, 30_000])
def test_a_tenth_of_the_least_is_not_nothing(per_minute: int) -> None:
    """Priority 0 beside priority 9 gets a ninety-first, or half of that where it comes to a few permits only."""
    got = shares(per_minute, Worker(flow_of("a", priority=9)), Worker(flow_of("b", priority=0)))
    assert 0.5 / 91 <= got["b"] <= 1.5 / 91
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("per_minute", [600, 30_000])
def test_changed_weight_shows_at_once(per_minute: int) -> None:
    """Two equal flows, one of which becomes nine times the other: from the next second on the shares are the new ones."""
    play, changed = market(per_minute), Worker(Flow("a", 10))
    play.join(changed, Worker(Flow("b", 10)))
    play.run(20)
    at_s = play.now_s
    changed.flow = Flow("a", 90)
    play.run(20)
    assert play.shares(at_s + 1, at_s + 6)["a"] == pytest.approx(0.9, abs=0.03)
    assert play.shares(at_s - 10, at_s)["a"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("per_minute", [600, 30_000])
def test_who_wants_less_gets_all_of_it(per_minute: int) -> None:
    """A flow that wants a fifth of the rate gets it beside one that wants everything, which gets the rest."""
    play, modest = market(per_minute), Worker(Flow("a", 50), rows=0)
    play.join(modest, Worker(Flow("b", 50)))
    play.feed(modest, per_minute=per_minute / 5, seconds=40)
    start_s = play.now_s
    play.run(40)
    got = play.shares(start_s + 2, play.now_s)
    assert got["a"] == pytest.approx(0.2, rel=0.03)
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("per_minute", [600, 30_000])
def test_own_budget_leaves_the_rest_to_the_others(per_minute: int, burst: int) -> None:
    """A flow with the larger weight, held to a tenth of the rate by a budget of its own, gets that tenth and costs the others
    nothing. It needs a burst of as much as half a second gives, as it takes its permits in one go."""
    own = Budget("batch:a", per_minute / 10, int(per_minute / 10 * HORIZON_S / 60) + 2)
    got = shares(per_minute, Worker(Flow("a", 90), own=[own]), Worker(Flow("b", 10)), burst=burst)
    assert got["a"] == pytest.approx(0.1, rel=0.05)
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("per_minute", [600, 30_000])
def test_own_budget_without_a_burst_costs_the_others_nothing(per_minute: int) -> None:
    """Single permits at a slower pace of its own: it may get less than its limit, and the sum is the rate all the same."""
    own = Budget("batch:a", per_minute / 10, 1)
    got = shares(per_minute, Worker(Flow("a", 90), own=[own]), Worker(Flow("b", 10)))
    assert sum(got.values()) >= 0.98
    assert 0.005 <= got["a"] <= 0.105


@pytest.mark.parametrize("beside", [0, 1])
@pytest.mark.parametrize("part", [0.1, 0.3, 0.6])
def test_batches_of_one_model_both_get_on(part: float, beside: int) -> None:
    """Two batches held by the same model's budget, alone and beside a third: turns are taken for the account only, so it is
    not by weight, but neither starves, and the model's rate is used."""
    per_minute = 600 * part
    own = [Budget("model:x", per_minute, int(per_minute * HORIZON_S / 60) + 2)]
    got = shares(600, Worker(Flow("a", 50), own=own), Worker(Flow("b", 50), own=own), *[Worker(Flow("c", 50))] * beside)
    model = got["a"] + got["b"]
    assert min(got["a"], got["b"]) >= 0.25 * model
    assert model >= 0.9 * part


def test_own_pause_leaves_the_rest_to_the_others() -> None:
    """A flow whose own budget is paused waits for that, and nobody waits for it."""
    play, own = market(600), Budget("batch:a", 300, 1)
    play.join(Worker(Flow("a", 90), own=[own]), Worker(Flow("b", 10)))
    play.run(10)
    now(play.limiter.pause("batch:a", seconds=30, reason="disk full"))
    at_s = play.now_s
    play.run(30)
    assert play.shares(at_s + 1, at_s + 29)["b"] >= 0.98


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("per_minute", [60, 600, 30_000])
def test_single_permits_do_not_hold_others_up(per_minute: int, burst: int) -> None:
    """A flow bound by what is in flight asks for a permit whenever a prediction ends: the rate is used all the same."""
    bound = Worker(Flow("a", 90), in_flight=2, takes_s=120 / per_minute * 4)
    got = shares(per_minute, bound, Worker(Flow("b", 10)), burst=burst)
    assert got["a"] > 0
    assert sum(got.values()) >= 0.98


@pytest.mark.parametrize("burst", [1, 10])
@pytest.mark.parametrize("per_minute", [60, 600, 30_000])
def test_the_dead_hold_up_nobody_for_long(per_minute: int, burst: int) -> None:
    """Flows that die once a second, being next or with permits in hand: what they reserved is lost, and hardly more than it."""
    play, seconds = market(per_minute, burst=burst), 20
    play.join(Worker(Flow("b", 10)))
    for n in range(seconds):
        doomed = Worker(Flow(f"a{n}", 90), chunk=1 + n % 3)
        play.join(doomed, after_s=n)
        play.at(play.now_s + n + 0.11, lambda doomed=doomed: setattr(doomed, "gone", True))  # type: ignore[misc]
    start_s = play.now_s
    play.run(seconds)
    used = sum(start_s + 2 <= at_s < start_s + seconds for at_s in play.permits)
    assert used >= 0.98 * per_minute * (seconds - 2) / 60 - 1


@pytest.mark.parametrize("per_minute", [60, 600, 30_000])
@pytest.mark.parametrize("priority", [5, 9])
def test_newcomer_is_served_within_a_second(per_minute: int, priority: int) -> None:
    """Ten rows behind a batch that has had the budget for long: the first permit comes within a second (or, at one a
    second, two), whatever was spent before."""
    play, new = market(per_minute), Worker(flow_of("new", priority=5), rows=10)
    play.join(*[Worker(flow_of("old", priority=priority)) for _ in range(2)])
    play.run(min(1800, 600 * 600 / per_minute))
    at_s = play.now_s
    play.join(new)
    play.run(30)
    first_s = min(one.at_s for one in play.sent if one.flow == "new")
    assert first_s - at_s <= 1.1 + 60 / per_minute * (1 + priority / 5)


def test_who_first_asks_in_a_pause_has_no_credit() -> None:
    """A flow that comes while all are paused starts where the old one is, not at nothing: the old one would wait an hour."""
    play = market(600)
    play.join(Worker(Flow("old", 50)))
    play.run(600)
    now(play.limiter.pause("creates:a", seconds=5, reason="429"))
    play.run(1)
    play.join(Worker(Flow("new", 50)))
    play.run(4)
    at_s = play.now_s
    play.run(20)
    assert play.shares(at_s + 2, at_s + 20)["old"] == pytest.approx(0.5, rel=0.06)


def test_clock_set_back_holds_nobody_up() -> None:
    """Turns noted in an hour that is now to come are forgotten: nobody waits for who is expected in an hour."""
    clock = HandClock()
    clock.advance(10_000)
    limiter, budget = MemoryLimiter(clock), [Budget("a", 600, 1)]
    for key in ("a", "b", "a", "b"):
        now(limiter.reserve(budget, count=100, flow=Flow(key, 50)))
        clock.advance(0.3)
    clock.advance(-3600)
    clock.advance((told := now(limiter.reserve(budget, count=100, flow=Flow("b", 50)))).first_in_s)
    assert told.first_in_s <= 1.0
    assert now(limiter.reserve(budget, count=100, flow=Flow("b", 50))).count


def test_a_feast_is_forgiven() -> None:
    """A flow that had the budget to itself for long, always getting all it asked for, shares it at once with one that comes
    in a moment when nobody waits, and starts at nothing."""
    clock = HandClock()
    clock.advance(1000)
    limiter, budget = MemoryLimiter(clock), [Budget("a", 600, 10)]
    for _ in range(2000):
        now(limiter.reserve(budget, count=5, flow=Flow("old", 50)))
        clock.advance(0.5)
    got, back_s = Counter[str](), {"new": clock.boottime(), "old": clock.boottime() + 0.01}
    end_s = clock.boottime() + 10
    while clock.boottime() < end_s:
        key = min(back_s, key=lambda key: back_s[key])
        clock.advance(max(0.001, back_s[key] - clock.boottime()))
        grant = now(limiter.reserve(budget, count=100, flow=Flow(key, 50)))
        got[key] += grant.count
        back_s[key] = clock.boottime() + grant.first_in_s + max(0, grant.count - 1) * grant.every_s
    assert got["old"] >= 40


def in_turn(turns: dict[str, Turn], flow: Flow, *, now_us: int, count: int, tat_us: int) -> Turn:
    """Where a flow stands after it asked, at ten a second and no burst."""
    bucket = Bucket(tat_us, pace_us=100_000)
    return reserve_in_turn([Rate(100_000, 1)], [bucket], turns, flow, count=count, now_us=now_us,
                           horizon_us=HORIZON_US).turns[flow.key]


def test_the_other_lanes_of_a_flow_still_wait() -> None:
    """A lane that gets all it asked for does not make forget the lanes of the same flow that were told to come back."""
    at_us = 1000 * MICROSECONDS
    waiting = {"a": Turn(0, at_us + 100_000, at_us + 200_000, 50, at_us - 1)}
    assert in_turn(waiting, Flow("a", 50), now_us=at_us, count=1, tat_us=at_us).last_us == at_us + 200_000
    assert in_turn(waiting, Flow("a", 50), now_us=at_us + 150_000, count=1, tat_us=at_us).last_us == at_us + 200_000
    assert in_turn(waiting, Flow("a", 50), now_us=at_us + 200_000, count=1, tat_us=at_us).last_us == 0


def test_turns_of_a_time_to_come_are_dropped() -> None:
    """What was noted before the clock was set back counts for nothing: no share is kept for it, no place."""
    at_us = 1000 * MICROSECONDS
    later = {"a": Turn(0, 2 * at_us, 2 * at_us, 90, 2 * at_us)}
    assert in_turn(later, Flow("b", 10), now_us=at_us, count=100, tat_us=at_us).spent == 6 * UNIT // 10


def test_gone_flows_are_forgotten() -> None:
    """What is remembered of batches does not grow with every batch that ever was."""
    turns: dict[str, Turn] = {}
    bucket = Bucket(0)
    for n in range(500):
        shared = reserve_in_turn([Rate(100_000, 10)], [bucket], turns, Flow(f"batch {n}", 50), count=3,
                                 now_us=10**9 + n * MICROSECONDS, horizon_us=HORIZON_US)
        (bucket,), turns = shared.reservation.buckets, shared.turns
    assert len(turns) <= KEPT_US // MICROSECONDS + 2


others = st.lists(st.tuples(
    st.one_of(st.floats(0, 0.02), st.floats(0, 0.1), st.floats(0, 0.7)),  # seconds that pass
    st.sampled_from("abcd"),
    st.sampled_from([1, 10, 50, 90]),
    st.sampled_from([1, 2, 7, 100]),
    st.booleans(),  # has more
), min_size=1, max_size=30)


def longest_wait_s(per_minute: float, *, mine: int, others: int, flows: int) -> float:
    """The bound for whoever comes back when told. Before it go only flows that wait and have spent less. By its weight it is
    ahead of them by a horizon at most, which the others' weights take so many horizons to make up; each of them may once be
    late and be waited for; and what one was granted last lies up to a horizon ahead."""
    step_s = HORIZON_S + 60 / per_minute
    return (2 + others / mine) * step_s + (1 + flows) * (GRACE_S + step_s)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([60, 600, 30_000]), st.sampled_from([1, 10]), st.sampled_from([1, 10, 50, 90]), st.integers(1, 60), others)
@example(600, 1, 1, 1, [(0.0, "a", 90, 100, True), (0.1, "b", 90, 1, False)])
def test_nothing_starves(per_minute: int, burst: int, weight: int, wanted: int,
                         script: list[tuple[float, str, int, int, bool]]) -> None:
    """Who comes back when told gets a permit within the bound, again and again, whatever four others do: ask and never come
    back, come late, come all the time, change their weights."""
    clock = HandClock()
    clock.advance(1000)
    limiter, budget, got = MemoryLimiter(clock), [Budget("creates", per_minute, burst)], Counter[str]()
    heaviest = {key: max(heft for _, other, heft, _, _ in script if other == key) for _, key, *_ in script}
    bound_s = longest_wait_s(per_minute, mine=weight, others=sum(heaviest.values()), flows=len(heaviest))
    mine_s = since_s = clock.boottime()
    other_s, step = mine_s, 0
    while got["me"] < 4 and step < 5000:
        if other_s <= mine_s:
            passed, key, heft, count, has_more = script[step % len(script)]
            clock.advance(max(0.0, other_s - clock.boottime()))
            now(limiter.reserve(budget, count=count, flow=Flow(key, heft, has_more)))
            other_s, step = other_s + max(0.001, passed), step + 1
            continue
        clock.advance(max(0.0, mine_s - clock.boottime()))
        grant = now(limiter.reserve(budget, count=wanted, flow=Flow("me", weight)))
        mine_s = clock.boottime() + max(0.001, grant.first_in_s)
        if grant.count:
            got["me"] += 1
            since_s = clock.boottime()
        assert clock.boottime() - since_s <= bound_s
    assert got["me"] or step == 5000
