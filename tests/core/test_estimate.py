"""What a batch is expected to cost: by its price, its schema, and what such rows came to before; never a guess."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.asked import Amount, AskedRows, Told, asked_of, mean_rate
from orchestrator.core.bounds import most_outputs
from orchestrator.core.cost import Price, Pricing, Rate, Tier
from orchestrator.core.deadline import duration_text, proposed_s
from orchestrator.core.estimate import TRY_FIRST, Estimate, Terms, estimate
from orchestrator.core.history import PastAttempt, history_of
from orchestrator.core.inputs import InputSchema, plan_inputs
from orchestrator.core.job import Job

D = Decimal
SECOND = Price("s", "second", D("0.001"))
OUTPUT = Price("o", "output", D("0.003"), failed="unknown")
TOKEN = Price("t", "token", D("0.01"), D("0.10"), failed="unknown")
RUN = Price("r", "run", D("0.0001"), failed="unknown")
FILM = Price("f", "output second", D("0.05"), failed="unknown")


NOT_TOLD = Amount()
ONE = Amount(D(1), D(1), D(1))


def terms(price: Price | None, asked: Amount = NOT_TOLD, *, worst: str | None = None) -> Terms:
    """By the price's own rate."""
    return Terms(price, None if price is None else price.rate, asked, None if worst is None else D(worst))


def ran(item: int, seconds: str | None = None, *, status: str = "succeeded", **values: Any) -> PastAttempt:
    """An attempt of a row that ran for so many seconds."""
    return PastAttempt(item, status, seconds=None if seconds is None else D(seconds), **values)


def usd(found: Estimate) -> tuple[str | None, ...]:
    """Low, expected and high of one row, as text."""
    return tuple(None if figure.usd is None else format(figure.usd.normalize(), "f")
                 for figure in (found.low, found.expected, found.high))


