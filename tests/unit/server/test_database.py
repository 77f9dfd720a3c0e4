"""The database: its migrations, who may open it, and what its failures mean."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, select, text

from taskmix_composer.mix import Mix
from taskmix_server.database import Database, connection, state_in_use
from taskmix_server.database.lock import opening
from taskmix_server.database.models import Base, NamedMixRow
from taskmix_server.database.schema import MIGRATIONS
from taskmix_server.errors import FailedPreconditionError, ServingError, UnavailableError
from taskmix_server.runtime.mixes import NamedMixRecord, NamedMixStore
from taskmix_server.tenancy.audit import Author
from taskmix_server.tenancy.store import TenantStore

AUTHOR = Author("ops", "", "a request")

# What releases before migrations ran, by SQLAlchemy's create_all.
OLD_TABLE = """
CREATE TABLE named_mixes (
\tname VARCHAR(64) NOT NULL,
\tmix_json TEXT NOT NULL,
\tPRIMARY KEY (name)
)
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.at(tmp_path / "state")
    yield opened
    opened.close()


def run(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Run statements with the bare driver; the rows of the last one."""
    raw = sqlite3.connect(path)
    try:
        with raw:
            cursors = [raw.execute(statement) for statement in statements]
            return cursors[-1].fetchall()
    finally:
        raw.close()


def read_at_once(database: Database, num_readers: int) -> list[list[str]]:
    """The names of mixes as readers see them who all hold a connection at the same time."""
    together = threading.Barrier(num_readers, timeout=20)

    def names(_: int) -> list[str]:
        with database.reading() as session:
            found = list(session.scalars(select(NamedMixRow.name).order_by(NamedMixRow.name)))
            together.wait()
        return found

    with ThreadPoolExecutor(num_readers) as threads:
        return list(threads.map(names, range(num_readers)))


def test_migrations_make_the_tables_of_the_models(tmp_path: Path, database: Database) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'state' / connection.FILENAME}")
    with engine.connect() as opened:
        assert compare_metadata(MigrationContext.configure(opened), Base.metadata) == []
        assert opened.scalar(text("PRAGMA journal_mode")) == "wal"
    engine.dispose()


def test_a_database_from_before_migrations_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / connection.FILENAME
    mix = Mix.parse("math:0.6+code:-0.3")
    run(path, OLD_TABLE, f"INSERT INTO named_mixes VALUES ('prod', '{mix.canonical_json()}')")
    for _ in range(2):
        database = Database.at(tmp_path)
        store = NamedMixStore(database)
        assert store.all() == [NamedMixRecord("prod", mix)]
        assert TenantStore(database).is_empty
        database.close()
    assert run(path, "SELECT version_num FROM alembic_version") == [("0005",)]


def moved(path: Path, revision: str) -> None:
    """Bring a database back to an earlier revision."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as opened:
        config.attributes["connection"] = opened
        command.downgrade(config, revision)
    engine.dispose()


def test_outcomes_from_before_keys_were_an_experiment_s(tmp_path: Path, database: Database) -> None:
    path = tmp_path / "state" / connection.FILENAME
    columns = "id, experiment_id, exposure_id, request_row_id, tenant_id, key, metric, value, at"
    moved(path, "0003")
    run(
        path,
        "INSERT INTO experiments VALUES "
        "(7, 'tone', 2, '{}', 'd', 'running', 100, '[]', '', NULL, '2026-05-04', NULL, NULL)",
        "INSERT INTO experiment_exposures VALUES (3, 7, '', 'ann', 'control', 0, '2026-05-04')",
        "INSERT INTO experiment_requests VALUES "
        "(5, 7, 3, '', 'r1', 'control', 0, '2026-05-04', 1, 1, 1, '', '', NULL, NULL)",
        f"INSERT INTO experiment_outcomes ({columns}) VALUES "
        "(1, 7, 3, NULL, '', 'k1', 'rating', 4.0, '2026-05-04'), "
        "(2, 7, 3, 5, '', 'k2', 'rating', 5.0, '2026-05-04')",
    )
    before = run(path, f"SELECT {columns} FROM experiment_outcomes ORDER BY id")
    Database.at(tmp_path / "state").close()
    kept = "SELECT key, experiment, exposure_id, request_id FROM experiment_outcomes ORDER BY id"
    assert run(path, kept) == [("k1", "tone", 3, ""), ("k2", "tone", 3, "r1")]
    moved(path, "0003")
    assert run(path, f"SELECT {columns} FROM experiment_outcomes ORDER BY id") == before


def test_a_later_release_s_database_is_refused(tmp_path: Path, database: Database) -> None:
    path = tmp_path / "state" / connection.FILENAME
    run(path, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(FailedPreconditionError, match=r"later release \(revision 9999"):
        Database.at(tmp_path / "state")
    assert run(path, "SELECT version_num FROM alembic_version") == [("9999",)]


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / connection.FILENAME
    run(path, OLD_TABLE, "CREATE TABLE audit (id INTEGER)")  # in the second migration's way
    with pytest.raises(UnavailableError, match="audit already exists"):
        Database.at(tmp_path)
    tables = run(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    assert tables == [("audit",), ("named_mixes",)]


def test_starting_at_the_same_time(tmp_path: Path) -> None:
    failures: list[Exception] = []

    def start() -> None:
        try:
            Database.at(tmp_path).close()
        except ServingError as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_one_opens_it_after_the_other(tmp_path: Path) -> None:
    starting = threading.Thread(target=lambda: Database.at(tmp_path).close())
    with opening(tmp_path):
        starting.start()
        starting.join(0.5)
        assert starting.is_alive(), "it did not wait"
        assert not (tmp_path / f"{connection.FILENAME}-wal").exists()
    starting.join()
    assert (tmp_path / connection.FILENAME).stat().st_size > 0


def test_no_database_at_all(tmp_path: Path) -> None:
    (tmp_path / connection.FILENAME).write_bytes(b"not a database, but long enough " * 100)
    with pytest.raises(UnavailableError, match="not a database"):
        Database.at(tmp_path)


def test_a_failed_block_changes_nothing(database: Database) -> None:
    def fail() -> None:
        with database.writing() as session:
            session.add(NamedMixRow(name="x", mix_json="{}"))
            session.flush()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    with database.reading() as session:
        assert session.get(NamedMixRow, "x") is None


def test_a_database_that_is_full(tmp_path: Path, database: Database) -> None:
    run(tmp_path / "state" / connection.FILENAME, "VACUUM")  # migrations leave pages free
    with database.writing() as session:
        session.execute(text("PRAGMA max_page_count = 1"))
    with pytest.raises(UnavailableError, match=r"full.*nothing was changed"):
        NamedMixStore(database).register("x" * 60, big_mix(), AUTHOR)
    assert NamedMixStore(database).all() == []


def test_a_database_that_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_S", 0.01)
    database = Database.at(tmp_path)
    other = sqlite3.connect(tmp_path / connection.FILENAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store = NamedMixStore(database)
    with pytest.raises(UnavailableError, match="locked"):
        store.register("prod", Mix(), AUTHOR)
    assert store.all() == []  # readers do not wait for a writer
    other.execute("ROLLBACK")
    store.register("prod", Mix(), AUTHOR)
    other.close()
    database.close()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_database_whose_file_is_gone(
    tmp_path: Path, database: Database, *, is_replaced: bool
) -> None:
    """What would be written now would not be found by the next start."""
    store = NamedMixStore(database)
    store.register("prod", Mix(), AUTHOR)
    path = tmp_path / "state" / connection.FILENAME
    kept = path.rename(path.with_name("kept.db"))
    if is_replaced:
        path.touch()
    with pytest.raises(UnavailableError, match=r"gone or was replaced.*nothing was changed"):
        store.register("other", Mix(), AUTHOR)
    seen = read_at_once(database, connection.NUM_CONNECTIONS)
    assert seen == [["prod"]] * connection.NUM_CONNECTIONS, "what is known is still served"
    assert path.exists() is is_replaced, "no empty database in its place"
    kept.rename(path)
    store.register("other", Mix(), AUTHOR)
    assert len(store.all()) == 2


def test_no_new_file_in_the_place_of_one_that_is_gone(tmp_path: Path, database: Database) -> None:
    database.close()  # the next session makes a connection of its own
    path = tmp_path / "state" / connection.FILENAME
    path.unlink()
    with pytest.raises(UnavailableError, match="unable to open"):
        NamedMixStore(database).all()
    assert not path.exists()


def test_writers_that_wait_leave_connections_to_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_S", 0.2)
    database = Database.at(tmp_path)
    store = NamedMixStore(database)
    other = sqlite3.connect(tmp_path / connection.FILENAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refusals: list[str] = []

    def register() -> None:
        try:
            store.register("prod", Mix(), AUTHOR)
        except UnavailableError as error:
            refusals.append(str(error))

    writers = [threading.Thread(target=register) for _ in range(20)]
    for writer in writers:
        writer.start()
    assert store.all() == []
    assert not refusals, "readers do not wait for writers"
    for writer in writers:
        writer.join()
    assert len(refusals) == len(writers)
    other.close()
    database.close()


def test_files_are_the_owner_s_alone(tmp_path: Path, database: Database) -> None:
    NamedMixStore(database).register("prod", Mix(), AUTHOR)
    for path in (tmp_path / "state").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_a_command_and_a_server_exclude_each_other(tmp_path: Path) -> None:
    with (
        state_in_use(tmp_path),
        state_in_use(tmp_path),
        pytest.raises(FailedPreconditionError, match=r"a server runs on .*--server"),
        state_in_use(tmp_path, alone=True),
    ):
        pass
    with (
        state_in_use(tmp_path, alone=True),
        pytest.raises(FailedPreconditionError, match="a command works on"),
        state_in_use(tmp_path),
    ):
        pass
    with state_in_use(tmp_path, alone=True):
        pass


def big_mix() -> Mix:
    return Mix.of({f"task-{number}-{'x' * 40}": 0.5 for number in range(60)})
