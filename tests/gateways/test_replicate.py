"""Replicate's API over real sockets: what is sent, what is understood, what is repeated, what never leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from orchestrator.core.errors import (
    BadInput,
    NotFound,
    ProviderAway,
    ProviderRefusal,
    Throttled,
    TokenRefused,
    Unreachable,
    Unreadable,
)
from orchestrator.core.ports import Proof
from orchestrator.core.records import Target
from orchestrator.gateways.replicate import ReplicateApi
from orchestrator.gateways.testing import EPOCH, HandClock

TOKEN = "r8_secretsecretsecret"
VERSION = "39ed52f2" * 8
SLUG = "stability-ai/sdxl"
CREATED = (b'{"id":"hdwst0bb05rgp0cf0p29mzk2am","model":"stability-ai/sdxl","version":"39ed52f2","input":{"height":512,'
           b'"prompt":"a studio photo of a rainbow colored corgi","seed":42069,"width":512},"logs":"","error":null,'
           b'"status":"starting","created_at":"2024-04-22T11:15:15.329Z","urls":{"cancel":"x","get":"y"}}')
LOW_CREDIT = (b'{"detail":"Request was throttled. Your rate limit for creating predictions is reduced to 6 requests per '
              b'minute with a burst of 1 requests while you have less than $5.0 in credit. Your rate limit resets in ~5s.",'
              b'"status":429,"retry_after":5}')

Reply = tuple[int, bytes] | tuple[int, bytes, dict[str, str]]


class Provider:
    """Answers each request by a function of (method and path); keeps what it was sent."""

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""
        self._reply = reply

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                call = line.rpartition(" ")[0]
                self.seen.append((call, headers, body))
                status, content, *more = self._reply(call)
                extra = "".join(f"{name}: {value}\r\n" for name, value in (more[0] if more else {}).items())
                writer.write(f"HTTP/1.1 {status} X\r\n{extra}content-length: {len(content)}\r\n\r\n".encode() + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def talking(reply: Callable[[str], Reply] | Reply, *, base_path: str = "",
                  read_attempts: int = 1) -> AsyncIterator[tuple[ReplicateApi, Provider]]:
    """A gateway, and the provider that it talks to. Its clock stands at 2026-01-01."""
    provider = Provider(reply if callable(reply) else lambda _: reply)
    listener = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        async with ReplicateApi(base_url=provider.url + base_path, token=TOKEN, clock=HandClock(),
                                read_attempts=read_attempts) as api:
            yield api, provider
    finally:
        listener.close()


MODEL = Target("models", SLUG, None)
PINNED = Target("predictions", SLUG, VERSION)
DEPLOYED = Target("deployments", "me/mine", None)


@pytest.mark.parametrize(("target", "path", "version"), [
    (MODEL, f"/v1/models/{SLUG}/predictions", {}),
    (PINNED, "/v1/predictions", {"version": VERSION}),
    (DEPLOYED, "/v1/deployments/me/mine/predictions", {}),
])
@pytest.mark.parametrize("base_path", ["", "/", "/v1", "/v1/"])
async def test_create_goes_to_its_endpoint(target: Target, path: str, version: dict[str, str], base_path: str) -> None:
    """Each kind of target has its path, with or without /v1 in the base URL; only a pinned version is in the body."""
    async with talking((201, CREATED), base_path=base_path) as (api, provider):
        await api.create(target, input_json='{"prompt":"p"}', post_by_s=1)
    call, headers, body = provider.seen[0]
    assert call == f"POST {path}"
    assert json.loads(body) == {"input": {"prompt": "p"}} | version
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["content-type"] == "application/json"
    assert "prefer" not in headers and "cancel-after" not in headers


async def test_input_goes_out_byte_for_byte() -> None:
    """What the ledger holds is what is sent: number forms, key order, Unicode."""
    text = '{"z":1.0,"a":1e2,"big":12345678901234567890123,"é":"\\u00e9 😀"}'
    async with talking((201, CREATED)) as (api, provider):
        await api.create(MODEL, input_json=text, post_by_s=1)
    assert provider.seen[0][2] == b'{"input":' + text.encode() + b"}"


async def test_a_lone_surrogate_is_sent_as_its_escape() -> None:
    """A half character, legal in JSON, neither breaks the purchase nor changes."""
    async with talking((201, CREATED)) as (api, provider):
        await api.create(MODEL, input_json='{"p":"\ud800"}', post_by_s=1)
    assert provider.seen[0][2] == b'{"input":{"p":"\\ud800"}}'


async def test_webhook_and_deadline_are_sent_when_given() -> None:
    """A webhook asks for the end only; a deadline is whole seconds, never longer than budgeted, at least 5."""
    async with talking((201, CREATED)) as (api, provider):
        await api.create(MODEL, input_json="{}", post_by_s=1, webhook="https://me/hook?attempt=1", cancel_after_s=90.9)
        await api.create(MODEL, input_json="{}", post_by_s=1, cancel_after_s=1)
    assert json.loads(provider.seen[0][2]) == {
        "input": {}, "webhook": "https://me/hook?attempt=1", "webhook_events_filter": ["completed"]}
    assert [headers["cancel-after"] for _, headers, _ in provider.seen] == ["90s", "5s"]


async def test_answer_of_a_create_is_understood() -> None:
    """The prediction, the rate headers, and the provider's clock against ours (the Date's middle)."""
    date = format_datetime(EPOCH.replace(minute=3), usegmt=True)
    headers = {"date": date, "ratelimit-remaining": "599", "ratelimit-reset": "1"}
    async with talking((201, CREATED, headers)) as (api, _):
        got = await api.create(MODEL, input_json="{}", post_by_s=1)
    assert got.prediction is not None
    assert (got.proof, got.prediction.id) == (Proof.CREATED, "hdwst0bb05rgp0cf0p29mzk2am")
    assert got.prediction.created_at == datetime(2024, 4, 22, 11, 15, 15, 329000, tzinfo=UTC)
    assert (got.provider_offset_s, got.rate_remaining, got.rate_reset_s, got.sent_until_at) == (180.5, 599, 1.0, EPOCH)


@pytest.mark.parametrize("headers", [
    {"date": "soon", "ratelimit-remaining": "nan", "ratelimit-reset": "inf"}, {"date": "", "ratelimit-remaining": "many"}, {}])
async def test_odd_headers_spoil_no_purchase(headers: dict[str, str]) -> None:
    """What cannot be read is unknown; the prediction stays bought."""
    async with talking((201, CREATED, headers)) as (api, _):
        got = await api.create(MODEL, input_json="{}", post_by_s=1)
    assert (got.proof, got.provider_offset_s, got.rate_remaining, got.rate_reset_s) == (Proof.CREATED, None, None, None)


async def test_throttled_create_brings_its_hint() -> None:
    """The low-credit 429: refused, with the seconds of its body and the words that show the reduced rate."""
    async with talking((429, LOW_CREDIT)) as (api, _):
        got = await api.create(MODEL, input_json="{}", post_by_s=1)
    assert (got.proof, got.retry_after_s) == (Proof.REFUSED, 5.0)
    assert "reduced to 6 requests per minute" in (got.detail or "")


async def test_validation_errors_keep_the_providers_text() -> None:
    """A 422's detail reaches the row's error, one line."""
    body = (b'{"detail":"- input: prompt is required\\n","status":422,"title":"Input validation failed",'
            b'"invalid_fields":[{"type":"required","field":"input","description":"prompt is required"}]}\n')
    async with talking((422, body)) as (api, _):
        got = await api.create(MODEL, input_json="{}", post_by_s=1)
    assert (got.proof, got.detail) == (Proof.REFUSED, "- input: prompt is required")


async def test_a_too_large_answer_is_unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless body is cut: the purchase may have happened."""
    monkeypatch.setattr("orchestrator.gateways.wire.BODY_LIMIT_BYTES", 100)
    async with talking((201, CREATED)) as (api, _):
        got = await api.create(MODEL, input_json="{}", post_by_s=1)
    assert got.proof is Proof.UNSURE


