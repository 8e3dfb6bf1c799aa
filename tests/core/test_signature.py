"""Which deliveries are genuine: the documented vector, every way of being false, and rotation without loss."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.signature import TOLERANCE_S, Verdict, check, secret_bytes, sign

# The vector that Replicate's own clients are tested with.
SECRET = secret_bytes("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
OTHER = secret_bytes("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
MESSAGE, STAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNED = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def headers(**changes: str) -> dict[str, str]:
    return {"webhook-id": MESSAGE, "webhook-timestamp": str(STAMP), "webhook-signature": SIGNED} | {
        f"webhook-{name}": value for name, value in changes.items()}


def verdict(given: dict[str, str], *, body: bytes = BODY, now_s: float = STAMP, secrets: Any = (SECRET,)) -> Verdict:
    return check(given, secrets=secrets, body=body, now_s=now_s)


def test_the_documented_vector():
    """Signing gives the documented signature, and checking takes it."""
    assert sign(SECRET, message_id=MESSAGE, timestamp=STAMP, body=BODY) == SIGNED
    assert verdict(headers()) is Verdict.GENUINE


@pytest.mark.parametrize("changed", [
    {"id": "msg_other"}, {"timestamp": str(STAMP + 1)}, {"signature": "v1,AAAA"}, {"signature": SIGNED.replace("v1", "v2")},
    {"signature": SIGNED.removeprefix("v1,")}, {"signature": "v1,\N{LATIN SMALL LETTER E WITH ACUTE}"}])
def test_whatever_is_signed_cannot_be_changed(changed: dict[str, str]):
    """Id, time and signature belong together."""
    assert verdict(headers(**changed)) is Verdict.FORGED


@given(st.binary(max_size=200))
def test_no_other_body_passes(body: bytes):
    """The raw bytes are what counts."""
    assert (verdict(headers(), body=body) is Verdict.GENUINE) == (body == BODY)


def test_another_secret_is_no_secret():
    """Without the right key nothing is genuine; without any key neither."""
    assert verdict(headers(), secrets=[OTHER]) is Verdict.FORGED
    assert verdict(headers(), secrets=[]) is Verdict.FORGED


def test_a_rotation_loses_nothing():
    """Either of two live keys will do, and any of several listed signatures, among versions not known."""
    assert verdict(headers(), secrets=[OTHER, SECRET]) is Verdict.GENUINE
    assert verdict(headers(signature=f"v2,x v1,AAAA v1a,zz {SIGNED}")) is Verdict.GENUINE


@pytest.mark.parametrize(("late_s", "said"), [
    (TOLERANCE_S, Verdict.GENUINE), (TOLERANCE_S + 1, Verdict.STALE), (-TOLERANCE_S, Verdict.GENUINE),
    (-TOLERANCE_S - 1, Verdict.STALE)])
def test_five_minutes_either_way(late_s: float, said: Verdict):
    """A replay from yesterday is stale however well it is signed, and so is one from tomorrow."""
    assert verdict(headers(), now_s=STAMP + late_s) is said


@pytest.mark.parametrize("changed", [
    {"id": ""}, {"id": "x" * 201}, {"id": "a\nb"}, {"timestamp": ""}, {"timestamp": "now"}, {"timestamp": "-5"},
    {"timestamp": "1e9"}, {"timestamp": "9" * 13}, {"timestamp": "\N{ARABIC-INDIC DIGIT THREE}"}, {"signature": " "}])
def test_what_cannot_be_read_is_said_so(changed: dict[str, str]):
    """Missing and misshapen headers are told apart from forgeries."""
    assert verdict(headers(**changed)) is Verdict.UNREADABLE


def test_no_header_at_all():
    """A visitor who knows nothing of signatures."""
    assert verdict({}) is Verdict.UNREADABLE


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_%%%", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_abc"])
def test_a_secret_that_is_none(text: str):
    """Better no key than an empty one that anybody could sign with."""
    with pytest.raises(ValueError, match="whsec_"):
        secret_bytes(text)
