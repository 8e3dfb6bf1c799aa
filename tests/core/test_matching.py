"""Whose is this prediction: adopting on evidence, buying again only when every doubt is explained."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.matching import Listing, Verdicts, doubts, last_moment, resolve
from orchestrator.core.ports import OpenAttempt
from orchestrator.core.records import Prediction
from orchestrator.core.tempo import Tempo

T0 = datetime(2026, 11, 20, 2, 0, tzinfo=UTC)
TEMPO = Tempo(unsure_margin_s=120, unsure_confirm_s=30, unsure_no_canary_s=300, unsure_give_up_s=600)
TARGET = "models/black-forest-labs/flux-schnell"
ECHO = {TARGET: ("black-forest-labs/flux-schnell", "hidden")}


def hash_of(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def attempt(name: str = "a1", *, prompt: str = "a cat", state: str = "unsure", target: str = TARGET,
            checked: datetime | None = None, age_s: float = 0.0) -> OpenAttempt:
    text = json.dumps({"prompt": prompt})
    return OpenAttempt(name, 1, state, None, target, text, hash_of({"prompt": prompt}), T0 - timedelta(seconds=age_s), None,
                       T0 - timedelta(seconds=age_s), checked)


def seen(name: str, *, prompt: str | None = "a cat", at_s: float = 1.0, version: str = "hidden", webhook: str | None = None,
         model: str = "black-forest-labs/flux-schnell", removed: bool = False) -> Prediction:
    value = None if prompt is None else {"prompt": prompt}
    return Prediction(name, "succeeded", model=model, version=version, input=value, created_at=T0 + timedelta(seconds=at_s),
                      data_removed=removed, webhook=webhook)


def judge(attempts: list[OpenAttempt], predictions: list[Prediction], *, owned: set[str] = frozenset(), after_s: float = 10.0,  # type: ignore[assignment]
          complete: bool = True, offset_s: float | None = 0.0) -> Verdicts:
    own = [a if a.offset_s is not None else replace(a, offset_s=offset_s) for a in attempts]  # made under the same offset
    free = [p for p in predictions if p.id not in owned]
    canary_at = max((p.created_at for p in predictions if p.id in owned and p.created_at), default=None)
    return resolve(own, Listing(free, complete, canary_at), now=T0 + timedelta(seconds=after_s),
                   offset_s=offset_s, tempo=TEMPO, hash_of=hash_of, alive_targets=ECHO)


def late_canary() -> Prediction:
    return seen("canary", prompt="something else", at_s=200)


def test_an_equal_unowned_prediction_is_adopted():
    """Same target, same input, owned by nobody: it is ours."""
    assert [(a, p.id) for a, p, _ in judge([attempt()], [seen("p1")]).adopt] == [("a1", "p1")]


def test_an_owned_prediction_is_nobodys_else():
    """What another attempt owns is no candidate."""
    assert judge([attempt()], [seen("p1")], owned={"p1"}).adopt == []


def test_one_candidate_for_two_equal_rows_is_left_alone():
    """Two equal rows, one answer lost, one in flight, one prediction: which it belongs to cannot be said yet."""
    assert judge([attempt("a1"), attempt("a2", state="open")], [seen("p1")]).adopt == []


def test_two_candidates_for_two_equal_rows_are_shared_out():
    """With candidates enough for all, each gets its own."""
    verdicts = judge([attempt("a1"), attempt("a2")], [seen("p1"), seen("p2", at_s=2)])
    assert sorted((a, p.id) for a, p, _ in verdicts.adopt) == [("a1", "p1"), ("a2", "p2")]


def test_the_same_input_on_another_model_is_not_ours():
    """The same file run on two models at once must not cross over."""
    assert judge([attempt()], [seen("p1", model="stability-ai/sdxl", version="39ed")]).adopt == []


def test_absence_needs_two_looks_and_a_canary():
    """With something of ours created later in the list, absence is concluded at the second look."""
    predictions, owned = [late_canary()], {"canary"}
    first = judge([attempt()], predictions, owned=owned, after_s=210)
    assert (first.absent_once, first.absent) == (["a1"], [])
    looked = T0 + timedelta(seconds=240)
    assert judge([attempt(checked=looked)], predictions, owned=owned, after_s=230).absent == []
    assert judge([attempt(checked=looked)], predictions, owned=owned, after_s=240).absent == ["a1"]


def test_nothing_is_concluded_before_the_last_moment():
    """The POST may still create: end of our request plus the margin."""
    assert judge([attempt()], [late_canary()], owned={"canary"}, after_s=119).absent_once == []


def test_without_a_canary_absence_waits_longer():
    """Lists lag: with nothing newer of ours to be seen, five more minutes pass."""
    assert judge([attempt()], [], after_s=400).absent_once == []
    assert judge([attempt()], [], after_s=421).absent_once == ["a1"]


def test_an_unowned_canary_is_none():
    """Somebody else's later prediction says nothing about the lag of ours."""
    assert judge([attempt()], [late_canary()], after_s=300).absent_once == []


