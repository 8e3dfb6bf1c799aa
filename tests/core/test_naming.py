"""File and batch names made from texts that nobody can vouch for."""

import unicodedata
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.naming import LONGEST_NAME_BYTES, batch_id, extension, safe_name, stem, suffix

ANY_TEXT = st.text(st.characters(), max_size=300)  # surrogates included


@pytest.mark.parametrize(("text", "name"), [
    ("SKU-1001", "SKU-1001"), ("Grüße 東京 مرحبا", "Grüße 東京 مرحبا"), ("a/b\\c:d", "a_b_c_d"), ("a~1", "a_1"),
    (".hidden", "_hidden"), ("..", "_"), ("-rf", "_rf"), ("con", "_con"), ("NUL.txt", "_NUL.txt"), ("console", "console"),
    ("COM¹", "_COM¹"), ("a\0b\nc", "a_b_c"), ("evil\u202egnp", "evil_gnp"), ("end. . ", "end"), ("", "_"), ("   ", "_"),
    ("e\u0301", "é"), ("?" * 3, "___")])
def test_safe_names(text: str, name: str) -> None:
    """Letters of every script stay; what some system gives a meaning does not."""
    assert safe_name(text) == name


@given(ANY_TEXT)
def test_a_safe_name_is_one_component_everywhere(text: str) -> None:
    """Whatever a cell holds: one component on POSIX and Windows, bounded, composed, encodable, and safe a second time."""
    name = safe_name(text)
    assert PurePosixPath(name).parts == (name,)
    assert PureWindowsPath(name).parts == (name,)
    assert 0 < len(name.encode()) <= LONGEST_NAME_BYTES
    assert name[0] not in ".-" and name[-1] not in ". " and "~" not in name
    assert unicodedata.is_normalized("NFC", name)
    assert safe_name(name) == name


@pytest.mark.parametrize(("rendered", "path"), [
    ("sku-0", "sku-0"), ("a/b/c", "a/b/c"), ("../../etc/passwd", "etc/passwd"), ("/abs", "abs"), ("a//b/./c/", "a/b/c"),
    ("..", "_"), ("", "_"), ("a/ .. /b", "a/b"), ("~/x", "_/x"), ("C:\\x", "C__x"),
    ("1/2/3/4/5/6/7/8/9/10/name", "1/2/3/4/5/6/7/8/name")])
def test_stems(rendered: str, path: str) -> None:
    """A template may make folders, and never leaves its own."""
    assert stem(rendered) == path


@given(ANY_TEXT)
def test_no_stem_leaves_its_folder(rendered: str) -> None:
    """Relative, without `..`, never empty."""
    path = PurePosixPath(stem(rendered))
    assert not path.is_absolute() and ".." not in path.parts and path.parts


@pytest.mark.parametrize(("url", "media_type", "expected"), [
    ("https://replicate.delivery/x/out-0.png", "image/png", ".png"),
    ("https://replicate.delivery/x/out-0.png", "image/webp", ".webp"),
    ("https://replicate.delivery/x/out.jpeg?sig=a.b", None, ".jpg"),
    ("https://replicate.delivery/x/out", "image/jpeg; charset=x", ".jpg"),
    ("https://replicate.delivery/x/mesh.obj", "text/plain", ".obj"),
    ("https://replicate.delivery/x/out", "text/plain", ".txt"),
    ("https://replicate.delivery/x/weights.safetensors", "application/octet-stream", ".bin"),
    ("https://replicate.delivery/x/weights.tar", "application/octet-stream", ".tar"),
    ("https://replicate.delivery/x/.png", None, ".bin"),
    ("https://replicate.delivery/x.y/out", None, ".bin"),
    ("https://replicate.delivery/a.%2e%2e", None, ".bin"),
    ("https://replicate.delivery/A.PNG", None, ".png"),
    ("data:image/png;base64,AA.png", "image/png", ".png"),
    ("data:,a.png", None, ".bin"),
    ("https://[bad/a.png", None, ".bin")])
def test_extensions(url: str, media_type: str | None, expected: str) -> None:
    """The media type speaks first, then the URL, else `.bin`; only short plain suffixes count."""
    assert extension(url, media_type) == expected


def test_suffix_of_a_url_without_one() -> None:
    """None, so that callers can tell."""
    assert suffix("https://replicate.delivery/x/out") is None


@pytest.mark.parametrize(("job", "expected"), [
    ("product-shots", "product-shots-20261120-x7k2"), ("My job_1", "My-job-1-20261120-x7k2"),
    ("../x", "x-20261120-x7k2"), ("", "batch-20261120-x7k2")])
def test_batch_ids(job: str, expected: str) -> None:
    """Readable, by job and day, told apart by four random characters; fit for a path and a command line."""
    assert batch_id(job, when=datetime(2026, 11, 20, tzinfo=UTC), token="0" * 22 + "x7k2") == expected
