"""HTTP/1.1 on a bare asyncio protocol: fast, and able to break a connection in every way a network can.

An ASGI server hides its sockets, and half the purpose of this program is to close, reset and cut them.
"""

import asyncio
import os
import socket
import struct
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import Enum
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qsl, unquote

HEAD_LIMIT = 64 * 1024
BODY_LIMIT = 110 * 1024 * 1024
REASONS = {status.value: status.phrase for status in HTTPStatus}


class Fate(Enum):
    """What becomes of an answer on its way out."""

    SEND = "send"
    CLOSE = "close"
    RESET = "reset"
    CUT = "cut"
    GARBAGE = "garbage"


@dataclass(slots=True)
class Request:
    """One request, read whole; header names are lower case, `path` is decoded, `body` is raw."""

    method: str
    path: str
    query_string: str
    headers: dict[str, str]
    body: bytes

    @property
    def query(self) -> dict[str, str]:
        """Return the query parameters, the last of each name."""
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    @property
    def base_url(self) -> str:
        """Return scheme and host as the client addressed us, without a trailing slash."""
        return "http://" + self.headers.get("host", "127.0.0.1")


@dataclass(slots=True)
class Reply:
    """One answer: bytes, or an iterator of chunks for long listings, and the fate it meets."""

    status: int
    body: bytes | Iterator[bytes] = b""
    content_type: str = "application/json"
    headers: list[tuple[str, str]] = field(default_factory=list)
    fate: Fate = Fate.SEND


Handler = Callable[[Request], Reply | Awaitable[Reply]]


class BadRequest(Exception):
    """The bytes are not a request this server can read; the connection ends with a 400."""