def test_doubts_forbid_buying_again():
    """One unexplained prediction, one with its data removed, a listing cut short, or no clock: nothing is concluded."""
    owned = {"canary"}
    unexplained = seen("p9", version="another")
    assert judge([attempt()], [late_canary(), unexplained], owned=owned, after_s=300).absent_once == []
    assert judge([attempt()], [late_canary(), seen("p9", prompt=None)], owned=owned, after_s=300).absent_once == []
    assert judge([attempt()], [late_canary(), seen("p9", removed=True)], owned=owned, after_s=300).absent_once == []
    assert judge([attempt()], [late_canary()], owned=owned, after_s=300, complete=False).absent_once == []
    assert judge([attempt()], [late_canary()], owned=owned, after_s=300, offset_s=None).absent_once == []


def test_explained_predictions_are_no_doubt():
    """A different prompt, or a webhook that we never asked for, explains a prediction away."""
    others = [late_canary(), seen("p8", prompt="a dog"), seen("p9", webhook="https://example.com/hook")]
    assert judge([attempt()], others, owned={"canary"}, after_s=300).absent_once == ["a1"]


def test_a_clock_ahead_shifts_the_canary():
    """With the provider ten minutes ahead, its later timestamps are not later in truth."""
    early = seen("canary", prompt="x", at_s=500)
    assert judge([attempt()], [early], owned={"canary"}, after_s=300, offset_s=600).absent_once == []


def test_doubt_ends_honestly():
    """What is still in doubt long after the last moment is given up, not bought."""
    verdicts = judge([attempt()], [seen("p9", removed=True)], after_s=721)
    assert (verdicts.give_up, verdicts.absent, verdicts.adopt) == (["a1"], [], [])


def test_a_killed_worker_leaves_the_longest_window():
    """Without an end of the request on record, the last moment counts from the latest possible write."""
    known, unknown = attempt(), attempt()
    object.__setattr__(unknown, "sent_until_at", None)
    assert last_moment(unknown, tempo=TEMPO) - last_moment(known, tempo=TEMPO) == timedelta(seconds=31.5)


def secretive(name: str = "a1", *, key: str = "sk-1") -> OpenAttempt:
    value = {"prompt": "a cat", "api_key": key}
    return OpenAttempt(name, 1, "unsure", None, TARGET, json.dumps(value), hash_of(value), T0, None, T0, None,
                       secrets=frozenset({"api_key"}))


def shown(name: str, **changes: Any) -> Prediction:
    return Prediction(name, "succeeded", model=ECHO[TARGET][0], version="hidden", created_at=T0 + timedelta(seconds=1),
                      input={"prompt": "a cat", "api_key": "[REDACTED]"} | changes)


def test_a_secret_is_shown_in_other_words():
    """A secret input comes back redacted: it is left out of the comparison, and the rest decides."""
    assert [a for a, _, _ in judge([secretive()], [shown("p1")]).adopt] == ["a1"]
    assert judge([secretive()], [shown("p1", prompt="a dog")]).adopt == []
    assert judge([secretive("a1"), secretive("a2", key="sk-2")], [shown("p1")]).adopt == []


def test_a_redacted_secret_explains_nothing():
    """A prediction that differs in a secret only may be ours: absence is not concluded."""
    doubtful = [late_canary(), shown("p1")._replace(version="another")]
    assert judge([secretive()], doubtful, owned={"canary"}, after_s=300).absent_once == []


def test_an_emptied_input_explains_nothing():
    """What becomes of an input after its removal is not documented: an empty one is no evidence either."""
    emptied = seen("p9")._replace(input={})
    assert judge([attempt()], [late_canary(), emptied], owned={"canary"}, after_s=300).absent_once == []


def test_machines_whose_clocks_differ():
    """Made by a machine three minutes fast, judged by one that is right: its last moment is three minutes sooner than it says."""
    fast = replace(attempt(), offset_s=-180.0)
    created = seen("canary", prompt="something else", at_s=0)  # 180 s after the purchase by the provider's clock, as ours
    assert judge([fast], [created], owned={"canary"}, after_s=0).absent_once == ["a1"]
    assert judge([attempt()], [created], owned={"canary"}, after_s=0).absent_once == []


def test_a_clock_set_right_in_between():
    """Made while the clock was three minutes slow: its last moment lies three minutes later than it says."""
    slow = replace(attempt(), offset_s=180.0)
    assert judge([slow], [late_canary()], owned={"canary"}, after_s=250).absent_once == []
    later = seen("canary", prompt="something else", at_s=310)
    assert judge([slow], [later], owned={"canary"}, after_s=310).absent_once == ["a1"]


def test_an_unknown_clock_concludes_nothing():
    """Of an attempt made before the provider's clock was known absence is never concluded."""
    unknown = judge([attempt()], [late_canary()], owned={"canary"}, after_s=300, offset_s=None)
    assert (unknown.absent_once, unknown.absent) == ([], [])


def gone(name: str = "a1", *, state: str = "absent", **values: Any) -> OpenAttempt:
    return attempt(name, state=state, **values)


