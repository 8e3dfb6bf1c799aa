"""An invoice as it is written: which column is what, and what a line says. Pure.

How Replicate's own export looks is not documented, so any table with a header is read: columns are known by their names, or by
what the user says of them, and what cannot be read for certain is refused with its line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import did_you_mean, listed

MODEL, PREDICTION, AMOUNT, DAY, QUANTITY, PRICE, CURRENCY = (
    "model", "prediction", "amount", "day", "quantity", "unit_price", "currency")
# By preference; of an amount there may be one only, as two (with and without tax, say) are not the same.
KNOWN = {
    PREDICTION: ("prediction id", "prediction", "predictionid"),
    MODEL: ("model", "model name", "sku", "product", "description", "item", "line item"),
    AMOUNT: ("amount", "amount usd", "total", "total usd", "cost", "cost usd", "charge", "charge usd", "usd", "billed",
             "billed usd", "line total", "spend", "spend usd"),
    DAY: ("date", "day", "usage date", "billing date", "period"),
    QUANTITY: ("quantity", "qty", "count", "units", "seconds"),
    PRICE: ("unit price", "unit price usd", "unit cost", "unit amount", "price per unit", "rate"),
    CURRENCY: ("currency",),
}
MOST_USD = 9_000_000  # of one line: what a column of the ledger holds


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is taken as what, and those that mean nothing here."""

    taken: Mapping[str, str]
    left: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether amounts are quantities at unit prices."""
        return AMOUNT not in self.taken


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One line. `digits`: how many decimals its amount is written with."""

    line: int
    model: str | None
    prediction_id: str | None
    day: str | None  # YYYY-MM-DD
    usd: Decimal
    digits: int


def said_of(texts: Sequence[str]) -> dict[str, str]:
    """`model=Description,amount=Total` as a mapping; a column's name may hold commas, an empty one means that there is none.
    Raises BadInput."""
    roles = "|".join(KNOWN)
    found: dict[str, str] = {}
    for text in texts:
        for part in re.split(rf",(?=(?:{roles})=)", text):
            role, sign, name = part.partition("=")
            if not sign or role.strip() not in KNOWN:
                raise BadInput(f"--columns {part}: write NAME=COLUMN with a name of {', '.join(KNOWN)}"
                               f"{did_you_mean(role.strip(), KNOWN)}")
            found[role.strip()] = name.strip()
    return found


def columns_of(header: Sequence[str], said: Mapping[str, str]) -> Columns:
    """What each column is, by the user's word first and then by its name. Raises BadInput where no amount, or nothing that it is
    for, can be found, or where two columns may be the amount."""
    for role, name in said.items():
        if name and name not in header:
            raise BadInput(f"--columns {role}={name}: there is no such column{did_you_mean(name, header)}; "
                           f"there are {listed(header)}")
    taken = {role: name for role, name in said.items() if name}
    for role, names in KNOWN.items():
        if role not in said and (found := _named(header, names, apart=taken.values())):
            if role == AMOUNT and len(found) > 1:
                raise BadInput(f"the amount may be in the column {' or '.join(map(repr, found))}; say which: "
                               f"--columns amount={found[0]}")
            taken[role] = found[0]
    _check(taken, header)
    unused = {QUANTITY, PRICE} if AMOUNT in taken else set()
    taken = {role: name for role, name in taken.items() if role not in unused}
    return Columns(taken, tuple(name for name in header if name not in taken.values()))


def _named(header: Sequence[str], names: Sequence[str], *, apart: Any) -> list[str]:
    """The columns of these names, whatever case and signs they are written with, in order of the names."""
    spelled = {name: " ".join(re.findall(r"[a-z0-9]+", name.casefold())) for name in header if name not in apart}
    return [column for name in names for column, spelling in spelled.items() if spelling == name]


def _check(taken: Mapping[str, str], header: Sequence[str]) -> None:
    if AMOUNT not in taken and not (QUANTITY in taken and PRICE in taken):
        raise BadInput(f"no column tells the amount; say which one does: --columns amount=COLUMN. There are {listed(header)}")
    if MODEL not in taken and PREDICTION not in taken:
        raise BadInput("no column tells the model or the prediction; say which one does: --columns model=COLUMN or --columns "
                       f"prediction=COLUMN. There are {listed(header)}")