def schema(inputs: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with these inputs."""
    return {"components": {"schemas": {"Input": {"properties": inputs}, "Output": output}}}


MANY = schema({"n_images": {"type": "integer"}, "num_outputs": {"type": "integer", "default": 2, "minimum": 1, "maximum": 4},
               "duration": {"type": "integer", "default": 6, "enum": [4, 6, 8]}}, {"type": "array", "items": {"type": "string"}})


URI = {"type": "string", "format": "uri"}
FILES = {"type": "array", "items": URI}


def asked(price: Price, document: dict[str, Any], *, most: int = 4, more: dict[str, Any] | None = None,
          **given: Any) -> Amount:
    """What a job with these inputs asks for."""
    job = Job.model_validate({"model": "a/b", "source": {"path": "rows.csv"}, "input": given} | (more or {}))
    plan = plan_inputs(given, columns=["c"], schema=InputSchema.from_openapi(document))
    return asked_of(job, Pricing(price, most), schema=document, plan=plan)


@pytest.mark.parametrize("price,given,amount", [
    (RUN, {}, (1, 1, 1)),
    (SECOND, {}, (None, None, None)),
    (TOKEN, {}, (None, None, None)),
    (OUTPUT, {}, (2, 2, 2)),  # nothing feeds it: the model's default holds for every row
    (OUTPUT, {"num_outputs": 3}, (3, 3, 3)),
    (OUTPUT, {"num_outputs": "{{ c }}"}, (1, 2, 4)),  # a cell may be empty, or say four
    (FILM, {}, (12, 12, 12)),
    (FILM, {"num_outputs": "{{ c }}", "duration": 8}, (8, 16, 32)),
    (FILM, {"num_outputs": 1, "duration": "{{ c }}"}, (4, 6, 8)),
])
def test_what_a_row_asks_for(price: Price, given: dict[str, Any], amount: tuple[int | None, ...]):
    """The fewest, the usual and the most units, as far as constants, defaults and bounds tell."""
    found = asked(price, MANY, **given)
    assert (found.least, found.usual, found.most) == amount
    assert found.fixed == (amount[0] if amount[0] == amount[2] else None)


def test_what_no_schema_bounds():
    """One file is one; of a list of which nothing is said nobody knows; a deadline bounds seconds; bounds may contradict."""
    assert asked(OUTPUT, schema({}, {"type": "string"})) == Amount(D(1), D(1), D(1))
    assert asked(OUTPUT, schema({}, {"type": "array"})) == asked(OUTPUT, schema({}, FILES)) == Amount()
    assert asked(OUTPUT, schema({}, FILES | {"maxItems": 3})) == Amount(None, None, D(3))
    assert asked(OUTPUT, schema({}, {"type": "object", "properties": {"a": URI, "b": URI}})) == Amount(None, None, D(2))
    assert asked(SECOND, MANY, more={"limits": {"cancel_after": "90s"}}) == Amount(most=D(90))
    odd = schema({"n": {"type": "integer", "default": 9, "minimum": 2, "maximum": 4}}, FILES)
    assert asked(OUTPUT, odd, n="{{ c }}") == Amount(D(2), D(9), D(9))
    assert most_outputs(odd) == 9  # of a cell that is empty
    endless = schema({"n": {"type": "integer", "default": 2, "minimum": 1}}, FILES)
    assert asked(OUTPUT, endless, n="{{ c }}") == Amount(D(1), D(2), None)
    two = schema({"n": {"type": "integer", "default": 1}, "num_outputs": {"type": "integer", "default": 4}}, FILES)
    assert asked(OUTPUT, two) == Amount(D(1), None, D(4))  # which of them counts nobody knows


@pytest.mark.parametrize("price,amount,worst,figures", [
    (RUN, Amount(D(1), D(1), D(1)), "0.0001", ("0.0001", "0.0001", "0.0001")),
    (OUTPUT, Amount(D(1), D(2), D(4)), "0.012", ("0.003", "0.006", "0.012")),
    (OUTPUT, Amount(D(2), D(2), D(2)), "0.012", ("0.006", "0.006", "0.006")),
    (SECOND, Amount(), None, (None, None, None)),
    (SECOND, Amount(most=D(60)), "0.06", (None, None, "0.06")),
    (TOKEN, Amount(), "0.5", (None, None, "0.5")),  # budget.per_row_usd says
    (None, Amount(), None, (None, None, None)),
    (None, Amount(), "0.5", (None, None, "0.5")),
])
def test_without_a_past(price: Price | None, amount: Amount, worst: str | None, figures: tuple[str | None, ...]):
    """By the price and the schema alone; what they do not tell is not known, and says what would make it so."""
    found = estimate(terms(price, amount, worst=worst), None, rows=1000)
    assert usd(found) == figures
    assert found.in_all(found.expected.usd) == (None if figures[1] is None else D(figures[1]) * 1000)
    if figures[1] is None:
        assert found.expected.how == "no price is known" if price is None else found.expected.how.endswith(TRY_FIRST)


def test_seconds_by_the_past():
    """Mean, cheapest and dearest tenth of the seconds used then, at the price of today; failed runs are free, and count."""
    past = history_of([ran(n, str(seconds)) for n, seconds in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 10))]
                      + [ran(n, "9", status="failed") for n in range(10, 12)])
    found = estimate(terms(SECOND), past, rows=100)
    assert found.expected.usd == (D("0.055") / 12).quantize(D("1e-12"))
    assert found.low.usd == (D("0.001") * 10 / 12).quantize(D("1e-12"))
    assert found.high.usd == D("0.010")
    assert found.expected.how == "the mean of 12 rows bought before"
    dearer = estimate(terms(Price("s", "second", D("0.002"))), past, rows=100)
    assert dearer.high.usd == D("0.020")


def test_what_is_known_is_not_capped_by_what_the_job_says():
    """`per_row_usd` far too low changes no figure of the past or of exact units, and is said; a deadline ends runs of then."""
    past = history_of([ran(n, unit="output", quantity=D(1)) for n in range(40)])
    for found in [estimate(terms(OUTPUT, ONE, worst="0.0001"), known, rows=40) for known in (past, None)]:
        assert (found.in_all(found.expected.usd), found.above_worst_usd) == (D("0.12"), D("0.003"))
    open_end = estimate(terms(OUTPUT, Amount(D(1), D(2)), worst="0.0001"), None, rows=1)
    assert (usd(open_end), open_end.above_worst_usd) == (("0.003", "0.006", None), D("0.006"))
    ended = estimate(terms(SECOND, Amount(most=D(5)), worst="0.005"), history_of([ran(1, "3"), ran(2, "9")]), rows=1)
    assert (usd(ended), ended.above_worst_usd) == (("0.003", "0.004", "0.005"), None)


def test_a_row_is_all_its_attempts():
    """Of a deployment failed runs are billed; two attempts of one row are one row's cost."""
    own = Price("d", "second", D(1), failed="billed", is_estimate=True)
    past = history_of([ran(1, "2"), ran(1, "3", status="failed"), ran(2, "4")])
    assert usd(estimate(terms(own), past, rows=1)) == ("4", "4.5", "5")
    assert past is not None and (past.rows, past.attempts_per_row, past.failed_share) == (2, 1.5, 0.0)


def test_outputs_and_tokens_by_the_past():
    """What was counted then; where it was counted in another unit, files at home are counted for a price per file."""
    counted = [ran(n, unit="output", quantity=D(n)) for n in (1, 2, 3)]
    assert usd(estimate(terms(OUTPUT), history_of(counted), rows=1)) == ("0.003", "0.006", "0.009")
    files = [ran(n, "5", files=n) for n in (1, 2, 3)]
    assert usd(estimate(terms(OUTPUT), history_of(files), rows=1)) == ("0.003", "0.006", "0.009")
    spoken = [ran(n, unit="token", quantity=D(10), quantity_out=D(n)) for n in (1, 2, 3)]
    assert usd(estimate(terms(TOKEN), history_of(spoken), rows=1)) == ("0.2", "0.3", "0.4")
    assert usd(estimate(terms(FILM), history_of(spoken), rows=1)) == (None, None, None)


def test_a_number_that_is_fixed_is_not_taken_from_the_past():
    """Four pictures a row were bought, one is asked for now: only how many rows failed is learned."""
    past = history_of([ran(n, unit="output", quantity=D(4)) for n in range(3)] + [ran(9, status="aborted")])
    found = estimate(terms(OUTPUT, Amount(D(1), D(1), D(1)), worst="0.003"), past, rows=1)
    assert usd(found) == ("0.00225", "0.00225", "0.003")


def test_films_last_about_as_long_as_was_asked_for():
    """What is asked for counts, before any was bought and after longer and shorter ones were; where no length is asked for, what
    came then does."""
    asked = Amount(D(4), D(4), D(4))
    before = estimate(terms(FILM, asked), None, rows=1)
    assert (usd(before), before.expected.how) == (("0.2", "0.2", "0.2"), "by the price: 4 output seconds a row, as asked for")
    came = history_of([ran(n, unit="output second", quantity=D(seconds)) for n, seconds in enumerate(("3.5", "3.9", "10.0"))])
    after = estimate(terms(FILM, asked, worst="0.2"), came, rows=1)
    assert (usd(after), after.above_worst_usd) == (("0.2", "0.2", "0.2"), None)
    assert after.expected.how == "as asked for, and as 3 rows bought before ended"
    assert usd(estimate(terms(FILM), came, rows=1)) == ("0.175", "0.29", "0.5")


def told(price: Price, rows: list[dict[str, Any]], document: dict[str, Any] = MANY, **given: Any) -> Told:
    """What rows of a job with these inputs ask for."""
    job = Job.model_validate({"model": "a/b", "source": {"path": "rows.csv"}, "input": given})
    plan = plan_inputs(given, columns=["c", "d"], schema=InputSchema.from_openapi(document))
    asked_rows = AskedRows.of(job, Pricing(price, 4), schema=document, plan=plan)
    assert asked_rows is not None
    for row in rows:
        asked_rows.add(row)
    return asked_rows.told()


N, SECONDS = {"num_outputs": "{{ c }}"}, {"duration": "{{ d }}"}
TIERED = Price("t", "output second", D("0.10"), tiers=(Tier((("duration", ("8",)),), Rate(D("0.05"))),), failed="unknown")


@pytest.mark.parametrize("price,given,rows,usd_in_all", [
    (OUTPUT, N, [{"num_outputs": 4}] * 3, "0.036"),
    (OUTPUT, N, [{"num_outputs": 4}, {"num_outputs": 1}, {}], "0.021"),  # an empty cell leaves it to the default of two
    (FILM, N | SECONDS, [{"num_outputs": 1, "duration": 8}, {"num_outputs": 2, "duration": 4}], "0.8"),
    (FILM, N | {"duration": 8}, [{"num_outputs": 1, "duration": 8}] * 7, "2.8"),
    (TIERED, SECONDS | {"num_outputs": 1}, [{"num_outputs": 1, "duration": 8}, {"num_outputs": 1, "duration": 4}, {}], "1.4"),
])
def test_rows_that_say_how_much_they_ask_for(price: Price, given: dict[str, Any], rows: list[dict[str, Any]], usd_in_all: str):
    """Low, expected and high are what the rows come to, to the last digit, each at its own rate."""
    asked_for = told(price, rows, **given)
    found = estimate(Terms(price, price.rate, Amount(D(1), D(2), D(4)), by_rows=asked_for), None, rows=len(rows))
    assert {found.in_all(figure.usd) for figure in (found.low, found.expected, found.high)} == {D(usd_in_all)}
    half = [ran(n, unit=price.unit, quantity=D(9)) for n in range(4)] + [ran(n, status="aborted") for n in range(4, 8)]
    learned = estimate(Terms(price, price.rate, Amount(), by_rows=asked_for), history_of(half), rows=len(rows))
    assert (learned.in_all(learned.expected.usd), learned.in_all(learned.high.usd)) == (D(usd_in_all) / 2, D(usd_in_all))


def test_some_of_the_rows():
    """Which ones are bought is not known: the mean is called so, low and high are of the rows that ask for least and most."""
    asked_for = told(OUTPUT, [{"num_outputs": n} for n in (1, 4, 4, 3)], **N)
    some = estimate(Terms(OUTPUT, OUTPUT.rate, Amount(), by_rows=asked_for), None, rows=2)
    assert usd(some) == ("0.003", "0.009", "0.012")
    assert some.expected.how == "by the price: 3 outputs a row on the average of all 4 rows"
    past = history_of([ran(n, unit="output", quantity=D(9)) for n in range(4)])
    learned = estimate(Terms(OUTPUT, OUTPUT.rate, Amount(), by_rows=asked_for), past, rows=2)
    assert usd(learned) == ("0.003", "0.009", "0.012") and "on the average of all rows" in learned.expected.how
    alike = estimate(Terms(OUTPUT, OUTPUT.rate, Amount(), by_rows=told(OUTPUT, [{"num_outputs": 4}] * 9, **N)), None, rows=2)
    assert (usd(alike), alike.high.how) == (("0.012",) * 3, "if all were as the row that asks for most")


def test_rows_that_leave_it_open():
    """A cell that says no number leaves the bounds of the schema to its row, and only to that; what came then counts later."""
    words = schema({"duration": {"enum": ["auto", 4, 8], "default": "auto"}}, URI)
    asked_for = told(FILM, [{"duration": 8}, {"duration": 8}, {"duration": "auto"}], words, **SECONDS)
    found = estimate(Terms(FILM, FILM.rate, Amount(), D("0.6"), asked_for), None, rows=3)
    assert (found.in_all(found.low.usd), found.expected.usd, found.high.usd) == (D("1.0"), None, D("0.6"))
    assert found.expected.how.endswith(TRY_FIRST)
    came = history_of([ran(n, unit="output second", quantity=D(6)) for n in range(4)])
    assert usd(estimate(Terms(FILM, FILM.rate, Amount(), by_rows=asked_for), came, rows=3)) == ("0.3", "0.3", "0.3")
    open_list = schema({"num_outputs": {"type": "integer", "minimum": 2, "maximum": 4}}, FILES)
    bounded = estimate(Terms(OUTPUT, OUTPUT.rate, Amount(), by_rows=told(OUTPUT, [{}, {"num_outputs": 3}], open_list, **N)),
                       None, rows=2)
    in_all = [bounded.in_all(figure.usd) for figure in (bounded.low, bounded.expected, bounded.high)]
    assert in_all == [D("0.015"), None, D("0.021")]


def test_many_rows_each_of_its_own():
    """A few numbers are kept, however many lengths there are; a mean that ends nowhere adds up to what the rows cost; nonsense
    bounds nothing."""
    any_length = schema({"duration": {"type": "number"}}, URI)
    rows = [{"duration": n / 1000} for n in range(1, 3334)]
    asked_for = told(FILM, rows, any_length, **SECONDS)
    assert asked_for.usd == Amount(*[D("0.05") * 3333 * 3334 / 2000] * 3)
    found = estimate(Terms(FILM, FILM.rate, Amount(), by_rows=asked_for), None, rows=3333)
    assert found.in_all(found.expected.usd) == asked_for.usd.usual
    assert told(FILM, [{"duration": "1e999999"}, {"duration": [1]}], any_length, **SECONDS).usd == Amount()


def test_rows_that_all_ask_for_the_same():
    """Nothing is counted of them."""
    job = Job.model_validate({"model": "a/b", "source": {"path": "rows.csv"}, "input": N})
    plan = plan_inputs(N, columns=["c"], schema=InputSchema.from_openapi(MANY))
    for price in (None, RUN, SECOND, TOKEN):
        assert AskedRows.of(job, Pricing(price, 4), schema=MANY, plan=plan) is None


def test_what_a_deadline_ended_is_billed_until_then():
    """Its seconds count; of files it gave none, and what that costs nobody says."""
    cut = [ran(1, "4"), ran(2, "10", status="canceled")]
    assert usd(estimate(terms(SECOND), history_of(cut), rows=1)) == ("0.004", "0.007", "0.01")
    ended = [ran(n, unit="output", quantity=D(1)) for n in range(2)] + [ran(3, "10", status="canceled")]
    found = estimate(terms(OUTPUT, Amount(D(1), D(1), D(1))), history_of(ended), rows=1)
    assert usd(found) == ("0.003", "0.003", "0.003") and "of 1 more" in found.expected.how


def test_what_is_not_known_of_the_past_is_left_out_and_said():
    """A failed run of an official model costs nobody knows what; one row alone tells no spread."""
    past = history_of([*(ran(n, unit="run", quantity=D(1)) for n in range(2)), ran(7, status="failed")])
    found = estimate(terms(RUN), past, rows=1)
    assert found.expected == (D("0.0001"), "the mean of 2 rows bought before (of 1 more the cost is not known)")
    assert usd(estimate(terms(SECOND), history_of([ran(1, "5")]), rows=1)) == (None, None, None)
    assert usd(estimate(terms(SECOND), history_of([ran(1), ran(2)]), rows=1)) == (None, None, None)


def test_rates_of_rows():
    """Each row has its tier's rate: the mean of them counts; one that nobody knows makes all unknown."""
    assert mean_rate({Rate(D("0.10")): 3, Rate(D("0.50")): 1}) == Rate(D("0.20"), D("0.20"))
    assert mean_rate({Rate(D("0.10"), D("0.30")): 1, Rate(D("0.30"), D("0.50")): 1}) == Rate(D("0.20"), D("0.40"))
    assert mean_rate({Rate(D("0.10")): 3, None: 1}) is None
    unknown = estimate(Terms(FILM, None, Amount(D(1), D(1), D(1))), None, rows=4)
    assert usd(unknown) == (None, None, None) and "some of the rows" in unknown.expected.how


amounts = st.none() | st.decimals("0.01", 100, places=2)
pasts = st.lists(st.builds(
    PastAttempt, st.integers(0, 9), st.sampled_from(["succeeded", "failed", "aborted", "canceled"]),
    st.sampled_from([None, "second", "output", "token", "run", "output second"]), amounts, amounts, amounts,
    files=st.integers(0, 4)), max_size=30)


@given(st.sampled_from([SECOND, OUTPUT, TOKEN, RUN, FILM, Price("d", "second", D("0.7"), failed="billed")]),
       st.lists(st.decimals(0, 50, places=2), min_size=3, max_size=3).map(sorted),
       st.tuples(st.booleans(), st.booleans(), st.booleans()), st.none() | st.decimals("0", 5, places=4), pasts)
def test_the_figures_are_in_order(price: Price, units: list[Decimal], known: tuple[bool, ...], worst: Decimal | None,
                                  attempts: list[PastAttempt]):
    """Low <= expected <= high, where they are known, and <= worst case, or it is said that they are above it, whatever the past
    was; and JSON tells the same."""
    told = Amount(*(value if there else None for value, there in zip(units, known, strict=True)))
    found = estimate(Terms(price, price.rate, told, worst), history_of(attempts), rows=7)
    there = [figure.usd for figure in (found.low, found.expected, found.high) if figure.usd is not None]
    assert there == sorted(there)
    is_above = worst is not None and any(usd > worst for usd in there)
    assert found.above_worst_usd == (there[-1] if is_above else None)
    again = Estimate.from_json(json.dumps(found.to_json()))
    assert again == found


def test_what_the_past_tells_besides_money():
    """Time at the provider and bytes of what succeeded; the share of rows whose last attempt failed."""
    past = history_of([ran(n, "1", took_s=float(n), bytes=n * 10) for n in range(1, 101)]
                      + [ran(500, status="failed", took_s=900.0), ran(500, "1", bytes=0)])
    assert past is not None
    assert (past.took_s(0.5), past.took_s(0.9), past.took_s(0.99)) == (51.0, 91.0, 100.0)
    assert past.bytes_per_row == 500  # 50,500 bytes of 101 rows
    assert past.failed_share == pytest.approx(1 / 101)
    assert past.mean("seconds") == 1
    assert history_of([]) is None


@pytest.mark.parametrize("slowest_s,deadline", [(2.0, "30s"), (10.0, "30s"), (10.1, "45s"), (25.0, "90s"), (200.0, "10m"),
                                                (900.0, "45m"), (901.0, "1h"), (3000.0, "3h")])
def test_a_deadline_is_proposed(slowest_s: float, deadline: str):
    """Three times the slowest, rounded up to what one writes; half a minute at least."""
    found = proposed_s(history_of([ran(1, "1", took_s=slowest_s), ran(2, "1", took_s=1.0)]))
    assert found is not None and duration_text(found) == deadline
    assert proposed_s(history_of([ran(1, "1", status="failed", took_s=5.0)])) is proposed_s(None) is None
