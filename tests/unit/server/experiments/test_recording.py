"""Requests, exposures and outcomes in their tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Session

from taskmix_server.database import Database
from taskmix_server.database.models import ExposureRow, MeasuredRequestRow, OutcomeRow
from taskmix_server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
)
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.experiments.recording import MAX_OUTCOMES, MAX_TRIES, Recorded, RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.experiments.units import LATE, MAX_SKEW
from tests.unit.server.experiments.designs import AUTHOR, Clock, draft, measured


@pytest.fixture
def tone(store: ExperimentStore, records: RecordStore, clock: Clock) -> Experiment:
    """A running experiment that has answered ann, bob (twice) and a request of nobody's."""
    store.create(draft(), AUTHOR)
    started = store.start("tone", AUTHOR)
    clock.advance(minutes=10)
    records.write(
        [
            measured(started, "ann", clock.now),
            measured(started, "bob", clock.now),
            measured(started, "bob", clock.now - timedelta(minutes=1), request_id="earlier"),
            measured(started, "", clock.now, request_id="alone"),
        ]
    )
    return started


def count(database: Database, table: type[DeclarativeBase]) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_a_subject_is_exposed_once(
    tone: Experiment, records: RecordStore, database: Database, clock: Clock
) -> None:
    first_at = clock.now - timedelta(minutes=1)
    clock.advance(hours=1)
    records.write([measured(tone, "bob", clock.now), measured(tone, "cid", clock.now)])
    with database.reading() as session:
        rows = session.scalars(select(ExposureRow).order_by(ExposureRow.subject)).all()
        assert [row.subject for row in rows] == ["ann", "bob", "cid"]
        assert rows[1].at == first_at
        assert rows[1].arm == tone.split.assign("bob").arm
        counts = select(MeasuredRequestRow.exposure_id, func.count()).group_by(
            MeasuredRequestRow.exposure_id
        )
        by_exposure = {row[0]: row[1] for row in session.execute(counts)}
    assert by_exposure == {rows[0].id: 1, rows[1].id: 3, rows[2].id: 1, None: 1}


def test_tenants_have_subjects_of_their_own(
    tone: Experiment, records: RecordStore, database: Database, clock: Clock
) -> None:
    records.write([measured(tone, "ann", clock.now, tenant_id="t2")])
    assert count(database, ExposureRow) == 3
    outcome = Outcome("k", "rating", 1.0, subject="ann")
    assert records.record("tone", [outcome], "t2") == Recorded(1, 0)
    with pytest.raises(NotFoundError):
        records.record("tone", [outcome], "t3")
    with pytest.raises(InvalidRequestError, match="known from several tenants"):
        records.record("tone", [replace(outcome, key="k2")], None)


def test_an_outcome_counts_once(tone: Experiment, records: RecordStore, database: Database) -> None:
    outcome = Outcome("k", "rating", 4.0, subject="ann")
    assert records.record("tone", [outcome, outcome], None) == Recorded(1, 1)
    again = [outcome, Outcome("k2", "rating", 5.0, request_id="request of bob")]
    assert records.record("tone", again, None) == Recorded(1, 1)
    assert count(database, OutcomeRow) == 2
    with database.reading() as session:
        rows = session.scalars(select(OutcomeRow).order_by(OutcomeRow.id)).all()
        bob = session.scalars(select(ExposureRow).where(ExposureRow.subject == "bob")).one()
    assert (rows[1].exposure_id, rows[1].value) == (bob.id, 5.0)
    assert [row.request_id for row in rows] == ["", "request of bob"]