async def test_the_token_shows_nowhere() -> None:
    """Not in the repr, not in a refusal that quotes it, not in an error."""
    quoted = json.dumps({"detail": f"bad token {TOKEN}"}).encode()
    async with talking((401, quoted)) as (api, _):
        got = await api.create(MODEL, input_json="{}", post_by_s=1)
        with pytest.raises(TokenRefused) as raised:
            await api.account()
        texts = [repr(api), got.detail or "", str(raised.value)]
    assert all(TOKEN not in text for text in texts)
    assert "check REPLICATE_API_TOKEN" in texts[2]


@pytest.mark.parametrize("token", [f"{TOKEN}\n", f" {TOKEN} \r\n"])
async def test_line_ends_around_a_token_are_cut(token: str) -> None:
    """A token read from a file works."""
    provider = Provider(lambda _: (200, b'{"username":"me"}'))
    listener = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    async with ReplicateApi(base_url=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", token=token) as api:
        assert await api.account() == "me"
    listener.close()
    assert provider.seen[0][1]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(("base_url", "token"), [
    ("api.replicate.com", TOKEN), ("ftp://api.replicate.com", TOKEN), ("https://me:pw@api.replicate.com", TOKEN),
    ("https://api.replicate.com?x=1", TOKEN), ("https://api.replicate.com", "two words"), ("https://api.replicate.com", "tokén"),
])
def test_odd_settings_are_refused_before_anything_is_sent(base_url: str, token: str) -> None:
    """A base URL or token that cannot be one is the user's to mend, and the token is not repeated."""
    with pytest.raises(BadInput) as raised:
        ReplicateApi(base_url=base_url, token=token)
    assert token not in str(raised.value)


async def test_model_is_the_latest_version() -> None:
    """Name, officialness, version and schema of the model's latest version, in one GET."""
    document = {"is_official": True, "latest_version": {"id": VERSION, "openapi_schema": {"a": 1}}}
    async with talking((200, json.dumps(document).encode())) as (api, provider):
        got = await api.model(SLUG)
    assert (got.name, got.is_official, got.version, got.openapi_schema) == (SLUG, True, VERSION, {"a": 1})
    assert [call for call, _, _ in provider.seen] == [f"GET /v1/models/{SLUG}"]


async def test_deployment_is_its_current_release() -> None:
    """The schema is that of the version released now, which need not be the model's latest."""
    def reply(call: str) -> Reply:
        if "/deployments/" in call:
            return 200, json.dumps({"current_release": {"model": SLUG, "version": VERSION}}).encode()
        if "/versions/" in call:
            return 200, json.dumps({"id": VERSION, "openapi_schema": {"old": 1}}).encode()
        return 200, json.dumps({"latest_version": {"id": "newer", "openapi_schema": {"new": 1}}}).encode()
    async with talking(reply) as (api, _):
        got = await api.deployment("me/mine")
    assert (got.name, got.is_official, got.version, got.openapi_schema) == (SLUG, False, VERSION, {"old": 1})


async def test_a_version_alone_has_no_model() -> None:
    """No endpoint tells whose a version is: the message says what to write."""
    async with talking((200, b"{}")) as (api, provider):
        with pytest.raises(NotFound, match="write owner/name:version"):
            await api.model("", version=VERSION)
    assert provider.seen == []


async def test_get_and_cancel_name_the_prediction() -> None:
    """One prediction by id, and its cancellation, each in its path."""
    async with talking((200, CREATED)) as (api, provider):
        got, canceled = await api.get("abc"), await api.cancel("abc")
    assert got.status == canceled.status == "starting"
    assert [call for call, _, _ in provider.seen] == ["GET /v1/predictions/abc", "POST /v1/predictions/abc/cancel"]


async def test_list_asks_for_a_window_and_follows_next() -> None:
    """Bounds are sent in UTC; the next page is asked for as it was named, on the same host."""
    async with talking(lambda _: (200, json.dumps({"next": f"{provider.url}/v1/predictions?cursor=cD0%2By", "results":
                                                   [json.loads(CREATED)]}).encode())) as (api, provider):
        page = await api.list_page(created_after=EPOCH, created_before=EPOCH.replace(hour=1))
        await api.list_page(url=page.next_url)
    assert [prediction.id for prediction in page.predictions] == ["hdwst0bb05rgp0cf0p29mzk2am"]
    assert [call for call, _, _ in provider.seen] == [
        "GET /v1/predictions?created_after=2026-01-01T00:00:00.000000Z&created_before=2026-01-01T01:00:00.000000Z",
        "GET /v1/predictions?cursor=cD0%2By"]


@pytest.mark.parametrize("next_url", ["https://evil.example/v1/predictions?cursor=1", "http://127.0.0.1:1/v1/x", "/v1/x", "::"])
async def test_next_on_another_host_is_not_followed(next_url: str) -> None:
    """The token would go there."""
    async with talking((200, b'{"results":[],"next":null}')) as (api, provider):
        with pytest.raises(Unreachable, match="elsewhere"):
            await api.list_page(url=next_url)
    assert provider.seen == []


@pytest.mark.parametrize(("status", "kind"), [
    (401, TokenRefused), (403, TokenRefused), (404, NotFound), (429, Throttled), (418, ProviderRefusal), (500, ProviderAway),
    (302, ProviderRefusal)])
async def test_error_statuses_of_reads(status: int, kind: type[Exception]) -> None:
    """Each status is its own error; a redirect is not followed."""
    async with talking((status, b'{"detail":"No."}', {"location": "/elsewhere", "retry-after": "0"})) as (api, provider):
        with pytest.raises(kind) as raised:
            await api.get("abc")
    assert type(raised.value) is kind
    assert len(provider.seen) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"results":[{"id":1}]}', b'{"results":["x"]}'])