def line_of(cells: Mapping[str, Any], columns: Columns, *, line: int) -> InvoiceLine | None:
    """What a line says; None: it has no amount. Raises BadInput, with the line, for what cannot be read for certain."""
    texts = {role: _text(cells.get(name)) for role, name in columns.taken.items()}
    try:
        _check_currency(texts.get(CURRENCY, ""))
        amount = _amount(texts, multiplies=columns.multiplies)
        if amount is None:
            return None
        usd, digits = amount
        return InvoiceLine(line, texts.get(MODEL) or None, texts.get(PREDICTION) or None, day_of(texts.get(DAY, "")), usd, digits)
    except ValueError as error:
        raise BadInput(f"line {line}: {error}") from None


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _check_currency(text: str) -> None:
    if text.casefold() not in ("", "usd", "us$", "$"):
        raise ValueError(f"the currency is {text!r}; the ledger is in US dollars")


def _amount(texts: Mapping[str, str], *, multiplies: bool) -> tuple[Decimal, int] | None:
    if not multiplies:
        return None if not texts[AMOUNT] else usd_of(texts[AMOUNT])
    if not texts[QUANTITY] or not texts[PRICE]:
        return None
    quantity, price = usd_of(texts[QUANTITY]), usd_of(texts[PRICE])
    return quantity[0] * price[0], quantity[1] + price[1]


_DOLLARS = re.compile(r"^(?:US\$|USD|\$)|(?:US\$|USD|\$)$", re.IGNORECASE)
_PLAIN = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:(?P<sign>[, '])\d{3})(?:(?P=sign)\d{3})*(?:\.\d+)?")


def usd_of(text: str) -> tuple[Decimal, int]:
    """An amount of US dollars, and its decimals as written: with or without `$` or `USD`, with a comma, a blank or an apostrophe
    between thousands, a minus or brackets around what is below zero, or in the notation 3e-05. Raises ValueError for anything
    else, a comma before decimals among it."""
    bare = " ".join(text.replace("\N{MINUS SIGN}", "-").split())
    is_negative = bare.startswith("(") and bare.endswith(")")
    bare = _DOLLARS.sub("", (bare[1:-1] if is_negative else bare).strip()).strip()
    if not is_negative and bare[:1] in ("-", "+"):
        is_negative, bare = bare[0] == "-", _DOLLARS.sub("", bare[1:].strip()).strip()
    if not (_PLAIN.fullmatch(bare) or _GROUPED.fullmatch(bare)):
        raise ValueError(f"{text!r} is no amount of US dollars; write it like 1,234.56 or $0.003")
    usd = Decimal(re.sub(r"[, ']", "", bare))
    if usd > MOST_USD:
        raise ValueError(f"{text!r} is more than {MOST_USD:,} dollars")
    return -usd if is_negative else usd, max(0, -int(usd.as_tuple().exponent))


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WORDY = re.compile(r"(?:(?P<first>\d{1,2})\.? )?(?P<month>[a-z]{3,9})\.?(?: (?P<second>\d{1,2}),?)? (?P<year>\d{4})")


def day_of(text: str) -> str | None:
    """A day (UTC) as YYYY-MM-DD: from ISO dates and times, `2026/01/31`, or a month that is spelled out. None for an empty text.
    Raises ValueError for anything else: whether 01/02 is in January is not guessed."""
    if not text:
        return None
    bare = " ".join(re.sub(r"\b(UTC|GMT)$", "", text).split())
    try:
        if wordy := _WORDY.fullmatch(bare.casefold()):
            return _wordy(wordy).isoformat()
        moment = datetime.fromisoformat(bare.replace("/", "-"))
        return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date().isoformat()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no day that can be read for certain; write it like 2026-01-31, or leave days out with "
                         "--columns day=") from None


def _wordy(found: re.Match[str]) -> date:
    first, second = found["first"], found["second"]
    if (first is None) == (second is None):
        raise ValueError("one day")
    return date(int(found["year"]), 1 + _MONTHS.index(found["month"][:3]), int(first or second))


_NAME = re.compile(r"(?<![\w/.-])[a-z0-9][\w.-]*/[a-z0-9](?:[\w.-]*[a-z0-9_])?(?![\w/-])")


def model_in(text: str, models: Mapping[str, str]) -> str | None:
    """The one model of these (by folded name) that a description names: `acme/draw (L40S)` is acme/draw's. None where it names
    none of them, or several."""
    folded = text.casefold()
    if folded in models:
        return models[folded]
    named = {models[name] for name in _NAME.findall(folded) if name in models}
    return named.pop() if len(named) == 1 else None
