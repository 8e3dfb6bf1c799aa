"""`verify`: do files, documents, ledger and provider agree? Changes nothing, unless told to fetch what is missing."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import wiring
from orchestrator.apps.cli.ending import Ending, Exit
from orchestrator.apps.cli.look import here
from orchestrator.apps.cli.panel import usd_text
from orchestrator.apps.cli.speech import say
from orchestrator.apps.pricing import at_todays_price, now_document, now_line
from orchestrator.core.cost import to_usd
from orchestrator.core.errors import OrchestratorError
from orchestrator.core.findings import Finding, Findings, Kind
from orchestrator.core.lifecycle import LIVE_BATCH
from orchestrator.core.reckoning import Charges
from orchestrator.core.records import Batch
from orchestrator.core.verify import Document, Report
from orchestrator.flow.verify import verify_home
from orchestrator.flow.verify_there import verify_there
from orchestrator.wiring import Settings

SHOWN = 10  # findings of a kind, and names; --json has a thousand
TELL_EVERY_S = 5.0
_FILES = (Kind.MISSING, Kind.CHANGED, Kind.UNREADABLE, Kind.INCOMPLETE, Kind.UNFINISHED)
_CHARGES = (Kind.CHARGE, Kind.SPENT, Kind.CHARGED_OTHERWISE)
_THERE = (Kind.UNRECORDED, Kind.UNKNOWN_THERE, Kind.ENDED_OTHERWISE)
_WORDS = {
    Kind.MISSING: "missing", Kind.CHANGED: "changed", Kind.UNREADABLE: "not readable", Kind.INCOMPLETE: "rows without all files",
    Kind.UNFINISHED: "kinds of rows without an end",
    Kind.UNRECORDED: "more that the ledger never recorded", Kind.UNKNOWN_THERE: "that the provider does not know",
    Kind.ENDED_OTHERWISE: "with another end than recorded"}


async def verify(name: str, *, local: bool, fetch: bool) -> Ending:
    """One batch, at home and (unless `local`) at the provider.

    1: something is wrong. 4: nothing is, but the provider could not be asked."""
    settings = here()
    async with wiring.rooms(settings, token_needed=False) as rooms:
        batch = await rooms.ledger.find(name)
        report = await verify_home(rooms, batch, fetch=fetch, told=_Progress())
        report.charges.priced_now = await at_todays_price(rooms, batch, settings)
    if not local:
        await _there(settings, batch, report)
    code = Exit.FAILED_ROWS if report.findings.total else Exit.UNREACHABLE if report.there.why_not else Exit.DONE
    return Ending(code, _document(batch, report, code=code, local=local), tuple(lines_of(batch, report, local=local)))


async def _there(settings: Settings, batch: Batch, report: Report) -> None:
    """The provider's side. Whatever keeps us from it is said; what was found at home stands."""
    if settings.api_token is None:
        report.there.why_not = "no API token: set REPLICATE_API_TOKEN"
        return
    try:
        async with wiring.redis(settings) as hold, wiring.rooms(settings, redis_url=hold.redis_url) as rooms:
            await verify_there(rooms, batch, report)
    except OrchestratorError as error:
        report.there.why_not = str(error)


@dataclass(slots=True)
class _Progress:
    """A line now and then: hashing a hundred gigabytes takes minutes."""

    last_s: float = 0.0

    def __call__(self, report: Report) -> None:
        now_s = time.monotonic()
        self.last_s = self.last_s or now_s
        if now_s - self.last_s >= TELL_EVERY_S:
            self.last_s = now_s
            say(f"{report.files:,} files read, {_size(report.bytes)}")


_VERDICTS = {Exit.DONE: "well", Exit.FAILED_ROWS: "wrong", Exit.UNREACHABLE: "incomplete"}


