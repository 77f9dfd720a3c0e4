"""What an experiment tells, as a message."""

from taskmix.v1 import experiments_pb2 as pb
from taskmix_server.experiments.results import (
    Estimate,
    MetricResult,
    Results,
    ShadowResult,
    Traffic,
)
from taskmix_server.experiments.statistics.comparison import Comparison
from taskmix_server.experiments.statistics.interval import Interval
from taskmix_server.rpc.convert_experiments import to_experiment_message


def to_results_message(results: Results) -> pb.GetResultsResponse:
    ratio = results.sample_ratio
    return pb.GetResultsResponse(
        experiment=to_experiment_message(results.experiment),
        alpha=results.alpha,
        traffic=map(_traffic, results.traffic),
        sample_ratio=pb.SampleRatio(
            p_value=ratio.p_value,
            chi_square_p_value=ratio.chi_square_p_value,
            is_mismatch=ratio.is_mismatch,
        ),
        metrics=map(_metric, results.metrics),
        shadows=map(_shadow, results.shadows),
    )


def _traffic(traffic: Traffic) -> pb.ArmTraffic:
    return pb.ArmTraffic(
        arm=traffic.arm,
        share=traffic.share,
        subjects=traffic.num_subjects,
        requests=traffic.num_requests,
        requests_without_subject=traffic.num_without_subject,
    )


def _metric(result: MetricResult) -> pb.MetricResult:
    return pb.MetricResult(metric=result.metric, estimates=map(_estimate, result.estimates))


def _estimate(estimate: Estimate) -> pb.ArmEstimate:
    comparison = estimate.comparison
    return pb.ArmEstimate(
        arm=estimate.arm,
        count=estimate.count,
        value=estimate.value,
        comparison=None if comparison is None else _comparison(comparison),
    )


def _comparison(comparison: Comparison) -> pb.ArmComparison:
    return pb.ArmComparison(
        difference=comparison.difference,
        interval=_interval(comparison.interval),
        p_value=comparison.p_value,
        lift=comparison.lift,
        lift_interval=_interval(comparison.lift_interval),
        is_ready=comparison.is_ready,
    )


def _interval(interval: Interval) -> pb.ConfidenceInterval:
    return pb.ConfidenceInterval(low=interval.low, high=interval.high)


def _shadow(result: ShadowResult) -> pb.ShadowResult:
    return pb.ShadowResult(
        arm=result.arm,
        requests=result.num_requests,
        error_rate=result.error_rate,
        agreement=result.agreement,
        served_logprob=result.served_logprob,
        tokens=result.tokens,
        served_tokens=result.served_tokens,
    )