async def test_an_unreadable_list_is_unreachable(body: bytes) -> None:
    """A list of which nothing can be read is no list, least of all an empty one."""
    async with talking((200, body)) as (api, _):
        with pytest.raises(Unreachable):
            await api.list_page()


async def test_an_unreadable_prediction_among_others() -> None:
    """One odd prediction must not hide the rest of its page: it is left out, and the page says so."""
    body = b'{"results":[{"id":1},%s,"x",{"id":"p2"}],"next":null}' % CREATED
    async with talking((200, body)) as (api, _):
        page = await api.list_page()
    assert [prediction.id for prediction in page.predictions] == ["hdwst0bb05rgp0cf0p29mzk2am"]
    assert len(page.unreadable) == 3 and "p2" in page.unreadable[2]


@pytest.mark.parametrize("call", ["get", "cancel"])
async def test_an_unreadable_prediction_alone(call: str) -> None:
    """The provider is there, and says something odd of one prediction: nothing to stop buying for, and not repeated."""
    async with talking((200, b'{"id":"abc"}'), read_attempts=4) as (api, provider):
        with pytest.raises(Unreadable, match="abc"):
            await getattr(api, call)("abc")
    assert len(provider.seen) == 1


async def test_reads_are_repeated() -> None:
    """A 502 page, then the answer: the caller sees only the answer."""
    replies: list[Reply] = [(502, b"<html>"), (200, b'{"username":"me"}')]
    async with talking(lambda _: replies.pop(0), read_attempts=4) as (api, provider):
        assert await api.account() == "me"
    assert len(provider.seen) == 2