class Connection(asyncio.Protocol):
    """One client connection: parses requests in turn, answers each before reading the next.

    A handler that returns a Reply is answered in the same loop step, without a task; that is what makes plain creates
    cheap. A handler that returns an awaitable (a slow answer, a waiting create) gets a task.
    """

    def __init__(self, handler: Handler, *, date: Callable[[], float], live: "set[Connection]") -> None:
        """Take the handler of requests, the clock shown in the Date header and the set of open connections."""
        self._handler = handler
        self._date = date
        self._live = live
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._continued = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self.transport = cast(asyncio.Transport, transport)
        self._live.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client; an answer being prepared for it is dropped, what it created stays."""
        self._live.discard(self)
        self.transport = None
        self._writable.set()

    def pause_writing(self) -> None:
        """Hold back a long listing."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let a long listing go on."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Collect bytes and answer every whole request among them."""
        self._buffer += data
        if self._task is None:
            self._serve_buffer()

    def _serve_buffer(self) -> None:
        while self.transport is not None and not self.transport.is_closing() and self._task is None:
            try:
                request = self._next_request()
            except (BadRequest, ValueError) as error:
                self._write(None, Reply(400, str(error).encode(), "text/plain"), last=True)
                return
            if request is None:
                return
            answer = self._answer(request)
            if isinstance(answer, Reply) and isinstance(answer.body, bytes):
                self._finish(request, answer)
            else:
                self._task = asyncio.ensure_future(self._later(request, answer))

    def _answer(self, request: Request) -> Reply | Awaitable[Reply]:
        try:
            return self._handler(request)
        except Exception:  # a fault of the simulator must show as one, and not as a lost connection
            traceback.print_exc()
            return Reply(500, b"the simulator itself failed; its stderr says why\n", "text/plain")

    async def _later(self, request: Request, answer: Reply | Awaitable[Reply]) -> None:
        reply = answer if isinstance(answer, Reply) else await answer
        if isinstance(reply.body, bytes):
            self._finish(request, reply)
        else:
            await self._stream(request, reply)
        self._task = None
        self._serve_buffer()

    def _next_request(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_LIMIT:
                raise BadRequest("the request head is over 64 KB")
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, _, rest = first.partition(" ")
        target, _, version = rest.rpartition(" ")
        if not version.startswith("HTTP/1."):
            raise BadRequest("not an HTTP/1.1 request")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = self._body(headers, start=end + 4)
        if body is None:
            return None
        path, _, query = target.partition("?")
        return Request(method, unquote(path) if "%" in path else path, query, headers, body)

    def _body(self, headers: dict[str, str], *, start: int) -> bytes | None:
        """Return the whole body and drop the request from the buffer, or None while bytes are missing."""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            taken = self._chunks(start)
        else:
            length = int(headers.get("content-length") or 0)
            if length > BODY_LIMIT:
                raise BadRequest("the request body is over 110 MB")
            whole = len(self._buffer) >= start + length
            taken = (bytes(self._buffer[start : start + length]), start + length) if whole else None
        if taken is None:
            if headers.get("expect", "").lower() == "100-continue" and not self._continued and self.transport:
                self._continued = True
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self._continued = False
        del self._buffer[: taken[1]]
        return taken[0]

    def _chunks(self, start: int) -> tuple[bytes, int] | None:
        parts: list[bytes] = []
        while (line_end := self._buffer.find(b"\r\n", start)) >= 0:
            size = int(bytes(self._buffer[start:line_end]).split(b";")[0], 16)
            begin, stop = line_end + 2, line_end + 2 + size
            if len(self._buffer) < stop + 2:
                return None
            if size == 0:
                return b"".join(parts), stop + 2
            parts.append(bytes(self._buffer[begin:stop]))
            start = stop + 2
        return None

    def _finish(self, request: Request, reply: Reply) -> None:
        last = request.headers.get("connection", "").lower() == "close"
        self._write(request, reply, last=last)

    def _write(self, request: Request | None, reply: Reply, *, last: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if reply.fate is Fate.SEND:
            assert isinstance(reply.body, bytes)
            head = self._head(reply, length=len(reply.body), last=last)
            transport.write(head if request is not None and request.method == "HEAD" else head + reply.body)
            if last:
                transport.close()
        else:
            self._break(transport, reply)

    def _break(self, transport: asyncio.Transport, reply: Reply) -> None:
        assert isinstance(reply.body, bytes)
        if reply.fate is Fate.RESET:
            _linger_zero(transport)
            transport.abort()
            return
        if reply.fate is Fate.CUT:
            transport.write(self._head(reply, length=len(reply.body), last=False))
            transport.write(reply.body[: len(reply.body) // 2])
        elif reply.fate is Fate.GARBAGE:
            transport.write(b"%%% bad gateway %%%\r\n\r\n")
        transport.close()

    async def _stream(self, request: Request, reply: Reply) -> None:
        """Write an iterator as a chunked body, never further ahead than the client reads."""
        assert not isinstance(reply.body, bytes)
        if self.transport is not None:
            self.transport.write(self._head(reply, length=None, last=False))
        for chunk in reply.body:
            await self._writable.wait()
            if self.transport is None:
                return
            self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await asyncio.sleep(0)
        if self.transport is not None:
            self.transport.write(b"0\r\n\r\n")

    def _head(self, reply: Reply, *, length: int | None, last: bool) -> bytes:
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        if reply.status == HTTPStatus.NO_CONTENT:
            size = "server: simulator"
        extra = "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
        closing = "connection: close\r\n" if last else ""
        return (
            f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Unknown')}\r\ndate: {_date(int(self._date()))}\r\n"
            f"content-type: {reply.content_type}\r\n{size}\r\n{extra}{closing}\r\n"
        ).encode("latin-1")


_date_seen: tuple[int, str] = (-1, "")


def _date(second: int) -> str:
    """Return an HTTP date, formatted once per second."""
    global _date_seen  # noqa: PLW0603 - a cache of one string
    if _date_seen[0] != second:
        _date_seen = (second, formatdate(second, usegmt=True))
    return _date_seen[1]


def _linger_zero(transport: asyncio.Transport) -> None:
    """Make the coming close a TCP reset; through a duplicate, because uvloop hands out pseudo sockets."""
    twin = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    try:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        twin.close()


async def listen(handler: Handler, *, host: str, port: int, date: Callable[[], float] = time.time) -> "Listener":
    """Open a listening socket (port 0 picks a free one) and serve `handler` until the listener is closed.

    Raises OSError if the address is taken.
    """
    live: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(handler, date=date, live=live), host, port, backlog=2048)
    return Listener(server, live)


class Listener:
    """An open listening socket and its connections."""

    def __init__(self, server: asyncio.Server, live: set[Connection]) -> None:
        """Take what `listen` made."""
        self._server = server
        self._live = live

    @property
    def port(self) -> int:
        """Return the port that is really listened on."""
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._server.close()
        for connection in list(self._live):
            if connection.transport is not None:
                connection.transport.abort()
