"""Bringing a database to the tables of this release."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from taskmix_server.errors import FailedPreconditionError

MIGRATIONS = Path(__file__).parent / "migrations"
BEFORE_MIGRATIONS = "0001"
"""What a database has that was made before there were migrations."""


def upgrade(engine: Engine) -> None:
    """Run the migrations that the database lacks, all of them or none.

    Raises FailedPreconditionError for a database that a later release has changed.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        revisions = MigrationContext.configure(connection).get_current_heads()
        _refuse_unknown(revisions, ScriptDirectory.from_config(config))
        if not revisions and _is_of_before_migrations(connection):
            command.stamp(config, BEFORE_MIGRATIONS)
        command.upgrade(config, "head")


def _refuse_unknown(revisions: tuple[str, ...], scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    unknown = sorted(set(revisions) - known)
    if unknown:
        raise FailedPreconditionError(
            f"the database is of a later release (revision {', '.join(unknown)}); start that "
            "release, or choose another --state"
        )


def _is_of_before_migrations(connection: Connection) -> bool:
    return inspect(connection).has_table("named_mixes")
