"""One frozen Settings: the environment first, then `.env` beside the home, then config/orchestrator.toml. Read by wiring."""

import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from orchestrator.core.caps import NO_BUDGET, AccountBudget
from orchestrator.core.errors import BadInput
from orchestrator.core.nearest import did_you_mean
from orchestrator.core.tempo import ModelLimits, Tempo

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEFAULT_BASE_URL = "https://api.replicate.com"


class Settings(BaseSettings):
    """What the program was told, validated. Secrets are masked in its repr."""

    model_config = SettingsConfigDict(env_prefix="ORCHESTRATOR_", env_nested_delimiter="__", frozen=True, extra="ignore",
                                      env_ignore_empty=True, populate_by_name=True)

    api_token: SecretStr | None = Field(default=None, validation_alias="REPLICATE_API_TOKEN")
    base_url: str = Field(default=DEFAULT_BASE_URL, validation_alias="REPLICATE_BASE_URL")
    home: Path
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    public_url: str | None = None  # where the provider can reach our webhook, e.g. a tunnel's https URL
    web_bind: str = "127.0.0.1:8000"
    web_token: SecretStr | None = None  # opens the web part's API to other machines
    output_hosts: str = ""  # comma-separated hosts that outputs may come from besides replicate.delivery
    ask_above_usd: float = 10.0
    log_level: str = "WARNING"
    models: dict[str, ModelLimits] = {}  # of settings files only; the stations read them in `tempo`
    tempo: Tempo = Field(default=Tempo(), validate_default=True)
    budget: AccountBudget = NO_BUDGET

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @field_validator("models", mode="before")
    @classmethod
    def _of_models(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError('must be tables like [models."owner/name"]')
        for name in value:
            if not re.fullmatch(r"[^/:\s]+/[^/:\s]+", name):
                raise ValueError(f'{name!r} is no model: a table is called [models."owner/name"]')
        return value

    @field_validator("tempo")
    @classmethod
    def _with_models(cls, value: Tempo, info: ValidationInfo) -> Tempo:
        models: dict[str, ModelLimits] = info.data.get("models") or {}
        return dataclasses.replace(value, models=tuple(sorted(models.items(), key=itemgetter(0)))) if models else value

    @field_validator("public_url")
    @classmethod
    def _reachable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", value):
            raise ValueError("must look like https://host or https://host/prefix")
        return value

    @field_validator("redis_url")
    @classmethod
    def _of_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_redis_url(value.get_secret_value()):
            raise ValueError("must look like redis://host:6379/0, rediss://host:6379/0 or unix:///path/to/redis.sock")
        return value

    @field_validator("log_level")
    @classmethod
    def _of_logging(cls, value: str) -> str:
        if value.upper() not in LOG_LEVELS:
            raise ValueError(f"must be one of {', '.join(LOG_LEVELS)}")
        return value.upper()

    @field_validator("web_bind")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError("must look like 127.0.0.1:8000")
        return value

    @property
    def web_address(self) -> tuple[str, int]:
        """Host and port that the web part listens on; port 0 picks a free one."""
        host, _, port = self.web_bind.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def ledger_url(self) -> str:
        """The database: as told, or SQLite in the home."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def ledger_shown(self) -> str:
        """The database for people, without its password."""
        return re.sub(r"//([^:@/]*):[^@/]*@", r"//\1:***@", self.ledger_url)

    @property
    def extra_hosts(self) -> frozenset[str]:
        """Hosts named by the user, as a set."""
        return frozenset(host.strip() for host in self.output_hosts.split(",") if host.strip())

    @classmethod
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
                                   env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
                                   file_secret_settings: PydanticBaseSettingsSource,
                                   ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins, then `.env`, then the project's config/, then the defaults shipped."""
        home = Path(init_settings()["home"])
        return (init_settings, env_settings, DotEnvSettingsSource(settings_cls, env_file=home.parent / ".env"),
                TomlConfigSettingsSource(settings_cls, toml_file=_files(home), deep_merge=True))


_FIELDS = [str(field.validation_alias or name) for name, field in Settings.model_fields.items()]
_FIELDS += [name for name, field in Settings.model_fields.items() if field.validation_alias]  # in a file either will do
# A variable holds one value: a whole table in one would be JSON, and its keys nobody's concern.
_TABLES = ("models", "tempo", "budget")
_TEMPO = [field.name for field in dataclasses.fields(Tempo) if field.name != "models"]
_BUDGET = [field.name for field in dataclasses.fields(AccountBudget)]
_MODEL = [field.name for field in dataclasses.fields(ModelLimits)]
_OF_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)$")