@pytest.mark.parametrize("state", ["absent", "lost"])
def test_what_turns_up_after_all(state: str):
    """A prediction equal to what was found absent or given up is that attempt's, once its answer cannot be on its way."""
    early = judge([gone(state=state)], [seen("p1")], after_s=60)
    assert early.adopt == []
    late = judge([gone(state=state)], [seen("p1")], after_s=200)
    assert late.adopt == [("a1", seen("p1"), "input")]
    assert (late.absent, late.absent_once, late.give_up) == ([], [], [])


def test_what_turns_up_is_not_taken_from_who_waits():
    """While an equal row is unsure or in the air, an equal prediction may be its own."""
    for state in ("unsure", "open"):
        verdicts = judge([gone("a1"), attempt("a2", state=state)], [seen("p1")], after_s=200)
        assert [bound.attempt_id for bound in verdicts.adopt] == ([] if state == "open" else ["a2"])


def test_what_turns_up_with_our_id():
    """The webhook's URL says at once whose it is."""
    url = f"https://us.example/webhooks/replicate?attempt={'a' * 26}"
    verdicts = judge([gone("a" * 26)], [seen("p1", prompt=None, webhook=url)], after_s=1)
    assert [(bound.attempt_id, bound.by) for bound in verdicts.adopt] == [("a" * 26, "url")]


def test_what_turns_up_needs_the_clock():
    """Without the provider's clock nothing is taken that might have to be canceled."""
    assert judge([gone()], [seen("p1")], after_s=1000, offset_s=None).adopt == []


def test_nothing_older_than_the_attempt():
    """An equal prediction from before the attempt was made is somebody else's."""
    assert judge([attempt()], [seen("p1", at_s=-61)]).adopt == []
    assert judge([gone()], [seen("p1", at_s=-61)], after_s=1000).adopt == []


@given(st.lists(st.sampled_from(["unsure", "open", "absent", "lost"]), max_size=6), st.integers(0, 6), st.booleans())
def test_no_prediction_is_given_twice(states: list[str], predictions: int, has_url: bool):
    """Whatever waits and whatever is found: each attempt gets one at most, each prediction has one owner at most, and an
    attempt that is in the air gets none."""
    attempts = [attempt(f"{n:026d}", state=state) for n, state in enumerate(states)]
    url = f"https://us.example/webhooks/replicate?attempt={0:026d}" if has_url else None
    found = [seen(f"p{n}", at_s=n, webhook=url if n == 0 else None) for n in range(predictions)]
    bound = judge(attempts, found, after_s=500).adopt
    assert len({b.attempt_id for b in bound}) == len({b.prediction.id for b in bound}) == len(bound)
    assert not {b.attempt_id for b in bound} & {a.attempt_id for a in attempts if a.state == "open"}


def test_nobody_is_given_up_unseen():
    """A program that was away for long still looks first; and looks twice."""
    predictions, owned = [late_canary()], {"canary"}
    assert judge([attempt()], predictions, owned=owned, after_s=3000).absent_once == ["a1"]
    looked = attempt(checked=T0 + timedelta(seconds=3000))
    verdicts = judge([looked], predictions, owned=owned, after_s=3030)
    assert (verdicts.absent, verdicts.give_up) == (["a1"], [])


def test_without_a_listing_an_attempt_waits_for_an_hour():
    """A provider that cannot be asked proves nothing; after the hour nothing could be fetched any more."""
    for after_s, given_up in ((3000, []), (3600 + 121, ["a1"])):
        verdicts = judge([attempt()], [], complete=False, after_s=after_s)
        assert (verdicts.give_up, verdicts.absent, verdicts.absent_once) == (given_up, [], [])


def test_a_doubt_that_stays_ends_after_the_time_for_it():
    """An unexplained prediction in a complete listing: honest end after ten minutes."""
    doubt = seen("p9", prompt=None)
    assert judge([attempt()], [doubt], after_s=719).give_up == []
    assert judge([attempt()], [doubt], after_s=721).give_up == ["a1"]


def test_doubts_are_what_a_get_could_clear_up():
    """Unowned, silent about their webhook, and like an attempt that is unsure or gone; what is only in the air asks nothing."""
    listing = Listing([seen("p3", at_s=3), seen("p1"), seen("dog", prompt="a dog"), seen("theirs", webhook="x"),
                       seen("removed", prompt=None, at_s=2)], complete=True, canary_at=None)
    assert [p.id for p in doubts([attempt()], listing, tempo=TEMPO)] == ["p1", "removed", "p3"]
    assert [p.id for p in doubts([gone()], listing, tempo=TEMPO)] == ["p1", "removed", "p3"]
    assert doubts([attempt(state="open")], listing, tempo=TEMPO) == []


def test_an_input_of_others_that_no_float_can_hold():
    """It is a difference like any other, and ends no look at the list."""
    other = seen("p1")._replace(input={"prompt": 10**400})
    assert judge([attempt()], [other, late_canary()], owned={"canary"}, after_s=500).absent_once == ["a1"]