def _document(batch: Batch, report: Report, *, code: Exit, local: bool) -> dict[str, Any]:
    there, findings = report.there, report.findings
    return {
        "batch": batch.id, "job": batch.job, "state": batch.state.value, "output": batch.output_to, "verdict": _VERDICTS[code],
        "wrong": findings.total, "by_kind": {kind.value: findings.of(kind) for kind in Kind},
        "files": {"checked": report.files, "bytes": report.bytes, "fetched_again": report.fetched},
        "shared_with": report.elsewhere, "manifest": _of_document(report.manifest), "results": _of_document(report.results),
        "unknown_files": {"count": report.strangers, "names": report.stranger_names},
        "provider": {
            "asked": not local, "why_not": there.why_not, "listed": there.listed, "ours": there.ours, "others": there.others,
            "undecided": there.undecided, "waiting": there.waiting, "not_asked": there.not_asked},
        "charges": _of_charges(report.charges),
        "findings": [_of_finding(finding) for finding in findings.kept],
    }


def _of_document(document: Document) -> dict[str, Any]:
    return {"path": document.path, "lines": document.lines, "why_not": document.why_not}


def _of_charges(charges: Charges) -> dict[str, Any]:
    """Differences are the provider's figure minus the ledger's."""
    could_be = {"count": charges.priceable.total, "usd": _usd(charges.priceable_units),
                "rows": [_of_finding(finding) for finding in charges.priceable.kept]}
    return {"reckoned": charges.reckoned, "nothing_kept": charges.bare, "usd": _usd(charges.units), "compared": charges.compared,
            "agree": charges.agree, "difference_usd": _usd(charges.difference_units), "untold": charges.untold,
            "unknown": charges.unknown, "could_be_priced": could_be, "priced_now": now_document(charges.priced_now)}


def _usd(units: int) -> str:
    return format(to_usd(units), "f")


def _of_finding(finding: Finding) -> dict[str, Any]:
    return {"kind": finding.kind.value, "row": finding.row, "id": finding.row_id, "path": finding.path,
            "prediction_id": finding.prediction_id, "text": finding.text, "remedy": finding.remedy}


def lines_of(batch: Batch, report: Report, *, local: bool) -> Iterator[str]:
    """What a person reads."""
    yield f"{batch.id} ({batch.job}, {batch.target.name}): {batch.state.value}"
    found = report.findings
    yield from _part("files", _files_text(batch, report), found, _FILES)
    for earlier, rows in report.elsewhere.items():
        yield f"  shared   {_count(rows, 'row')} from {earlier}, which bought them: orchestrator verify {earlier} looks at them"
    yield from _part("manifest", _document_text(report.manifest, report, Kind.MANIFEST), found, (Kind.MANIFEST,))
    yield from _part("results", _document_text(report.results, report, Kind.RESULTS), found, (Kind.RESULTS,))
    yield from _part("provider", "not asked (--local)" if local else _there_text(report), found, _THERE)
    yield from _part("charges", "; ".join(_charges_texts(report)), found, _CHARGES)
    if report.charges.priceable.total:
        yield from _part("unpriced", _priceable_text(report.charges), report.charges.priceable, (Kind.CHARGED_OTHERWISE,))
    elif line := now_line(report.charges.priced_now):
        yield f"  unpriced {line}"
    if report.strangers:
        more = f", … and {report.strangers - SHOWN:,} more" if report.strangers > SHOWN else ""
        yield (f"  unknown  {_count(report.strangers, 'name')} in {batch.output_to} that this batch knows nothing of (no harm): "
               f"{', '.join(report.stranger_names[:SHOWN])}{more}")
    if batch.state in LIVE_BATCH:
        yield f"  note     the batch is {batch.state.value}: what moves meanwhile may look wrong; look again at its end"
    yield _verdict(report, local=local)


def _part(name: str, text: str, findings: Findings, kinds: tuple[Kind, ...]) -> Iterator[str]:
    yield f"  {name:<8} {text}"
    for kind in kinds:
        found = [finding for finding in findings.kept if finding.kind is kind]
        for finding in found[:SHOWN]:
            yield f"           - {_about(finding)}{finding.text}"
        yield from (f"             {remedy}" for remedy in dict.fromkeys(f.remedy for f in found[:SHOWN] if f.remedy))
        if findings.of(kind) > SHOWN:
            yield f"           … and {findings.of(kind) - SHOWN:,} more (--json lists up to a thousand)"


def _about(finding: Finding) -> str:
    row = "" if finding.row is None else f"row {finding.row}" + (f" ({finding.row_id})" if finding.row_id else "")
    what = finding.path or finding.prediction_id
    if finding.kind is Kind.RESULTS:
        return f"{row}: " if row else ""
    if finding.kind is Kind.MANIFEST:
        return f"{what}: " if what else ""
    return " ".join(part for part in (row, what) if part) + " "


