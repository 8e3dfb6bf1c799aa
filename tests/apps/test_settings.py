"""Settings that are wrong are refused with their name and what they should look like."""

from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.core.caps import AccountBudget
from orchestrator.core.errors import BadInput
from orchestrator.core.tempo import ModelLimits
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


def test_limits_of_models(tmp_path: Path):
    """What a file says of a model is found by its name, each limit for itself; of any other model there are none."""
    home = config(tmp_path, '[models."acme/draw"]\nper_minute = 60\nin_flight = 20\n[models."acme/write"]\nin_flight = 3\n')
    tempo = read_settings(home).tempo
    assert tempo.of_model("acme/draw") == ModelLimits(60, 20)
    assert tempo.of_model("acme/write") == ModelLimits(None, 3)
    assert tempo.of_model("acme/sing") == ModelLimits(None, None)
    assert isinstance(hash(tempo), int)


def test_a_file_with_some_settings_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A project's table adds to the table shipped; it does not put another one in its place."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "orchestrator.toml").write_text('[tempo]\nslice_s = 7.0\n[models."acme/draw"]\nper_minute = 60\nin_flight = 9\n')
    monkeypatch.setattr("orchestrator.settings.config_folder", lambda: shipped)
    settings = read_settings(config(tmp_path, '[tempo]\nhold_s = 3.0\n[models."acme/draw"]\nin_flight = 20\n'))
    assert (settings.tempo.slice_s, settings.tempo.hold_s) == (7.0, 3.0)
    assert settings.tempo.of_model("acme/draw") == ModelLimits(60, 20)


@pytest.mark.parametrize(("text", "words"), [
    ('[models."acme/draw"]\nper_minut = 3\n', r"'per_minut' in \[models.\"acme/draw\"\] of .*did you mean 'per_minute'"),
    ('[tempo]\nmodels = []\n', "'models' in "),
    ('[models."acme/draw"]\nin_flight = 0\n', r"\[models.\"acme/draw\"\] in_flight: .*greater than or equal to 1"),
    ('[models."acme/draw"]\nin_flight = 2.5\n', r"\[models.\"acme/draw\"\] in_flight: .*integer"),
    ('[models."acme/draw"]\nper_minute = "60"\n', r"\[models.\"acme/draw\"\] per_minute: .*integer"),
    ('[models."acme/draw"]\nper_minute = true\n', r"\[models.\"acme/draw\"\] per_minute: .*integer"),
    ("[models.draw]\nin_flight = 2\n", r"\[models\]: 'draw' is no model"),
    ("[models]\nin_flight = 2\n", r"\[models\]: 'in_flight' is no model"),
    ('[models]\n"acme/draw" = 2\n', r"\[models.\"acme/draw\"\]: "),
    ("models = 2\n", r"\[models\]: must be tables"),
])
def test_limits_that_are_none(tmp_path: Path, text: str, words: str):
    """A wrong key, a wrong number, and a table that names no model are refused with their place."""
    with pytest.raises(BadInput, match=words):
        read_settings(config(tmp_path, text))


@pytest.mark.parametrize("name", ["ORCHESTRATOR_MODELS", "ORCHESTRATOR_MODELS__X__IN_FLIGHT", "ORCHESTRATOR_TEMPO__MODELS",
                                  "ORCHESTRATOR_TEMPO"])
def test_tables_are_for_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str):
    """A variable that holds a whole table, or a limit of a model, is refused by name: not passed over, and no traceback."""
    monkeypatch.setenv(name, "3")
    with pytest.raises(BadInput, match=f"no such setting: {name} in the environment"):
        read_settings(tmp_path)


def test_caps_of_the_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """From a file or the environment, which wins, to the cent; none where nothing is said, and 0 is a cap of nothing."""
    assert read_settings(tmp_path / "elsewhere" / ".orchestrator").budget == AccountBudget()
    home = config(tmp_path, "[budget]\naccount_usd = 500.10\naccount_per_day_usd = 20\n")
    monkeypatch.setenv("ORCHESTRATOR_BUDGET__ACCOUNT_PER_DAY_USD", "0")
    assert read_settings(home).budget == AccountBudget(Decimal("500.10"), Decimal(0))


def test_caps_that_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A cap that is misspelt would be no cap, and one that is no amount neither: both are refused, with the right name."""
    home = config(tmp_path, "[budget]\naccount_usdd = 5\n")
    monkeypatch.setenv("ORCHESTRATOR_BUDGET__ACCOUNT_PER_DAY", "5")
    with pytest.raises(BadInput) as said:
        read_settings(home)
    for words in ("'account_usdd' in ", "did you mean 'account_usd'", "did you mean 'ORCHESTRATOR_BUDGET__ACCOUNT_PER_DAY_USD'"):
        assert words in str(said.value), words
    monkeypatch.delenv("ORCHESTRATOR_BUDGET__ACCOUNT_PER_DAY")
    config(tmp_path, "[budget]\naccount_usd = -5\n")
    with pytest.raises(BadInput, match=r"ORCHESTRATOR_BUDGET__ACCOUNT_USD: .* is not an amount in US dollars"):
        read_settings(home)
    config(tmp_path, "budget = 5\n")
    with pytest.raises(BadInput, match="ORCHESTRATOR_BUDGET: "):
        read_settings(home)
