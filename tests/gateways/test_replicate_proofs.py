"""What the outcome of a POST proves, line by line, on real sockets (docs/guarantees.md, "bought once")."""

import asyncio
import json
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.core.ports import CreateAnswer, Proof
from orchestrator.core.records import Target
from orchestrator.gateways.clock import SystemClock
from orchestrator.gateways.replicate import ReplicateApi
from orchestrator.gateways.wire import KEEP_ALIVE_S

TARGET = Target("models", "black-forest-labs/flux-schnell", None)
INPUT = '{"prompt":"a corgi"}'
TOKEN = "r8_secretsecretsecret"
CREATED = {"id": "14m2dc50wnrgp0cjb2ybv46db4", "status": "starting", "input": {"prompt": "a corgi"}}
CLOCK = SystemClock()

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(status: int, body: bytes | dict[str, object], *, headers: str = "") -> bytes:
    """An HTTP/1.1 answer, byte for byte."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n{headers}\r\n".encode() + content


class Server:
    """A TCP server that counts whole POSTs read, and then does what each line of the table says."""

    def __init__(self, *acts: Act) -> None:
        self.posts: list[bytes] = []
        self.connections = 0
        self._acts = list(acts)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await read_request(reader)) is not None:
                self.posts.append(request)
                await (self._acts.pop(0) if len(self._acts) > 1 else self._acts[0])(reader, writer)
                if writer.is_closing():
                    return
        except ConnectionError:
            pass
        finally:
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                   if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


def answer(raw: bytes) -> Act:
    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
    return act


async def close_silently(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def stay_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


@asynccontextmanager
async def listening(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The server's base URL."""
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


async def buy(api: ReplicateApi, *, in_s: float = 10.0) -> CreateAnswer:
    """One purchase that may still be written for `in_s` seconds."""
    return await api.create(TARGET, input_json=INPUT, post_by_s=CLOCK.boottime() + in_s)


async def outcome(*acts: Act, timeout_s: float = 5.0) -> tuple[CreateAnswer, Server]:
    """What one purchase against such a server gives."""
    server = Server(*acts)
    async with listening(server) as url, ReplicateApi(base_url=url, token=TOKEN, request_timeout_s=timeout_s) as api:
        return await buy(api), server


async def test_refused_connection_is_not_sent() -> None:
    """Nobody listens: nothing was bought, and the sentence names the place and the cause."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with ReplicateApi(base_url=url, token=TOKEN) as api:
            got = await buy(api)
    assert (got.proof, got.detail) == (Proof.NOT_SENT, f"cannot reach {url}: connection refused")


async def test_unknown_name_is_not_sent() -> None:
    """DNS failure: nothing was bought."""
    async with ReplicateApi(base_url="http://nowhere.invalid", token=TOKEN) as api:
        got = await buy(api)
    assert (got.proof, got.detail) == (Proof.NOT_SENT, "cannot reach http://nowhere.invalid: name not known")


async def test_silent_close_after_reading_is_unsure() -> None:
    """The server read the POST and closed without a word: it may have been bought."""
    got, server = await outcome(close_silently)
    assert (got.proof, len(server.posts)) == (Proof.UNSURE, 1)


async def test_reset_after_reading_is_unsure() -> None:
    """The server read the POST and reset the connection: it may have been bought, and is not sent again."""
    got, server = await outcome(reset)
    assert (got.proof, len(server.posts)) == (Proof.UNSURE, 1)


@pytest.mark.parametrize("act", [reset, close_silently])
async def test_second_post_on_a_kept_connection_is_unsure(act: Act) -> None:
    """A kept connection that dies under its second POST proves nothing, and no layer repeats it."""
    server = Server(answer(http(201, CREATED)), act)
    async with listening(server) as url, ReplicateApi(base_url=url, token=TOKEN) as api:
        first, second = await buy(api), await buy(api)
    assert (first.proof, second.proof) == (Proof.CREATED, Proof.UNSURE)
    assert (len(server.posts), server.connections) == (2, 1)


@pytest.mark.parametrize("raw", [
    pytest.param(http(201, CREATED)[:-20], id="cut in its body"),
    pytest.param(b"NONSENSE\r\n\r\n", id="garbage status line"),
    pytest.param(b"HTTP/1.1 201 Created\r\ncontent-le", id="cut in its headers"),
    pytest.param(http(201, b"<html>made</html>"), id="no JSON"),
    pytest.param(http(201, {"status": "starting"}), id="no id"),
    pytest.param(http(201, {"id": "../account", "status": "starting"}), id="no readable id"),
    pytest.param(http(204, b""), id="no content"),
    pytest.param(http(201, b"x", headers="content-encoding: gzip\r\n"), id="broken compression"),
])
async def test_an_unreadable_answer_is_unsure(raw: bytes) -> None:
    """Whatever came instead of a whole prediction: it may have been bought."""
    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(raw)(reader, writer)
        writer.close()
    got, server = await outcome(act)
    assert (got.proof, got.prediction, len(server.posts)) == (Proof.UNSURE, None, 1)


async def test_no_answer_in_time_is_unsure() -> None:
    """Silence until the timeout: it may have been bought."""
    got, server = await outcome(stay_silent, timeout_s=0.2)
    assert (got.proof, len(server.posts)) == (Proof.UNSURE, 1)
    assert "no answer in time" in (got.detail or "")


async def test_slow_connecting_is_not_sent() -> None:
    """A TLS handshake that nobody answers ends as a connection timeout: nothing was bought."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        async with ReplicateApi(base_url=url, token=TOKEN, request_timeout_s=0.4) as api:
            got = await buy(api)
    assert (got.proof, got.detail) == (Proof.NOT_SENT, f"cannot reach {url}: no connection in time")


