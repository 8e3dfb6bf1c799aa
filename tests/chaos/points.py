"""Where a process can die: every effect of every station, before and after it, by name. `crashing/dying.py` has the grammar.

A *play* is a story around the death: what is run, what the provider does, and what a person types until all is well. The house
test in test_points.py holds this list to `core/ports.py`: a new method of a port needs points here, or a reason in `NO_POINT`.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """One play with its deaths, in their order."""

    play: str
    deaths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.play}: {' then '.join(self.deaths)}"

    @property
    def kills_the_command(self) -> bool:
        """Whether somebody has to type the command again."""
        return any(death.split()[0] in ("command", "everything") for death in self.deaths)

    @property
    def names(self) -> set[str]:
        """The methods that the deaths are at."""
        return {re.split("[(:]", death.split()[1])[0] for death in self.deaths}


def _cases(play: str, who: str, text: str) -> Iterator[Case]:
    """One case a word and person: `name:side` or `name:side:n`."""
    for person in who.split():
        for word in text.split():
            yield Case(play, (f"{person} {word}" if word.count(":") == 2 else f"{person} {word}:1",))


INGEST = [*_cases("run", "command", """
    sql._create:within ledger.open_batch:before ledger.open_batch:after sql.amend:within ledger.amend:after sql.add_chunk:within:2
    ledger.add_chunk:after ledger.add_chunk:after:3 sql.seal:within sql.seal:after ledger.seal:after
    file.replace(note):before file.replace(note):after ledger.schedule(submit):before ledger.schedule(submit):after
    ledger.take_due:after queue.send:before queue.send:after:2""")]
REFUSED = [*_cases("refused", "command", """
    sql.discard_last:within sql.discard_last:after sql.discard_last:after:2 ledger.discard:after""")]
BURIED = [Case("run", ("everything predictions.create:after:3", death)) for death in (
    "command ledger.move(answer_lost):before:1", "command sql.move:within:1", "command ledger.move(answer_lost):after:1")]
SUBMIT = [*_cases("run", "worker everything", """
    ledger.beat:after limiter.reserve:after ledger.claim:before sql.claim:within ledger.claim:after
    predictions.create:before:3 predictions.create:after predictions.create:after:9
    ledger.move(answered):before sql.move:within ledger.move(answered):after ledger.schedule(submit):before
    ledger.schedule(submit):after""")]
PAUSES = [
    *_cases("throttled", "worker", """
        limiter.throttle:before limiter.throttle:after ledger.note_reason:after ledger.move(throttled):before"""),
    *_cases("credit", "everything", "ledger.set_state(paused):before ledger.set_state(paused):after ledger.move(held):after"),
    *_cases("budget", "everything", "sql.pause_for_budget:within ledger.pause_for_budget:after"),
]
RECONCILE = [
    *_cases("run", "worker everything", "ledger.move(succeeded):before ledger.move(succeeded):after predictions.list_page:after "
            "ledger.note_offset:after"),
    *_cases("lost", "worker everything", "ledger.move(succeeded):before ledger.move(succeeded):after"),
    *_cases("reset", "worker everything", "ledger.checked:before ledger.checked:after ledger.move(absent):before "
            "ledger.move(absent):after"),
    Case("run", ("worker predictions.create:after:3", "worker ledger.move(answer_lost):before:1")),
    Case("run", ("everything predictions.create:after:3", "command sql.release_leases:before:1")),
    Case("run", ("everything predictions.create:after:3", "command ledger.release_holds:after:1")),
]
COLLECT = [
    *_cases("run", "worker everything", """
        ledger.to_collect:after sql.grant_names:within ledger.grant_names:after outputs.fetch:after storage.put:before
        file.fsync(output):before:2 file.fsync(output):after file.replace(output):before:3 file.replace(output):after
        file.fsync(files):before file.fsync(files):after storage.put:after:2 ledger.store_outputs:before
        sql.store_outputs:within ledger.store_outputs:after ledger.move(collected):before ledger.move(collected):after
        ledger.schedule(collect):before ledger.schedule(collect):after"""),
    *_cases("slow", "worker everything", "ledger.lease_collect:before ledger.lease_collect:after"),
    *_cases("broken", "worker", "ledger.delay_collect:before ledger.delay_collect:after"),
]
REPORT = [*_cases("run", "worker everything", """
    ledger.hold(report):after tables.results:after results.write:before results.write:after:2 file.fsync(results):after
    file.replace(results):before file.replace(results):after tables.lines:after file.replace(manifest):before
    file.replace(manifest):after tables.document:before file.replace(summary):before tables.document:after
    ledger.end_batch:before sql.end:within ledger.end_batch:after"""),
    *_cases("run", "worker", "ledger.depart:before")]
EXPIRED = [*_cases("expired", "everything", "sql.reopen_expired:within ledger.reopen_expired:after")]
CONTROL = [
    *_cases("cancel", "command", """
        ledger.set_state(canceling):before ledger.set_state(canceling):after sql.cancel_pending:within
        ledger.cancel_pending:after predictions.cancel:before predictions.cancel:after predictions.cancel:after:3
        ledger.move(canceled):before ledger.move(canceled):after ledger.schedule(sweep):before"""),
    *_cases("resume", "command", """
        ledger.lift_limit:after ledger.set_state(paused):before ledger.set_state(paused):after sql.reopen_canceled:within
        ledger.reopen_canceled:after sql.steer:within:2 ledger.set_state(running):after"""),
    *_cases("retry", "command", """
        sql.rejoin:within ledger.rejoin:after sql.reopen_failed:within
        sql.reopen_failed:after ledger.reopen_failed:after sql.steer:within ledger.set_state(running):after
        ledger.attend:after"""),
    *_cases("refetch", "command", "sql.refetch:within sql.refetch:after ledger.refetch:after ledger.set_state(running):after"),
    *_cases("export", "command", "results.write:after file.replace(results):before file.replace(results):after "
            "file.replace(manifest):before tables.document:before file.replace(summary):after"),
]
RECEIVE = [
    *_cases("hooked", "web", "ledger.receive:before sql.receive:within ledger.receive:after ledger.receive:after:2 "
            "ledger.schedule(collect):before ledger.schedule(collect):after ledger.beat:after"),
    *_cases("early", "worker", "ledger.drop_kept:before ledger.drop_kept:after"),
]
SCHEDULE = [*_cases("night", "scheduler", """
    ledger.note_slots:before sql.note:within ledger.note_slots:after ledger.claim_slot:before sql.claim:within
    ledger.claim_slot:after ledger.open_batch:after ledger.add_chunk:after:2 ledger.seal:after ledger.schedule(submit):after
    ledger.finish_slot(running):before ledger.finish_slot(running):after ledger.finish_slot(done):before""")]

EVERY = [*INGEST, *REFUSED, *BURIED, *SUBMIT, *PAUSES, *RECONCILE, *COLLECT, *REPORT, *EXPIRED, *CONTROL, *RECEIVE, *SCHEDULE]
FEW = frozenset({  # at least one death in each station, where the most is at stake
    "run: command ledger.add_chunk:after:1",
    "run: everything ledger.claim:after:1",
    "run: worker predictions.create:after:9",
    "run: everything predictions.create:after:3 then command ledger.move(answer_lost):after:1",
    "lost: everything ledger.move(succeeded):before:1",
    "run: everything file.replace(output):after:1",
    "run: everything file.replace(results):after:1",
    "hooked: web ledger.receive:after:1",
    "cancel: command predictions.cancel:after:1",
    "night: scheduler ledger.open_batch:after:1",
})


def chosen() -> list[Case]:
    """Ten; all of them with CHAOS=long."""
    return EVERY if os.environ.get("CHAOS") == "long" else [case for case in EVERY if str(case) in FEW]


_READS = "reads only: nothing to lose"
_IN_MEMORY = "changes nothing outside of its process"
NO_POINT = {
    **dict.fromkeys((
        "ledger.batch", "ledger.live_batches", "ledger.known", "ledger.loaded_rows", "ledger.oldest_out_at", "ledger.find",
        "ledger.claimable", "ledger.kept", "ledger.attempts_of", "ledger.expire_leases", "ledger.open_window",
        "ledger.stragglers", "ledger.unsure", "ledger.being_sent", "ledger.echoes", "ledger.owned", "ledger.in_air",
        "ledger.unsettled",
        "ledger.results", "ledger.manifest", "ledger.counts", "ledger.offset", "ledger.present", "ledger.slots_standing",
        "ledger.slots_of", "predictions.offset_s", "predictions.reads_left", "predictions.account", "predictions.model",
        "predictions.deployment",
        "predictions.get", "predictions.webhook_secret", "limiter.paused", "tables.resolve", "tables.fingerprint",
        "tables.columns", "tables.read", "tables.entries", "tables.cells", "storage.measure", "storage.names", "ledger.gone",
        "ledger.surplus", "ledger.home", "ledger.known_paths", "ledger.bought", "ledger.owners", "ledger.rows_of_inputs",
        "ledger.unanswered_since", "ledger.expired", "ledger.superseded", "ledger.tally", "ledger.batch_names",
        "ledger.spent_by_batch", "ledger.spent_by_day", "ledger.spent_by_row", "tables.column",
        "ledger.bought_before", "ledger.shared_with", "ledger.left", "ledger.past", "ledger.booked", "ledger.booked_of",
        "ledger.accounts", "ledger.spent_by_batch_and_day", "ledger.met", "ledger.unpriced"), _READS),
    "ledger.pause_for_failures": "one guarded update: undone, whoever buys next asks again before he buys",
    "ledger.know_failures": "one update, made again when the verb is typed again: the batch is still paused",
    **dict.fromkeys(("tables.merge_schema", "tables.empty_schema"), _IN_MEMORY),
    "ledger.know_schedule": "one insert, made again by the next look: from then on slots count, none had counted before",
    "ledger.hand_back": "leases given back before they lapse: undone, they lapse, as after every death while fetching",
    "storage.remove": "files of purchases that count no longer: undone, the row's next lease does it; `verify` names the others",
    "storage.clean": "takes away what nobody needs: undone, the next report or run does it",
    "ledger.hasten": "one write, made again by whoever sees the clock set back",
    "ledger.dismiss": "the wake stays, and the documents of an ended batch are written once more",
    "limiter.hear": "what the provider says of its limits: undone, its next answer says it again",
    "limiter.pause": "undone, whoever meets the same trouble next sets it",
    "ledger.hold_slot": "a lease made longer: to die there is to die after claim_slot",
}