def _files(home: Path) -> list[Path]:
    """The settings files there are, the stronger one last."""
    folders = (config_folder(), home.parent / "config")
    return [path for folder in folders if (path := folder / "orchestrator.toml").is_file()]


def _is_redis_url(text: str) -> bool:
    """Whether the clients of Redis and of Celery can read it; what is wrong may hold a password and is not repeated."""
    try:
        url = urlsplit(text)
        port = url.port  # of a port that is none: ValueError
    except ValueError:
        return False
    if url.scheme in ("unix", "redis+socket"):
        return bool(url.path)
    return url.scheme in ("redis", "rediss") and bool(url.hostname) and port != 0


def read_toml(path: Path) -> dict[str, Any]:
    """A settings file. Raises BadInput that says where it is wrong, or why it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8: {error}") from error
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error


def read_settings(home: Path, **changes: Any) -> Settings:
    """The settings that hold for this home. Raises BadInput that names every setting which is no such thing."""
    unknown = [sentence for path in _files(home) for sentence in _unknown_keys(path)]
    unknown += _unknown_names(EnvSettingsSource(Settings).env_vars, "the environment")
    env_file = home.parent / ".env"
    unknown += _unknown_names(DotEnvSettingsSource(Settings, env_file=env_file).env_vars, str(env_file))
    if unknown:
        raise BadInput(f"no such setting: {'; '.join(unknown)}")
    try:
        return Settings(home=home, **changes)
    except ValidationError as error:
        wrong = "; ".join(f"{_setting(one['loc'])}: {one['msg'].removeprefix('Value error, ')}" for one in error.errors())
        raise BadInput(f"a setting cannot be used: {wrong} (environment, .env beside the home, or config/orchestrator.toml)"
                       ) from None


def _unknown_keys(path: Path) -> list[str]:
    """Keys of a settings file that mean nothing, each with the nearest that does."""
    document = read_toml(path)
    models = document.get("models")
    wrong = [*_wrong_in(document, str(path), known=_FIELDS), *_wrong_in(document.get("tempo"), str(path), known=_TEMPO),
             *_wrong_in(document.get("budget"), str(path), known=_BUDGET)]
    for name, limits in models.items() if isinstance(models, dict) else ():
        wrong += _wrong_in(limits, f'[models."{name}"] of {path}', known=_MODEL)
    return [f"{key!r} in {place}{did_you_mean(key, known)}" for key, place, known in wrong]


def _wrong_in(table: Any, place: str, *, known: list[str]) -> list[tuple[str, str, list[str]]]:
    """The keys of a table that mean nothing; what is no table is refused for that."""
    return [(key, place, known) for key in table if key not in known] if isinstance(table, dict) else []


def _unknown_names(names: Iterable[str], place: str) -> list[str]:
    """The same of variables. Only those with our prefix are ours, and what Kubernetes sets for a service of that name is not."""
    known = [_setting((name,)) for name in _FIELDS if name not in _TABLES]
    known += [_setting((table, name)) for table, keys in (("tempo", _TEMPO), ("budget", _BUDGET)) for name in keys]
    wrong = sorted(name.upper() for name in names if name.upper().startswith("ORCHESTRATOR_") and name.upper() not in known)
    return [f"{name} in {place}{did_you_mean(name, known)}" for name in wrong if not _OF_KUBERNETES.search(name)]


def _setting(place: tuple[int | str, ...]) -> str:
    """The environment's name of a setting, or its place in a file where only that can hold it."""
    if place[0] == "models":
        _, *rest = place
        return f'[models."{rest[0]}"] {" ".join(str(part) for part in rest[1:])}'.rstrip() if rest else "[models]"
    name = "__".join(str(part) for part in place).upper()
    return name if name.startswith("REPLICATE_") else f"ORCHESTRATOR_{name}"


def config_folder() -> Path:
    """Where the shipped settings files are: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "config" if (here / "config").is_dir() else here.parent / "config"


def home_of(job_file: Path | None, *, cwd: Path) -> Path:
    """The home: ORCHESTRATOR_HOME, else the nearest `.orchestrator/` at or above the job's folder, else beside `jobs/`."""
    told = os.environ.get("ORCHESTRATOR_HOME")
    if told:
        return Path(told)
    start = job_file.resolve().parent if job_file else cwd.resolve()
    for folder in (start, *start.parents):
        if (folder / ".orchestrator").is_dir():
            return folder / ".orchestrator"
    inside_jobs = next((folder for folder in (start, *start.parents) if folder.name == "jobs"), None)
    return (inside_jobs.parent if inside_jobs else start) / ".orchestrator"
