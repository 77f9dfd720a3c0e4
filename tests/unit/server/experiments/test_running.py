"""Arms while requests run: who gets which, and what is kept of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from taskmix_server.database import Database
from taskmix_server.database.models import ExposureRow, MeasuredRequestRow
from taskmix_server.errors import (
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from taskmix_server.experiments.design import Shadow
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.outcome import CANCELLED, Measured
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.experiments import running as runtime
from taskmix_server.runtime.experiments.arms import Assigned
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.telemetry.requests import EngineRun, RequestRecord
from taskmix_server.tenancy.principal import DEFAULT, Principal
from taskmix_server.tenancy.tenant import Tenant
from tests.unit.server.experiments.designs import AUTHOR, CODE, MATH, Clock, draft

SUBJECTS = [f"user-{number}" for number in range(200)]


@pytest.fixture
def experiments(store: ExperimentStore, records: RecordStore, clock: Clock) -> Experiments:
    return Experiments(store, records, now=clock)


def start(store: ExperimentStore, ramp: float = 100.0, **fields: Any) -> Experiment:
    store.create(draft(ramp=ramp, **fields), AUTHOR)
    return store.start("tone", AUTHOR)


async def assign(experiments: Experiments, subject: str, request_id: str = "r") -> Assigned:
    return await experiments.assign("tone", subject, request_id, DEFAULT)


def ended(
    error: str = "", started_s: float = 100.0, finish_reason: str = "", status: str = ""
) -> RequestRecord:
    """A request of 2 s whose first token of eight came after half a second."""
    ended_s = started_s + 2.0
    record = RequestRecord("r", started_s=started_s, ended_s=ended_s, error=error, status=status)
    record.finish_reason = finish_reason
    record.runs.append(EngineRun(first_token_s=started_s + 0.5))
    record.num_output_tokens = 8
    return record


def kept(database: Database) -> list[MeasuredRequestRow]:
    with database.reading() as session:
        query = select(MeasuredRequestRow).order_by(MeasuredRequestRow.id)
        return list(session.scalars(query))


async def test_subjects_are_sticky(experiments: Experiments, store: ExperimentStore) -> None:
    tone = start(store)
    seen = {subject: await assign(experiments, subject) for subject in SUBJECTS}
    for subject, assigned in seen.items():
        assert assigned.arm == tone.split.assign(subject).arm
        assert assigned.mix == {"control": MATH, "mixed": CODE}[assigned.arm]
        assert assigned.mix_digest == tone.design.arm(assigned.arm).mix_digest
        assert assigned.label == f"tone@1/{assigned.arm}"
        assert not assigned.is_per_request
        assert (await assign(experiments, subject, "another")).arm == assigned.arm
    assert {assigned.arm for assigned in seen.values()} == {"control", "mixed"}


async def test_without_a_subject(experiments: Experiments, store: ExperimentStore) -> None:
    start(store)
    assigned = [await assign(experiments, "", f"request {number}") for number in range(100)]
    assert {item.arm for item in assigned} == {"control", "mixed"}
    assert all(item.is_per_request for item in assigned)
    assert (await assign(experiments, "", "request 7")).arm == assigned[7].arm


async def test_outside_the_ramp(experiments: Experiments, store: ExperimentStore) -> None:
    start(store, ramp=0.0, overrides=(("tester", "mixed"),))
    assigned = await assign(experiments, "user-1")
    assert (assigned.arm, assigned.mix, assigned.label) == ("", MATH, "tone@1/-")
    tester = await assign(experiments, "tester")
    assert (tester.arm, tester.is_override) == ("mixed", True)


async def test_changes_are_seen_at_once(experiments: Experiments, store: ExperimentStore) -> None:
    store.create(draft("tone", 0.4, 0.3, 0.3), AUTHOR)
    store.start("tone", AUTHOR)
    subject = next(name for name in SUBJECTS if start_arm(store, name) == "mixed")
    assert (await assign(experiments, subject)).arm == "mixed"
    store.stop("tone", "too slow", AUTHOR, arm="mixed")
    experiments.forget()
    halted = await assign(experiments, subject)
    assert (halted.arm, halted.mix) == ("", MATH)
    store.stop("tone", "enough", AUTHOR)
    experiments.forget()
    assert (await assign(experiments, subject)).mix == MATH
    store.promote("tone", "arm-2", "prod", AUTHOR)
    experiments.forget()
    promoted = await assign(experiments, subject)
    assert (promoted.arm, promoted.mix) == ("", CODE)


def start_arm(store: ExperimentStore, subject: str) -> str | None:
    return store.get("tone").split.assign(subject).arm


async def test_experiments_are_remembered(
    experiments: Experiments, store: ExperimentStore, clock: Clock
) -> None:
    start(store)
    before = await assign(experiments, "user-1")
    store.stop("tone", "behind its back", AUTHOR)
    assert (await assign(experiments, "user-1")) == before
    experiments.forget()
    assert (await assign(experiments, "user-1")).arm == ""


async def test_a_change_while_it_is_read_is_not_missed(
    store: ExperimentStore, records: RecordStore
) -> None:
    """What was read before a change must not be remembered after it."""
    running = start(store)

    class Slow:
        def served(self, name: str) -> Experiment:
            found = store.served(name)
            if found == running:
                store.stop("tone", "", AUTHOR)
                loop.call_soon_threadsafe(experiments.forget)
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
            return found

    loop = asyncio.get_running_loop()
    experiments = Experiments(Slow(), records)  # type: ignore[arg-type]
    assert (await assign(experiments, "user-1")).arm
    assert (await assign(experiments, "user-1")).arm == ""


async def test_who_may_not(experiments: Experiments, store: ExperimentStore) -> None:
    start(store, tenants=("alice", "bob"))
    alice, bob, eve = (
        Principal(Tenant(name, tasks=tasks))
        for name, tasks in (("alice", ("math", "code")), ("bob", ("math",)), ("eve", ("*",)))
    )
    assert (await experiments.assign("tone", "user-1", "r", alice)).arm
    messages = set()
    for principal, name in ((bob, "tone"), (eve, "tone"), (alice, "nosuch")):
        with pytest.raises(NotFoundError) as caught:
            await experiments.assign(name, "user-1", "r", principal)
        messages.add(str(caught.value).replace(f"'{name}'", "NAME"))
    assert len(messages) == 1


async def test_what_cannot_be_assigned(experiments: Experiments, store: ExperimentStore) -> None:
    store.create(draft(), AUTHOR)
    with pytest.raises(FailedPreconditionError, match=r"tone@1 is a draft; .*starts it"):
        await assign(experiments, "user-1")
    with pytest.raises(InvalidRequestError, match="256 characters"):
        await assign(experiments, "x" * 257)


async def test_shadows_are_sampled(experiments: Experiments, store: ExperimentStore) -> None:
    shadow = Shadow("next", CODE, "d", 0.25)
    start(store, shadows=(shadow,))
    seen = [(await assign(experiments, "user-1", f"{n}")).shadows for n in range(1000)]
    assert set(seen) == {(), (shadow,)}
    assert 200 < seen.count((shadow,)) < 300


async def test_requests_are_kept(
    experiments: Experiments, store: ExperimentStore, database: Database, clock: Clock
) -> None:
    start(store)
    assigned = await assign(experiments, "user-1", "r1")
    experiments.observe(assigned, ended(finish_reason="length"))
    experiments.observe(await assign(experiments, "user-1", "r2"), ended("InternalError"))
    experiments.observe(await assign(experiments, "", "r3"), ended("CancelledError"))
    await experiments.flush()
    rows = kept(database)
    assert [(row.request_id, row.error, row.finish_reason) for row in rows] == [
        ("r1", "", "length"),
        ("r2", "InternalError", ""),
        ("r3", "", CANCELLED),
    ]
    first = rows[0]
    assert (first.latency_s, first.ttft_s, first.num_tokens) == (2.0, 0.5, 8)
    assert (first.arm, first.at, first.is_shadow) == (assigned.arm, clock.now, False)
    assert [row.exposure_id is None for row in rows] == [False, False, True]
    assert rows[0].exposure_id == rows[1].exposure_id


async def test_what_is_no_part_of_it_is_not_kept(
    experiments: Experiments, store: ExperimentStore, database: Database
) -> None:
    start(store, ramp=0.0)
    experiments.observe(await assign(experiments, "user-1"), ended())
    store.ramp("tone", 100.0, AUTHOR)
    experiments.forget()
    for refusal in ("ResourceExhaustedError", "InvalidRequestError", "HTTP 400", "HTTP 429"):
        experiments.observe(await assign(experiments, "user-1"), ended(refusal))
    await experiments.flush()
    assert kept(database) == []


@pytest.mark.parametrize(
    ("error", "status", "kept_error", "kept_reason"),
    [
        ("CancelledError", "DEADLINE_EXCEEDED", "CancelledError", ""),  # answered too slowly
        ("GeneratorExit", "DEADLINE_EXCEEDED", "GeneratorExit", ""),
        ("CancelledError", "CANCELLED", "", CANCELLED),  # its caller left
        ("CancelledError", "499", "", CANCELLED),
        ("DeadlineExceededError", "DEADLINE_EXCEEDED", "", CANCELLED),  # read too slowly
        ("UnavailableError", "UNAVAILABLE", "UnavailableError", ""),  # the engine died of it
        ("HTTP 503", "503", "HTTP 503", ""),
        ("NotFoundError", "NOT_FOUND", "NotFoundError", ""),  # a task of the arm is not loaded
        ("FailedPreconditionError", "409", "FailedPreconditionError", ""),
        ("InvalidMixError", "400", "InvalidMixError", ""),  # the arm's, not the caller's
    ],
)
async def test_what_is_an_error_of_an_arm(
    experiments: Experiments,
    store: ExperimentStore,
    database: Database,
    error: str,
    status: str,
    kept_error: str,
    kept_reason: str,
) -> None:
    start(store)
    experiments.observe(await assign(experiments, "user-1"), ended(error, status=status))
    await experiments.flush()
    (row,) = kept(database)
    assert (row.error, row.finish_reason) == (kept_error, kept_reason)


async def test_requests_are_written_by_themselves(
    experiments: Experiments,
    store: ExperimentStore,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "FLUSH_S", 0.0)
    start(store)
    for _ in range(2):
        experiments.observe(await assign(experiments, "user-1"), ended())
        timer = experiments._timer
        assert timer is not None
        await timer
    assert len(kept(database)) == 2


class Records:
    """In the store's place: keeps batches, and fails while it is told to."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.failure: Exception | None = None
        self.before: Callable[[], None] = lambda: None

    def write(self, batch: list[Measured]) -> None:
        self.before()
        if self.failure is not None:
            raise self.failure
        self.batches.append(len(batch))


