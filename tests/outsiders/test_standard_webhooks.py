"""Signatures, judged by the Standard Webhooks library and by the official client: what is genuine to one is to all."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from orchestrator.core.signature import Verdict, check, secret_bytes, sign
from tests.e2e.desk import Provider
from tests.outsiders.conftest import Outsider
from tests.outsiders.receiver import Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY = '{"id": "a1", "status": "succeeded", "output": "grün ✓"}'

VERIFY = """
def accepts(body, headers):
    try:
        Webhook(secret).verify(body.encode(), headers)
        return True
    except WebhookVerificationError:
        return False
answer = [accepts(body, headers) for body, headers in cases]
"""
VALIDATE = """
from replicate.webhook import WebhookSigningSecret, WebhookValidationError
def accepts(body, headers):
    try:
        replicate.webhooks.validate(headers=headers, body=body, secret=WebhookSigningSecret(key=secret), tolerance=300)
        return True
    except WebhookValidationError:
        return False
answer = [accepts(body, headers) for body, headers in cases]
"""


@dataclass(frozen=True)
class Case:
    """A delivery, and whether it is to be believed by somebody who knows SECRET."""

    genuine: bool
    body: str
    headers: dict[str, str]


def signed(*, body: str = BODY, secret: str = SECRET, age_s: int = 0) -> Case:
    """A delivery signed by our own code."""
    stamp = int(time.time()) - age_s
    signature = sign(secret_bytes(secret), message_id="msg_1", timestamp=stamp, body=body.encode())
    return Case(True, body, {"webhook-id": "msg_1", "webhook-timestamp": str(stamp), "webhook-signature": signature})


def cases() -> list[Case]:
    """The genuine ones and every way of being false."""
    good = signed()
    rotation = f"{signed(secret=OTHER).headers['webhook-signature']} {good.headers['webhook-signature']}"
    return [
        good,
        replace(good, headers=good.headers | {"webhook-signature": rotation}),
        signed(age_s=240),
        replace(good, genuine=False, body=BODY.replace("a1", "a2")),
        replace(signed(secret=OTHER), genuine=False),
        replace(good, genuine=False, headers=good.headers | {"webhook-id": "msg_2"}),
        replace(signed(age_s=600), genuine=False),
        replace(signed(age_s=-600), genuine=False),
        replace(good, genuine=False, headers={name: text for name, text in good.headers.items() if name != "webhook-id"}),
    ]


def ours(judged: Sequence[Case]) -> list[bool]:
    """What our own code says of each."""
    return [check(case.headers, secrets=[secret_bytes(SECRET)], body=case.body.encode(), now_s=time.time()) is Verdict.GENUINE
            for case in judged]


def as_json(judged: Sequence[Case]) -> list[Any]:
    """The cases for another process."""
    return [[case.body, case.headers] for case in judged]


def test_all_agree_on_what_we_sign(standard: Outsider, replicate1: Outsider) -> None:
    """Library, client and our own code believe the same deliveries: two live secrets yes; false body, secret, id or time no."""
    judged = cases()
    expected = [case.genuine for case in judged]
    assert standard(VERIFY, secret=SECRET, cases=as_json(judged)) == expected
    assert replicate1(VALIDATE, secret=SECRET, cases=as_json(judged)) == expected
    assert ours(judged) == expected


def test_we_believe_what_the_library_signs(standard: Outsider) -> None:
    """A delivery signed by the library is genuine; with another body, under another secret, or an hour later it is not."""
    stamp = int(time.time())
    signature = standard("""
        from datetime import datetime, timezone
        answer = Webhook(secret).sign("msg_2", datetime.fromtimestamp(stamp, timezone.utc), body)
    """, secret=SECRET, stamp=stamp, body=BODY)
    headers = {"webhook-id": "msg_2", "webhook-timestamp": str(stamp), "webhook-signature": signature}
    mine, body = secret_bytes(SECRET), BODY.encode()
    assert check(headers, secrets=[mine], body=body, now_s=stamp) is Verdict.GENUINE
    assert check(headers, secrets=[secret_bytes(OTHER), mine], body=body, now_s=stamp) is Verdict.GENUINE
    assert check(headers, secrets=[mine], body=body + b" ", now_s=stamp) is Verdict.FORGED
    assert check(headers, secrets=[secret_bytes(OTHER)], body=body, now_s=stamp) is Verdict.FORGED
    assert check(headers, secrets=[mine], body=body, now_s=stamp + 3600) is Verdict.STALE


def test_the_documented_vector(standard: Outsider) -> None:
    """The vector of Replicate's own tests comes out alike here and in the library."""
    vector = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    message, stamp, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, '{"test": 2432232314}'
    assert standard("""
        from datetime import datetime, timezone
        answer = Webhook(secret).sign(message, datetime.fromtimestamp(stamp, timezone.utc), body)
    """, secret=SECRET, message=message, stamp=stamp, body=body) == vector
    assert sign(secret_bytes(SECRET), message_id=message, timestamp=stamp, body=body.encode()) == vector


def test_both_clients_are_served_one_secret(replicate1: Outsider, replicate2: Outsider) -> None:
    """The signing secret is the same by either client, and our code can read it."""
    first = replicate1("answer = client.webhooks.default.secret().key")
    assert replicate2("answer = client.webhooks.default.secret.get().key") == first
    assert len(secret_bytes(first)) == 24


def test_a_delivery_under_the_served_secret(replicate1: Outsider) -> None:
    """A request signed with the secret that the simulator serves passes the client's own check of a whole request."""
    secret = replicate1("answer = client.webhooks.default.secret().key")
    good, bad = signed(secret=secret), signed(secret=OTHER)
    assert replicate1("""
        import httpx
        def accepts(body, headers):
            request = httpx.Request("POST", "https://example.com/hook?attempt=7", headers=headers, content=body.encode())
            try:
                return replicate.webhooks.validate(request, secret=client.webhooks.default.secret()) is None
            except ValueError:
                return False
        answer = [accepts(*case) for case in cases]
    """, cases=as_json([good, bad])) == [True, False]


def test_the_simulators_own_deliveries(standard: Outsider, replicate1: Outsider, provider: Provider, receiver: Receiver) -> None:
    """A webhook that the simulator sends is genuine to the library, to the client and to us, and says what a read says."""
    if httpx.get(f"{provider.url}/_admin/webhooks").status_code == 404:
        pytest.skip("this simulator does not send webhooks yet")
    secret, made, told = replicate1("""
        one = client.predictions.create(model=model, input={"prompt": "a"}, webhook=hook, webhook_events_filter=["completed"])
        one.wait()
        answer = [client.webhooks.default.secret().key, one.id, one.output]
    """, model="black-forest-labs/flux-schnell", hook=f"{receiver.url}/hook?attempt=7")
    (delivery,) = receiver.wait_for(1)
    assert delivery.path == "/hook?attempt=7"
    said = httpx.Response(200, content=delivery.body).json()
    assert (said["id"], said["status"], said["output"]) == (made, "succeeded", told)
    case = [[delivery.body.decode(), delivery.headers]]
    assert standard(VERIFY, secret=secret, cases=case) == [True]
    assert replicate1(VALIDATE, secret=secret, cases=case) == [True]
    verdict = check(delivery.headers, secrets=[secret_bytes(secret)], body=delivery.body, now_s=time.time())
    assert verdict is Verdict.GENUINE
