"""Fetching outputs over real sockets: from whom, how far, and what is not taken for a file."""

import asyncio
import base64
import gzip
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp.resolver import ThreadedResolver

from orchestrator.core.errors import BadInput, CollectError, OutputBroken, OutputForbidden, OutputGone
from orchestrator.gateways.outputs import HttpOutputs

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


def ok(body: bytes, media_type: str = "image/png", *, length: int | None = None, extra: str = "") -> bytes:
    """A 200, whose announced length may be a lie."""
    announced = len(body) if length is None else length
    return f"HTTP/1.1 200 OK\r\ncontent-type: {media_type}\r\ncontent-length: {announced}\r\n{extra}\r\n".encode() + body


class Host:
    """A file host: raw answers by path; keeps the requests."""

    def __init__(self, pages: dict[str, bytes]) -> None:
        self.pages = pages
        self.requests: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(request)
            page = self.pages[request.split(" ")[1]]
            writer.write(page)
            if page.endswith(b"<stall>"):
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(pages: dict[str, bytes]) -> AsyncIterator[Host]:
    host = Host(pages)
    listener = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    host.port = listener.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        listener.close()


async def fetched(host: Host, path: str, *, read_timeout_s: float = 5.0) -> tuple[str | None, int | None, bytes]:
    """Media type, length and bytes of one output on a host that was named."""
    allowed = frozenset({f"127.0.0.1:{host.port}"})
    async with HttpOutputs(extra_hosts=allowed, read_timeout_s=read_timeout_s) as outputs:
        async with outputs.fetch(f"http://127.0.0.1:{host.port}{path}") as output:
            return output.media_type, output.length, b"".join([chunk async for chunk in output.chunks])


async def test_an_output_comes_whole() -> None:
    """Type, length and bytes; asked for uncompressed, without any credential or cookie."""
    async with serving({"/out-0.png?sig=1": ok(PNG, extra="set-cookie: a=b\r\n")}) as host:
        assert await fetched(host, "/out-0.png?sig=1") == ("image/png", len(PNG), PNG)
    request = host.requests[0].lower()
    assert "authorization" not in request and "cookie" not in request
    assert "accept-encoding: identity" in request


async def test_an_output_compressed_all_the_same_is_unpacked() -> None:
    """Then its length on the wire says nothing about the file."""
    async with serving({"/o.png": ok(gzip.compress(PNG), extra="content-encoding: gzip\r\n")}) as host:
        assert await fetched(host, "/o.png") == ("image/png", None, PNG)


async def test_an_empty_text_is_an_output() -> None:
    """No bytes are a legal text file."""
    async with serving({"/o.txt": ok(b"", "text/plain")}) as host:
        assert await fetched(host, "/o.txt") == ("text/plain", 0, b"")


