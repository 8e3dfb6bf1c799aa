"""Where outputs may come from, and what their first bytes must be."""

import pytest

from orchestrator.core.errors import OutputForbidden
from orchestrator.core.hosts import AllowedHosts, is_public
from orchestrator.core.media import settle, sniff

NAMED = frozenset({"127.0.0.1:8080", "files.example", "[::1]:9000", "HTTP://Upper.example:81/"})
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


@pytest.mark.parametrize(("scheme", "host", "port"), [
    ("https", "replicate.delivery", None), ("https", "pbxt.replicate.delivery", 443), ("https", "REPLICATE.delivery.", None),
    ("http", "127.0.0.1", 8080), ("https", "files.example", 8443), ("http", "files.example", None), ("http", "::1", 9000),
    ("http", "upper.example", 81)])
def test_allowed(scheme: str, host: str, port: int | None) -> None:
    """The provider's hosts by https, and those the user named, with their port where one was named."""
    AllowedHosts(NAMED).check(scheme=scheme, host=host, port=port)


@pytest.mark.parametrize(("scheme", "host", "port"), [
    ("http", "replicate.delivery", None), ("https", "replicate.delivery", 8443), ("https", "evilreplicate.delivery", None),
    ("https", "replicate.delivery.evil.example", None), ("https", "", None), ("file", "files.example", None),
    ("http", "127.0.0.1", 8081), ("http", "127.0.0.1", None), ("https", "169.254.169.254", None), ("https", "8.8.8.8", None),
    ("https", "api.replicate.com", None), ("", "files.example", None)])
def test_forbidden(scheme: str, host: str, port: int | None) -> None:
    """Everything else, and the reason names what to do where something can be done."""
    with pytest.raises(OutputForbidden):
        AllowedHosts(NAMED).check(scheme=scheme, host=host, port=port)


@pytest.mark.parametrize("text", ["", "a b", "http://host/path", "host:port", "me@host", "[::1", "*.example"])
def test_what_is_no_host_is_refused(text: str) -> None:
    """A setting that would silently allow nothing is an error."""
    with pytest.raises(ValueError, match="host"):
        AllowedHosts(frozenset({text}))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    """Also where IPv6 carries a public IPv4."""
    assert is_public(address)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "255.255.255.255",
    "224.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "2001:db8::1", "localhost", ""])
def test_private_addresses(address: str) -> None:
    """Loopback, private, link-local, shared, reserved, multicast, and all of them in disguise."""
    assert not is_public(address)


@pytest.mark.parametrize(("head", "media_type"), [
    (PNG, "image/png"), (b"\xff\xd8\xff\xe0", "image/jpeg"), (b"GIF89a", "image/gif"), (b"RIFF\0\0\0\0WEBPVP8", "image/webp"),
    (b"RIFF\0\0\0\0WAVEfmt", "audio/wav"), (b"\0\0\0\x18ftypisom", "video/mp4"), (b"\0\0\0\x18ftypavif", "image/avif"),
    (b"\x1aE\xdf\xa3", "video/webm"), (b"plain", None), (b"", None)])
def test_sniffing(head: bytes, media_type: str | None) -> None:
    """Types whose first bytes leave no doubt are told, others are not guessed."""
    assert sniff(head) == media_type


@pytest.mark.parametrize(("declared", "head", "suffix", "expected"), [
    ("image/png", PNG, ".png", "image/png"), ("image/png", b"\xff\xd8\xff", ".png", "image/jpeg"),
    (None, PNG, None, "image/png"), ("application/octet-stream", PNG, ".png", "image/png"),
    ("application/octet-stream", b"\1\2", ".bin", "application/octet-stream"), (None, b"text", None, None),
    ("text/plain", b"<html>", ".txt", "text/plain"), ("application/json", b"{}", ".json", "application/json"),
    ("text/html", b"<html>", None, "text/html"), ("image/svg+xml", b"<svg", ".svg", "image/svg+xml"),
    ("audio/mp4", b"\0\0\0\x18ftypisom", ".m4a", "audio/mp4"), ("text/html", PNG, ".png", "text/html"),
    ("IMAGE/PNG; q=1", PNG, None, "image/png")])
def test_media_types_settle(declared: str | None, head: bytes, suffix: str | None, expected: str | None) -> None:
    """Bytes correct a vague type or a wrong image type, and nothing else."""
    assert settle(declared, head=head, suffix=suffix) == expected


@pytest.mark.parametrize(("declared", "head", "suffix"), [
    ("image/png", b"<html>sorry</html>", ".png"), ("image/webp", b"", ".webp"), ("image/jpeg", b"\0\1\2", None),
    ("text/html", b"<html>", ".png"), ("application/json", b'{"detail":"gone"}', ".mp4"),
    ("application/xml", b"<Error>", ".jpg")])
def test_error_pages_are_no_outputs(declared: str, head: bytes, suffix: str | None) -> None:
    """A page in an image's place is asked for again, never stored under the row's name."""
    with pytest.raises(ValueError, match="came where"):
        settle(declared, head=head, suffix=suffix)