@pytest.mark.parametrize(("body", "hint_s"), [
    (b'{"detail":"Your rate limit resets in ~60s."}', 60.0), (b'{"detail":"x","retry_after":0}', 0.0), (b"", None)])
async def test_a_throttled_read_is_not_repeated(body: bytes, hint_s: float | None) -> None:
    """Whoever shares the account must wait as well: one process that asks again by itself would be one of many."""
    async with talking((429, body), read_attempts=4) as (api, provider):
        with pytest.raises(Throttled) as raised:
            await api.account()
    assert (raised.value.retry_after_s, len(provider.seen)) == (hint_s, 1)


async def test_what_is_left_of_the_reads() -> None:
    """The newest answer to a read says what is left, a refusal too; that to a purchase speaks of another budget."""
    replies: list[Reply] = [(200, b'{"username":"me"}', {"ratelimit-remaining": "2999"}),
                            (201, CREATED, {"ratelimit-remaining": "599"}), (429, b"{}", {"ratelimit-remaining": "0"}),
                            (200, b'{"username":"me"}')]
    async with talking(lambda _: replies.pop(0)) as (api, _):
        assert api.reads_left is None
        await api.account()
        await api.create(Target("models", SLUG, None), input_json="{}", post_by_s=1e9)
        assert api.reads_left == 2999
        with pytest.raises(Throttled):
            await api.account()
        assert api.reads_left == 0
        await api.account()
        assert api.reads_left is None


async def test_an_absent_provider_is_named() -> None:
    """Unreachable says where and why."""
    async with ReplicateApi(base_url="http://nowhere.invalid/v1", token=TOKEN, read_attempts=1) as api:
        with pytest.raises(Unreachable, match=r"cannot reach http://nowhere\.invalid: name not known"):
            await api.account()
