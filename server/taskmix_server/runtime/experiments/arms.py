"""Which arm answers a request of an experiment."""

from dataclasses import dataclass

from taskmix_composer.mix import Mix
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.experiments.assignment import Assignment, Split
from taskmix_server.experiments.design import Arm, Shadow
from taskmix_server.experiments.experiment import ADVICE, Experiment, Status


@dataclass(frozen=True, slots=True)
class Assigned:
    """The mix that answers a request of an experiment.

    arm: empty for a request that is answered by the control (or the promoted arm) without being
    part of the experiment: outside the ramp, of an arm that was stopped, or of an experiment that
    does not run. mix_digest: what the mix resolved to when the experiment was made; other content
    must not answer. is_per_request: no subject was named. shadows: whose turn it is to see a copy.
    """

    experiment: Experiment
    arm: str
    mix: Mix
    mix_digest: str
    tenant_id: str
    subject: str
    request_id: str
    is_override: bool = False
    shadows: tuple[Shadow, ...] = ()

    @property
    def is_per_request(self) -> bool:
        return not self.subject

    @property
    def label(self) -> str:
        """What names experiment, version and arm in answers: `NAME@VERSION/ARM`.

        The arm of a request that is not part of the experiment is `-`.
        """
        return f"{self.experiment.label}/{self.arm or '-'}"

    def check_content(self, digest: str) -> None:
        """Refuse to answer under an arm with other content than it was compared with."""
        if self.arm and digest != self.mix_digest:
            raise FailedPreconditionError(
                f"arm {self.label} is {self.mix}, and a task of it has changed since the "
                "experiment was made; load what was there before, or create and start a new "
                "version with `taskmix experiments create --new-version`"
            )


@dataclass(frozen=True, slots=True)
class Served:
    """An experiment ready to assign; shadow_splits has the sampling of each shadow arm."""

    experiment: Experiment
    split: Split
    shadow_splits: tuple[Split, ...]

    @classmethod
    def of(cls, experiment: Experiment) -> "Served":
        design = experiment.design
        return cls(
            experiment,
            experiment.split,
            tuple(
                Split(f"{design.salt}/{shadow.name}", ((shadow.name, 1),), shadow.rate)
                for shadow in design.shadows
            ),
        )

    def assigned(self, subject: str, request_id: str, tenant_id: str) -> Assigned:
        drawn, arm = self._drawn(subject, request_id)
        return Assigned(
            self.experiment,
            arm.name if drawn else "",
            arm.mix,
            arm.mix_digest,
            tenant_id,
            subject,
            request_id,
            is_override=drawn is not None and drawn.is_override,
            shadows=self._shadows(request_id) if drawn else (),
        )

    def _drawn(self, subject: str, request_id: str) -> tuple[Assignment | None, Arm]:
        """What the hash says, None for who is not part of it; and the arm that answers."""
        experiment = self.experiment
        if experiment.status is Status.DRAFT:
            raise FailedPreconditionError(
                f"experiment {experiment.label} is a draft; {ADVICE[Status.DRAFT]}"
            )
        design = experiment.design
        if experiment.status is not Status.RUNNING:
            winner = experiment.promotion
            return None, design.arm(winner.arm) if winner else design.control
        drawn = self.split.assign(subject) if subject else self.split.assign_request(request_id)
        if drawn.arm is None or experiment.is_halted(drawn.arm):
            return None, design.control
        return drawn, design.arm(drawn.arm)

    def _shadows(self, request_id: str) -> tuple[Shadow, ...]:
        shadows = zip(self.experiment.design.shadows, self.shadow_splits, strict=True)
        return tuple(shadow for shadow, split in shadows if split.assign_request(request_id).arm)
