"""What an experiment tells so far: per arm and metric an estimate, and how it differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from taskmix_server.database import Database
from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.metric import MEASURED, SUBJECTS, Metric
from taskmix_server.experiments.observations import (
    Observations,
    num_exposed,
    num_requests,
    observe,
    shadow_means,
)
from taskmix_server.experiments.statistics.comparison import Comparison, compare
from taskmix_server.experiments.statistics.mismatch import SampleRatio, sample_ratio
from taskmix_server.experiments.statistics.summary import Summary

ALPHA = 0.05
MAX_RATIOS = 32


@dataclass(frozen=True, slots=True)
class Traffic:
    """What reached an arm. num_requests counts those without a subject too."""

    arm: str
    share: float
    num_subjects: int
    num_requests: int
    num_without_subject: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric in one arm; the control is compared with nothing.

    Of an arm that was stopped it tells, as its comparison does of both, what was until then.
    """

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
class ShadowResult:
    """What a shadow arm's unseen answers were like: averages over requests.

    agreement: the share of tokens equal to the served ones; served_logprob: natural logarithm per
    served token; None where nothing was compared. tokens, served_tokens: of the shadow's answers,
    and of what was served to the same requests.
    """

    arm: str
    num_requests: int
    error_rate: float
    agreement: float | None
    served_logprob: float | None
    tokens: float
    served_tokens: float


@dataclass(frozen=True, slots=True)
class Results:
    """All that is known of a version, valid whenever it is looked at.

    alpha: the chance that some arm is ever declared different in a metric in which none is.
    """

    experiment: Experiment
    alpha: float
    traffic: tuple[Traffic, ...]
    sample_ratio: SampleRatio
    metrics: tuple[MetricResult, ...]
    shadows: tuple[ShadowResult, ...]


def results(
    database: Database, experiment: Experiment, ratios: Sequence[str] = (), alpha: float = ALPHA
) -> Results:
    """Compute everything from one state of the database. Blocks.

    ratios: metrics to add, such as clicks/views; what callers reported is there per subject.
    """
    if not 0.0 < alpha < 1.0:
        raise InvalidRequestError(f"alpha is {alpha}; it must be between 0 and 1, such as 0.05")
    if len(ratios) > MAX_RATIOS:
        raise InvalidRequestError(f"at most {MAX_RATIOS} ratios at a time, got {len(ratios)}")
    asked = tuple(map(Metric.parse, ratios))
    with database.reading() as session:
        observed = _observed(session, experiment)
        traffic, ratio = _traffic(session, experiment), _sample_ratio(session, experiment)
        shadows = tuple(ShadowResult(*row) for row in shadow_means(session, experiment.id))
    metrics = (*MEASURED, *(Metric(name, name) for name in observed.whole.reported), *asked)
    found = tuple(_metric_result(experiment, observed, metric, alpha) for metric in metrics)
    return Results(experiment, alpha, traffic, ratio, found, shadows)


def summary(observed: Observations, arm: str, metric: Metric) -> Summary:
    """What is kept of a metric in one arm."""
    per = None if metric.per == SUBJECTS else observed.of(arm, metric.per)
    return Summary.of(observed.of(arm, metric.of), per)


@dataclass(frozen=True, slots=True)
class _Observed:
    """All that was observed, and by the name of each arm that was stopped, what was until then.

    Afterwards the subjects of such an arm are answered by the control, uncounted, while those of
    the control go on: sums over them are no longer of the same time. A stop that depends on what
    was seen does not harm, since the sequences hold at any moment that is chosen so.
    """

    whole: Observations
    until: Mapping[str, Observations]

    def of(self, arm: str) -> Observations:
        """What an arm may be compared by."""
        return self.until.get(arm, self.whole)


def _observed(session: Session, experiment: Experiment) -> _Observed:
    whole = observe(session, experiment.id)
    until = {
        halt.arm: observe(session, experiment.id, halt.at).knowing(whole)
        for halt in experiment.halted
        if halt.arm != experiment.design.control.name  # with it all arms end at the same moment
    }
    return _Observed(whole, until)


def _metric_result(
    experiment: Experiment, observed: _Observed, metric: Metric, alpha: float
) -> MetricResult:
    """Each arm against the control; alpha is shared out among the comparisons (Bonferroni)."""
    control, *others = (arm.name for arm in experiment.design.arms)
    base = summary(observed.whole, control, metric)
    estimates = [Estimate(control, base.count, base.estimate, None)]
    for name in others:
        arm = summary(observed.of(name), name, metric)
        base = summary(observed.of(name), control, metric)
        compared = compare(arm, base, alpha / len(others)) if arm.count and base.count else None
        estimates.append(Estimate(name, arm.count, arm.estimate, compared))
    return MetricResult(metric.name, tuple(estimates))


def _traffic(session: Session, experiment: Experiment) -> tuple[Traffic, ...]:
    subjects = num_exposed(session, experiment.id, None)
    requests = num_requests(session, experiment.id)
    return tuple(
        Traffic(
            arm.name,
            float(arm.share),
            subjects.get(arm.name, 0),
            *requests.get(arm.name, (0, 0)),
        )
        for arm in experiment.design.arms
    )


def _sample_ratio(session: Session, experiment: Experiment) -> SampleRatio:
    """Subjects against shares, from before an arm was stopped: it gets none afterwards."""
    before = min((halt.at for halt in experiment.halted), default=None)
    subjects = num_exposed(session, experiment.id, before)
    arms = experiment.design.arms
    counts = [subjects.get(arm.name, 0) for arm in arms]
    return sample_ratio(counts, [float(arm.share) for arm in arms])
