"""What files, documents, ledger and the provider's list say of one another: pure comparisons."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import verify as core
from orchestrator.core.callback import callback_url
from orchestrator.core.findings import MOST_KEPT, Finding, Findings, Kind
from orchestrator.core.lifecycle import ItemState
from orchestrator.core.records import Prediction
from orchestrator.core.verify import HomeFile, HomeRow, Owner, Pairing, Seen, Tries, Windows

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
FILE = HomeFile("files/a.png", 3, "ab" * 32, "image/png", "https://x/a.png", 0)
ROW = HomeRow(7, "sku-7", ItemState.SUCCEEDED, "p7", '["https://x/a.png"]', NOW, (FILE,))


@pytest.mark.parametrize(("seen", "kind"), [
    (None, Kind.MISSING),
    (Seen(3, "ab" * 32), None),
    (Seen(4, None), Kind.CHANGED),
    (Seen(3, "cd" * 32), Kind.CHANGED),
    (Seen(0, None, "permission denied"), Kind.UNREADABLE),
])
def test_a_file(seen: Seen | None, kind: Kind | None):
    """Only a file of the size and the hash that came home is right; what is wrong names its row and path."""
    finding = core.judge_file(ROW, FILE, seen, remedy="orchestrator verify b --fetch")
    assert (finding and finding.kind) == kind
    if finding is not None:
        assert (finding.row, finding.row_id, finding.path) == (7, "sku-7", "files/a.png")


def test_a_changed_file_is_never_overwritten():
    """It may be somebody's edit: what to do begins with putting it aside."""
    finding = core.judge_file(ROW, FILE, Seen(4, None), remedy="orchestrator verify b --fetch")
    assert finding is not None and (finding.remedy or "").startswith("put it aside; then orchestrator verify")


def test_a_row_that_lacks_files():
    """Fewer files than outputs is wrong in a row that succeeded, and in no other."""
    lost = core.judge_row(ROW, outputs=2)
    assert lost is not None and lost.kind is Kind.INCOMPLETE
    assert core.judge_row(ROW, outputs=1) is None
    failed = HomeRow(7, "sku-7", ItemState.FAILED, "p7", None, NOW, ())
    assert core.judge_row(failed, outputs=2) is None


def test_rows_without_an_end():
    """Rows still on their way in a batch that has ended were passed over: paid, and nobody looks after them."""
    found = list(core.judge_open({ItemState.COLLECTING: 3, ItemState.RUNNING: 1, ItemState.SUCCEEDED: 5, ItemState.PENDING: 0},
                                 remedy="orchestrator retry b"))
    assert [(f.kind, f.text) for f in found] == [
        (Kind.UNFINISHED, "3 rows are collecting, and the batch has ended"),
        (Kind.UNFINISHED, "1 row is running, and the batch has ended")]


def test_until_when_it_is_kept():
    """To the second when the provider deletes it, and not a moment longer."""
    assert core.kept_until(ROW, now=NOW, retention_s=60) == NOW + timedelta(seconds=60)
    assert core.kept_until(ROW, now=NOW + timedelta(seconds=60), retention_s=60) is None


def test_findings_are_counted_beyond_what_is_kept():
    """Of ten thousand lost files a thousand are listed, and none goes uncounted."""
    findings = Findings()
    for row in range(MOST_KEPT + 5):
        findings.add(Finding(Kind.MISSING, "is missing", row))
    findings.add(None)
    assert (findings.total, findings.of(Kind.MISSING)) == (MOST_KEPT + 5, core.MOST_KEPT + 5)
    assert len(findings.kept) == MOST_KEPT


@given(st.dictionaries(st.text("abc", max_size=3), st.integers(0, 3), max_size=20), st.randoms(use_true_random=False),
       st.dictionaries(st.text("abc", max_size=3), st.integers(0, 3), max_size=5),
       st.sets(st.text("abc", max_size=3), max_size=5))
def test_pairing_finds_exactly_the_differences(known: dict[str, int], chance: Any, changed: dict[str, int], gone: set[str]):
    """Whatever the order in which both sides are read: every line that differs, is missing or is too many, and no other."""
    written = {key: value for key, value in (known | changed).items() if key not in gone}
    steps = [("known", *item) for item in known.items()] + [("written", *item) for item in written.items()]
    chance.shuffle(steps)
    pairing, differing = Pairing[str](), set()
    for side, key, value in steps:
        add = pairing.add_known if side == "known" else pairing.add_written
        if add(key, {"value": value}):
            differing.add(key)
    assert differing == {key for key in known.keys() & written.keys() if known[key] != written[key]}
    assert set(pairing.known) == known.keys() - written.keys()
    assert set(pairing.written) == written.keys() - known.keys()


def test_pairing_gives_up_in_bounded_memory():
    """Two documents that have nothing in common are not kept whole to find that out."""
    pairing = Pairing[int]()
    for key in range(core.MOST_WAITING + 1):
        pairing.add_written(key, {})
    assert pairing.gave_up