@pytest.fixture
def dropped() -> list[int]:
    return []


@pytest.fixture
def broken(store: ExperimentStore, dropped: list[int]) -> tuple[Experiments, Records]:
    fake: Any = Records()
    return Experiments(store, fake, max_queued=1200, tell_dropped=dropped.append), fake


async def test_the_queue_is_bounded(
    broken: tuple[Experiments, Records], store: ExperimentStore, dropped: list[int]
) -> None:
    experiments, records = broken
    start(store)
    assigned = await assign(experiments, "user-1")
    for _ in range(1203):
        experiments.observe(assigned, ended())
    assert dropped == [1, 1, 1]
    await experiments.flush()
    assert records.batches == [500, 500, 200]


async def test_a_database_that_is_away(
    broken: tuple[Experiments, Records], store: ExperimentStore, dropped: list[int]
) -> None:
    experiments, records = broken
    start(store)
    experiments.observe(await assign(experiments, "user-1"), ended())
    records.failure = UnavailableError("full")
    with pytest.raises(UnavailableError):
        await experiments.flush()
    records.failure = None
    await experiments.flush()
    assert records.batches == [1]
    experiments.observe(await assign(experiments, "user-1"), ended())
    records.failure = UnavailableError("full")
    await experiments.close()
    assert dropped == [1]


