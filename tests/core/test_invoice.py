"""How an invoice is read: its columns, amounts, days and models, and what is refused rather than guessed."""

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import BadInput
from orchestrator.core.invoice import InvoiceLine, columns_of, day_of, line_of, model_in, said_of, usd_of

AMOUNT = st.decimals(min_value=0, max_value=8_000_000, places=6).filter(lambda d: d.is_finite())


@given(AMOUNT, st.sampled_from(["", ",", " ", "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}", "'"]),
       st.sampled_from(["", "-", "\N{MINUS SIGN}", "()", "+"]), st.sampled_from(["", "$", "US$", "$ ", "USD ", " USD", "usd"]),
       st.sampled_from(["", " ", "\t"]), st.booleans(), st.integers(0, 6))
def test_an_amount_however_it_is_written(usd: Decimal, thousands: str, sign: str, dollar: str, blank: str, first: bool,
                                         places: int):
    """Any grouping, sign, currency and blanks around it: the same dollars to the last digit, and the digits that were written."""
    usd = round(usd, places)
    text = f"{usd:,.{places}f}".replace(",", thousands)
    mark = sign if sign not in ("", "()") else ""
    before, behind = (dollar, "") if not dollar.startswith(" ") else ("", dollar)
    text = f"{mark}{before}{text}{behind}" if first or behind else f"{before}{mark}{text}"
    text = f"{blank}{'(' if sign == '()' else ''}{text}{')' if sign == '()' else ''}{blank}"
    is_negative = sign in ("-", "\N{MINUS SIGN}", "()")
    assert usd_of(text) == (-usd if is_negative else usd, places)


@pytest.mark.parametrize(("text", "usd", "digits"), [("3e-05", "0.00003", 5), ("1.5E-7", "0.00000015", 8), (".5", "0.5", 1),
                                                     ("7.", "7", 0), ("0.003000", "0.003", 6)])
def test_amounts_of_other_programs(text: str, usd: str, digits: int):
    """Short forms and exponents are what spreadsheets and data frames write."""
    assert usd_of(text) == (Decimal(usd), digits)


@pytest.mark.parametrize("text", ["€5", "5 EUR", "0,003", "1.234,56", "1,23", "12,34,567", "1,234 567", "five", "$", "--5",
                                  "1e999999", "NaN", "inf", "5$3", "9000001", "1 2"])
def test_what_is_no_amount(text: str):
    """Another currency, a comma before decimals, or nonsense: said, and never taken for a figure."""
    with pytest.raises(ValueError, match=r"no amount of US dollars|more than"):
        usd_of(text)


@pytest.mark.parametrize("text", ["2026-11-03", "2026/11/03", "2026-11-03T23:59:59Z", "2026-11-04T01:00:00+02:00",
                                  "2026-11-03 12:00:00 UTC", "Nov 3, 2026", "November 3 2026", "3 Nov 2026", "3. nov 2026"])
def test_a_day_however_it_is_written(text: str):
    """In UTC, whichever way round it is spelled."""
    assert day_of(text) == "2026-11-03"


@pytest.mark.parametrize("text", ["03/11/2026", "11-03-2026", "2026-11", "Nov 2026", "3 Nov 4, 2026", "2026-11-01 to 2026-11-30",
                                  "3 Foo 2026", "31 Nov 2026", "soon"])
def test_a_day_that_is_not_guessed(text: str):
    """Whether 03/11 is in March or November is not decided here."""
    with pytest.raises(ValueError, match="no day that can be read for certain; write it like 2026-01-31"):
        day_of(text)


@given(st.dates(min_value=date(1, 1, 1)))
def test_days_are_read_back(day: date):
    """As it is written, with a time behind it, and in words."""
    assert day_of(day.isoformat()) == day_of(f"{day.isoformat()} 00:00:00") == day.isoformat()
    if day.year >= 1000:
        assert day_of(datetime.combine(day, datetime.min.time()).strftime("%b %d, %Y")) == day.isoformat()
    assert day_of("") is None


