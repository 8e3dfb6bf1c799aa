"""Where finished files are fetched from: the provider's file hosts, and data URIs. Sends no token, ever.

aiohttp directly, without httpx on top: downloads are the bulk of the bytes, and the address check needs its resolver.
"""

import base64
import binascii
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from orchestrator.core.errors import BadInput, CollectError, OutputBroken, OutputForbidden, OutputGone
from orchestrator.core.hosts import REMEDY, AllowedHosts, is_public
from orchestrator.core.media import HEAD_BYTES, settle
from orchestrator.core.naming import suffix
from orchestrator.core.ports import Fetched
from orchestrator.gateways.wire import cause_in_words, proxy_of

CHUNK_BYTES = 256 * 1024
REDIRECTS = 3
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0  # without a single byte
DATA_LIMIT_CHARACTERS = 100 * 1024 * 1024

_MOVED = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({403, 404, 410})  # what an expired file answers is not documented


class _PrivateAddress(OSError):
    """A host without a public address."""


class _GuardedResolver(AbstractResolver):
    """Resolves, and lets only public addresses through, except for hosts that the user named.

    It is the last look before connecting, so a name that changes its address between a check and a use gains nothing."""

    def __init__(self, hosts: AllowedHosts) -> None:
        self._hosts = hosts
        self._proxies: set[str] = set()
        self._real = ThreadedResolver()

    def trust(self, proxy_host: str) -> None:
        """A proxy of the environment: it looks up the hosts itself, and may stand in the private network."""
        self._proxies.add(proxy_host)

    async def resolve(self, host: str, port: int = 0,
                      family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await self._real.resolve(host, port, family)
        if host in self._proxies or self._hosts.is_named(host, port=port):
            return found
        public = [result for result in found if is_public(result["host"])]
        if not public:
            raise _PrivateAddress(f"{host} leads to a private address")
        return public

    async def close(self) -> None:
        await self._real.close()


class HttpOutputs:
    """`core.ports.Outputs`; an async context manager.

    `extra_hosts`: `host` or `host:port` that outputs may come from besides the provider's; their addresses may be
    private, and plain http will do. Raises BadInput for a host that is none."""

    def __init__(self, *, extra_hosts: frozenset[str], connections: int = 64,
                 read_timeout_s: float = READ_TIMEOUT_S) -> None:
        try:
            self._hosts = AllowedHosts(extra_hosts)
        except ValueError as error:
            raise BadInput(f"ORCHESTRATOR_OUTPUT_HOSTS: {error}") from error
        self._connections = connections
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=read_timeout_s)
        self._proxies: dict[tuple[str, str, int | None], httpx.Proxy | None] = {}  # of origins that may be fetched from
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "HttpOutputs":
        self._resolver = _GuardedResolver(self._hosts)
        connector = aiohttp.TCPConnector(ssl=httpx.create_ssl_context(), resolver=self._resolver, limit=self._connections)
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=self._timeout, read_bufsize=CHUNK_BYTES,
            headers={"Accept-Encoding": "identity", "User-Agent": "replicate-orchestrator"})
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Fetched]:
        """As the port says. The first bytes are read before it opens, and must be what the headers promise."""
        if url[:5].lower() == "data:":
            yield _inline(url)
            return
        try:
            response = await self._open(url)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _translated(error, url) from error
        except ValueError as error:  # a host name that cannot be spelled in DNS shows only when it is looked up
            raise OutputBroken(f"an output whose address cannot be used: {_shown(url)[:80]!r}") from error
        try:
            yield await _fetched(response, url)
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def _open(self, url: str) -> aiohttp.ClientResponse:
        """Follow a few redirects by hand: each hop is checked like the first."""
        assert self._session is not None, "used outside its `async with`"
        place = _url(url)
        for _ in range(REDIRECTS + 1):
            proxy = self._checked(place)
            response = await self._session.get(place, allow_redirects=False, **_through(proxy))
            if response.status not in _MOVED:
                return _with_content(response)
            target = response.headers.get("location", "")
            response.release()
            place = place.join(_url(target))
        raise OutputBroken(f"more than {REDIRECTS} redirects from {_shown(url)}")

    def _checked(self, url: URL) -> httpx.Proxy | None:
        """Raises OutputForbidden; answers the proxy to go through, where the environment names one."""
        if url.user is not None or url.password is not None:
            raise OutputForbidden("an output with a user name in its URL is not fetched")
        origin = (url.scheme, url.host or "", url.port)
        if origin not in self._proxies:
            self._hosts.check(scheme=origin[0], host=origin[1], port=origin[2])
            proxy = proxy_of(httpx.URL(str(url.origin())))
            self._proxies[origin] = proxy
            if proxy is not None:
                self._resolver.trust(proxy.url.host)
        return self._proxies[origin]


