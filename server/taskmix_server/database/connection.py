"""Sessions on the database, and what its errors mean to a caller."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from taskmix_server.database.schema import upgrade
from taskmix_server.errors import UnavailableError

BUSY_S = 5.0
FILENAME = "taskmix.db"
_BEGIN = "taskmix_begin"


class Database:
    """Everything that outlives the server. Calls block; make them off the event loop."""

    def __init__(self, url: str) -> None:
        """`url` is SQLAlchemy's, such as `sqlite:////var/lib/taskmix/taskmix.db`."""
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        # A transaction that reads before it writes must hold SQLite's lock from its start.
        self._writer = self._engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        try:
            with _named_failures():
                upgrade(self._writer)
        except BaseException:
            self.close()
            raise

    @classmethod
    def at(cls, directory: Path) -> "Database":
        """The database of a state directory; both are created if absent."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / FILENAME
        path.touch(mode=0o600)
        return cls(f"sqlite:///{path}")

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session whose queries all see one state."""
        with _named_failures(), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that is committed at the end of the block, or not at all."""
        with (
            _named_failures(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def close(self) -> None:
        self._engine.dispose()


@contextmanager
def _named_failures() -> Iterator[None]:
    """A database that is locked, full or gone is unavailable; constraints are the block's."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise UnavailableError(
            f"the server's database does not work ({error.orig}); nothing was changed, and the "
            "operator must see to its directory (`--state`)"
        ) from error


def _prepare_sqlite(engine: Engine) -> None:
    """Transactions of our own, readers beside a writer, and constraints that hold."""

    @event.listens_for(engine, "connect")
    def configure(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        assert isinstance(connection, sqlite3.Connection), "registered for SQLite only"
        connection.isolation_level = None  # the driver would begin on its own, and not before DDL
        for pragma in (
            f"busy_timeout = {round(BUSY_S * 1000)}",
            "journal_mode = WAL",
            "synchronous = FULL",  # what was acknowledged survives a loss of power
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))
