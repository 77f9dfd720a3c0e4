"""Guardrails over requests and outcomes in the database."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from taskmix_server.database import Database
from taskmix_server.experiments.evidence import breaches
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.guardrail import Limit, Rule
from taskmix_server.experiments.outcome import CANCELLED, Measured, Outcome
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from tests.unit.server.experiments.designs import AUTHOR, Clock, draft, measured

ERRORS = Rule("error_rate", Limit.AT_MOST, 0.05)
LATENCY = Rule("latency_s", Limit.AT_MOST, 1.5, is_relative=True, quantile=0.95)
FIRST_TOKEN = Rule("ttft_s", Limit.AT_MOST, 1.0, quantile=0.95)
RATING = Rule("rating", Limit.AT_LEAST, 3.0)
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
