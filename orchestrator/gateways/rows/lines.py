"""Lines of a text file, bounded in length, with what is wrong in each noted beside it."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from orchestrator.core.errors import BadInput
from orchestrator.gateways.rows.sources import open_raw

MAX_LINE_CHARACTERS = 32_000_000
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Lines:
    """Iterates over the lines of a text stream and remembers where it stands.

    `number` is the line last handed out, from 1; `last` its text; `characters` the count so far; `flaws` maps a line to
    what is wrong with its bytes. What could not be decoded reads as U+FFFD.
    """

    def __init__(self, stream: io.TextIOWrapper, *, path: Path) -> None:
        self.path = path
        self.number = 0
        self.last = ""
        self.characters = 0
        self.flaws: dict[int, str] = {}
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        """Each line with its ending. Raises BadInput for a line beyond all measure."""
        for line in iter(partial(self._stream.readline, MAX_LINE_CHARACTERS), ""):
            self.number += 1
            if len(line) >= MAX_LINE_CHARACTERS:
                raise BadInput(f"source {self.path}, line {self.number}: longer than {MAX_LINE_CHARACTERS:,} "
                               "characters; is this a text file with one row per line?")
            if "\0" in line or not line.isascii():
                line = self._examined(line)
            self.last = line
            self.characters += len(line)
            yield line

    def _examined(self, line: str) -> str:
        if "\0" in line:
            self.flaws[self.number] = (f"line {self.number} holds a NUL byte at character {line.index(chr(0)) + 1}; "
                                       "save the file as UTF-8 text without NUL bytes")
        try:
            line.encode()
        except UnicodeEncodeError as error:
            place, byte = len(line[:error.start].encode()) + 1, ord(line[error.start]) & 0xFF
            self.flaws[self.number] = (f"line {self.number}, byte {place} of the line (0x{byte:02x}) is not UTF-8; "
                                       "save the file as UTF-8")
            escape = self._stream.errors == "surrogateescape"
            return line.encode("utf-8", "surrogateescape" if escape else "replace").decode("utf-8", "replace")
        return line


@contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """The lines of a text file: UTF-8 with or without a byte order mark, UTF-16 with one, unpacked from .gz.

    Raises BadInput when the file cannot be opened, unpacked or, being UTF-16, decoded.
    """
    with open_raw(path) as raw, broken_files_named(path):
        head = raw.read(4)
        raw.seek(0)
        encoding, errors = ("utf-16", "surrogatepass") if head[:2] in _UTF16 else ("utf-8-sig", "surrogateescape")
        yield Lines(io.TextIOWrapper(raw, encoding=encoding, errors=errors, newline=""), path=path)


@contextmanager
def broken_files_named(path: Path) -> Iterator[None]:
    """Turn what a damaged or vanished file raises while it is read into BadInput with the file's name."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadInput(f"source {path}: the gzip data is damaged or cut short ({error}); "
                       "fetch or compress the file again") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"source {path}: not valid {error.encoding} ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise BadInput(f"source {path}: reading failed ({error.strerror or error})") from error
