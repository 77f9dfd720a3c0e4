"""What results say of a database that was filled by hand."""

import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from taskmix_server.database import Database
from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.design import Shadow
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.outcome import CANCELLED, Measured, Outcome
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.results import Estimate, Results, results
from taskmix_server.experiments.statistics.comparison import compare
from taskmix_server.experiments.statistics.summary import Summary
from taskmix_server.experiments.store import ExperimentStore
from tests.unit.server.experiments.designs import AUTHOR, CODE, Clock, draft, measured

NUM_SUBJECTS = 400


def started(store: ExperimentStore, *shares: float) -> Experiment:
    shadows = (Shadow("next", CODE, "d", 1.0),)
    store.create(draft("tone", *shares, shadows=shadows, overrides=(("tester", "mixed"),)), AUTHOR)
    return store.start("tone", AUTHOR)


def estimates(found: Results, metric: str) -> dict[str, Estimate]:
    result = next(result for result in found.metrics if result.metric == metric)
    return {estimate.arm: estimate for estimate in result.estimates}


def test_nothing_yet(store: ExperimentStore, database: Database) -> None:
    found = results(database, started(store))
    assert found.sample_ratio.p_value == 1.0
    assert [traffic.num_subjects for traffic in found.traffic] == [0, 0]
    for result in found.metrics:
        assert [estimate.count for estimate in result.estimates] == [0, 0]
        assert all(math.isnan(estimate.value) for estimate in result.estimates)
        assert all(estimate.comparison is None for estimate in result.estimates)
    assert found.shadows == ()


def test_requests_become_metrics(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, 1.0, 0.0)
    batch = [
        measured(tone, "ann", clock.now, latency_s=1.0, ttft_s=0.25, num_tokens=10),
        measured(tone, "ann", clock.now, latency_s=3.0, ttft_s=None, finish_reason="length"),
        measured(tone, "bob", clock.now, latency_s=0.1, error="InternalError", finish_reason=""),
        measured(tone, "cid", clock.now, latency_s=9.0, finish_reason=CANCELLED),
        measured(tone, "", clock.now, latency_s=50.0),  # of nobody's
        measured(tone, "tester", clock.now, arm="control", latency_s=50.0, is_override=True),
    ]
    records.write(batch)
    found = results(database, tone)
    values = {result.metric: result.estimates[0].value for result in found.metrics}
    assert values == {
        "error_rate": 1 / 4,  # ann's two, bob's, cid's
        "latency_s": (1.0 + 3.0) / 2,  # of answers alone
        "ttft_s": (0.25 + 3.0) / 2,  # what came at once came at its end
        "tokens": (10 + 8) / 2,
        "length_stops": 1 / 2,
        "requests": 4 / 3,
    }
    control = found.traffic[0]
    assert (control.num_subjects, control.num_requests, control.num_without_subject) == (3, 6, 1)


def simulated(tone: Experiment, clock: Clock) -> list[Measured]:
    """Subjects with one to three requests each, slower in the arm `mixed`."""
    random = np.random.default_rng(0)
    batch = []
    for number in range(NUM_SUBJECTS):
        subject = f"user-{number}"
        slow = 2.0 if tone.split.assign(subject).arm == "mixed" else 1.0
        for turn in range(int(random.integers(1, 4))):
            latency_s = slow * float(random.uniform(0.5, 1.5))
            request_id = f"{subject}/{turn}"
            batch.append(
                measured(tone, subject, clock.now, request_id=request_id, latency_s=latency_s)
            )
    return batch


def test_a_ratio_over_subjects_is_compared(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store)
    batch = simulated(tone, clock)
    records.write(batch)
    found = estimates(results(database, tone, alpha=0.1), "latency_s")
    expected = {}
    for arm in ("control", "mixed"):
        totals: dict[str, list[float]] = {}
        for item in batch:
            if item.arm == arm:
                totals.setdefault(item.subject, []).append(item.latency_s)
        sums = [sum(values) for values in totals.values()]
        expected[arm] = Summary.of(sums, [float(len(values)) for values in totals.values()])
    assert found["control"].comparison is None
    compared = found["mixed"].comparison
    reference = compare(expected["mixed"], expected["control"], 0.1)
    assert compared is not None
    assert compared.is_different
    assert compared.difference == pytest.approx(reference.difference)
    assert compared.interval.low == pytest.approx(reference.interval.low)
    assert found["mixed"].count == expected["mixed"].count


def test_outcomes_and_their_ratios(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, 1.0, 0.0)
    records.write([measured(tone, subject, clock.now) for subject in ("ann", "bob", "cid")])
    said = {"ann": [("views", 4.0), ("clicks", 1.0), ("clicks", 1.0)], "bob": [("views", 4.0)]}
    outcomes = [
        Outcome(f"{subject}{number}", metric, value, subject)
        for subject, reported in said.items()
        for number, (metric, value) in enumerate(reported)
    ]
    records.record("tone", outcomes, None)
    found = results(database, tone, ratios=("clicks/views", "clicks/clicks.count", "views/answers"))
    values = {result.metric: result.estimates[0].value for result in found.metrics}
    assert values["clicks"] == pytest.approx(2 / 3)  # who reported nothing counts
    assert values["views"] == pytest.approx(8 / 3)
    assert values["clicks/views"] == 2 / 8
    assert values["clicks/clicks.count"] == 1.0
    assert values["views/answers"] == pytest.approx(8 / 3)


