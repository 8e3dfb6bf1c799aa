"""How money is shown to people."""

from decimal import Decimal

from orchestrator.core.cost import usd_text


def about_text(usd: Decimal) -> str:
    """Of an estimate cents, or of less than a dollar three digits: `$12.35`, `$0.0123`."""
    digits = 2 if usd >= 1 else 2 - (usd.adjusted() if usd else 0)
    return usd_text(usd.quantize(Decimal(1).scaleb(-digits)).normalize())


def spread_text(low: Decimal | None, usd: Decimal | None, high: Decimal | None) -> str:
    """`$3.00 ($2.91 to $3.40)`; a dash where it is not known."""
    if usd is None:
        return "–"
    return about_text(usd) + ("" if low is None or high is None or low == high else f" ({about_text(low)} to {about_text(high)})")
