"""The price book: which entry counts on which day, by whose rules, and what is wrong with a file."""

import re
import tomllib
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import BadInput
from orchestrator.core.pricebook import read_book
from orchestrator.core.prices import Book, Entry, Seller, newest, resolve

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "prices.toml"
TODAY = date(2026, 11, 21)
PACKAGE = """
[hardware]
gpu-l40s = { per_second_usd = "0.000975", as_of = "2025-07-01" }
gpu-t4 = { per_second_usd = "0.000225", as_of = 2025-07-01 }

[[models."acme/draw"]]
per_output_usd = "0.04"
as_of = "2025-01-01"
[[models."acme/draw"]]
per_output_usd = "0.03"
as_of = "2026-01-01"
[[models."acme/draw"]]
per_output_usd = "0.02"
as_of = "2027-01-01"

[models."acme/run"]
hardware = "gpu-l40s"
"""


def book_of(*texts: str) -> Book:
    """A book of these files, the strongest first."""
    marks = ["project:"] * (len(texts) - 1) + [""]
    return read_book([(f"p{n}.toml", mark, tomllib.loads(text)) for n, (mark, text) in enumerate(zip(marks, texts, strict=True))])


BOOK = book_of(PACKAGE)


def price_of(model: str, *, book: Book = BOOK, seller: Seller = Seller.PUBLIC, on: date = TODAY, **given_price: Any) -> Any:
    return resolve(book, model=model, seller=seller, given=given_price or None, on=on)


@pytest.mark.parametrize("on,usd", [
    ("2025-01-01", "0.04"), ("2025-12-31", "0.04"), ("2026-01-01", "0.03"), ("2027-06-01", "0.02")])
def test_the_newest_that_is_not_in_the_future(on: str, usd: str):
    """An entry holds from its day on, to the day of the next."""
    price = price_of("acme/draw", on=date.fromisoformat(on))
    assert price.usd == Decimal(usd)
    assert price.id.startswith("acme/draw@20")


def test_before_the_first_day_nobody_knows():
    """No entry reaches back; the book can say from when on it knows one."""
    assert price_of("acme/draw", on=date(2024, 12, 31)) is None
    assert (BOOK.begins("acme/draw"), BOOK.begins("acme/run"), BOOK.begins("x/y")) == (date(2025, 1, 1), date.min, None)


def test_the_project_wins_entry_by_entry():
    """The project's word on a model or a hardware counts, the package's on everything else; where the project's is of a later
    day, the package's holds until then."""
    own = '[hardware]\ngpu-l40s = { per_second_usd = "0.5" }\n[models."acme/draw"]\nper_run_usd = 1\nas_of = 2026-11-21\n'
    book = book_of(own, PACKAGE)
    assert (price_of("acme/draw", book=book).unit, price_of("acme/draw", book=book).id) == ("run", "project:acme/draw@2026-11-21")
    assert price_of("acme/draw", book=book, on=date(2026, 11, 20)).usd == Decimal("0.03")
    run = price_of("acme/run", book=book)
    assert (run.usd, run.id) == (Decimal("0.5"), "acme/run@undated:project:gpu-l40s@undated")
    assert price_of("acme/x", book=book, hardware="gpu-t4").usd == Decimal("0.000225")


def test_the_job_has_the_first_word():
    """A price in the job wins over the book, and names the hardware it took."""
    price = price_of("acme/draw", hardware="gpu-l40s")
    assert (price.unit, price.id) == ("second", "job:gpu-l40s@2025-07-01")
    assert price_of("acme/draw", per_output_second_usd=Decimal("0.25")).unit == "output second"


def test_unknown_hardware_names_the_nearest():
    """A misspelt hardware is refused with the nearest and with what there is."""
    with pytest.raises(BadInput, match=r"'gpu-l4s' \(did you mean 'gpu-l40s'\?\); the price book has gpu-l40s, gpu-t4"):
        price_of("m/n", hardware="gpu-l4s")


def test_by_whose_rules_failures_are_billed():
    """Public: free; official: not documented; private and deployments: billed, and what is told is an estimate."""
    found = [price_of("m/n", seller=seller, per_second_usd=1) for seller in Seller]
    assert [(price.failed, price.is_estimate) for price in found] == [
        ("free", False), ("unknown", False), ("billed", True), ("billed", True)]