async def test_a_certificate_that_is_not_trusted_is_not_sent(tmp_path: Path) -> None:
    """The handshake failed: nothing was bought, and the sentence says why."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-subj", "/CN=localhost", "-days", "2"],
                   check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = Server(answer(http(201, CREATED)))
    async with listening(server, tls) as url, ReplicateApi(base_url=url, token=TOKEN) as api:
        got = await buy(api)
    assert (got.proof, server.posts) == (Proof.NOT_SENT, [])
    assert "certificate is not trusted" in (got.detail or "")


async def test_no_tls_on_the_other_side_is_not_sent() -> None:
    """https against a plain server: nothing was bought."""
    server = Server(answer(http(201, CREATED)))
    async with listening(server) as url:
        async with ReplicateApi(base_url=url.replace("http:", "https:"), token=TOKEN, request_timeout_s=2) as api:
            got = await buy(api)
    assert (got.proof, server.posts) == (Proof.NOT_SENT, [])


async def test_a_full_pool_is_not_sent() -> None:
    """No connection became free: the second POST never left."""
    server = Server(stay_silent)
    async with listening(server) as url:
        async with ReplicateApi(base_url=url, token=TOKEN, request_timeout_s=0.6, connections=1) as api:
            answers = await asyncio.gather(buy(api), buy(api))
    assert [got.proof for got in answers] == [Proof.UNSURE, Proof.NOT_SENT]
    assert len(server.posts) == 1


async def test_too_late_is_not_written() -> None:
    """With a connection in hand but its moment passed, not a byte of the request is written."""
    server = Server(answer(http(201, CREATED)))
    async with listening(server) as url, ReplicateApi(base_url=url, token=TOKEN) as api:
        late = await buy(api, in_s=-0.001)
        assert (late.proof, server.posts) == (Proof.NOT_SENT, [])
        assert not (late.detail or "").startswith("cannot reach")
        assert (await buy(api)).proof is Proof.CREATED
    assert (len(server.posts), server.connections) == (1, 1), "the late one's connection was ready for the next"


async def test_too_late_after_waiting_for_a_kept_connection() -> None:
    """The moment is looked at after the wait for a free connection, not before it."""
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        await answer(http(201, CREATED))(reader, writer)

    server = Server(slowly)
    async with listening(server) as url, ReplicateApi(base_url=url, token=TOKEN, connections=1) as api:
        first, waiting = await asyncio.gather(buy(api), buy(api, in_s=0.05))
    assert (first.proof, waiting.proof) == (Proof.CREATED, Proof.NOT_SENT)
    assert len(server.posts) == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 413, 415, 422, 429])
async def test_these_statuses_buy_nothing(status: int) -> None:
    """A refusal: nothing was bought, and the provider's words are kept."""
    got, _ = await outcome(answer(http(status, {"detail": "No.", "status": status})))
    assert (got.proof, got.status, got.detail) == (Proof.REFUSED, status, "No.")


@pytest.mark.parametrize("status", [301, 302, 307, 308, 406, 408, 409, 418, 500, 502, 503, 504])
async def test_other_statuses_prove_nothing(status: int) -> None:
    """Redirects are not followed; timeouts, conflicts and errors of the provider leave doubt."""
    got, server = await outcome(answer(http(status, b"<html>oops</html>", headers="location: /elsewhere\r\n")))
    assert (got.proof, got.status, len(server.posts)) == (Proof.UNSURE, status, 1)


@pytest.mark.parametrize("status", [200, 201, 202])
async def test_a_readable_prediction_is_created(status: int) -> None:
    """201 is usual; any 2xx with a prediction in it is a purchase."""
    got, _ = await outcome(answer(http(status, CREATED)))
    assert got.proof is Proof.CREATED and got.prediction is not None
    assert got.prediction.id == CREATED["id"]


async def test_cancellation_passes_through() -> None:
    """A canceled purchase raises: its caller must count it as unsure, it may have been read."""
    server = Server(stay_silent)
    async with listening(server) as url, ReplicateApi(base_url=url, token=TOKEN) as api:
        purchase = asyncio.create_task(buy(api))
        while not server.posts:
            await asyncio.sleep(0.005)
        purchase.cancel()
        with pytest.raises(asyncio.CancelledError):
            await purchase


def test_connections_for_purchases_are_kept_briefly() -> None:
    """A stale connection costs an unsure attempt."""
    assert KEEP_ALIVE_S <= 5.0
