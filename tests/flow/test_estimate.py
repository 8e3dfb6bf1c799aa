"""What a batch is expected to cost, from its rows as they are read to the ledger."""

from decimal import Decimal

from orchestrator import wiring
from orchestrator.core.estimate import Estimate
from orchestrator.core.history import history_of
from orchestrator.core.pricebook import read_book
from orchestrator.flow.ingest import Order, Prepared, check, estimate_of, load, prepare
from tests.flow.conftest import Stage
from tests.flow.test_stations import settle

FILM = """\
model: simulator/film
source: { path: rows.csv }
input: { prompt: "{{ prompt }}", resolution: "{{ resolution }}", duration: 4 }
"""
BOOK = read_book([("p", "", {"models": {"simulator/film": {"per_output_second_usd": "0.10", "tiers": [
    {"when": {"resolution": "1080p"}, "per_output_second_usd": "0.15"},
    {"when": {"resolution": "480p"}, "per_output_second_usd": "0.05"}]}}})])


async def prepared(stage: Stage, rows: list[tuple[str, str]], more: str = "", *, film: str = FILM) -> Prepared:
    """A job of films, the resolution of each from a column."""
    (stage.folder / "rows.csv").write_text("prompt,resolution\n" + "".join(f"{prompt},{size}\n" for prompt, size in rows))
    (stage.folder / "job.yaml").write_text(film + more)
    job = wiring.load_job(stage.folder / "job.yaml", changes={}).job
    order = Order(job=job, name="job", folder=str(stage.folder), output_to="out", output_base=str(stage.folder))
    return await prepare(stage.rooms, order, book=BOOK)


async def test_each_row_at_its_own_rate(stage: Stage):
    """Tiers by a column: the rates are counted as rows are read. Once these were bought, what is asked for still counts, and not
    how long those lasted."""
    found = await prepared(stage, [("a", "1080p"), ("b", "480p"), ("c", ""), ("d", "480p")])
    examined = await check(stage.rooms, found)
    expected = estimate_of(found, examined, None)
    assert [expected.in_all(figure.usd) for figure in (expected.low, expected.expected, expected.high)] == [Decimal("1.4")] * 3
    assert expected.in_all(expected.worst_usd) == Decimal("2.4")
    batch, _ = await load(stage.rooms, found)
    assert Estimate.from_json(batch.estimate_json) == expected
    assert await settle(stage, batch, within_s=20) == {"succeeded": 4}
    past = history_of(await stage.rooms.ledger.past(batch.account, batch.target))
    assert past is not None and past.rows == 4
    again = estimate_of(found, examined, past)
    assert again.in_all(again.expected.usd) == Decimal("1.4") and again.above_worst_usd is None


async def test_a_row_that_shares_has_no_rate(stage: Stage):
    """Of equal rows under `duplicates: once` only the one that is bought counts in the mean of the rates."""
    rows = [("a", "1080p"), ("a", "1080p"), ("a", "1080p"), ("b", "480p")]
    for more, usd in (("", "2.0"), ("duplicates: { once: batch, empty_seed: share }\n", "0.8")):
        found = await prepared(stage, rows, more)
        expected = estimate_of(found, await check(stage.rooms, found), None)
        assert expected.in_all(expected.expected.usd) == Decimal(usd)


async def test_each_row_as_long_as_it_asks_for(stage: Stage):
    """A length by a column, at the rate of the row: what the rows come to is known before anything is bought, and is kept with
    the batch; of equal rows under `duplicates: once` one counts."""
    film = FILM.replace("duration: 4", 'duration: "{{ prompt }}"').replace('prompt: "{{ prompt }}"', "prompt: a film")
    rows = [("12", "1080p"), ("2", "480p"), ("", "480p"), ("2", "480p"), ("4", "")]
    for more, usd in (("", "2.65"), ("duplicates: { once: batch, empty_seed: share }\n", "2.55")):
        found = await prepared(stage, rows, more, film=film)
        expected = estimate_of(found, await check(stage.rooms, found), None)
        assert {expected.in_all(figure.usd) for figure in (expected.low, expected.expected, expected.high)} == {Decimal(usd)}
    batch, _ = await load(stage.rooms, found)
    assert Estimate.from_json(batch.estimate_json) == expected