def _through(proxy: httpx.Proxy | None) -> dict[str, Any]:
    if proxy is None:
        return {}
    auth = aiohttp.BasicAuth(*proxy.auth) if proxy.auth else None
    return {"proxy": str(proxy.url), "proxy_auth": auth}


def _url(text: str) -> URL:
    try:
        url = URL(text)
        url.port  # noqa: B018 - a wrong port shows only here
    except ValueError as error:
        raise OutputBroken(f"an output whose URL cannot be read: {text[:80]!r}") from error
    return url


def _shown(url: str) -> str:
    """A URL for messages: without its query, which may hold a signature."""
    return url.partition("?")[0][:200]


def _with_content(response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
    """Raises OutputGone or CollectError for a status without content."""
    if response.status == 200:
        return response
    where = f"{_shown(str(response.url))} answered {response.status}"
    response.close()
    if response.status in _GONE:
        raise OutputGone(f"the output is gone: {where}")
    raise CollectError(f"the output cannot be fetched now: {where}")


def _translated(error: Exception, url: str) -> CollectError:
    cause = getattr(error, "os_error", None)
    if isinstance(cause, _PrivateAddress):
        return OutputForbidden(f"{cause.strerror or cause}; {REMEDY}")
    return CollectError(f"{_shown(url)} cannot be fetched: {cause_in_words(error)}")


async def _fetched(response: aiohttp.ClientResponse, url: str) -> Fetched:
    chunks = _chunks(response, url)
    head = b""
    async for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    declared = response.headers.get("content-type")
    try:
        media_type = settle(declared, head=head[:HEAD_BYTES], suffix=suffix(url))
    except ValueError as error:
        raise OutputBroken(f"{_shown(url)}: {error}") from error
    encoded = response.headers.get("content-encoding", "identity").lower() != "identity"
    return Fetched(media_type, None if encoded else response.content_length, _joined(head, chunks))


async def _chunks(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
    """The body as it comes. A body shorter than its headers promise is an error below, and OutputBroken here."""
    try:
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            yield chunk
    except aiohttp.ClientPayloadError as error:
        raise OutputBroken(f"{_shown(url)} broke off: {error}") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise CollectError(f"{_shown(url)} broke off: {cause_in_words(error)}") from error


async def _joined(head: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if head:
        yield head
    async for chunk in rest:
        yield chunk


def _inline(url: str) -> Fetched:
    """A data URI (RFC 2397), decoded. Raises OutputBroken."""
    if len(url) > DATA_LIMIT_CHARACTERS:
        raise OutputBroken(f"an inline output of more than {DATA_LIMIT_CHARACTERS >> 20} MB")
    described, comma, text = url[5:].partition(",")
    if not comma:
        raise OutputBroken("an inline output without a comma: it is cut off or no data URI")
    media_type, *parameters = described.split(";")
    try:
        content = unquote_to_bytes(text)
        if any(parameter.strip().lower() == "base64" for parameter in parameters):
            content = base64.b64decode(content, validate=True)
        settled = settle(media_type or "text/plain", head=content[:HEAD_BYTES], suffix=None)
    except (binascii.Error, ValueError) as error:
        raise OutputBroken(f"an inline output that cannot be decoded: {error}") from error
    return Fetched(settled, len(content), _joined(content, _nothing()))


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
