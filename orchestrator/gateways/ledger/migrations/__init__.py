"""Migrations, run by the program itself: nobody has to know Alembic to update. Imported only when there is work."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, in code, for one open connection."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """To the newest revision, inside the caller's transaction. Raises LookupError for a revision not known here."""
    made = config(connection)
    if inspect(connection).has_table("alembic_version"):
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if found is not None:
            _known(made, found)
    command.upgrade(made, "head")


def _known(made: Config, revision: str) -> None:
    try:
        ScriptDirectory.from_config(made).get_revision(revision)
    except (CommandError, ResolutionError):
        raise LookupError(f"revision {revision}") from None
