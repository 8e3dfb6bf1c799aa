"""The files API: uploads that serve as inputs, kept in memory until they expire."""

import base64
import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from typing import Any

import orjson

from orchestrator.simulator import answers
from orchestrator.simulator.wire import Reply, Request
from orchestrator.simulator.world import World

LIFE_S = 24 * 3600.0
LIMIT = 100 * 1024 * 1024
PAGE = 100


@dataclass(slots=True)
class Upload:
    """One uploaded file."""

    id: str
    account: str
    name: str
    media_type: str
    content: bytes
    metadata: Any
    created_at: float


class Files:
    """The uploads of all accounts."""

    def __init__(self, world: World) -> None:
        """Start empty."""
        self._world = world
        self._uploads: dict[str, Upload] = {}

    def answer(self, request: Request, *, account: str, file_id: str | None) -> Reply:
        """Answer any request under /v1/files."""
        if file_id is None:
            return self._upload(request, account=account) if request.method == "POST" else self._list(request, account)
        known = self._uploads.get(file_id)
        if known is None or known.account != account or self._world.now() >= known.created_at + LIFE_S:
            return Reply(404, b'{"detail":"File not found"}\n', answers.PROBLEM)
        if request.method == "DELETE":
            del self._uploads[file_id]
            return Reply(204)
        return answers.json_reply(self._document(known, base_url=request.base_url))

    def _upload(self, request: Request, *, account: str) -> Reply:
        parts = _parts(request)
        content = parts.get("content")
        if content is None:
            return answers.problem(400, "Send the file as multipart part 'content'", title="Bad request")
        head, raw = content
        if len(raw) > LIMIT:
            return Reply(413, b'{"detail":"Files must be less than 100MB in size"}\n', answers.PROBLEM)
        name = _text(parts.get("filename")) or head.get_filename() or "file"
        media_type = _text(parts.get("type")) or head.get_content_type()
        metadata = orjson.loads(_text(parts.get("metadata")) or "{}")
        file_id = base64.b64encode(str(uuid.uuid4()).encode()).decode()
        upload = Upload(file_id, account, name[:255], media_type, raw, metadata, self._world.now())
        self._uploads[file_id] = upload
        return answers.json_reply(self._document(upload, base_url=request.base_url), 201)

    def _list(self, request: Request, account: str) -> Reply:
        now = self._world.now()
        alive = [
            upload
            for upload in reversed(self._uploads.values())
            if upload.account == account and now < upload.created_at + LIFE_S
        ]
        start = int(request.query.get("cursor") or 0)
        more = f"{request.base_url}/v1/files?cursor={start + PAGE}" if len(alive) > start + PAGE else None
        shown = [self._document(upload, base_url=request.base_url) for upload in alive[start : start + PAGE]]
        return answers.json_reply({"next": more, "previous": None, "results": shown})

    def _document(self, upload: Upload, *, base_url: str) -> dict[str, Any]:
        md5 = hashlib.md5(upload.content, usedforsecurity=False).hexdigest()
        return {
            "id": upload.id,
            "name": upload.name,
            "content_type": upload.media_type,
            "size": len(upload.content),
            "etag": md5,
            "checksums": {"sha256": hashlib.sha256(upload.content).hexdigest(), "md5": md5},
            "metadata": upload.metadata,
            "created_at": self._time(upload.created_at),
            "expires_at": self._time(upload.created_at + LIFE_S),
            "urls": {"get": f"{base_url}/v1/files/{upload.id}"},
        }

    def _time(self, at: float) -> str:
        told = datetime.fromtimestamp(at + self._world.clock_offset_s, UTC)
        return told.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parts(request: Request) -> dict[str, tuple[Message, bytes]]:
    """Return head and content of the parts of a multipart body, by name; cut at the boundary, bytes untouched."""
    kind = Message()
    kind["content-type"] = request.headers.get("content-type", "")
    boundary = kind.get_param("boundary")
    if not isinstance(boundary, str):
        return {}
    parts = {}
    for section in (b"\r\n" + request.body).split(b"\r\n--" + boundary.encode("latin-1"))[1:]:
        head, _, content = section.partition(b"\r\n\r\n")
        part = HeaderParser().parsestr(head.lstrip(b"\r\n").decode("utf-8", "replace"))  # file names are UTF-8
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            parts[name] = (part, content)
    return parts


def _text(part: tuple[Message, bytes] | None) -> str:
    return "" if part is None else part[1].decode()
