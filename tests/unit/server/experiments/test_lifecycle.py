"""Any order of steps: what is refused changes nothing, and what a name means can be told."""

import itertools
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from taskmix_composer.mix import Mix
from taskmix_server.database import Database
from taskmix_server.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from taskmix_server.experiments.experiment import Experiment, Status
from taskmix_server.experiments.store import ExperimentStore
from taskmix_server.runtime.mixes import NamedMixStore
from tests.unit.server.experiments.designs import AUTHOR, draft

ARMS = st.sampled_from(["control", "mixed"])
SHARES = st.sampled_from([(0.5, 0.5), (0.25, 0.75)])


class Life(RuleBasedStateMachine):
    """One experiment, and a plain account of what its steps should have led to."""

    def __init__(self, database: Database, number: int) -> None:
        super().__init__()
        self.store = ExperimentStore(database)
        self.mixes = NamedMixStore(database)
        self.name, self.mix_name = f"tone-{number}", f"prod-{number}"
        self.known: list[Experiment] = []  # by version
        self.meant: list[Mix | None] = [None]  # what the mix's name meant, newest last

    def attempt(self, step: Callable[[], Experiment]) -> Experiment | None:
        try:
            changed = step()
        except (AlreadyExistsError, FailedPreconditionError, NotFoundError):
            return None
        self.known[changed.version - 1 :] = [changed, *self.known[changed.version :]]
        return changed

    @rule(shares=SHARES, is_new_version=st.booleans())
    def create(self, shares: tuple[float, ...], *, is_new_version: bool) -> None:
        wanted = draft(self.name, *shares)
        newest = self.known[-1] if self.known else None
        is_same = newest is not None and newest.design == wanted.design
        if is_same and newest.status is Status.DRAFT:
            is_same = newest.ramp == wanted.ramp
        is_able = is_new_version or is_same or not self.known
        created = self.attempt(
            lambda: self.store.create(wanted, AUTHOR, is_new_version=is_new_version)
        )
        assert (created is not None) == is_able

    @rule()
    def start(self) -> None:
        is_able = bool(self.known) and self.known[-1].status is Status.DRAFT
        started = self.attempt(lambda: self.store.start(self.name, AUTHOR))
        assert (started is not None) == is_able
        if started is not None:
            for version in range(1, started.version):
                self.known[version - 1] = self.store.get(self.name, version)

    @rule(percent=st.floats(0, 100))
    def ramp(self, percent: float) -> None:
        statuses = {item.status for item in self.known}
        ramped = self.attempt(lambda: self.store.ramp(self.name, percent, AUTHOR))
        assert (ramped is not None) == bool(statuses & {Status.DRAFT, Status.RUNNING})

    @rule()
    def stop(self) -> None:
        is_able = any(item.status is Status.RUNNING for item in self.known)
        assert (self.attempt(lambda: self.store.stop(self.name, "", AUTHOR)) is not None) == is_able

    @rule(arm=ARMS)
    def promote(self, arm: str) -> None:
        statuses = {item.status for item in self.known}
        promoted = self.attempt(lambda: self.store.promote(self.name, arm, self.mix_name, AUTHOR))
        assert (promoted is not None) == bool(statuses & {Status.RUNNING, Status.STOPPED})
        if promoted is not None:
            self.meant.append(promoted.design.arm(arm).mix)

    @precondition(lambda self: len(self.meant) > 1)
    @rule()
    def rollback(self) -> None:
        promoted = [item for item in self.known if item.status is Status.PROMOTED]
        newest = promoted[-1].promotion if promoted else None
        undone = self.attempt(lambda: self.store.rollback(self.name, AUTHOR))
        if undone is not None:
            assert newest is not None
            self.meant.append(newest.before)

    @invariant()
    def the_database_says_the_same(self) -> None:
        versions = range(1, len(self.known) + 1)
        assert [self.store.get(self.name, version) for version in versions] == self.known
        assert sum(item.status is Status.RUNNING for item in self.known) <= 1
        assert all(item.status is not Status.DRAFT for item in self.known[:-1])
        named = self.mixes.find(self.mix_name)
        assert (named.mix if named else None) == self.meant[-1]


def test_any_order_of_steps(database: Database) -> None:
    numbers = itertools.count()
    run_state_machine_as_test(
        lambda: Life(database, next(numbers)),
        settings=settings(max_examples=40, stateful_step_count=15, deadline=None),
    )
