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


def test_settings_that_do_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each is named with its place and the nearest name: environment, .env and file."""
    home = config(tmp_path, "ask_above = 5\n[tempo]\ncreates_per_minut = 3\n")
    (tmp_path / ".env").write_text("ORCHESTRATOR_WEBBIND=0.0.0.0:80\nPOSTGRES_PASSWORD=x\n")
    monkeypatch.setenv("ORCHESTRATOR_TEMPO__CREATE_PER_MINUTE", "5")
    with pytest.raises(BadInput) as said:
        read_settings(home)
    for words in ("'ask_above' in ", "did you mean 'ask_above_usd'", "'creates_per_minut' in ",
                  "did you mean 'creates_per_minute'", "ORCHESTRATOR_WEBBIND in ", "did you mean 'ORCHESTRATOR_WEB_BIND'",
                  "TEMPO__CREATE_PER_MINUTE in the environment", "did you mean 'ORCHESTRATOR_TEMPO__CREATES_PER_MINUTE'"):
        assert words in str(said.value), words
    assert "POSTGRES" not in str(said.value)


def test_settings_that_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """In any case of letters, by either name in a file; an empty variable, and those of Kubernetes, mean nothing."""
    home = config(tmp_path, 'base_url = "http://here"\n[tempo]\nslice_s = 3.0\n')
    for name, value in {"orchestrator_log_level": "info", "ORCHESTRATOR_HOME": str(home), "ORCHESTRATOR_TEMPO__HOLD_S": "7",
                        "ORCHESTRATOR_NOTHING": "", "ORCHESTRATOR_PORT": "tcp://10.0.0.1:80",
                        "ORCHESTRATOR_WEB_SERVICE_HOST": "10.0.0.1", "ORCHESTRATOR_WEB_PORT_8000_TCP_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(home)
    assert (settings.base_url, settings.log_level) == ("http://here", "INFO")
    assert (settings.tempo.slice_s, settings.tempo.hold_s) == (3.0, 7.0)


def test_a_log_level_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The levels there are, are told."""
    monkeypatch.setenv("ORCHESTRATOR_LOG_LEVEL", "LOUD")
    with pytest.raises(BadInput, match="ORCHESTRATOR_LOG_LEVEL: must be one of DEBUG, INFO"):
        read_settings(tmp_path)
