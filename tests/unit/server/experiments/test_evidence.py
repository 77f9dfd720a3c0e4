"""Guardrails over requests and outcomes in the database."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event, insert

from taskmix_server.database import Database
from taskmix_server.database.models import MeasuredRequestRow
from taskmix_server.experiments.evidence import breaches
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.guardrail import Limit, Rule
from taskmix_server.experiments.outcome import CANCELLED, Measured, Outcome
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.experiments.guardrails import STEP
from tests.unit.server.experiments.designs import AUTHOR, Clock, draft, measured

ERRORS = Rule("error_rate", Limit.AT_MOST, 0.05)
LATENCY = Rule("latency_s", Limit.AT_MOST, 1.5, is_relative=True, quantile=0.95)
FIRST_TOKEN = Rule("ttft_s", Limit.AT_MOST, 1.0, quantile=0.95)
RATING = Rule("rating", Limit.AT_LEAST, 3.0)
FILLED_AT_ONCE = 20_000
SUBJECTS = [f"user-{number}" for number in range(600)]


def started(store: ExperimentStore, *rules: Rule) -> Experiment:
    store.create(draft("tone", 0.5, 0.25, 0.25, guardrails=rules), AUTHOR)
    return store.start("tone", AUTHOR)


def traffic(
    tone: Experiment, at: datetime, bad_arm: str, *, slowness: float = 1.0, failing: float = 0.0
) -> list[Measured]:
    """A request of each subject, of about a second; in one arm slower or failing."""
    random = np.random.default_rng(1)
    batch = []
    for subject in SUBJECTS:
        latency_s, luck = float(random.uniform(0.8, 1.2)), random.uniform()
        item = measured(tone, subject, at, latency_s=latency_s, ttft_s=latency_s / 4)
        if item.arm == bad_arm:
            error = "InternalError" if luck < failing else ""
            latency_s *= slowness
            item = measured(
                tone, subject, at, latency_s=latency_s, ttft_s=latency_s / 4, error=error
            )
        batch.append(item)
    return batch


def test_nothing_is_broken_yet(store: ExperimentStore, database: Database) -> None:
    tone = started(store, ERRORS, LATENCY, FIRST_TOKEN, RATING)
    assert breaches(database, tone) == []


def test_nothing_is_broken(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, ERRORS, LATENCY, FIRST_TOKEN, RATING)
    records.write(traffic(tone, clock.now, "mixed", failing=0.01))
    assert breaches(database, tone) == []


@pytest.mark.parametrize(
    ("rule", "slowness", "failing"),
    [(ERRORS, 1.0, 0.2), (LATENCY, 3.0, 0.0), (FIRST_TOKEN, 6.0, 0.0)],
    ids=["errors", "latency", "first token"],
)
def test_one_arm_breaks_a_rule(
    store: ExperimentStore,
    records: RecordStore,
    database: Database,
    clock: Clock,
    rule: Rule,
    slowness: float,
    failing: float,
) -> None:
    tone = started(store, RATING, rule)
    records.write(traffic(tone, clock.now, "mixed", slowness=slowness, failing=failing))
    (breach,) = breaches(database, tone)
    assert breach.arm == "mixed"
    assert breach.why.startswith(f"'{rule}' is broken")
    halted = store.stop("tone", breach.why, AUTHOR, arm=breach.arm)
    assert breaches(database, halted) == []


def test_the_control_breaks_what_is_not_relative(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, LATENCY, ERRORS)
    records.write(traffic(tone, clock.now, "control", slowness=5.0, failing=0.3))
    assert [breach.arm for breach in breaches(database, tone)] == ["control"]


def test_outcomes(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, Rule("rating/rating.count", Limit.AT_LEAST, 3.0))
    records.write(traffic(tone, clock.now, ""))
    good = {"control": 4.0, "mixed": 2.0, "arm-2": 4.0}
    outcomes = [
        Outcome(f"{subject} {n}", "rating", good[arm] + n % 2, subject)
        for n, subject in enumerate(SUBJECTS)
        if (arm := tone.split.assign(subject).arm) is not None
    ]
    records.record("tone", outcomes, None)
    assert [breach.arm for breach in breaches(database, tone)] == ["mixed"]


def test_a_long_good_record_does_not_outweigh_the_present(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, ERRORS)
    for _ in range(5):
        records.write(traffic(tone, clock.now, "mixed"))
    clock.advance(hours=1)
    records.write(traffic(tone, clock.now, "mixed", failing=0.2))
    assert breaches(database, tone) == []
    since = clock.now - timedelta(minutes=1)
    assert [breach.arm for breach in breaches(database, tone, since)] == ["mixed"]


def test_shadows_and_callers_who_left_are_no_evidence(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, FIRST_TOKEN, ERRORS)
    slow = {"latency_s": 90.0, "ttft_s": 90.0}
    batch = [
        measured(tone, subject, clock.now, **fields)
        for subject in SUBJECTS
        for fields in (
            {},
            {**slow, "finish_reason": CANCELLED},
            {**slow, "arm": "mixed", "is_shadow": True, "error": "InternalError"},
        )
    ]
    records.write(batch)
    assert breaches(database, tone) == []


def test_who_tests_an_arm_by_hand_is_no_evidence(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    store.create(draft(guardrails=(ERRORS, FIRST_TOKEN), overrides=(("tester", "mixed"),)), AUTHOR)
    tone = store.start("tone", AUTHOR)
    broken = {"arm": "mixed", "error": "InternalError", "is_override": True}
    slow = {"arm": "mixed", "ttft_s": 90.0, "is_override": True}
    tries = [measured(tone, "tester", clock.now, **fields) for fields in (broken, slow) * 300]
    records.write(tries)
    records.write(traffic(tone, clock.now, "mixed"))
    assert breaches(database, tone) == []
    nobody = [measured(tone, "", clock.now, arm="mixed", error="InternalError")] * 300
    records.write(nobody)
    assert [breach.arm for breach in breaches(database, tone)] == ["mixed"]


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """The queries of the block, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_look_reads_each_row_of_its_window_once_and_no_others(
    store: ExperimentStore, database: Database, clock: Clock
) -> None:
    """As SQLite says how it goes about it."""
    median = Rule("latency_s", Limit.AT_MOST, 1.0, quantile=0.5)
    tone = started(store, ERRORS, LATENCY, FIRST_TOKEN, median)
    with statements() as seen:
        breaches(database, tone, clock.now)
    assert len(seen) == 3 * len(tone.design.arms), "errors and two times"
    used = "ix_experiment_requests_arm (experiment_id=? AND arm=? AND is_shadow=? AND at>?)"
    for statement, parameters in seen:
        with database.reading() as session:
            explained = session.connection().exec_driver_sql(
                f"EXPLAIN QUERY PLAN {statement}", parameters
            )
            (step,) = explained.all()
        assert used in step[3], statement


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_look_at_a_million_requests(
    store: ExperimentStore, database: Database, clock: Clock
) -> None:
    """A window costs what is in it; the whole record, far less than the time between two looks."""
    tone = started(store, ERRORS, LATENCY, FIRST_TOKEN)
    fill(database, tone, clock.now, num_requests=1_000_000)
    end = clock.now + timedelta(seconds=100_000)
    window_s = took_s(lambda: breaches(database, tone, end - timedelta(minutes=1)))
    record_s = took_s(lambda: breaches(database, tone))
    assert window_s < record_s / 20
    assert record_s < STEP.total_seconds() / 3


def fill(database: Database, tone: Experiment, at: datetime, num_requests: int) -> None:
    """Ten requests a second, of all arms in turn."""
    arms = [arm.name for arm in tone.design.arms]
    for start in range(0, num_requests, FILLED_AT_ONCE):
        rows = [
            {
                "experiment_id": tone.id,
                "tenant_id": "",
                "request_id": f"{number:032x}",
                "arm": arms[number % len(arms)],
                "is_shadow": False,
                "at": at + timedelta(seconds=number / 10),
                "latency_s": 0.8 + number % 997 / 2000,
                "ttft_s": 0.2 + number % 991 / 4000,
                "num_tokens": 8,
                "error": "",
                "finish_reason": "stop",
            }
            for number in range(start, start + FILLED_AT_ONCE)
        ]
        with database.writing() as session:
            session.execute(insert(MeasuredRequestRow), rows)


def took_s(call: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s
