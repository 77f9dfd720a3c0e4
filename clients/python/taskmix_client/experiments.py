"""Experiments, outcomes and results: frozen values, free of protocol buffers."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from taskmix_client.options import MixLike


@dataclass(frozen=True, slots=True)
class Arm:
    """A mix and its share of the subjects; shares sum to 1.

    Either `mix` or `mix_name`, a registered mix, says what answers; the server tells the mix as
    canonical JSON, with a digest of it and of its tasks' content.
    """

    name: str
    mix: MixLike | None = None
    share: float = 0.0
    mix_name: str | None = None
    mix_digest: str = ""


@dataclass(frozen=True, slots=True)
class ShadowArm:
    """A mix that answers copies of requests unseen; `rate` is the share of requests copied."""

    name: str
    mix: MixLike | None = None
    rate: float = 0.0
    mix_name: str | None = None
    mix_digest: str = ""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """What an arm must keep to: `metric` `at_most` or `at_least` `bound`, lest it be stopped.

    The bound is a multiple of the control's value if `is_relative`. `quantile` is 0.95 for p95,
    None for the mean. `alpha` is the chance that an arm which keeps to it is ever stopped.
    """

    metric: str
    limit: str
    bound: float
    is_relative: bool = False
    quantile: float | None = None
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class ExperimentDesign:
    """What an experiment compares; the first arm is the control.

    `salt` is what subjects are hashed with, the name if empty; `tenants` are globs, none is all;
    `overrides` are arms by subject, for those who are not drawn.
    """

    name: str
    arms: tuple[Arm, ...]
    salt: str = ""
    shadows: tuple[ShadowArm, ...] = ()
    tenants: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    guardrails: tuple[Guardrail, ...] = ()


@dataclass(frozen=True, slots=True)
class HaltedArm:
    """An arm that was stopped: when (UTC) and why. The control answers its subjects."""

    arm: str
    at: datetime
    why: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """A winner, the name that means its mix, and what the name meant before, None if nothing."""

    arm: str
    mix_name: str
    before: str | None


@dataclass(frozen=True, slots=True)
class Experiment:
    """One version of an experiment.

    `status` is `draft`, `running`, `stopped` or `promoted`; moments are in UTC, None is not yet.
    """

    design: ExperimentDesign
    version: int
    digest: str
    status: str
    ramp_percent: float
    halted: tuple[HaltedArm, ...]
    why: str
    promotion: Promotion | None
    created_at: datetime | None
    started_at: datetime | None
    stopped_at: datetime | None

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.design.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A number that came of a subject, or of a request by the id in its answer: give one of them.

    `key` makes it count once, however often it is sent. `at` needs a zone; None is now.
    """

    metric: str
    value: float
    subject: str | None = None
    request_id: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many outcomes of a batch were new, and how many were there already."""

    num_new: int
    num_known: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A range of values that holds at all times at once; infinite where nothing is known."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm against the control, valid however often it is looked at.

    `lift` is the difference as a part of the control's value. Nothing is said before `is_ready`.
    """

    difference: float
    interval: Interval
    p_value: float
    lift: float
    lift_interval: Interval
    is_ready: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric in one arm, over `count` subjects; the control is compared with nothing."""

    arm: str
    count: int
    value: float
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class MetricResult:
    """A metric in every arm, the control first."""

    metric: str
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True, slots=True)
class ArmTraffic:
    """What reached an arm; requests without a subject are in no other number."""

    arm: str
    share: float
    num_subjects: int
    num_requests: int
    num_without_subject: int


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether subjects reach the arms in the planned shares; if not, no comparison means anything.

    `p_value` decides and may be watched; `chi_square_p_value` is for a single look.
    """

    p_value: float
    chi_square_p_value: float
    is_mismatch: bool


@dataclass(frozen=True, slots=True)
class ShadowResult:
    """What a shadow arm's answers were like, compared with those served to the same requests."""

    arm: str
    num_requests: int
    error_rate: float
    agreement: float | None
    served_logprob: float | None
    tokens: float
    served_tokens: float


@dataclass(frozen=True, slots=True)
class Results:
    """What a version tells so far."""

    experiment: Experiment
    alpha: float
    traffic: tuple[ArmTraffic, ...]
    sample_ratio: SampleRatio
    metrics: tuple[MetricResult, ...]
    shadows: tuple[ShadowResult, ...]