def _files_text(batch: Batch, report: Report) -> str:
    wrong = [f"{report.findings.of(kind):,} {_WORDS[kind]}" for kind in _FILES if report.findings.of(kind)]
    again = f"; {_count(report.fetched, 'file')} fetched again" if report.fetched else ""
    if not report.files and not wrong:
        return "none came home, and none should have"
    if report.files and not Path(batch.output_to).is_dir():
        return f"the folder {batch.output_to} is not here: was it moved?"
    return f"{_count(report.files, 'file')}, {_size(report.bytes)}: {', '.join(wrong) or 'each as it came home'}{again}"


def _document_text(document: Document, report: Report, kind: Kind) -> str:
    if document.why_not is not None:
        return f"not compared: {document.why_not}"
    wrong = report.findings.of(kind)
    return f"{_count(document.lines, 'line')}: {'all as in the ledger' if not wrong else f'{wrong:,} wrong'}"


def _there_text(report: Report) -> str:
    there = report.there
    parts = [f"{report.findings.of(kind):,} {_WORDS[kind]}" for kind in _THERE if report.findings.of(kind)]
    if there.why_not is not None and not there.listed:
        return f"not asked: {there.why_not}"
    if there.why_not is not None:
        parts.append(f"not asked to the end: {there.why_not}")
    elif not parts:
        parts.append("each as in the ledger")
    for many, text in ((there.waiting, "have ended there and are not home yet (run the job again)"),
                       (there.undecided, "may belong to answers that are still out (look again later)"),
                       (there.not_asked, "are not in the list any more and were not asked for one by one"),
                       (there.others, "besides of the same model, not of this batch")):
        parts += [f"{many:,} {text}"] if many else []
    return f"{_count(there.ours, 'prediction')} of this batch listed: {'; '.join(parts)}"


def _charges_texts(report: Report) -> Iterator[str]:
    """How many charges there are and what they come to; how many were compared with the provider, and by how much they differ."""
    charges, wrong = report.charges, report.findings.of(Kind.CHARGE, Kind.SPENT)
    kept = f"{wrong:,} wrong" if wrong else "each its quantity at its price"
    yield f"{_count(charges.reckoned + charges.bare, 'charge')}, {usd_text(to_usd(charges.units))}: {kept}"
    if charges.bare:
        yield f"{charges.bare:,} of an older version, which kept no quantity"
    if charges.compared:
        differ = charges.compared - charges.agree
        yield (f"{charges.compared:,} compared with the provider: "
               + (f"{charges.agree:,} agree, {differ:,} differ, by {_signed(charges.difference_units)} in all" if differ else
                  "all agree, differences $0.00"))
    for many, text in ((charges.untold, "whose quantity it no longer tells"), (_unknown(charges), "of a cost unknown to both")):
        if many:
            yield f"{many:,} {text}"


def _unknown(charges: Charges) -> int:
    """Of those that the batch's price does not make known, what no price does that there is now."""
    return max(0, charges.unknown - (charges.priced_now.rows if charges.priced_now else 0))


def _signed(units: int) -> str:
    return f"{'-' if units < 0 else '+' if units else ''}{usd_text(abs(to_usd(units)))}"


def _priceable_text(charges: Charges) -> str:
    return (f"{_count(charges.priceable.total, 'prediction')} of unknown cost, whose quantity the provider tells now: "
            f"{usd_text(to_usd(charges.priceable_units))} that the ledger does not have (no harm)")


def _verdict(report: Report, *, local: bool) -> str:
    if report.findings.total:
        half = "" if report.there.why_not is None else ", and the provider could not be asked"
        return f"{_count(report.findings.total, 'thing')} wrong{half}"
    if report.there.why_not is not None:
        return "nothing wrong at home; the provider could not be asked (--local leaves it out)"
    elsewhere = sum(report.elsewhere.values())
    unseen = f"; the files of {_count(elsewhere, 'row')} are another batch's, and were not looked at" if elsewhere else ""
    return "all is well" + (" at home" if local else " here" if unseen else "") + unseen


def _count(many: int, what: str) -> str:
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
