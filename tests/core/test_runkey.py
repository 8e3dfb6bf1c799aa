"""The run key and the input hash: what makes two things the same."""

import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.canonical import canonical
from orchestrator.core.inputs import input_hash
from orchestrator.core.runkey import hash_text, run_key

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12)
INPUTS = st.dictionaries(TEXT, VALUES, max_size=5)


def key(**changed: Any) -> str:
    return run_key(**({"job_name": "j", "target_as_written": "a/b", "input_mapping": {"prompt": "{{ a }}", "n": 1},
                       "source_hashes": ["x", "y"]} | changed))


def test_the_same_batch_has_the_same_key() -> None:
    """The order in which inputs are written does not matter."""
    assert key() == key(input_mapping={"n": 1, "prompt": "{{ a }}"})
    assert len(key()) == 32


@pytest.mark.parametrize("changed", [{"job_name": "k"}, {"target_as_written": "deployment:a/b"}, {"input_mapping": None},
                                     {"input_mapping": {}}, {"input_mapping": {"prompt": "{{ a }}", "n": 2}},
                                     {"source_hashes": ["y", "x"]}, {"source_hashes": ["x"]}])
def test_every_part_counts(changed: dict[str, Any]) -> None:
    """Another job, target, mapping or source is another batch."""
    assert key(**changed) != key()


def _respelled(value: Any) -> Any:
    """The same value in another spelling: keys backwards, decomposed text, integers as floats where exact."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return float(value) if abs(value) < 2**53 else value
    if isinstance(value, str):
        return value if value.startswith(("http:", "https:")) else unicodedata.normalize("NFD", value)
    if isinstance(value, dict):
        return {unicodedata.normalize("NFD", name): _respelled(value[name]) for name in reversed(value)}
    return [_respelled(member) for member in value] if isinstance(value, list) else value


@given(INPUTS)
def test_canonical_does_not_depend_on_spelling(value: dict[str, Any]) -> None:
    """Key order, Unicode form and 7 against 7.0 change neither the text nor the hash."""
    value = {unicodedata.normalize("NFC", name): member for name, member in value.items()}
    assert canonical(_respelled(value)) == canonical(value)


@given(VALUES)
def test_canonical_is_a_fixed_point(value: Any) -> None:
    """Reading the canonical text and writing it again gives the same text."""
    text = canonical(value)
    assert canonical(json.loads(text)) == text


@given(st.lists(st.integers() | st.booleans() | st.text("01aé.", max_size=3) | st.none(), max_size=4),
       st.lists(st.integers() | st.booleans() | st.text("01aé.", max_size=3) | st.none(), max_size=4))
def test_different_values_stay_different(left: list[Any], right: list[Any]) -> None:
    """Text is never taken for a number, nor true for 1."""
    same = [(type(member), member) for member in left] == [(type(member), member) for member in right]
    assert (canonical({"a": left}) == canonical({"a": right})) == same


def test_canonical_text() -> None:
    """The exact form: sorted, compact, not escaped, NFC."""
    assert canonical({"b": 7.0, "a": "e\u0301", "c": [True, None, 0.5, -0.0]}) == '{"a":"é","b":7,"c":[true,null,0.5,0]}'


def test_addresses_keep_their_code_points() -> None:
    """A normalised URL may name another file."""
    assert canonical("https://x.test/e\u0301.png") == '"https://x.test/e\u0301.png"'


def test_not_json_is_refused() -> None:
    """NaN has no canonical form."""
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": float("nan")})


def test_one_hash() -> None:
    """The hash of an input is the hash of its canonical text, and half characters of a provider's JSON do not break it."""
    assert input_hash({"a": 7.0}) == hash_text('{"a":7}')
    assert len(input_hash({"a": "\ud800"})) == 64
