"""A real database with experiments, at a time that the test sets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskmix_server.database import Database
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from tests.unit.server.experiments.designs import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.at(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database, clock: Clock) -> ExperimentStore:
    return ExperimentStore(database, clock)


@pytest.fixture
def records(database: Database, clock: Clock) -> RecordStore:
    return RecordStore(database, clock)
