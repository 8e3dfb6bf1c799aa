"""How money is shown to people."""

from decimal import Decimal

from orchestrator.core.cost import usd_text

MOST_DIGITS = 12  # as the ledger counts


def about_text(usd: Decimal, *, beside: Decimal | None = None) -> str:
    """Of an estimate cents, or of less than a dollar three digits: `$12.35`, `$0.0123`. More, where it would seem to be above or
    below a figure that is told `beside` it, to the last digit, and is not."""
    digits = 2 if usd >= 1 else 2 - (usd.adjusted() if usd else 0)
    text = usd.quantize(Decimal(1).scaleb(-digits)).normalize()
    while beside is not None and digits < MOST_DIGITS and text.compare(beside) != usd.compare(beside):
        digits += 1
        text = usd.quantize(Decimal(1).scaleb(-digits)).normalize()
    return usd_text(text)


def spread_text(low: Decimal | None, usd: Decimal | None, high: Decimal | None, *, beside: Decimal | None = None) -> str:
    """`$3.00 ($2.91 to $3.40)`; a dash where it is not known."""
    if usd is None:
        return "–"
    told = about_text(usd, beside=beside)
    if low is None or high is None or low == high:
        return told
    return f"{told} ({about_text(low, beside=beside)} to {about_text(high, beside=beside)})"
