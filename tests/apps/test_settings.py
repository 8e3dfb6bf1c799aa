"""Settings that are wrong are refused with their name and what they should look like."""

from pathlib import Path

import pytest

from orchestrator.core.errors import BadInput
from orchestrator.wiring import read_settings


def config(folder: Path, text: str | bytes) -> Path:
    """A project's own settings file, and the home beside it."""
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "orchestrator.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / ".orchestrator"


@pytest.mark.parametrize("url", ["nonsense", "localhost:6379", "http://h:6379", "redis://", "redis://h:pass", "unix://"])
def test_a_redis_url_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str):
    """What no client can read is told by the setting's name, and is not repeated: it may hold a password."""
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", url)
    with pytest.raises(BadInput, match="ORCHESTRATOR_REDIS_URL: must look like redis://host:6379/0") as said:
        read_settings(tmp_path)
    assert url not in str(said.value) or url in ("redis://", "unix://")


@pytest.mark.parametrize("url", ["redis://h", "redis://:p%2Fw@h:6380/1", "rediss://u:p@[::1]:6379/0?ssl_cert_reqs=none",
                                 "unix:///tmp/r.sock", "redis+socket:///tmp/r.sock"])
def test_redis_urls_that_are_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str):
    """Every form that the clients read."""
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", url)
    told = read_settings(tmp_path).redis_url
    assert told is not None
    assert told.get_secret_value() == url


@pytest.mark.parametrize(("text", "words"), [('ask_above_usd = "x\n', "not valid TOML: .*line 1"), (b"a = '\xff'", "not UTF-8")])
def test_a_settings_file_that_cannot_be_read(tmp_path: Path, text: str | bytes, words: str):
    """The file is named, and where it is wrong."""
    home = config(tmp_path, text)
    with pytest.raises(BadInput, match=f"config/orchestrator.toml: {words}"):
        read_settings(home)