@pytest.mark.parametrize(("page", "error"), [
    pytest.param(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n", OutputGone, id="404"),
    pytest.param(b"HTTP/1.1 410 X\r\ncontent-length: 0\r\n\r\n", OutputGone, id="410"),
    pytest.param(b"HTTP/1.1 403 X\r\ncontent-length: 0\r\n\r\n", OutputGone, id="403"),
    pytest.param(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n", CollectError, id="500"),
    pytest.param(b"HTTP/1.1 429 X\r\ncontent-length: 0\r\n\r\n", CollectError, id="429"),
    pytest.param(b"HTTP/1.1 206 X\r\ncontent-length: 0\r\n\r\n", CollectError, id="206 unasked"),
    pytest.param(ok(PNG, length=len(PNG) + 1), OutputBroken, id="cut off"),
    pytest.param(ok(PNG[:100], length=len(PNG)), OutputBroken, id="cut off in its first bytes"),
    pytest.param(ok(b"<html>sorry</html>", "text/html"), OutputBroken, id="error page"),
    pytest.param(ok(b"<html>sorry</html>"), OutputBroken, id="error page that says it is an image"),
    pytest.param(ok(b""), OutputBroken, id="empty image"),
    pytest.param(b"NONSENSE\r\n\r\n", CollectError, id="no HTTP"),
    pytest.param(ok(PNG, length=10 ** 6) + b"<stall>", CollectError, id="stalled"),
])
async def test_what_is_no_output(page: bytes, error: type[Exception]) -> None:
    """Gone, not now, or broken: each by its own error, never half a file that looks whole."""
    async with serving({"/o.png": page}) as host:
        with pytest.raises(CollectError) as raised:
            await fetched(host, "/o.png", read_timeout_s=0.2)
    assert type(raised.value) is error


async def test_nobody_there_is_worth_another_try() -> None:
    """A refused connection is neither gone nor forbidden."""
    async with serving({}) as host:
        pass
    with pytest.raises(CollectError, match="connection refused") as raised:
        await fetched(host, "/o.png")
    assert type(raised.value) is CollectError


@pytest.mark.parametrize("url", [
    "https://example.com/o.png", "http://replicate.delivery/o.png", "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:1/o.png", "http://localhost/o.png", "http://[::1]/o.png", "http://2130706433/o.png", "file:///etc/passwd",
    "https://replicate.delivery@example.com/o.png", "https://me:pw@replicate.delivery/o.png", "ftp://replicate.delivery/o.png",
    "//replicate.delivery/o.png", "https://replicate.delivery\\@127.0.0.1/o.png", ""])
async def test_other_places_are_not_asked(url: str) -> None:
    """Hosts that nobody named, private addresses, other schemes, and names dressed up as the provider's."""
    async with HttpOutputs(extra_hosts=frozenset({"127.0.0.1:2"})) as outputs:
        with pytest.raises((OutputForbidden, OutputBroken)):
            async with outputs.fetch(url):
                pass


async def test_the_providers_name_on_a_private_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the address connected to: a name that leads home gains nothing."""
    async def rebound(*_: object) -> list[dict[str, object]]:
        return [{"hostname": "x", "host": "127.0.0.1", "port": 443, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    monkeypatch.setattr(ThreadedResolver, "resolve", rebound)
    async with HttpOutputs(extra_hosts=frozenset()) as outputs:
        with pytest.raises(OutputForbidden, match="private address"):
            async with outputs.fetch("https://pbxt.replicate.delivery/o.png"):
                pass


async def test_a_named_host_may_be_private() -> None:
    """The user named it: `localhost` leads home, and is asked."""
    async with serving({"/o.png": ok(PNG)}) as host:
        async with HttpOutputs(extra_hosts=frozenset({"localhost"})) as outputs:
            async with outputs.fetch(f"http://localhost:{host.port}/o.png") as output:
                assert output.length == len(PNG)


def redirect(to: str) -> bytes:
    return f"HTTP/1.1 302 X\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n".encode()


async def test_redirects_are_followed_a_few_times() -> None:
    """Relative ones too; the type is judged by the first URL's name."""
    async with serving({"/a.png": redirect("/b"), "/b": redirect("c"), "/c": ok(PNG)}) as host:
        assert (await fetched(host, "/a.png"))[2] == PNG


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/o.png", "https://example.com/o.png", "file:///etc/passwd"])
async def test_redirects_elsewhere_are_not_followed(target: str) -> None:
    """Each hop is checked like the first."""
    async with serving({"/o.png": redirect(target)}) as host:
        with pytest.raises(OutputForbidden):
            await fetched(host, "/o.png")


async def test_a_ring_of_redirects_ends() -> None:
    """Three hops, then it is broken."""
    async with serving({"/o.png": redirect("/o.png")}) as host:
        with pytest.raises(OutputBroken, match="redirects"):
            await fetched(host, "/o.png")
    assert len(host.requests) == 4


@pytest.mark.parametrize(("url", "media_type", "content"), [
    (f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "image/png", PNG),
    ("data:text/plain;charset=utf-8;base64,eW8=", "text/plain", b"yo"), ("data:,a%20b", "text/plain", b"a b"),
    ("DATA:text/csv,a,b", "text/csv", b"a,b"), ("data:text/plain,", "text/plain", b"")])
async def test_inline_outputs(url: str, media_type: str, content: bytes) -> None:
    """Data URIs need no network."""
    async with HttpOutputs(extra_hosts=frozenset()) as outputs, outputs.fetch(url) as output:
        assert (output.media_type, output.length) == (media_type, len(content))
        assert b"".join([chunk async for chunk in output.chunks]) == content


@pytest.mark.parametrize("url", ["data:", "data:image/png;base64", "data:image/png;base64,####", "data:image/png;base64,AAAA"])
async def test_broken_inline_outputs(url: str) -> None:
    """Cut off, not base64, or not the image that it says."""
    async with HttpOutputs(extra_hosts=frozenset()) as outputs:
        with pytest.raises(OutputBroken):
            async with outputs.fetch(url):
                pass


def test_a_setting_that_is_no_host_is_refused() -> None:
    """The message names the variable."""
    with pytest.raises(BadInput, match="ORCHESTRATOR_OUTPUT_HOSTS"):
        HttpOutputs(extra_hosts=frozenset({"http://host/path"}))


@pytest.mark.parametrize("url", ["https://a..replicate.delivery/x.png", f"https://{'a' * 64}.replicate.delivery/x.png"])
async def test_a_host_name_that_cannot_be_spelled(url: str):
    """An address is text that a model made up; one that DNS cannot spell is a broken output, not a defect."""
    async with HttpOutputs(extra_hosts=frozenset()) as outputs:
        with pytest.raises(CollectError):
            async with outputs.fetch(url):
                pass