@pytest.mark.parametrize(
    ("ratios", "alpha", "message"),
    [
        (("clicks/nosuch",), 0.05, "nothing is known of 'nosuch'; there is answers, errors"),
        (("a/b/c",), 0.05, "nor a ratio"),
        (("/b",), 0.05, "nor a ratio"),
        (("a/",), 0.05, "nor a ratio"),
        (("requests",) * 33, 0.05, "at most 32"),
        ((), 0.0, "alpha"),
        ((), float("nan"), "alpha"),
    ],
)
def test_what_cannot_be_asked(
    store: ExperimentStore, database: Database, ratios: tuple[str, ...], alpha: float, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        results(database, started(store), ratios, alpha)


def test_alpha_is_shared_out_among_arms(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store, 0.4, 0.3, 0.3)
    records.write(simulated(tone, clock))
    found = estimates(results(database, tone, alpha=0.1), "requests")
    summaries = {}
    for arm in ("control", "mixed"):
        requests: dict[str, float] = {}
        for item in simulated(tone, clock):
            if item.arm == arm:
                requests[item.subject] = requests.get(item.subject, 0.0) + 1.0
        summaries[arm] = Summary.of(list(requests.values()))
    expected = compare(summaries["mixed"], summaries["control"], 0.05)
    compared = found["mixed"].comparison
    assert compared is not None
    assert compared.interval.high == pytest.approx(expected.interval.high)


def test_the_sample_ratio_ends_where_an_arm_does(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store)
    records.write(simulated(tone, clock))
    assert not results(database, tone).sample_ratio.is_mismatch
    clock.advance(hours=1)
    halted = store.stop("tone", "too slow", AUTHOR, arm="mixed")
    later = clock.now + timedelta(hours=1)
    names = [f"late-{number}" for number in range(2000)]
    alone = [name for name in names if tone.split.assign(name).arm == "control"]
    records.write([measured(tone, name, later) for name in alone])
    assert not results(database, halted).sample_ratio.is_mismatch
    assert results(database, tone).sample_ratio.is_mismatch  # were it not for the stop


def visited(tone: Experiment, clock: Clock, subjects: Iterable[str]) -> list[Measured]:
    """A request of each subject whose arm answers now."""
    return [
        item
        for subject in subjects
        if not tone.is_halted((item := measured(tone, subject, clock.now)).arm)
    ]


def rated(subjects: Iterable[str], turn: str) -> list[Outcome]:
    """An outcome of each subject, 4 or 5, whoever answers it."""
    return [
        Outcome(f"{subject}/{turn}", "rating", 4.0 + number % 2, subject)
        for number, subject in enumerate(subjects)
    ]


def test_comparisons_with_an_arm_end_where_it_does(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    """Two arms that are the same, of which one stops: the control's subjects go on visiting, and
    those of the other, whom the control answers now, go on reporting."""
    tone = started(store, 0.4, 0.3, 0.3)
    subjects = [f"user-{number}" for number in range(600)]
    records.write(visited(tone, clock, subjects))
    records.record("tone", rated(subjects, "1"), None)
    clock.advance(hours=1)
    before = results(database, tone)
    halted = store.stop("tone", "too slow", AUTHOR, arm="mixed")
    for turn in ("2", "3"):
        clock.advance(hours=1)
        records.write(visited(halted, clock, [*subjects, *(f"{turn}-{n}" for n in range(200))]))
        late = [name for name in subjects if halted.split.assign(name).arm != "arm-2"]
        records.record("tone", rated(late, turn), None)
    after = results(database, halted)
    for metric in ("requests", "rating", "latency_s"):
        mixed = estimates(after, metric)["mixed"]
        assert mixed == estimates(before, metric)["mixed"]
        assert mixed.comparison is not None
        assert not mixed.comparison.is_different
    assert estimates(after, "requests")["control"].value > 2.0
    other = estimates(after, "requests")["arm-2"]
    assert other.count > estimates(before, "requests")["arm-2"].count  # it goes on
    assert other.comparison is not None
    assert other.comparison.difference == pytest.approx(
        other.value - estimates(after, "requests")["control"].value
    )


def test_what_is_reported_after_an_arm_ended_is_not_its_own(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store)
    subjects = [f"user-{number}" for number in range(400)]
    records.write(visited(tone, clock, subjects))
    clock.advance(hours=1)
    halted = store.stop("tone", "too slow", AUTHOR, arm="mixed")
    records.record("tone", rated(subjects, "1"), None)
    found = estimates(results(database, halted), "rating")
    assert found["control"].value == pytest.approx(4.5, abs=0.1)
    assert found["mixed"].value == 0.0
    assert found["mixed"].comparison is not None
    assert not found["mixed"].comparison.is_ready


def test_shadows(
    store: ExperimentStore, records: RecordStore, database: Database, clock: Clock
) -> None:
    tone = started(store)
    failed = {"error": "InternalError", "num_tokens": 0}
    copies: list[dict[str, Any]] = [
        {"agreement": 0.5, "served_logprob": -1.0, "served_tokens": 9},
        {"agreement": 1.0, "served_logprob": -2.0, "served_tokens": 4},
        failed,
    ]
    records.write(
        [
            measured(tone, "ann", clock.now, arm="next", is_shadow=True, **fields)
            for fields in copies
        ]
    )
    (shadow,) = results(database, tone).shadows
    assert (shadow.arm, shadow.num_requests) == ("next", 3)
    assert shadow.error_rate == pytest.approx(1 / 3)
    assert (shadow.agreement, shadow.served_logprob) == (0.75, -1.5)
    assert (shadow.tokens, shadow.served_tokens) == (8.0, 6.5), "of answers alone"
    assert results(database, tone).traffic[0].num_requests == 0