@pytest.mark.parametrize(
    "other",
    [
        Outcome("k", "rating", 5.0, subject="ann"),
        Outcome("k", "clicks", 4.0, subject="ann"),
        Outcome("k", "rating", 4.0, subject="bob"),
        Outcome("k", "rating", 4.0, request_id="request of ann"),
    ],
    ids=["value", "metric", "subject", "unit"],
)
def test_a_key_stands_for_one_outcome(
    tone: Experiment, records: RecordStore, database: Database, other: Outcome
) -> None:
    first = Outcome("k", "rating", 4.0, subject="ann")
    with pytest.raises(AlreadyExistsError, match="the key 'k' stands for another"):
        records.record("tone", [first, other], None)
    records.record("tone", [first], None)
    with pytest.raises(AlreadyExistsError, match="the key 'k' stands for another"):
        records.record("tone", [Outcome("new", "rating", 1.0, subject="ann"), other], None)
    assert count(database, OutcomeRow) == 1


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("k2", "rating", 1.0, subject="nobody"),
        Outcome("k2", "rating", 1.0, request_id="nosuch"),
    ],
)
def test_all_or_none(
    tone: Experiment, records: RecordStore, database: Database, outcome: Outcome
) -> None:
    good = Outcome("k1", "rating", 1.0, subject="ann")
    with pytest.raises(NotFoundError, match=r"outcome 'k2' is of \w+ '\w+', which this"):
        records.record("tone", [good, outcome], None)
    assert count(database, OutcomeRow) == 0
    assert records.record("tone", [good], None) == Recorded(1, 0)


def test_other_experiments_subjects_are_unknown(
    tone: Experiment, store: ExperimentStore, records: RecordStore
) -> None:
    store.create(draft("other"), AUTHOR)
    for name in ("other", "nosuch"):
        with pytest.raises(NotFoundError):
            records.record(name, [Outcome("k", "rating", 1.0, subject="ann")], None)


def test_shadows_take_no_outcomes(
    tone: Experiment, records: RecordStore, database: Database, clock: Clock
) -> None:
    shadow = measured(tone, "ann", clock.now, arm="next", request_id="copy", is_shadow=True)
    records.write([shadow, replace(shadow, subject="new")])
    assert count(database, ExposureRow) == 2
    with pytest.raises(NotFoundError):
        records.record("tone", [Outcome("k", "rating", 1.0, request_id="copy")], None)


def test_a_window_for_late_outcomes(
    tone: Experiment, store: ExperimentStore, records: RecordStore, clock: Clock
) -> None:
    store.stop("tone", "enough", AUTHOR)
    clock.advance(seconds=LATE.total_seconds())
    outcome = Outcome("k", "rating", 1.0, subject="ann")
    assert records.record("tone", [outcome], None) == Recorded(1, 0)
    clock.advance(seconds=1)
    assert records.record("tone", [outcome], None) == Recorded(0, 1)  # a repetition
    with pytest.raises(FailedPreconditionError, match=r"took outcomes for 7 days .* too late"):
        records.record("tone", [Outcome("k2", "rating", 1.0, subject="ann")], None)


def test_clocks_that_differ(
    tone: Experiment, records: RecordStore, database: Database, clock: Clock
) -> None:
    met_at = clock.now
    clock.advance(hours=1)
    edges = (met_at - MAX_SKEW, clock.now + MAX_SKEW)
    for number, at in enumerate(edges):
        records.record("tone", [Outcome(f"k{number}", "rating", 1.0, "ann", at=at)], None)
    for at in (edges[0] - timedelta(seconds=1), edges[1] + timedelta(seconds=1)):
        with pytest.raises(InvalidRequestError, match="set the caller's clock"):
            records.record("tone", [Outcome("k", "rating", 1.0, "ann", at=at)], None)
    with database.reading() as session:
        assert session.scalars(select(OutcomeRow.at).order_by(OutcomeRow.id)).all()[0] == met_at


