"""Connections that break and answers that lie, on real sockets."""

import socket
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from tests.simulator.conftest import Rig

FLUX = "black-forest-labs/flux-schnell"


def raw_create(rig: Rig) -> tuple[bytes, type[Exception] | None]:
    """Send one create over a bare socket and return what came back before the end, and how the end came."""
    body = b'{"version":"simulator/echo","input":{"text":"hello"}}'
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer r8_simulator\r\ncontent-length: {len(body)}"
    )
    host, port = rig.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as line:
        line.sendall(head.encode() + b"\r\n\r\n" + body)
        received = b""
        try:
            while piece := line.recv(65536):
                received += piece
        except ConnectionResetError as error:
            return received, type(error)
    return received, None


@pytest.mark.parametrize(
    ("fault", "created", "end"),
    [
        ("lost_answer", 1, None),
        ("lost_answer_reset", 1, ConnectionResetError),
        ("close_before", 0, None),
        ("reset_before", 0, ConnectionResetError),
    ],
)
def test_lost_answers(rig: Rig, fault: str, created: int, end: type[Exception] | None) -> None:
    """The connection is really closed or reset without a byte, after the purchase or before it; once, then no more."""
    rig.put("faults", **{fault: {"next": 1}})
    assert raw_create(rig) == (b"", end)
    assert rig.ledger()["created"] == created
    assert rig.buy().status_code == 201
    assert rig.ledger()["creates_received"] == 2


@pytest.mark.parametrize("fault", ["lost_answer", "lost_answer_reset", "cut_answer", "garbage_answer"])
def test_what_a_client_sees_of_a_spoiled_answer(rig: Rig, fault: str) -> None:
    """An HTTP client gets a transport error for each, although the prediction exists."""
    rig.put("faults", **{fault: {"next": 1}})
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        rig.buy()
    assert rig.ledger()["created"] == 1


def test_cut_answer_has_a_whole_head(rig: Rig) -> None:
    """A cut answer shows its 201 and half its body."""
    rig.put("faults", cut_answer={"next": 1})
    received, _ = raw_create(rig)
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 201")
    assert 0 < len(body) < int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])


@pytest.mark.parametrize(("fault", "created"), [("error_before", 0), ("error_after", 1)])
def test_5xx_with_and_without_a_purchase(rig: Rig, fault: str, created: int) -> None:
    """A 502 of the edge is no JSON, whether or not a prediction was created behind it."""
    rig.put("faults", **{fault: {"next": 1, "status": 502}})
    answer = rig.buy()
    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html")
    assert answer.text.startswith("<html>")
    assert rig.ledger()["created"] == created


def test_late_creation_appears_later(rig: Rig) -> None:
    """The connection drops, nothing is listed, and k seconds later the prediction is there after all."""
    rig.put("faults", late_creation={"next": 1, "seconds": 90})
    with pytest.raises(httpx.RemoteProtocolError):
        rig.buy(text="late")
    assert rig.http.get("/v1/predictions").json()["results"] == []
    rig.advance(91)
    (late,) = rig.http.get("/v1/predictions").json()["results"]
    assert late["input"] == {"text": "late"}


def test_slow_answer_outlasts_a_client(rig: Rig) -> None:
    """A slow answer makes a client with less patience time out after the purchase."""
    rig.put("faults", slow_answer={"next": 1, "seconds": 5})
    with pytest.raises(httpx.ReadTimeout):
        rig.http.post("/v1/predictions", json={"version": "simulator/echo", "input": {"text": "x"}}, timeout=0.2)
    assert rig.ledger()["created"] == 1


def test_list_lag_hides_the_newest(rig: Rig) -> None:
    """While the listing lags, a new prediction is readable by id and absent from the list, then it appears."""
    rig.put("faults", list_lag={"seconds": 30})
    made = rig.buy().json()
    assert rig.see(made["id"])["id"] == made["id"]
    assert rig.http.get("/v1/predictions").json()["results"] == []
    rig.advance(31)
    assert [item["id"] for item in rig.http.get("/v1/predictions").json()["results"]] == [made["id"]]


def test_storm_refuses_by_count(rig: Rig) -> None:
    """A storm answers so many 429s with the pause it was given, and buys nothing meanwhile."""
    rig.put("faults", storm_429={"next": 3, "seconds": 7})
    answers = [rig.buy() for _ in range(4)]
    assert [answer.status_code for answer in answers] == [429, 429, 429, 201]
    assert "resets in ~7s" in answers[0].json()["detail"]


