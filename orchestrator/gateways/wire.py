"""HTTP to the provider, one exchange at a time: connections, deadlines, bounds. Knows nothing of predictions."""

import asyncio
import errno
import ssl
import urllib.request
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
from aiohttp.client import ClientTimeout
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict

CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 5.0  # short: a POST on a connection that the other side has just closed is an unsure purchase
BODY_LIMIT_BYTES = 50 * 1024 * 1024

# Exactly what proves that no request was written. httpx's own classes prove nothing on this transport: it raises
# ConnectTimeout for every connection error, also after the server has read the request.
_BEFORE_WRITING = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class TooLate(Exception):
    """A connection was there, but the request's last moment had passed: nothing was written."""


class BodyTooLarge(Exception):
    """An answer was longer than is read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer; header names in lower case."""

    status: int
    headers: httpx.Headers
    body: bytes


_write_by_s: ContextVar[float | None] = ContextVar("_write_by_s", default=None)


class _PunctualConnector(aiohttp.TCPConnector):
    """Hands out a connection only while the request may still be written: between this and the write nothing waits.

    A connection that came too late goes back to the pool: where connecting takes longer than a permit lives, the next
    purchase finds it ready."""

    def __init__(self, *, boottime: Callable[[], float], tls: ssl.SSLContext, connections: int) -> None:
        super().__init__(ssl=tls, limit=connections, keepalive_timeout=KEEP_ALIVE_S)
        self._boottime = boottime

    async def connect(self, req: ClientRequest, traces: list[Trace],
                      timeout: ClientTimeout) -> Connection:  # noqa: ASYNC109 - aiohttp's signature
        connection = await super().connect(req, traces, timeout)
        write_by_s = _write_by_s.get()
        if write_by_s is not None and self._boottime() > write_by_s:
            connection.release()
            raise TooLate
        return connection


class Wire:
    """An async context manager around one pool of connections. Redirects are never followed, nothing is repeated."""

    def __init__(self, *, timeout_s: float, boottime: Callable[[], float], connections: int,
                 proxy: httpx.Proxy | None, tls: ssl.SSLContext | None) -> None:
        self._timeout_s = timeout_s
        self._boottime = boottime
        self._connections = connections
        self._proxy = proxy
        self._tls = tls
        self._transport: AiohttpTransport | None = None
        # Connecting ends well before the whole: what is stuck there is known not to have been sent.
        connect_s = min(CONNECT_TIMEOUT_S, timeout_s / 2)
        self._timeouts = {"timeout": {"connect": connect_s, "pool": connect_s}}

    async def __aenter__(self) -> "Wire":
        tls = self._tls or httpx.create_ssl_context()
        connector = _PunctualConnector(boottime=self._boottime, tls=tls, connections=self._connections)
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._transport = AiohttpTransport(client=session, verify=tls, proxy=self._proxy)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transport is not None:
            await self._transport.aclose()
            self._transport = None

    async def exchange(self, method: str, url: httpx.URL, *, headers: CIMultiDict[str], content: bytes = b"",
                       write_by_s: float | None = None) -> Answer:
        """One request, written at most once, and its whole answer.

        `write_by_s` (CLOCK_BOOTTIME seconds): the last moment at which it may be written. Raises TooLate, BodyTooLarge,
        TimeoutError for the whole, and whatever the layers below raise: see `not_sent` for what that proves."""
        assert self._transport is not None, "used outside its `async with`"
        request = _Prepared(method, url, headers=headers, content=content, extensions=self._timeouts)
        token = _write_by_s.set(write_by_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await _read(await self._transport.handle_async_request(request))
        finally:
            _write_by_s.reset(token)


class _Prepared(httpx.Request):
    """A request whose headers are ready for the wire: building and copying httpx's own was a sixth of a purchase's CPU."""

    def __init__(self, method: str, url: httpx.URL, *, headers: CIMultiDict[str], content: bytes,
                 extensions: dict[str, Any]) -> None:
        self.method = method
        self.url = url
        self.headers = headers  # type: ignore[assignment]  # the transport hands it to aiohttp as it is
        self.extensions = extensions
        self.stream = httpx.ByteStream(content)
        self._content = content


async def _read(response: httpx.Response) -> Answer:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    plain = "content-encoding" not in response.headers
    try:
        size, chunks = 0, []
        async for chunk in response.stream if plain else response.aiter_bytes():
            size += len(chunk)
            if size > BODY_LIMIT_BYTES:
                raise BodyTooLarge(f"an answer of more than {BODY_LIMIT_BYTES >> 20} MB")
            chunks.append(chunk)
    finally:
        await response.aclose()
    return Answer(response.status_code, response.headers, b"".join(chunks))


def not_sent(error: BaseException) -> bool:
    """Whether an error proves that the request was never written; an allow-list, tried on real sockets."""
    return isinstance(error, TooLate) or isinstance(error.__cause__, _BEFORE_WRITING)


_BY_ERRNO = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENETUNREACH: "network unreachable",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ECONNRESET: "connection reset",
}


def cause_in_words(error: BaseException) -> str:
    """What went wrong below, in a few words, without addresses or secrets."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause = error.__cause__ or error
    if isinstance(cause, BodyTooLarge):
        return str(cause)
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({cause.certificate_error})"
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        return "name not known"
    if isinstance(cause, aiohttp.ClientConnectorSSLError):
        return f"no TLS ({cause.os_error.strerror or cause.os_error})"
    if isinstance(cause, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer"
    if isinstance(cause, OSError):
        return _BY_ERRNO.get(cause.errno or 0) or cause.strerror or type(cause).__name__
    return f"unreadable answer ({type(cause).__name__})"


def proxy_of(url: httpx.URL) -> httpx.Proxy | None:
    """The HTTP proxy that the environment names for this URL, looked up once; never for this machine itself."""
    if url.host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(url.host):
        return None
    proxies: dict[str, Any] = urllib.request.getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    return httpx.Proxy(found if "://" in found else f"http://{found}") if found else None


