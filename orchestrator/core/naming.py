"""Names for files and batches, made from texts that nobody can vouch for. Pure."""

import re
import unicodedata
from datetime import datetime
from urllib.parse import unquote, urlsplit

LONGEST_NAME_BYTES = 120
DEEPEST = 8

# Separators and marks that some system gives a meaning; `~` sets apart the variants of a name already taken.
_FORBIDDEN = frozenset('/\\<>:"|?*~')
_RESERVED = frozenset({"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
                      | {f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"})


def safe_name(text: str) -> str:
    """One path component for any system: letters of every script stay, what is special becomes `_`.

    At most 120 bytes of UTF-8, in Unicode's composed form; never empty, hidden, an option, or a Windows device."""
    text = unicodedata.normalize("NFC", text)
    name = "".join("_" if _is_special(char) else char for char in text).strip(" ")
    if name[:1] in (".", "-"):
        name = "_" + name[1:]
    if name.split(".")[0].strip(" ").upper() in _RESERVED:
        name = "_" + name
    name = name.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore").rstrip(" .")
    return name or "_"


def _is_special(char: str) -> bool:
    """Forbidden marks; control, format (text direction), private and unassigned characters, surrogates, line ends."""
    return char in _FORBIDDEN or unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def stem(rendered: str) -> str:
    """A relative path of safe components, with forward slashes, from a rendered `output.name` without extension.

    `..`, `.` and empty components vanish; what lies deeper than eight folders moves up."""
    parts = [safe_name(part) for part in rendered.split("/") if part.strip() not in ("", ".", "..")]
    return "/".join([*parts[:-1][:DEEPEST], *parts[-1:]]) or "_"


_BY_MEDIA_TYPE = {
    "image/png": ".png", "image/jpeg": ".jpg", "image/jpg": ".jpg", "image/webp": ".webp", "image/gif": ".gif",
    "image/avif": ".avif", "image/heic": ".heic", "image/svg+xml": ".svg", "image/tiff": ".tif", "image/bmp": ".bmp",
    "video/mp4": ".mp4", "video/webm": ".webm", "video/quicktime": ".mov", "video/x-matroska": ".mkv",
    "audio/mpeg": ".mp3", "audio/mp3": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/wave": ".wav",
    "audio/ogg": ".ogg", "audio/flac": ".flac", "audio/x-flac": ".flac", "audio/mp4": ".m4a", "audio/aac": ".aac",
    "application/json": ".json", "application/pdf": ".pdf", "application/zip": ".zip", "text/csv": ".csv",
    "text/html": ".html", "text/markdown": ".md", "model/gltf-binary": ".glb", "application/x-tar": ".tar",
}
_VAGUE = {"text/plain": ".txt"}  # often said of subtitles, meshes and other texts: the URL knows better
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}\Z")
_ALIKE = {".jpeg": ".jpg", ".jpe": ".jpg", ".tiff": ".tif"}


def extension(url: str, media_type: str | None) -> str:
    """The extension of an output, with its dot: from the media type, else the URL's path, else `.bin`."""
    plain = (media_type or "").split(";")[0].strip().lower()
    return _BY_MEDIA_TYPE.get(plain) or suffix(url) or _VAGUE.get(plain, ".bin")


def suffix(url: str) -> str | None:
    """The extension that a URL's path ends with, in lower case and in its usual spelling; None where it has none."""
    if url.startswith("data:"):
        return None
    try:
        name = unquote(urlsplit(url).path).rpartition("/")[2].lower()
    except ValueError:
        return None
    match = _SUFFIX.search(name)
    if match is None or match.start() == 0:
        return None
    return _ALIKE.get(match[0], match[0])


def batch_id(job: str, *, when: datetime, token: str) -> str:
    """`product-shots-20261120-x7k2`: the job, the day (UTC), and the last four characters of a random token."""
    slug = re.sub(r"[\s_]+", "-", safe_name(job)).strip("-.").encode()[:60].decode(errors="ignore")
    return f"{slug or 'batch'}-{when:%Y%m%d}-{token[-4:]}"
