"""Sessions on the database, and what its errors mean to a caller."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from taskmix_server.database.lock import opening
from taskmix_server.database.schema import upgrade
from taskmix_server.errors import UnavailableError

BUSY_S = 5.0
NUM_CONNECTIONS = 16
FILENAME = "taskmix.db"
_BEGIN = "taskmix_begin"


class Database:
    """Everything that outlives the server. Calls block; make them off the event loop.

    All connections are made at the start: they go on reading what was opened when its file is
    deleted, and none reads another file that was put in its place.
    """

    def __init__(self, url: str, is_there: Callable[[], bool] = lambda: True) -> None:
        """`url` is SQLAlchemy's, such as `sqlite:////var/lib/taskmix/taskmix.db`.

        is_there: whether what was opened is what the next start will find.
        """
        # The one that was used last comes first, lest each of them fills a cache of its own.
        self._engine = create_engine(
            url,
            pool_size=NUM_CONNECTIONS,
            max_overflow=0,
            pool_timeout=BUSY_S,
            pool_use_lifo=True,
        )
        self._is_there = is_there
        self._turn = threading.Lock()  # one waits for another process's lock, holding a connection
        if self._engine.dialect.name == "sqlite":
            _prepare_sqlite(self._engine)
        # A transaction that reads before it writes must hold SQLite's lock from its start.
        self._writer = self._engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        try:
            with _named_failures():
                upgrade(self._writer)
                self._connect_all()
        except BaseException:
            self.close()
            raise

    @classmethod
    def at(cls, directory: Path) -> "Database":
        """The database of a state directory; both are created if absent."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / FILENAME
        path.touch(mode=0o600)
        opened = _inode(path)
        # Without `rw`, a connection that is made after the file is gone would make an empty one.
        url = f"sqlite:///file:{quote(str(path.resolve()))}?mode=rw&uri=true"
        with opening(directory):
            return cls(url, lambda: _inode(path) == opened)

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
            self._in_turn(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session
            if not self._is_there():
                raise _unavailable("its file is gone or was replaced")

    def close(self) -> None:
        self._engine.dispose()

    def _connect_all(self) -> None:
        with ExitStack() as held:
            for _ in range(NUM_CONNECTIONS):
                held.enter_context(self._engine.connect())

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=BUSY_S):
            raise _unavailable("others are waiting for it")
        try:
            yield
        finally:
            self._turn.release()


@contextmanager
def _named_failures() -> Iterator[None]:
    """A database that is locked, full or gone is unavailable; constraints are the block's."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise _unavailable(str(error.orig)) from error
    except PoolTimeoutError as error:
        raise _unavailable("too many are reading it") from error


def _unavailable(reason: str) -> UnavailableError:
    return UnavailableError(
        f"the server's database does not work ({reason}); nothing was changed, and the operator "
        "must see to its directory (`--state`)"
    )


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


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
