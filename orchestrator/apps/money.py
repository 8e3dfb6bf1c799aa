"""How money is shown to people."""

from decimal import ROUND_HALF_UP, Decimal

from orchestrator.core.coming import Coming
from orchestrator.core.cost import usd_text

MOST_DIGITS = 12  # as the ledger counts


def about_text(usd: Decimal, *, beside: Decimal | None = None) -> str:
    """Of an estimate cents, or of less than a dollar three digits: `$12.35`, `$0.0123`; halves are rounded up, as on a bill.
    More, where it would seem to be above or below a figure that is told `beside` it, to the last digit, and is not."""
    digits = 2 if usd >= 1 else 2 - (usd.adjusted() if usd else 0)
    text = usd.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP).normalize()
    while beside is not None and digits < MOST_DIGITS and text.compare(beside) != usd.compare(beside):
        digits += 1
        text = usd.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP).normalize()
    return usd_text(text)


def spread_text(low: Decimal | None, usd: Decimal | None, high: Decimal | None, *, beside: Decimal | None = None) -> str:
    """`$3.00 ($2.91 to $3.40)`; a dash where it is not known."""
    if usd is None:
        return "–"
    told = about_text(usd, beside=beside)
    if low is None or high is None or low == high:
        return told
    return f"{told} ({about_text(low, beside=beside)} to {about_text(high, beside=beside)})"


def more_text(usd: Decimal | None, *, is_about: bool = False) -> str:
    """A difference, with its sign: `+$0.50`, `-$1.00`; a dash where there is none, or nobody knows."""
    if not usd:
        return "–"
    return f"{'-' if usd < 0 else '+'}{about_text(abs(usd)) if is_about else usd_text(abs(usd).normalize())}"


def rows_text(number: int) -> str:
    """`1 row`, `1,234 rows`."""
    return "1 row" if number == 1 else f"{number:,} rows"


def spent_text(usd: Decimal, *, unknown_rows: int, estimated_usd: Decimal = Decimal(0)) -> str:
    """What was spent, and that of some rows nobody knows it: `$0.60 + 30 rows of unknown cost`. Unknown is never zero. And how
    much of it is only an estimate."""
    estimated = f", of it {usd_text(estimated_usd)} estimated" if estimated_usd else ""
    return usd_text(usd) + (f" + {rows_text(unknown_rows)} of unknown cost" if unknown_rows else "") + estimated


def sum_text(usd: Decimal, *, unknown_rows: int) -> str:
    """A sum in a column beside one of rows of unknown cost: where nothing of it is known, that is said, and no zero."""
    return "unknown" if unknown_rows and not usd else usd_text(usd)


def in_all_text(usd: Decimal, *, ends_at_usd: Decimal | None) -> str:
    """What a batch will come to, `about $0.75`; and where a budget ends it before, that."""
    about = f"about {about_text(usd)}"
    return about if ends_at_usd is None or usd <= ends_at_usd else f"{about}, but the budget ends it at {usd_text(ends_at_usd)}"


def coming_text(found: Coming) -> str:
    """`up to $0.144 more for 48 predictions that are out`; empty where none is."""
    if not found.predictions:
        return ""
    out = "1 prediction that is out" if found.predictions == 1 else f"{found.predictions:,} predictions that are out"
    if found.most_usd is not None:
        return f"up to {usd_text(found.most_usd.normalize())} more for {out}"
    if found.expected_usd is not None:
        return f"about {about_text(found.expected_usd)} more for {out}"
    return f"more for {out}, and nothing bounds how much"
