"""What both clients share about results: reading them. No I/O."""

from taskmix.v1 import experiments_pb2 as pb
from taskmix_client._experiments import to_experiment
from taskmix_client.experiments import (
    ArmTraffic,
    Comparison,
    Estimate,
    Interval,
    MetricResult,
    Results,
    SampleRatio,
    ShadowResult,
)


def to_results(response: pb.GetResultsResponse) -> Results:
    """Read what a version tells."""
    ratio = response.sample_ratio
    return Results(
        experiment=to_experiment(response.experiment),
        alpha=response.alpha,
        traffic=tuple(map(_traffic, response.traffic)),
        sample_ratio=SampleRatio(ratio.p_value, ratio.chi_square_p_value, ratio.is_mismatch),
        metrics=tuple(
            MetricResult(result.metric, tuple(map(_estimate, result.estimates)))
            for result in response.metrics
        ),
        shadows=tuple(map(_shadow, response.shadows)),
    )


def _traffic(message: pb.ArmTraffic) -> ArmTraffic:
    return ArmTraffic(
        message.arm,
        message.share,
        message.subjects,
        message.requests,
        message.requests_without_subject,
    )


def _estimate(message: pb.ArmEstimate) -> Estimate:
    comparison = _comparison(message.comparison) if message.HasField("comparison") else None
    return Estimate(message.arm, message.count, message.value, comparison)


def _comparison(message: pb.ArmComparison) -> Comparison:
    return Comparison(
        difference=message.difference,
        interval=_interval(message.interval),
        p_value=message.p_value,
        lift=message.lift,
        lift_interval=_interval(message.lift_interval),
        is_ready=message.is_ready,
    )


def _interval(message: pb.ConfidenceInterval) -> Interval:
    return Interval(message.low, message.high)


def _shadow(message: pb.ShadowResult) -> ShadowResult:
    return ShadowResult(
        arm=message.arm,
        num_requests=message.requests,
        error_rate=message.error_rate,
        agreement=message.agreement if message.HasField("agreement") else None,
        served_logprob=message.served_logprob if message.HasField("served_logprob") else None,
        tokens=message.tokens,
        served_tokens=message.served_tokens,
    )
