"""How well the statistics of experiments keep their promises: simulated ones, looked at all along.

    python -m benchmarks.experiments

A/A experiments, which have nothing to find, count how often a difference is declared at any time;
others, whose effect is known, how often the sequence ever leaves it out, and when it is found.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import click
import numpy as np
from scipy.stats import norm

from benchmarks.experiments.coverage import (
    Counted,
    mean_coverage,
    mismatches,
    rate_coverage,
    ratio_coverage,
)
from benchmarks.experiments.guardrails import GUARDRAILS, LOOKS, Found, requests_until_found
from benchmarks.experiments.watched import (
    ALPHA,
    METRICS,
    Generator,
    Observed,
    chunks,
    one_each,
    returning,
    watch,
)
from benchmarks.record import append
from taskmix_server.experiments.statistics import mismatch

SEED = 0
SHARES = (0.5, 0.1)
# How many subjects a test with a fixed horizon finds the effect in, four times of five.
PLANNED = 5000
LOOKS_AT = (1.0, 1.5, 2.0, 3.0)
RATES = (0.1, 0.05, 0.01)


@dataclass(frozen=True, slots=True)
class SameArms:
    """Shares of A/A experiments in which a difference was ever declared.

    share: the arm's. declared: by the sequence; declared_fixed: by a 95 % interval made for one
    look.
    """

    metric: str
    share: float
    num_experiments: int
    horizon: int
    declared: float
    declared_fixed: float


@dataclass(frozen=True, slots=True)
class Effect:
    """Experiments with an effect that a test at `PLANNED` subjects finds four times of five.

    missed: the share in which the sequence ever left the truth out. found: the share in which the
    difference was declared by multiples of `PLANNED`; found_fixed: by the test. median_subjects:
    until it was declared.
    """

    metric: str
    share: float
    num_experiments: int
    effect: float
    missed: float
    found_fixed: float
    found: Mapping[str, float]
    median_subjects: float


def same_arms(metric: str, share: float, num_experiments: int, horizon: int) -> SameArms:
    """Watch experiments whose arms are equal; metric: of `METRICS`, or "returning"."""
    rng = np.random.default_rng(SEED)
    draw = _drawn(metric, 0.0, share)
    declared = fixed = 0
    for shape in chunks(num_experiments, horizon):
        seen = watch(draw(rng, shape), 0.0)
        declared += int(seen.declared[:, -1].sum())
        fixed += int((np.abs(seen.z) > norm.isf(ALPHA / 2)).any(axis=1).sum())
    rates = declared / num_experiments, fixed / num_experiments
    return SameArms(metric, share, num_experiments, horizon, *rates)


def with_effect(metric: str, share: float, num_experiments: int) -> Effect:
    """Watch experiments until three times the planned size."""
    rng = np.random.default_rng(SEED)
    effect = _detectable(METRICS[metric].std, share)
    draw = _drawn(metric, effect, share)
    last = round(LOOKS_AT[-1] * PLANNED)
    missed, z, until = [], [], []
    for shape in chunks(num_experiments, last):
        seen = watch(draw(rng, shape), effect)
        missed.append(seen.missed[:, -1])
        z.append(seen.z[:, PLANNED - 1])
        until.append(np.where(seen.declared[:, -1], seen.declared.argmax(axis=1) + 1, math.inf))
    found_at = np.concatenate(until)
    return Effect(
        metric,
        share,
        num_experiments,
        effect,
        float(np.concatenate(missed).mean()),
        float((np.abs(np.concatenate(z)) > norm.isf(ALPHA / 2)).mean()),
        {f"{by:g}": float((found_at <= by * PLANNED).mean()) for by in LOOKS_AT},
        float(np.median(found_at)),
    )


@click.command()
@click.option("--experiments", "num_experiments", default=2000, show_default=True)
@click.option("--horizon", default=50_000, show_default=True, help="Subjects in an A/A experiment.")
@click.option("--record/--no-record", default=True, help="Append to results/experiments.jsonl.")
def main(num_experiments: int, horizon: int, record: bool) -> None:
    """Simulate, print, and append to results/experiments.jsonl."""
    for found in _all(num_experiments, horizon):
        print(_line(found), flush=True)
        if record:
            append("experiments", {"kind": type(found).__name__, **asdict(found)})


def _all(num_experiments: int, horizon: int) -> Iterator[SameArms | Effect | Found | Counted]:
    for metric in METRICS:
        yield from (same_arms(metric, share, num_experiments, horizon) for share in SHARES)
    yield same_arms("returning", 0.5, num_experiments, horizon)
    for metric in METRICS:
        yield from (with_effect(metric, share, num_experiments) for share in SHARES)
    yield from (mean_coverage(metric, num_experiments, horizon) for metric in METRICS)
    yield from (rate_coverage(rate, num_experiments, horizon) for rate in RATES)
    for rate in RATES:
        yield from (ratio_coverage(rate, share, num_experiments, horizon) for share in SHARES)
    for look in LOOKS:
        yield from (
            requests_until_found(name, look, num_experiments // 20, SEED) for name in GUARDRAILS
        )
    yield from mismatches(0.5, ALPHA, num_experiments)
    yield from mismatches(0.5, mismatch.ALPHA, num_experiments)
    yield from mismatches(0.48, mismatch.ALPHA, num_experiments)


def _drawn(
    metric: str, effect: float, share: float
) -> Callable[[Generator, tuple[int, int]], Observed]:
    if metric == "returning":
        return lambda rng, shape: returning(rng, share, shape)
    return lambda rng, shape: one_each(rng, METRICS[metric], effect, share, shape)


def _detectable(std: float, share: float) -> float:
    """The effect that a two-sided test at `PLANNED` subjects finds with 80 % power."""
    error = std / math.sqrt(PLANNED * share * (1 - share))
    return float(norm.isf(ALPHA / 2) + norm.ppf(0.8)) * error


def _line(found: SameArms | Effect | Found | Counted) -> str:
    if isinstance(found, SameArms):
        return (
            f"A/A   {found.metric:16} {found.share:4.0%}: {found.declared:6.2%} declared, "
            f"{found.declared_fixed:.1%} with an interval for one look"
        )
    if isinstance(found, Effect):
        by = ", ".join(f"{share:.1%} by {times}x" for times, share in found.found.items())
        return (
            f"A/B   {found.metric:16} {found.share:4.0%}: {found.missed:6.2%} missed; t-test "
            f"{found.found_fixed:.1%}; {by}; median {found.median_subjects:g}"
        )
    if isinstance(found, Found):
        return (
            f"guard {found.change}, {found.look}: {found.p50:g} requests, at most {found.p90:g} "
            "9 times of 10"
        )
    return f"level {found.test}: {found.rejected:.2%} at alpha {found.alpha}"


if __name__ == "__main__":
    main()