@pytest.mark.parametrize(("header", "said", "taken", "left"), [
    (["Date", "Model", "Prediction ID", "Amount (USD)"], {},
     {"day": "Date", "model": "Model", "prediction": "Prediction ID", "amount": "Amount (USD)"}, []),
    (["description", "quantity", "unit_price", "total"], {}, {"model": "description", "amount": "total"},
     ["quantity", "unit_price"]),
    (["Item", "Qty", "Rate"], {}, {"model": "Item", "quantity": "Qty", "unit_price": "Rate"}, []),
    (["sku", "description", "cost", "tax"], {}, {"model": "sku", "amount": "cost"}, ["description", "tax"]),
    (["what", "amount", "total", "date"], {"model": "what", "amount": "total", "day": ""},
     {"model": "what", "amount": "total"}, ["amount", "date"]),
    (["id", "usd", "Currency"], {"prediction": "id"}, {"prediction": "id", "amount": "usd", "currency": "Currency"}, []),
])
def test_which_column_is_what(header: list[str], said: dict[str, str], taken: dict[str, str], left: list[str]):
    """By the user's word, else by its name; what is not used is told."""
    found = columns_of(header, said)
    assert (dict(found.taken), list(found.left)) == (taken, left)


@pytest.mark.parametrize(("header", "said", "text"), [
    (["model", "amount", "total"], {}, "may be in the column 'amount' or 'total'; say which: --columns amount=amount"),
    (["model", "price"], {}, "no column tells the amount; say which one does: --columns amount=COLUMN. There are model, price"),
    (["model", "quantity"], {}, "no column tells the amount"),
    (["thing", "amount"], {}, "no column tells the model or the prediction"),
    (["model", "amount"], {"model": ""}, "no column tells the model or the prediction"),
    (["model", "amount"], {"amount": "amont"}, r"there is no such column \(did you mean 'amount'\?\)"),
])
def test_columns_that_are_not_guessed(header: list[str], said: dict[str, str], text: str):
    """The amount above all: with two of that kind the user decides."""
    with pytest.raises(BadInput, match=text):
        columns_of(header, said)


def test_what_the_user_says_of_columns():
    """Several at once or one by one; a column's name may hold commas and equals signs."""
    assert said_of(["model=Line item, as billed,amount=Sum = total", "day="]) == {
        "model": "Line item, as billed", "amount": "Sum = total", "day": ""}
    for wrong in ("modl=x", "amount", ""):
        with pytest.raises(BadInput, match="write NAME=COLUMN with a name of prediction, model"):
            said_of([wrong])


COLUMNS = columns_of(["date", "model", "prediction", "amount", "currency"], {})


def cells(**values: Any) -> dict[str, Any]:
    return {"date": "2026-11-03", "model": "acme/draw", "prediction": None, "amount": "$0.0030", "currency": None} | values


def test_lines():
    """What stands in a line, typed cells of other formats as well; a line without an amount is none."""
    assert line_of(cells(), COLUMNS, line=2) == InvoiceLine(2, "acme/draw", None, "2026-11-03", Decimal("0.003"), 4)
    typed = cells(date=date(2026, 11, 3), amount=Decimal("0.5"), prediction=" p1 ", model=None, currency="usd")
    assert line_of(typed, COLUMNS, line=2) == InvoiceLine(2, None, "p1", "2026-11-03", Decimal("0.5"), 1)
    assert line_of(cells(amount=" "), COLUMNS, line=2) is None
    multiplied = columns_of(["model", "quantity", "unit price"], {})
    assert line_of({"model": "a/b", "quantity": "1,000", "unit price": "$0.003"}, multiplied, line=2) == InvoiceLine(
        2, "a/b", None, None, Decimal(3), 3)
    assert line_of({"model": "a/b", "quantity": "1,000", "unit price": None}, multiplied, line=2) is None


@pytest.mark.parametrize("wrong", [{"amount": "0,003"}, {"date": "03/11/2026"}, {"currency": "EUR"}])
def test_a_line_that_cannot_be_read(wrong: dict[str, Any]):
    """Its number is named with what stands there."""
    with pytest.raises(BadInput, match=f"^line 17: .*'{next(iter(wrong.values()))}'"):
        line_of(cells(**wrong), COLUMNS, line=17)


MODELS = {name.casefold(): name for name in ("acme/draw", "acme/draw-pro", "Acme/Film.v2", "bare")}


@pytest.mark.parametrize(("text", "model"), [
    ("acme/draw", "acme/draw"), ("ACME/Draw", "acme/draw"), ("acme/draw-pro, Nvidia L40S (predict time)", "acme/draw-pro"),
    ("Usage of acme/film.v2.", "Acme/Film.v2"), ("acme/draw: 1,000 images", "acme/draw"), ("bare", "bare"),
    ("acme/draw and acme/draw-pro", None), ("acme/drawing", None), ("my-acme/draw", None), ("bare metal", None),
    ("Credits", None), ("acme/draw/x", None),
])
def test_a_model_in_a_description(text: str, model: str | None):
    """Only a whole name of one that was bought here, and only where there is one."""
    assert model_in(text, MODELS) == model
