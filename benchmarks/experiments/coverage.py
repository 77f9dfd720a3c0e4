"""How often a confidence sequence ever leaves the truth out, and a test of counts errs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from benchmarks.experiments.watched import ALPHA, METRICS, Floats, chunks, mean_interval
from taskmix_server.experiments.statistics import mismatch
from taskmix_server.experiments.statistics.counts import log_evidence
from taskmix_server.experiments.statistics.rate import PRIOR

SEED = 0
SRM_SUBJECTS = 20_000


@dataclass(frozen=True, slots=True)
class Counted:
    """The share of experiments in which a test rejected, or a sequence missed, at any time."""

    test: str
    num_experiments: int
    horizon: int
    alpha: float
    rejected: float


def mean_coverage(metric: str, num_experiments: int, horizon: int) -> Counted:
    """How often the sequence of one arm's mean ever leaves the truth out."""
    rng = np.random.default_rng(SEED)
    truth = METRICS[metric].mean
    missed = 0
    for shape in chunks(num_experiments, horizon):
        y = METRICS[metric].draw(rng, np.full(shape, truth))
        low, high = mean_interval(y)
        missed += int(((low > truth) | (high < truth)).any(axis=1).sum())
    return Counted(
        f"{metric} mean missed", num_experiments, horizon, ALPHA, missed / num_experiments
    )


def rate_coverage(rate: float, num_experiments: int, horizon: int) -> Counted:
    """How often the sequence of a rate ever leaves the truth out."""
    rejected = 0
    for events, trials in _binomials(rate, num_experiments, horizon):
        counts = np.stack([events, trials - events], axis=-1)
        evidence = log_evidence(counts, (rate, 1 - rate), PRIOR)
        rejected += int((evidence > -math.log(ALPHA)).any(axis=1).sum())
    return Counted(
        f"rate {rate:g} missed", num_experiments, horizon, ALPHA, rejected / num_experiments
    )


def ratio_coverage(rate: float, share: float, num_experiments: int, horizon: int) -> Counted:
    """How often the sequence of the ratio of two equal rates ever leaves 1 out."""
    rng = np.random.default_rng(SEED)
    missed = 0
    for shape in chunks(num_experiments, horizon):
        in_arm, is_event = rng.random(shape) < share, rng.random(shape) < rate
        events, total = np.cumsum(in_arm & is_event, axis=1), np.cumsum(is_event, axis=1)
        split = np.clip(np.cumsum(in_arm, axis=1) / np.arange(1, horizon + 1), 1e-9, 1 - 1e-9)
        counts, given = np.stack([events, total - events], -1), np.stack([split, 1 - split], -1)
        missed += int((log_evidence(counts, given, PRIOR) > -math.log(ALPHA)).any(axis=1).sum())
    name = f"ratio of rates of {rate:g} at {share:.0%} missed"
    return Counted(name, num_experiments, horizon, ALPHA, missed / num_experiments)


def mismatches(share: float, alpha: float, num_experiments: int) -> tuple[Counted, Counted]:
    """How often two equal shares are rejected, at any time, where one arm truly gets `share`.

    By the sequential test, and by a chi-square test at every look.
    """
    horizon = SRM_SUBJECTS
    sequential = fixed = 0
    for events, trials in _binomials(share, num_experiments, horizon):
        counts = np.stack([events, trials - events], axis=-1)
        evidence = log_evidence(counts, (0.5, 0.5), mismatch.PRIOR_SUBJECTS * np.array([0.5, 0.5]))
        sequential += int((evidence > -math.log(alpha)).any(axis=1).sum())
        squares = (2 * events - trials) ** 2 / trials
        late = trials >= 100
        fixed += int(((squares > chi2.isf(alpha, 1)) & late).any(axis=1).sum())
    name = f"{100 * share:g}/{100 - 100 * share:g} against 50/50"
    return (
        Counted(
            f"{name}, sequential", num_experiments, horizon, alpha, sequential / num_experiments
        ),
        Counted(f"{name}, chi-square", num_experiments, horizon, alpha, fixed / num_experiments),
    )


def _binomials(rate: float, num_experiments: int, horizon: int) -> Iterator[tuple[Floats, Floats]]:
    """Events so far, [experiments, trials], and trials so far, [trials]."""
    rng = np.random.default_rng(SEED)
    trials = np.arange(1.0, horizon + 1)
    for shape in chunks(num_experiments, horizon):
        yield np.cumsum(rng.random(shape) < rate, axis=1, dtype=np.float64), trials