async def test_the_queue_waits_for_the_database(
    broken: tuple[Experiments, Records], store: ExperimentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "FLUSH_S", 0.0)
    experiments, records = broken
    start(store)
    failures = [UnavailableError("locked")] * 2

    def fail_twice() -> None:
        records.failure = failures.pop() if failures else None

    records.before = fail_twice
    experiments.observe(await assign(experiments, "user-1"), ended())
    timer = experiments._timer
    assert timer is not None
    await timer
    assert records.batches == [1]


async def test_what_can_never_be_kept_is_given_up(
    broken: tuple[Experiments, Records], store: ExperimentStore, dropped: list[int]
) -> None:
    experiments, records = broken
    start(store)
    assigned = await assign(experiments, "user-1")
    for _ in range(3):
        experiments.observe(assigned, ended())
    records.failure = IntegrityError("", {}, ValueError("no such experiment"))
    await experiments.flush()
    assert dropped == [3]
    records.failure = None
    experiments.observe(assigned, ended())
    await experiments.flush()
    assert records.batches == [1]


async def test_losses_are_counted(store: ExperimentStore, records: RecordStore) -> None:
    registry = CollectorRegistry()
    tell_dropped = Metrics(registry).record_experiment_drops
    experiments = Experiments(store, records, max_queued=1, tell_dropped=tell_dropped)
    start(store)
    for _ in range(3):
        experiments.observe(await assign(experiments, "user-1"), ended())
    assert registry.get_sample_value("taskmix_experiment_requests_dropped_total") == 2
    await experiments.close()


async def test_who_leaves_while_it_is_written_leaves_it_once(
    store: ExperimentStore, records: RecordStore, database: Database
) -> None:
    start(store)
    loop = asyncio.get_running_loop()
    entered, go_on = asyncio.Event(), asyncio.Event()

    class Waiting:
        def write(self, batch: list[Measured]) -> None:
            loop.call_soon_threadsafe(entered.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            records.write(batch)

    experiments = Experiments(store, Waiting())  # type: ignore[arg-type]
    experiments.observe(await assign(experiments, "user-1"), ended())
    leaving = asyncio.create_task(experiments.flush())
    await entered.wait()
    leaving.cancel()
    go_on.set()
    await experiments.close()
    assert len(kept(database)) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ExposureRow)) == 1


async def test_closing_writes_what_is_left(
    experiments: Experiments, store: ExperimentStore, database: Database
) -> None:
    start(store)
    experiments.observe(await assign(experiments, "user-1"), ended())
    await experiments.close()
    assert len(kept(database)) == 1