@given(st.lists(st.integers(0, 40 * 3600), min_size=1, max_size=60), st.integers(0, 4000), st.integers(0, 4000))
def test_windows_hold_every_purchase_once(moments: list[int], before_s: int, after_s: int):
    """Each purchase lies in exactly one stretch, with its margins; stretches do not touch, newest first."""
    windows, before, after = Windows(), timedelta(seconds=before_s), timedelta(seconds=after_s)
    for moment in moments:
        windows.add(NOW + timedelta(seconds=moment))
    spans = windows.merged(before=before, after=after)
    for moment in moments:
        at = NOW + timedelta(seconds=moment)
        assert len([span for span in spans if span.first <= at - before and at + after <= span.last]) == 1
    assert all(older.last < newer.first for newer, older in pairwise(spans))


TRY = st.tuples(st.integers(0, 200), st.integers(1, 12))


@given(st.sets(TRY, max_size=50), TRY)
def test_tries_are_remembered_exactly(added: set[tuple[int, int]], asked: tuple[int, int]):
    """A bit for each try of each row is a set, also beyond the eighth try."""
    tries = Tries()
    for row, n in added:
        tries.add(row, n)
    assert (asked in tries) == (asked in added)


def owner(state: str = "succeeded", prediction_id: str | None = "p7") -> Owner:
    return Owner("a" * 26, "b", 7, "sku-7", 1, state, prediction_id, "hash")


@pytest.mark.parametrize(("state", "status", "is_over", "is_wrong"), [
    ("succeeded", "succeeded", True, False), ("succeeded", "failed", True, True), ("succeeded", "processing", True, True),
    ("failed", "failed", True, False), ("failed", "succeeded", False, True),
    ("canceled", "aborted", True, False), ("aborted", "canceled", True, False), ("aborted", "succeeded", True, True),
    ("running", "succeeded", False, False), ("running", "succeeded", True, True), ("running", "processing", True, False),
    ("lost", "succeeded", True, True), ("absent", "starting", False, True),
])
def test_how_an_attempt_ended(state: str, status: str, is_over: bool, is_wrong: bool):
    """An end that the provider tells otherwise is wrong; one that a live batch has not heard of yet is not."""
    assert (core.judge_owned(Prediction("p7", status), owner(state), is_over=is_over) is not None) == is_wrong


OURS, ELSEWHERE = callback_url("https://us", "a" * 26), "https://elsewhere/hook"


@pytest.mark.parametrize(("values", "named", "row", "verbatim", "explained"), [
    ({"webhook": OURS}, owner("lost", None), None, True, False),  # our own attempt's
    ({"webhook": ELSEWHERE, "input": {"a": 1}}, None, (7, "sku-7"), True, True),  # somebody else's, though the input is the same
    ({"webhook": OURS}, None, None, True, True),  # an attempt of another ledger
    ({"input": {"a": 1}}, None, (7, "sku-7"), True, False),
    ({"input": {"a": 1}}, None, None, True, True),  # an input that no row has
    ({"input": {"a": 1}}, None, None, False, False),  # … where inputs are shown in other words, that says nothing
    ({"input": {}, "data_removed": True}, None, None, True, False),  # nobody can say
])
def test_whose_an_unowned_prediction_is(values: dict[str, Any], named: Owner | None, row: tuple[int, str] | None, verbatim: bool,
                                        explained: bool):
    """Only what is explained is somebody else's; a doubt is told as one."""
    prediction = Prediction("p9", "succeeded", **values)
    assert core.is_somebody_else_s(prediction, named=named, row=row, verbatim=verbatim) == explained


def test_what_is_said_of_an_unrecorded_prediction():
    """Id, when it was made, its state, whose webhook it carries, and the row it belongs to."""
    prediction = Prediction("p9", "processing", created_at=NOW, webhook=OURS)
    finding = core.unrecorded(prediction, named=owner("lost", None), row=None)
    assert (finding.kind, finding.row, finding.row_id, finding.prediction_id) == (Kind.UNRECORDED, 7, "sku-7", "p9")
    assert "2026-01-05 12:00:00 UTC, processing; its webhook names attempt aaa" in finding.text
    assert "recorded as lost" in finding.text
    assert "still alive" in (finding.remedy or "")


def test_results_read_alike_from_every_format():
    """Numbers that CSV has as text, lists that it has as JSON, and empty cells compare equal."""
    typed = {"prediction_index": 3, "prediction_id": "p3", "prediction_status": "succeeded", "prediction_files": ["files/a.png"],
             "prediction_error_class": None, "prediction_attempts": 1}
    text = typed | {"prediction_index": "3", "prediction_files": '["files/a.png"]', "prediction_attempts": "1"}
    assert core.result_line(text) == core.result_line(typed) == typed
    assert core.result_line(typed | {"prediction_files": None})["prediction_files"] == []


def test_targets():
    """By the name asked for or the one that answers carry; a pinned version must fit."""
    at = Prediction("p", "starting", model="acme/draw", version="v1")
    assert core.is_of_target(at, name="acme/draw", version=None, echo=None)
    assert core.is_of_target(at, name="acme/draw", version="v0", echo=("acme/draw", "v1"))
    assert not core.is_of_target(at, name="acme/draw", version="v0", echo=None)
    inside = Prediction("p", "x", model="internal/draw")
    assert core.is_of_target(inside, name="acme/draw", version=None, echo=("internal/draw", "h"))
    assert not core.is_of_target(Prediction("p", "x", model="acme/other"), name="acme/draw", version=None, echo=None)