def test_clock_offset_shifts_everything_told(rig: Rig) -> None:
    """With the provider's clock three minutes behind, Date header and timestamps are, and lives go on as before."""
    plain = rig.buy()
    rig.put("clock", offset_s=-180)
    shifted = rig.buy()
    told = [parsedate_to_datetime(answer.headers["date"]) for answer in (plain, shifted)]
    assert -181 <= (told[1] - told[0]).total_seconds() <= -178
    assert shifted.json()["created_at"] < plain.json()["created_at"]
    rig.advance(1000)
    assert rig.see(shifted.json()["id"])["status"] == "succeeded"


def test_forced_failure_has_its_text(rig: Rig) -> None:
    """A failing prediction carries the text given, or one of the provider's own, and is not billed."""
    rig.put("faults", fail={"next": 1, "text": "NSFW content detected"})
    first = rig.buy(FLUX, prompt="x").json()
    rig.put("faults", fail={"next": 1})
    second = rig.buy(FLUX, prompt="x").json()
    rig.advance(1000)
    assert rig.see(first["id"])["error"] == "NSFW content detected"
    assert rig.see(second["id"])["status"] == "failed"
    assert rig.see(second["id"])["error"]
    assert rig.ledger()["billed_usd"] == "0"


@pytest.mark.parametrize(
    ("fault", "settings", "status", "kind"),
    [
        ("output_404", {}, 404, "text/plain"),
        ("output_error", {"status": 503}, 503, "text/plain"),
        ("output_wrong_type", {}, 200, "text/html"),
    ],
)
def test_output_faults(rig: Rig, fault: str, settings: Any, status: int, kind: str) -> None:
    """An output answers 404, 5xx or a wrong type once, and is whole the next time."""
    url = f"/files/{rig.buy(FLUX, prompt='x').json()['id']}/out-0.webp"
    rig.advance(1000)
    rig.put("faults", **{fault: {"next": 1, **settings}})
    answer = rig.http.get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (status, kind)
    assert rig.http.get(url).headers["content-type"] == "image/webp"


@pytest.mark.parametrize("fault", ["output_truncated", "output_reset", "output_slow"])
def test_output_transfers_that_break(rig: Rig, fault: str) -> None:
    """An output cut short, reset or slow is an error of the transfer, never a short file."""
    url = f"/files/{rig.buy(FLUX, prompt='x').json()['id']}/out-0.webp"
    rig.advance(1000)
    rig.put("faults", **{fault: {"next": 1}})
    with pytest.raises(httpx.TransportError):
        rig.http.get(url, timeout=0.3)


def test_reading_errors(rig: Rig) -> None:
    """List and get fail on their own switches, without touching each other."""
    made = rig.buy().json()
    rig.put("faults", list_error={"next": 1, "status": 502}, get_error={"next": 1})
    assert rig.http.get("/v1/predictions").status_code == 502
    assert rig.http.get(f"/v1/predictions/{made['id']}").status_code == 500
    assert rig.http.get("/v1/predictions").status_code == 200


def test_blows_are_counted(rig: Rig) -> None:
    """How often each switch struck is told, also after it was used up or put off; what only stands is not counted."""
    rig.put("faults", storm_429={"next": 2}, fail=1.0, list_lag={"p": 1, "seconds": 0})
    assert [rig.buy().status_code for _ in range(3)] == [429, 429, 201]
    rig.put("faults", fail=None)
    assert rig.buy().status_code == 201
    assert rig.http.get("/v1/predictions").status_code == 200
    assert rig.http.get("/_admin/struck").json() == {"fail": 1, "storm_429": 2}


def test_bad_switches_are_refused(rig: Rig) -> None:
    """An unknown switch, limit or lever is answered with a reason, and changes nothing."""
    assert "no fault switch 'nonsense'" in rig.http.put("/_admin/faults", json={"nonsense": 1}).json()["detail"]
    assert rig.http.put("/_admin/limits", json={"speed": 1}).status_code == 400
    assert rig.http.put("/_admin/credit", json={"usd": "lots"}).status_code == 400
    assert rig.http.put("/_admin/nonsense", json={}).status_code == 404
    assert rig.http.get("/_admin/faults").json() == {}