def test_deployments_have_no_price_in_the_book():
    """The book is about models as everybody buys them; a deployment of one is billed otherwise."""
    assert price_of("acme/draw", seller=Seller.DEPLOYMENT) is None


def test_fast_booting_fine_tunes_bill_like_public_models():
    """Though private; of a deployment the word changes nothing."""
    book = book_of('[models."me/tune"]\nhardware = "gpu-t4"\nfast_booting = true\n', PACKAGE)
    for price in (price_of("me/tune", book=book, seller=Seller.PRIVATE),
                  price_of("x/y", seller=Seller.PRIVATE, hardware="gpu-t4", fast_booting=True)):
        assert (price.failed, price.is_estimate) == ("free", False)
    assert price_of("x/y", seller=Seller.DEPLOYMENT, hardware="gpu-t4", fast_booting=True).is_estimate


def test_tiers_know_the_defaults_they_ask_for():
    """Of the model's defaults a price keeps those of its conditions, as text."""
    book = book_of('[models."a/film"]\ntiers = [{ when = { sound = [true], resolution = "720p" }, per_output_second_usd = 1 }]\n')
    price = resolve(book, model="a/film", seller=Seller.OFFICIAL, given=None, on=TODAY,
                    defaults={"sound": False, "resolution": None, "seed": 7})
    assert price is not None and price.defaults == (("sound", "false"),)
    assert price.rate_of({"sound": True, "resolution": "720p"}) is not None and price.rate_of({"resolution": "720p"}) is None


WRONG = [
    ("[model]\n", "p.toml: model: unknown (did you mean 'models'?); there are hardware, models"),
    ("hardware = 3\n", 'p.toml: hardware: must hold entries, such as gpu-t4 = { per_second_usd = "0.000225" }'),
    ('[hardware]\ngpu-x = { per_secnd_usd = "1" }\n',
     "p.toml: hardware.gpu-x.per_secnd_usd: unknown (did you mean 'per_second_usd'?); there are per_second_usd, as_of, source"),
    ('[hardware]\ngpu-x = "1"\n', "p.toml: hardware.gpu-x: must hold fields, such as { per_second_usd = \"0.000975\" }, not '1'"),
    ('[models."a/b"]\nper_run_usd = "one"\n',
     "p.toml: models.\"a/b\".per_run_usd: 'one' is not an amount in US dollars, such as \"0.003\""),
    ('[models."a/b"]\nper_run_usd = true\n',
     "p.toml: models.\"a/b\".per_run_usd: True is not an amount in US dollars, such as \"0.003\""),
    ('[models."a/b"]\nper_run_usd = nan\n',
     "p.toml: models.\"a/b\".per_run_usd: nan is not an amount in US dollars, such as \"0.003\""),
    ('[models."a/b"]\nper_run_usd = -0.1\n',
     'p.toml: models."a/b".per_run_usd: -0.1 is negative: a price of one unit is between 0 and 1000000 dollars'),
    ('[models."a/b"]\nper_thousand_outputs_usd = 3\n',
     'p.toml: models."a/b".per_thousand_outputs_usd: say the price of one, divided: $3.00 per thousand outputs is '
     'per_output_usd = "0.003"'),
    ('[models."a/b"]\nper_run_usd = 1\nper_output_usd = 1\n', 'p.toml: models."a/b": say exactly one of hardware, '
     'per_second_usd, per_output_usd, per_output_second_usd, per_run_usd, per_input_token_usd: '
     'found a price per output and a price per run'),
    ('[models."a/b"]\nsource = "x"\n', 'p.toml: models."a/b": say exactly one of hardware, per_second_usd, per_output_usd, '
     'per_output_second_usd, per_run_usd, per_input_token_usd: found none'),
    ('[models."a/b"]\nper_run_usd = 1\nas_of = "last year"\n',
     "p.toml: models.\"a/b\".as_of: 'last year' is not a day; write it as \"2026-09-01\""),
    ('[models."a/b"]\nper_run_usd = 1\nas_of = 2026-01-01T00:00:00Z\n',
     "p.toml: models.\"a/b\".as_of: '2026-01-01 00:00:00+00:00' is not a day; write it as \"2026-09-01\""),
    ('[models."a/b"]\nper_input_token_usd = 1\n',
     'p.toml: models."a/b": per_input_token_usd and per_output_token_usd go together; where one is free say "0"'),
    ('[models]\nflux = { per_run_usd = 1 }\n',
     'p.toml: models.flux: a model\'s name is owner/name, in quotes: [models."owner/name"]'),
    ('[models."a/b"]\nhardware = "gpu-x"\n',
     "p.toml: models.\"a/b\".hardware: there is no price of hardware 'gpu-x'; the price book has "),
    ('[models."a/b"]\nper_run_usd = 1\ntiers = [{ per_run_usd = 2 }]\n',
     'p.toml: models."a/b".tiers[0]: a tier says when it holds and what it costs, such as '
     '{ when = { resolution = "720p" }, per_output_second_usd = "0.10" }'),
    ('[models."a/b"]\nper_run_usd = 1\ntiers = [{ when = { a = 1 }, per_output_usd = 2 }]\n', 'p.toml: models."a/b": say exactly '
     'one of hardware, per_second_usd, per_output_usd, per_output_second_usd, per_run_usd, per_input_token_usd: '
     'found a price per output and a price per run'),
    ('[models."a/b"]\nper_run_usd = 1\nfast_booting = "yes"\n',
     "p.toml: models.\"a/b\".fast_booting: 'yes' should be true or false"),
    ('[[models."a/b"]]\nper_run_usd = 1\nas_of = "2026-01-01"\n[[models."a/b"]]\nper_run_usd = 2\nas_of = 2026-01-01\n',
     'p.toml: models."a/b": two entries begin on the same day (2026-01-01): say since when each holds (as_of), or leave one out'),
    ('[[models."a/b"]]\nper_run_usd = 1\n[[models."a/b"]]\nper_run_usd = 2\n',
     'p.toml: models."a/b": of several entries each needs a day from which it holds: as_of = "2026-09-01"'),
]


