"""The loop over running experiments: what it stops, and what it leaves alone."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from taskmix_server.database import Database
from taskmix_server.errors import UnavailableError
from taskmix_server.experiments.evidence import breaches
from taskmix_server.experiments.experiment import Experiment, Status
from taskmix_server.experiments.guardrail import Limit, Rule
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.experiments.guardrails import Guardrails
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.tenancy.audit import AuditLog
from taskmix_server.tenancy.principal import DEFAULT
from tests.unit.server.experiments.designs import AUTHOR, Clock, draft, measured

ERRORS = Rule("error_rate", Limit.AT_MOST, 0.05)
LATENCY = Rule("latency_s", Limit.AT_MOST, 1.0, quantile=0.95)
QUALITY = Rule("quality", Limit.AT_LEAST, 0.5)


class Told:
    """What the loop said."""

    def __init__(self) -> None:
        self.checks: list[str] = []
        self.stops: list[str] = []


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def running(store: ExperimentStore, records: RecordStore, clock: Clock) -> Experiments:
    return Experiments(store, records, now=clock)


@pytest.fixture
def loop(
    database: Database, store: ExperimentStore, running: Experiments, told: Told, clock: Clock
) -> Guardrails:
    return Guardrails(
        database,
        store,
        running,
        tell_check=told.checks.append,
        tell_stop=told.stops.append,
        now=clock,
    )


def start(store: ExperimentStore, *rules: Rule) -> Experiment:
    store.create(draft(guardrails=rules), AUTHOR)
    return store.start("tone", AUTHOR)


def served(
    records: RecordStore,
    tone: Experiment,
    at: datetime,
    arm: str,
    num_requests: int,
    *,
    errors: float = 0.0,
    latency_s: float = 0.5,
) -> None:
    """Requests of an arm; of every 100, the first `errors` have failed."""
    records.write(
        [
            measured(
                tone,
                "",
                at,
                arm=arm,
                latency_s=latency_s,
                error="InternalError" if number % 100 < 100 * errors else "",
            )
            for number in range(num_requests)
        ]
    )


def halted(experiment: Experiment) -> Sequence[str]:
    return [halt.arm for halt in experiment.halted]


async def test_an_arm_that_fails_is_stopped(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, database: Database, told: Told
) -> None:
    tone = start(store, ERRORS)
    served(records, tone, Clock().now, "control", 400)
    served(records, tone, Clock().now, "mixed", 400, errors=0.2)
    await loop.check()
    (halt,) = store.get("tone").halted
    assert (halt.arm, told.stops, told.checks) == ("mixed", ["tone@1/mixed"], ["ok"])
    assert halt.why.startswith("'error_rate at most 0.05' is broken: this arm's value is between")
    (record,) = AuditLog(database).latest(1)
    assert (record.author.tenant, record.change.verb) == ("guardrail", "experiments.stop")
    await loop.check()
    assert told.stops == ["tone@1/mixed"]


async def test_its_subjects_get_the_control_at_once(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, running: Experiments
) -> None:
    tone = start(store, ERRORS)
    subject = next(name for name in map(str, range(99)) if tone.split.assign(name).arm == "mixed")
    assert (await running.assign("tone", subject, "r", DEFAULT)).arm == "mixed"
    served(records, tone, Clock().now, "mixed", 400, errors=0.2)
    await loop.check()
    after = await running.assign("tone", subject, "r", DEFAULT)
    assert (after.label, after.mix) == ("tone@1/-", tone.design.control.mix)


@pytest.mark.parametrize(
    ("rule", "bad"),
    [(ERRORS, {"errors": 0.3}), (LATENCY, {"latency_s": 3.0})],
    ids=["errors", "latency"],
)
async def test_a_long_good_record_hides_nothing(
    loop: Guardrails,
    store: ExperimentStore,
    records: RecordStore,
    database: Database,
    clock: Clock,
    rule: Rule,
    bad: dict[str, float],
) -> None:
    tone = start(store, rule)
    served(records, tone, clock.now, "control", 1000)
    served(records, tone, clock.now, "mixed", 5000)
    clock.advance(minutes=10)
    await loop.check()
    assert halted(store.get("tone")) == []
    served(records, tone, clock.now, "control", 300)
    served(records, tone, clock.now, "mixed", 240, **bad)
    clock.advance(seconds=55)
    assert breaches(database, tone) == []
    await loop.check()
    assert halted(store.get("tone")) == ["mixed"]


async def test_what_keeps_its_rules_goes_on(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, told: Told, clock: Clock
) -> None:
    tone = start(store, ERRORS, LATENCY)
    for _ in range(6):
        served(records, tone, clock.now, "control", 100, errors=0.04)
        served(records, tone, clock.now, "mixed", 100, errors=0.04)
        clock.advance(seconds=20)
        await loop.check()
    assert (halted(store.get("tone")), told.stops) == ([], [])
    assert told.checks == ["ok"] * 6


async def test_an_outcome_stops_an_arm(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, clock: Clock
) -> None:
    tone = start(store, QUALITY)
    subjects = [f"user-{number}" for number in range(400)]
    records.write([measured(tone, subject, clock.now) for subject in subjects])
    outcomes = [
        Outcome(
            subject,
            "quality",
            float(tone.split.assign(subject).arm == "control" or number % 5 == 0),
            subject,
        )
        for number, subject in enumerate(subjects)
    ]
    records.record("tone", outcomes, None)
    await loop.check()
    assert halted(store.get("tone")) == ["mixed"]


@pytest.mark.parametrize(
    ("metric", "stopped"),
    [("right/right.count", []), ("right", ["control"])],  # with the control everything ends
)
async def test_outcomes_that_have_yet_to_come(
    loop: Guardrails,
    store: ExperimentStore,
    records: RecordStore,
    clock: Clock,
    metric: str,
    stopped: list[str],
) -> None:
    """Two in three answers were right, and most subjects have not said so yet: a rule about a sum
    per subject counts them as zero, one about a ratio does not count them."""
    tone = start(store, Rule(metric, Limit.AT_LEAST, 0.3))
    subjects = [f"user-{number}" for number in range(600)]
    records.write([measured(tone, subject, clock.now) for subject in subjects])
    early = [
        Outcome(subject, "right", float(number % 3 > 0), subject)
        for number, subject in enumerate(subjects[:50])
    ]
    records.record("tone", early, None)
    await loop.check()
    assert halted(store.get("tone")) == stopped


async def test_without_its_control_an_experiment_stops(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, told: Told, clock: Clock
) -> None:
    tone = start(store, ERRORS)
    served(records, tone, clock.now, "control", 400, errors=0.3)
    served(records, tone, clock.now, "mixed", 400, errors=0.3)
    await loop.check()
    after = store.get("tone")
    assert (after.status, halted(after)) == (Status.STOPPED, ["control"])
    assert "error_rate" in after.why
    assert told.stops == ["tone@1/control"]


async def test_a_stop_counts_though_the_next_one_fails(
    database: Database,
    records: RecordStore,
    running: Experiments,
    told: Told,
    clock: Clock,
) -> None:
    class Failing(ExperimentStore):
        def stop(self, *arguments: Any, arm: str = "", **options: Any) -> Experiment:
            if arm == "arm-2":
                raise UnavailableError("the disk is full")
            return super().stop(*arguments, arm=arm, **options)

    store = Failing(database, clock)
    loop = Guardrails(
        database, store, running, tell_check=told.checks.append, tell_stop=told.stops.append
    )
    store.create(draft("tone", 0.4, 0.3, 0.3, guardrails=(ERRORS,)), AUTHOR)
    tone = store.start("tone", AUTHOR)
    subject = next(name for name in map(str, range(99)) if tone.split.assign(name).arm == "mixed")
    assert (await running.assign("tone", subject, "r", DEFAULT)).arm == "mixed"
    for arm in ("mixed", "arm-2"):
        served(records, tone, clock.now, arm, 400, errors=0.3)
    await loop.check()
    assert halted(store.get("tone")) == ["mixed"]
    assert (told.stops, told.checks) == (["tone@1/mixed"], ["failed"])
    assert (await running.assign("tone", subject, "r", DEFAULT)).label == "tone@1/-"


async def test_a_version_that_took_its_place_is_left_alone(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, told: Told, clock: Clock
) -> None:
    tone = start(store, ERRORS)
    served(records, tone, clock.now, "mixed", 400, errors=0.3)
    store.create(draft(guardrails=(ERRORS,)), AUTHOR, is_new_version=True)
    store.served = lambda name: tone  # type: ignore[method-assign]  # read a moment too early
    store.start("tone", AUTHOR)
    await loop.check()
    assert halted(store.get("tone", 2)) == []
    assert (told.checks, told.stops) == (["failed"], [])


async def test_a_database_that_fails_is_tried_again(
    database: Database,
    store: ExperimentStore,
    records: RecordStore,
    running: Experiments,
    told: Told,
    clock: Clock,
) -> None:
    class Broken(ExperimentStore):
        is_broken = True

        def running(self) -> list[str]:
            if self.is_broken:
                raise UnavailableError("the disk is full")
            return super().running()

    broken = Broken(database, clock)
    loop = Guardrails(
        database,
        broken,
        running,
        tell_check=told.checks.append,
        tell_stop=told.stops.append,
        now=clock,
    )
    tone = start(store, ERRORS)
    served(records, tone, clock.now, "mixed", 400, errors=0.3)
    await loop.check()
    assert (told.checks, told.stops) == (["failed"], [])
    broken.is_broken = False
    await loop.check()
    assert told.stops == ["tone@1/mixed"]


@pytest.mark.parametrize("minutes", [1, 30], ids=["young", "old"])
async def test_slow_evidence_gathers_over_the_whole_record(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, clock: Clock, minutes: int
) -> None:
    """A few requests a minute never fill a window."""
    tone = start(store, ERRORS)
    clock.advance(minutes=minutes)
    while not halted(store.get("tone")):
        served(records, tone, clock.now, "control", 20)
        served(records, tone, clock.now, "mixed", 20, errors=0.5)
        clock.advance(minutes=2)
        await loop.check()
        assert clock.now < Clock().now + timedelta(minutes=minutes + 20)
    assert halted(store.get("tone")) == ["mixed"]


async def test_a_young_record_is_looked_at_each_time(
    loop: Guardrails, store: ExperimentStore, records: RecordStore, clock: Clock
) -> None:
    tone = start(store, ERRORS)
    await loop.check()
    served(records, tone, clock.now, "mixed", 400, errors=0.3)
    await loop.check()
    assert halted(store.get("tone")) == ["mixed"]
