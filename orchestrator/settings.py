"""One frozen Settings: the environment first, then `.env` beside the home, then config/orchestrator.toml. Read by wiring."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from orchestrator.core.tempo import Tempo

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
    output_hosts: str = ""  # comma-separated hosts that outputs may come from besides replicate.delivery
    ask_above_usd: float = 10.0
    log_level: str = "WARNING"
    tempo: Tempo = Tempo()

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @property
    def ledger_url(self) -> str:
        """The database: as told, or SQLite in the home."""
        return self.database_url.get_secret_value() if self.database_url else f"sqlite:///{self.home / 'ledger.db'}"

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
        files = [path for path in (config_folder() / "orchestrator.toml", home.parent / "config" / "orchestrator.toml")
                 if path.is_file()]
        return (init_settings, env_settings, DotEnvSettingsSource(settings_cls, env_file=home.parent / ".env"),
                TomlConfigSettingsSource(settings_cls, toml_file=files))


def read_settings(home: Path, **changes: Any) -> Settings:
    """The settings that hold for this home."""
    return Settings(home=home, **changes)


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