@pytest.mark.parametrize("text,said", WRONG)
def test_what_is_wrong_is_said_with_file_and_key(text: str, said: str):
    """One line, and it says what to do."""
    with pytest.raises(BadInput) as caught:
        read_book([("p.toml", "project:", tomllib.loads(text))])
    assert str(caught.value) == said


def test_all_that_is_wrong_is_said_at_once():
    """In all files."""
    with pytest.raises(BadInput) as caught:
        book_of("[model]\n", '[models."a/b"]\nper_run_usd = -1\nas_of = 3\n')
    assert [line.partition(": ")[0] for line in str(caught.value).splitlines()] == ["p0.toml", "p1.toml", "p1.toml"]


def test_the_shipped_book():
    """It can be read; every entry has a day that is past and a source; prices per thousand are nowhere."""
    said = tomllib.loads(SHIPPED.read_text("utf-8"))
    book = read_book([("prices.toml", "", said)])
    entries = [*said["hardware"].values(), *said["models"].values()]
    assert all(date.fromisoformat(entry["as_of"]) <= TODAY and entry["source"] for entry in entries)
    assert len(book.hardware_names()) == 20
    assert all(price_of(model, book=book) is not None for model in said["models"])
    docs = price_of("meta/meta-llama-3.1-405b-instruct", book=book)  # the example in Replicate's billing docs
    assert (docs.usd * 8, docs.usd_out * 43) == (Decimal("0.0000760"), Decimal("0.0004085"))


def test_the_samples_of_the_page():
    """docs/prices.md shows entries that can be read."""
    page = (SHIPPED.parents[1] / "docs" / "prices.md").read_text("utf-8")
    (sample,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    book = book_of(sample, SHIPPED.read_text("utf-8"))
    assert price_of("acme/poster", book=book).usd == Decimal("0.03")
    assert price_of("acme/film", book=book).rate_of({"resolution": "4k"}).usd == Decimal("0.15")


@given(st.lists(st.dates(date(2024, 1, 1), date(2028, 1, 1)), unique=True), st.dates(date(2023, 1, 1), date(2029, 1, 1)))
def test_newest_is_the_last_that_began(days: list[date], on: date):
    """In whatever order they are written."""
    found = newest([Entry(day, "run", None) for day in days], on=on)
    past = [day for day in days if day <= on]
    assert (found.as_of if found else None) == max(past, default=None)
