"""What the first bytes of an output say about the type that its headers declared. Pure."""

import re

HEAD_BYTES = 512  # as many as are looked at

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
_BRANDS = {b"avif": "image/avif", b"avis": "image/avif", b"heic": "image/heic", b"mif1": "image/heic",
           b"qt  ": "video/quicktime", b"M4A ": "audio/mp4"}
_SURE = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})  # types whose first bytes leave no doubt
_PAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html|<\?xml|<error|\{\s*[\"}])", re.IGNORECASE)
_MEDIA_SUFFIXES = frozenset({".png", ".jpg", ".webp", ".gif", ".avif", ".mp4", ".webm", ".mov", ".mp3", ".wav", ".ogg",
                             ".flac", ".m4a", ".glb", ".zip", ".pdf"})
_PAGES = frozenset({"text/html", "application/json", "application/xml", "text/xml", "application/problem+json"})


def sniff(head: bytes) -> str | None:
    """The media type that the first bytes show, of those that can be told; else None."""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    return None


def settle(declared: str | None, *, head: bytes, suffix: str | None) -> str | None:
    """The media type of an output: what its bytes show where they can be told, else what was declared.

    `suffix` is the URL's extension. Raises ValueError with a sentence where an error page stands in a file's place, or
    an image is none: such an answer is asked for again, not kept."""
    plain = (declared or "").split(";")[0].strip().lower() or None
    shown = sniff(head)
    if plain in _PAGES and suffix in _MEDIA_SUFFIXES and shown is None:
        raise ValueError(f"a {plain} came where a {suffix} file was expected: an error page?")
    if plain in _SURE and shown is None:
        what = "a page" if _PAGE.match(head) else "something else" if head else "nothing"
        raise ValueError(f"{what} came where the headers promised {plain}")
    return shown if shown is not None and _may_correct(plain, shown) else plain


def _may_correct(declared: str | None, shown: str) -> bool:
    """A family is not corrected where containers are shared: audio in mp4, a spreadsheet in a zip."""
    if declared in (None, "application/octet-stream", "binary/octet-stream"):
        return True
    return shown in _SURE and (declared or "").startswith("image/")
