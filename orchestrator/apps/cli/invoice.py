"""`costs --invoice`: an invoice laid beside the ledger, as a table, JSON, Parquet or CSV."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.costs import check_suffix, written
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.look import here
from orchestrator.apps.cli.steer import absolute
from orchestrator.apps.money import about_text, more_text, rows_text, sum_text
from orchestrator.core.beside import CENT, FINEST, Beside, Kind, Pile, Verdict, Word
from orchestrator.core.cost import usd_text
from orchestrator.core.errors import BadInput
from orchestrator.core.invoice import DAY, PREDICTION, said_of
from orchestrator.flow.invoice import Laid, Request, lay_beside

SHOWN = 10  # predictions of a kind, and days of a model; --json has a thousand
MOST_LINES = 50
_HEAD = ("model", "invoice", "ledger", "difference", "unknown", "")
_COLUMNS = ("model", "day", "invoice_usd", "ledger_usd", "difference_usd", "lines", "predictions", "unknown_rows", "verdict")


@dataclass(frozen=True, slots=True)
class InvoiceOptions:
    """What stands on the command line."""

    path: str
    columns: tuple[str, ...] = ()
    first: str | None = None
    last: str | None = None
    account: str | None = None
    to: str | None = None
    is_whole: bool = True  # no batch and no grouping was named


async def invoice(options: InvoiceOptions) -> Ending:
    """Lay it beside the ledger. 1: something that was bought here is not on the invoice, or at another cost, or the invoice has
    more of the same models."""
    if not options.is_whole:
        raise BadInput("--invoice is laid beside the whole ledger, by model: leave out BATCH and --by")
    check_suffix(options.to)
    request = Request(absolute(options.path), said_of(options.columns), _day("--from", options.first),
                      _day("--until", options.last), options.account)
    if request.first is not None and request.last is not None and request.first > request.last:
        raise BadInput(f"--from {request.first} --until {request.last}: the first day comes first")
    async with wiring.rooms(here(), token_needed=False) as rooms:
        laid = await lay_beside(rooms, request)
    code = Exit.FAILED_ROWS if laid.beside.differs() else Exit.DONE
    document = _document(options, laid)
    if options.to is None:
        return Ending(code, document, tuple(_lines(options, laid)))
    path = await written(options.to, list(_records(laid.beside)), columns=list(_COLUMNS))
    return Ending(code, document | {"written": path}, (f"written: {path}", _verdict(laid.beside)))


def _day(option: str, text: str | None) -> str | None:
    try:
        return None if text is None else date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise BadInput(f"{option} {text}: write a day like 2026-01-31") from error


# For programs


def _document(options: InvoiceOptions, laid: Laid) -> dict[str, Any]:
    beside = laid.beside
    unconfirmed = beside.unconfirmed()
    verdict = Verdict.DIFFERS if beside.differs() else Verdict.UNKNOWN if unconfirmed.unknown_rows else Verdict.AGREES
    return {
        "invoice": options.path, "verdict": verdict.value, "compared": beside.together().is_bought, "account": laid.account,
        "unconfirmed_usd": _usd(unconfirmed.difference_usd), "unconfirmed_rows": unconfirmed.unknown_rows,
        "columns": dict(laid.columns.taken), "unused_columns": list(laid.columns.left), "from": laid.first, "until": laid.last,
        "lines": beside.lines, "lines_without_amount": beside.empty, "lines_of_other_days": beside.outside,
        "taken_for_models": beside.renamed,
        "models": [{"model": model, **_figures(pile), "verdict": verdict.value,
                    "days": [{"day": day, **_figures(of_day)} for day, of_day in beside.days_of(model)]}
                   for model, pile, verdict in beside.verdicts()],
        "total": _figures(beside.together()),
        "predictions": {"named": PREDICTION in laid.columns.taken, "compared": beside.compared,
                        "by_kind": {kind.value: beside.counts[kind] for kind in Kind},
                        "list": [_of_word(word) for word in beside.words]},
    }


def _figures(pile: Pile) -> dict[str, Any]:
    return {"invoice_usd": _usd(pile.billed_usd), "ledger_usd": _usd(pile.ledger_usd),
            "difference_usd": _usd(pile.difference_usd), "lines": pile.lines, "predictions": pile.predictions,
            "unknown_rows": pile.unknown_rows, "unknown_expected_usd": _usd(pile.expected_usd)}


def _of_word(word: Word) -> dict[str, Any]:
    return {"kind": word.kind.value, "prediction_id": word.prediction_id, "model": word.model,
            "invoice_usd": _usd(word.billed_usd), "ledger_usd": _usd(word.ledger_usd), "batch": word.batch, "row": word.row,
            "id": word.row_id, "line": word.line}


def _usd(value: Decimal | None) -> str | None:
    return None if value is None else format(value.normalize(), "f")


def _records(beside: Beside) -> Iterator[dict[str, Any]]:
    """A line for each model, followed by those of its days."""
    for model, pile, verdict in beside.verdicts():
        yield _record(model, None, pile, verdict.value)
        for day, of_day in beside.days_of(model):
            yield _record(model, day, of_day, None)


def _record(model: str, day: str | None, pile: Pile, verdict: str | None) -> dict[str, Any]:
    billed, difference = (round(usd, FINEST) for usd in (pile.billed_usd, pile.difference_usd))
    return {"model": model, "day": day, "invoice_usd": billed, "ledger_usd": pile.ledger_usd, "difference_usd": difference,
            "lines": pile.lines, "predictions": pile.predictions, "unknown_rows": pile.unknown_rows, "verdict": verdict}


# For people


def _lines(options: InvoiceOptions, laid: Laid) -> Iterator[str]:
    beside = laid.beside
    yield f"{options.path}: {beside.lines:,} lines, {_text(beside.together().billed_usd)}"
    yield from _how_read(laid)
    yield ""
    yield from _table(beside)
    yield from _predictions(beside)
    yield ""
    yield _verdict(beside)


def _how_read(laid: Laid) -> Iterator[str]:
    """What was taken as what: nothing is guessed in silence."""
    beside = laid.beside
    unused = f"; not used: {', '.join(laid.columns.left)}" if laid.columns.left else ""
    yield f"columns  {', '.join(f'{role} = {name}' for role, name in laid.columns.taken.items())}{unused}"
    span = "all days"
    if laid.first is not None or laid.last is not None:
        span = f"{laid.first or 'the first day'} to {laid.last or 'today'}"
    yield f"ledger   {span} (UTC)" + ("" if laid.account is None else f", account {laid.account}")
    if DAY not in laid.columns.taken and laid.first is None and laid.last is None:
        yield "         the invoice has no days; --from and --until say which of the ledger's it is of"
    for many, text in ((beside.empty, "without an amount"), (beside.outside, "of other days")):
        if many:
            yield f"         {many:,} {'line' if many == 1 else 'lines'} {text} left out"
    if beside.renamed:
        text, model = next(iter(beside.renamed.items()))
        more = f", and {len(beside.renamed) - 1:,} more so" if len(beside.renamed) > 1 else ""
        yield f"         {text!r} is taken as {model}{more}"


def _table(beside: Beside) -> Iterator[str]:
    """Right-aligned figures; of a model that differs also the days on which it does."""
    found = beside.verdicts()
    cells: list[tuple[str, ...]] = [_HEAD]
    for model, pile, verdict in found[:MOST_LINES]:
        cells.append(_cells(model, pile, verdict.value))
        if verdict is Verdict.DIFFERS:
            wrong = [(day, of_day) for day, of_day in beside.days_of(model) if abs(of_day.difference_usd) >= CENT]
            cells += [_cells(f"  {day}", of_day, "") for day, of_day in wrong[:SHOWN]] if len(wrong) > 1 else []
    cells.append(_cells("together", beside.together(), ""))
    widths = [max(len(line[place]) for line in cells) for place in range(len(_HEAD))]
    for n, line in enumerate(cells):
        if n == len(cells) - 1 and len(found) > MOST_LINES:
            yield f"… and {len(found) - MOST_LINES:,} more; --json and --to have all"
        figures = [cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)]
        yield "  ".join([line[0].ljust(widths[0]), *figures, line[-1]]).rstrip()


def _cells(name: str, pile: Pile, verdict: str) -> tuple[str, ...]:
    ledger = sum_text(pile.ledger_usd, unknown_rows=pile.unknown_rows)
    return (name, _text(pile.billed_usd) if pile.lines else "–", ledger if pile.is_bought else "–",
            more_text(pile.difference_usd), _unknown(pile), verdict)


def _unknown(pile: Pile) -> str:
    """`30 rows`, and what they may have cost, where anybody can say."""
    expected = pile.expected_usd
    about = "" if expected is None else f" (about {about_text(expected)} expected)"
    return rows_text(pile.unknown_rows) + about if pile.unknown_rows else "–"


def _text(usd: Decimal) -> str:
    """Without the zeros that a file may write behind it."""
    return f"-{usd_text(abs(usd).normalize())}" if usd < 0 else usd_text(usd.normalize())


_SAID = {Kind.DIFFERS: "at another cost than the ledger has", Kind.NOT_BILLED: "of the ledger that the invoice does not have",
         Kind.UNKNOWN: "of a cost that the ledger does not know, and the invoice has",
         Kind.NOT_BOUGHT: "that the ledger does not know"}


def _predictions(beside: Beside) -> Iterator[str]:
    """Those on which the two do not agree, ten of each kind."""
    for kind, text in _SAID.items():
        if not beside.counts[kind]:
            continue
        yield f"{beside.counts[kind]:,} prediction{'' if beside.counts[kind] == 1 else 's'} {text}"
        of_kind = [word for word in beside.words if word.kind is kind]
        yield from (f"  - {_word(word)}" for word in of_kind[:SHOWN])
        if beside.counts[kind] > SHOWN:
            yield f"  … and {beside.counts[kind] - SHOWN:,} more (--json lists up to a thousand)"


def _word(word: Word) -> str:
    where = f"line {word.line}" if word.batch is None else f"row {word.row} ({word.row_id}) of {word.batch}"
    sums = [f"invoice {_text(word.billed_usd)}"] if word.billed_usd is not None else []
    sums += [f"ledger {_text(word.ledger_usd)}"] if word.ledger_usd is not None else []
    return f"{word.prediction_id} {word.model}, {where}: {', '.join(sums)}"


def _verdict(beside: Beside) -> str:
    others = sum(verdict is Verdict.NOT_BOUGHT for _, _, verdict in beside.verdicts())
    foreign = f"; {others:,} {'model on it was' if others == 1 else 'models on it were'} not bought here" if others else ""
    if not beside.together().is_bought:
        return "nothing was bought here on these days: there is nothing to compare"
    if beside.agrees():
        return f"all that was bought here agrees with the invoice{foreign}"
    unconfirmed = beside.unconfirmed()
    if beside.differs():
        more = f"; {_unconfirmed(unconfirmed)}" if unconfirmed.unknown_rows else ""
        return f"the invoice and the ledger differ{more}{foreign}"
    rest = "; the rest of what was bought here agrees" if any(v is Verdict.AGREES for _, _, v in beside.verdicts()) else ""
    return f"{_unconfirmed(unconfirmed)}{rest}{foreign}"


def _unconfirmed(pile: Pile) -> str:
    """How much of the invoice nobody here can confirm, and why."""
    expected = "" if pile.expected_usd is None else f" (about {about_text(pile.expected_usd)} was expected)"
    why = f"what {rows_text(pile.unknown_rows)} {'costs' if pile.unknown_rows == 1 else 'cost'} is not known here{expected}"
    if not pile.difference_usd:
        return f"{why}, and the invoice has nothing for it"
    return f"{_text(pile.difference_usd)} of the invoice cannot be confirmed: {why}"
