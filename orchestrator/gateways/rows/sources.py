"""Which files a source means, what format each has, and what they hold as a whole."""

import difflib
import glob
import gzip
import hashlib
import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, cast

from orchestrator.core.errors import BadInput
from orchestrator.core.records import SourceFile

SUPPORTED = ".csv, .tsv, .jsonl, .ndjson (each also with .gz) and .parquet"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_MAGIC = re.compile(r"[*?\[]")
_BLOCK = 1 << 20


class Format(StrEnum):
    """How a file's rows are written."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"


_SUFFIXES = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
}
_REMEDIES = {
    ".json": "write one JSON object per line and name it .jsonl, or export it to CSV",
    ".xlsx": "export the sheet to CSV (File, Save As, CSV UTF-8)",
    ".xls": "export the sheet to CSV (File, Save As, CSV UTF-8)",
    ".ods": "export the sheet to CSV (File, Save As, Text CSV)",
    ".txt": "if its cells are separated by commas rename it to .csv, by tabs to .tsv",
    ".zip": "unpack it first, or compress with gzip",
}


def resolve(pattern: str, *, base: Path) -> list[Path]:
    """The files that a path or glob means, sorted by path; a relative pattern starts at `base`.

    Raises BadInput when nothing matches (naming the nearest file names), for folders, for files that cannot be read,
    for formats that are not supported and for remote addresses.
    """
    if match := _URL.match(pattern):
        raise BadInput(f"source {pattern}: {match[1]}:// sources are not supported by this version yet; "
                       "download the file first and name its path")
    full = base / Path(pattern).expanduser()
    if _MAGIC.search(pattern) and not full.exists():
        found = sorted(path for name in glob.glob(str(full), recursive=True) if not (path := Path(name)).is_dir())  # noqa: PTH207
    else:
        found = [full] if full.exists() else []
    if not found:
        raise BadInput(f"source {pattern}: no such file under {base}{_nearest(full)}")
    for path in found:
        _check(path)
    return found


def fingerprint(paths: Iterable[Path]) -> list[SourceFile]:
    """Size and sha256 of each file, streamed. Raises BadInput when a file cannot be read."""
    return [_fingerprint(path) for path in paths]


def format_of(path: Path) -> Format:
    """The format by suffix, in any case. Raises BadInput naming what is supported and what to do."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    suffix = (suffixes[-2] if len(suffixes) > 1 else "") if packed else (suffixes[-1] if suffixes else "")
    found = _SUFFIXES.get(suffix)
    if found is Format.PARQUET and packed:
        raise BadInput(f"source {path}: Parquet is compressed inside already; unpack the .gz first")
    if found is None:
        remedy = f"; {_REMEDIES[suffix]}" if suffix in _REMEDIES else ""
        raise BadInput(f"source {path}: the format {suffix or '(no suffix)'} is not supported{remedy}. "
                       f"Supported: {SUPPORTED}")
    return found


def one_format(paths: Sequence[Path]) -> Format:
    """The format that all files share; CSV and TSV may be mixed. Raises BadInput for no file and for a mixture."""
    if not paths:
        raise BadInput("the source names no file")
    first = format_of(paths[0])
    for path in paths[1:]:
        other = format_of(path)
        if other is not first and {first, other} != {Format.CSV, Format.TSV}:
            raise BadInput(f"the files of one source have one format: {paths[0]} is {first}, {path} is {other}")
    return first


def open_raw(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it ends in .gz. Raises BadInput when it cannot be opened."""
    try:
        if path.suffix.lower() == ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        return path.open("rb", buffering=_BLOCK)
    except OSError as error:
        raise BadInput(f"source {path}: cannot be opened ({error.strerror or error})") from error


def _fingerprint(path: Path) -> SourceFile:
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise BadInput(f"source {path}: cannot be read ({error.strerror or error})") from error
    return SourceFile(path=str(path), bytes=size, sha256=digest.hexdigest())


def _check(path: Path) -> None:
    if path.is_dir():
        raise BadInput(f"source {path}: is a folder; name its files, for example {path}/*.csv")
    format_of(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise BadInput(f"source {path}: cannot be read ({error.strerror or error})") from error


def _nearest(full: Path) -> str:
    folder = full.parent
    if not folder.is_dir():
        return "" if _MAGIC.search(str(folder)) else f" (there is no folder {folder})"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    near = difflib.get_close_matches(full.name, names, n=3, cutoff=0.4) or names[:3]
    return f"; nearest in {folder}: {', '.join(near)}" if near else f"; the folder {folder} holds no files"
