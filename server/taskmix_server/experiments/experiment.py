"""An experiment's version and its life: draft, running, stopped, promoted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from taskmix_composer.mix import Mix
from taskmix_server.errors import FailedPreconditionError, InvalidRequestError
from taskmix_server.experiments.assignment import Split
from taskmix_server.experiments.design import Arm, Design


class Status(StrEnum):
    """Where a version stands."""

    DRAFT = "draft"
    RUNNING = "running"
    STOPPED = "stopped"
    PROMOTED = "promoted"


class Step(StrEnum):
    """What may be done to a version."""

    REPLACE = "replace"
    START = "start"
    RAMP = "ramp"
    STOP = "stop"
    PROMOTE = "promote"
    ROLLBACK = "rollback"


TRANSITIONS: Mapping[tuple[Status, Step], Status] = {
    (Status.DRAFT, Step.REPLACE): Status.DRAFT,
    (Status.DRAFT, Step.RAMP): Status.DRAFT,
    (Status.DRAFT, Step.START): Status.RUNNING,
    (Status.RUNNING, Step.RAMP): Status.RUNNING,
    (Status.RUNNING, Step.STOP): Status.STOPPED,
    (Status.RUNNING, Step.PROMOTE): Status.PROMOTED,
    (Status.STOPPED, Step.PROMOTE): Status.PROMOTED,
    (Status.PROMOTED, Step.ROLLBACK): Status.STOPPED,
}
"""What each step makes of a version; what is not here is refused."""

ADVICE: Mapping[Status, str] = {
    Status.DRAFT: "`taskmix experiments start` starts it",
    Status.RUNNING: "stop it, or create a new version with `--new-version`",
    Status.STOPPED: "promote one of its arms, or create a new version with `--new-version`",
    Status.PROMOTED: "`taskmix experiments rollback` undoes the promotion; a new version may be "
    "created with `--new-version`",
}
"""What can be done next, by status."""


@dataclass(frozen=True, slots=True)
class Halt:
    """An arm that was stopped by itself. Its subjects are answered by the control, uncounted."""

    arm: str
    at: datetime
    why: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """A winner that became a named mix. before: what the name meant, None if nothing."""

    arm: str
    mix_name: str
    before: Mix | None


@dataclass(frozen=True, slots=True)
class Experiment:
    """A version of a design, and where it stands.

    ramp: the percentage of subjects that take part. why: what it was stopped for. id: given by the
    database. Moments are in UTC; None is not yet.
    """

    design: Design
    version: int = 1
    status: Status = Status.DRAFT
    ramp: float = 100.0
    halted: tuple[Halt, ...] = ()
    why: str = ""
    promotion: Promotion | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    id: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.ramp <= 100.0:
            raise InvalidRequestError(
                f"the ramp is {self.ramp}; it is a percentage, between 0 and 100"
            )

    @property
    def name(self) -> str:
        return self.design.name

    @property
    def label(self) -> str:
        """The name with its version."""
        return f"{self.name}@{self.version}"

    @property
    def split(self) -> Split:
        return self.design.split(self.ramp)

    def is_halted(self, arm: str) -> bool:
        return any(halt.arm == arm for halt in self.halted)

    def after(self, step: Step) -> Status:
        """The status that a step leads to, or FailedPreconditionError."""
        status = TRANSITIONS.get((self.status, step))
        if status is None:
            raise FailedPreconditionError(
                f"experiment {self.label} is {self.status}: it cannot be {_DONE[step]}; "
                f"{ADVICE[self.status]}"
            )
        return status

    def started(self, now: datetime) -> "Experiment":
        return replace(self, status=self.after(Step.START), started_at=now)

    def ramped(self, ramp: float) -> "Experiment":
        self.after(Step.RAMP)
        return replace(self, ramp=ramp)

    def stopped(self, now: datetime, why: str) -> "Experiment":
        status = self.after(Step.STOP)
        return replace(self, status=status, stopped_at=self._not_before_start(now), why=why)

    def halting(self, arm: Arm, now: datetime, why: str) -> "Experiment":
        """With one arm stopped; without its control an experiment compares nothing, and stops."""
        status = self.after(Step.STOP)
        if self.is_halted(arm.name):
            return self
        halted = (*self.halted, Halt(arm.name, self._not_before_start(now), why))
        if arm != self.design.control:
            return replace(self, halted=halted)
        at = self._not_before_start(now)
        return replace(self, halted=halted, status=status, stopped_at=at, why=why)

    def promoted(self, promotion: Promotion, now: datetime) -> "Experiment":
        """With a winner. The control may always be one: it answers for arms that were stopped."""
        status = self.after(Step.PROMOTE)
        for halt in self.halted:
            if halt.arm == promotion.arm != self.design.control.name:
                raise FailedPreconditionError(
                    f"arm {halt.arm!r} of experiment {self.label} was stopped: {halt.why}; promote "
                    "another one, or register its mix under the name yourself"
                )
        at = self.stopped_at or self._not_before_start(now)
        return replace(self, status=status, promotion=promotion, stopped_at=at)

    def rolled_back(self) -> "Experiment":
        why = f"the promotion of {self.promotion.arm} was undone" if self.promotion else ""
        return replace(self, status=self.after(Step.ROLLBACK), promotion=None, why=why)

    def state(self) -> dict[str, Any]:
        """What the audit log keeps of it: where it stands, and which design that is."""
        return {
            "version": self.version,
            "digest": self.design.digest,
            "status": self.status.value,
            "ramp": self.ramp,
            "halted": [halt.arm for halt in self.halted],
            "why": self.why,
        }

    def _not_before_start(self, now: datetime) -> datetime:
        """A clock that was set back must not end what has not begun."""
        return now if self.started_at is None else max(now, self.started_at)


_DONE: Mapping[Step, str] = {
    Step.REPLACE: "changed",
    Step.START: "started",
    Step.RAMP: "ramped",
    Step.STOP: "stopped",
    Step.PROMOTE: "promoted",
    Step.ROLLBACK: "rolled back",
}