def test_an_outcome_is_of_the_version_met_by_then(
    tone: Experiment, store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    first_at = clock.now
    store.create(draft("tone", 0.2, 0.8), AUTHOR, is_new_version=True)
    second = store.start("tone", AUTHOR)
    clock.advance(hours=1)
    records.write([measured(second, "ann", clock.now)])
    outcomes = [
        Outcome("now", "rating", 1.0, "ann"),
        Outcome("then", "rating", 1.0, "ann", at=first_at),
        Outcome("bob", "rating", 1.0, "bob"),
    ]
    records.record("tone", outcomes, None)
    with database.reading() as session:
        rows = session.execute(select(OutcomeRow.key, OutcomeRow.experiment_id)).all()
    assert {row[0]: row[1] for row in rows} == {"now": second.id, "then": tone.id, "bob": tone.id}


def test_an_outcome_that_is_sent_again_stays_with_its_version(
    tone: Experiment, store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    """Its subject has met another version since, and others know a subject of that name."""
    sent = [
        Outcome("k1", "rating", 1.0, "ann"),
        Outcome("k2", "rating", 2.0, request_id="request of ann"),
        Outcome("k3", "rating", 3.0, request_id="alone"),
    ]
    assert records.record("tone", sent, None) == Recorded(3, 0)
    store.create(draft("tone", 0.2, 0.8), AUTHOR, is_new_version=True)
    second = store.start("tone", AUTHOR)
    clock.advance(hours=1)
    records.write(
        [measured(second, "ann", clock.now, tenant_id=tenant_id) for tenant_id in ("", "t2")]
    )
    new = Outcome("k4", "rating", 4.0, "bob")
    assert records.record("tone", [*sent, new], None) == Recorded(1, 3)
    with database.reading() as session:
        assert set(session.scalars(select(OutcomeRow.experiment_id))) == {tone.id}
    with pytest.raises(AlreadyExistsError, match="the key 'k1' stands for another"):
        records.record("tone", [replace(sent[0], value=2.0)], None)


def test_keys_are_an_experiment_s_own(
    tone: Experiment, store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    """One event may be told to two experiments that the subject is in."""
    store.create(draft("brevity"), AUTHOR)
    brevity = store.start("brevity", AUTHOR)
    records.write([measured(brevity, "ann", clock.now)])
    event = Outcome("k", "clicks", 1.0, "ann")
    for name in ("tone", "brevity"):
        assert records.record(name, [event], None) == Recorded(1, 0)
        assert records.record(name, [event], None) == Recorded(0, 1)
    assert count(database, OutcomeRow) == 2


def test_too_many_at_once(tone: Experiment, records: RecordStore) -> None:
    many = [Outcome(f"k{n}", "rating", 1.0, "ann") for n in range(MAX_OUTCOMES + 1)]
    with pytest.raises(InvalidRequestError, match="at most 1000 outcomes, got 1001"):
        records.record("tone", many, None)
    assert records.record("tone", many[:-1], None) == Recorded(1000, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_are_finite(value: float) -> None:
    with pytest.raises(InvalidRequestError, match="must be finite"):
        Outcome("k", "rating", value, "ann")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key": ""}, "needs a key"),
        ({"key": "k" * 129}, "needs a key"),
        ({"metric": "Two Words"}, "cannot name a metric"),
        ({"metric": "latency_s"}, "the server's own"),
        ({"metric": "rating.count"}, "the server's own"),
        ({"subject": ""}, "a subject or a request"),
        ({"request_id": "both"}, "a subject or a request"),
        ({"subject": "x" * 257}, "256 characters"),
    ],
)
def test_what_is_no_outcome(fields: dict[str, str], message: str) -> None:
    good = {"key": "k", "metric": "rating", "subject": "ann"}
    with pytest.raises(InvalidRequestError, match=message):
        Outcome(value=1.0, **{**good, **fields})


class Contended:
    """A database in which another server's transaction comes first, a number of times."""

    def __init__(self, database: Database, num_times: int) -> None:
        self.database, self.num_left = database, num_times

    @contextmanager
    def writing(self) -> Iterator[Session]:
        with self.database.writing() as session:
            yield session
            if self.num_left:
                self.num_left -= 1
                raise IntegrityError("", {}, ValueError("the row is there already"))


@pytest.mark.parametrize("num_times", [1, 2, 3])
def test_another_server_comes_first(
    tone: Experiment, database: Database, clock: Clock, num_times: int
) -> None:
    records = RecordStore(Contended(database, num_times), clock)  # type: ignore[arg-type]
    before = count(database, MeasuredRequestRow)
    if num_times < MAX_TRIES:
        records.write([measured(tone, "cid", clock.now)])
        assert count(database, MeasuredRequestRow) == before + 1
    else:
        with pytest.raises(IntegrityError):
            records.write([measured(tone, "cid", clock.now)])
        assert count(database, MeasuredRequestRow) == before
