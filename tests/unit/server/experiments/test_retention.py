"""What is removed of experiments, when, and in which portions."""

import asyncio
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase

from taskmix_server.database import Database
from taskmix_server.database.models import ExposureRow, MeasuredRequestRow, OutcomeRow
from taskmix_server.experiments import retention
from taskmix_server.experiments.experiment import Experiment, Status
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.retention import ENDED_KEPT, SHADOWS_KEPT, forget_some
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.experiments import tidying
from taskmix_server.runtime.experiments.tidying import Tidying
from tests.unit.server.experiments.designs import AUTHOR, Clock, draft, measured

MOMENT = timedelta(seconds=1)
TABLES = (MeasuredRequestRow, ExposureRow, OutcomeRow)


def count(database: Database, table: type[DeclarativeBase]) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def counts(database: Database) -> tuple[int, ...]:
    return tuple(count(database, table) for table in TABLES)


def answered(store: ExperimentStore, records: RecordStore, clock: Clock, name: str) -> Experiment:
    """A running experiment with three requests of two subjects, and an outcome of each."""
    store.create(draft(name), AUTHOR)
    started = store.start(name, AUTHOR)
    records.write([measured(started, subject, clock.now) for subject in ("ann", "bob", "bob")])
    outcomes = [Outcome(f"{name} {subject}", "rating", 1.0, subject) for subject in ("ann", "bob")]
    records.record(name, outcomes, None)
    return started


async def test_an_experiment_s_rows_go_a_while_after_its_end(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    for name in ("over", "running"):
        answered(store, records, clock, name)
    clock.advance(days=365)
    loop = Tidying(database, clock)
    await loop.tidy()
    assert counts(database) == (6, 4, 4), "nothing has ended"
    store.stop("over", "enough", AUTHOR)
    clock.now += ENDED_KEPT
    await loop.tidy()
    assert counts(database) == (6, 4, 4), "not yet"
    clock.now += MOMENT
    await loop.tidy()
    assert counts(database) == (3, 2, 2)
    assert store.get("over").status is Status.STOPPED, "it is still known how it ended"


def test_shadows_are_forgotten_sooner(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = answered(store, records, clock, "tone")
    shadow = {"arm": "next", "is_shadow": True}
    records.write([measured(tone, "ann", clock.now, **shadow)])
    clock.now += SHADOWS_KEPT
    assert forget_some(database, clock.now) == 0
    records.write([measured(tone, "ann", clock.now, **shadow)])
    assert forget_some(database, clock.now + MOMENT) == 1
    assert counts(database) == (4, 2, 2)


def test_others_write_between_two_portions(
    store: ExperimentStore,
    records: RecordStore,
    database: Database,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    answered(store, records, clock, "over")
    store.stop("over", "enough", AUTHOR)
    now = clock.now + ENDED_KEPT + MOMENT
    removed = [forget_some(database, now) for _ in range(6)]
    assert removed == [2, 2, 1, 2, 0, 0], "outcomes, then requests, then exposures"
    assert counts(database) == (0, 0, 0)


async def test_the_loop_outlives_what_fails(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidying, "INTERVAL_S", 0.0)
    tries: asyncio.Queue[None] = asyncio.Queue()

    def broken() -> datetime:
        tries.put_nowait(None)
        raise OSError("nobody knows what time it is")

    task = asyncio.create_task(Tidying(database, broken).run())
    async with asyncio.timeout(10.0):
        for _ in range(2):
            await tries.get()
    task.cancel()
