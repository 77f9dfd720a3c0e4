"""Simulated experiments of two arms, looked at after every observation.

Arrays are [experiments, times]; at each time one observation arrives, in one of the arms.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taskmix_server.experiments.statistics import sequence
from taskmix_server.experiments.statistics.precision import clock_of, squared_errors
from taskmix_server.experiments.statistics.summary import ALONE, MIN_SUBJECTS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Generator = np.random.Generator

ALPHA = 0.05
# So many at a time fit into the processor's cache.
CHUNK = 25
REQUESTS_PER_SUBJECT = 5


@dataclass(frozen=True, slots=True)
class Metric:
    """How one observation comes about: draw turns means into values of the same shape."""

    draw: Callable[[Generator, Floats], Floats]
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Observed:
    """What each time adds: to which arm, and to the sums over its subjects of 1, y, x and products.

    A subject's y and x are the sums over its requests, so that one that returns changes them.
    """

    in_arm: Bools
    subjects: Floats
    y: Floats
    x: Floats
    yy: Floats
    xx: Floats
    xy: Floats


@dataclass(frozen=True, slots=True)
class Watch:
    """What watching showed, [experiments, times].

    declared: a difference was declared by then. missed: the sequence had left the truth out by
    then. z: the difference in standard errors, as a test with a fixed horizon takes it.
    """

    declared: Bools
    missed: Bools
    z: Floats


def _lognormal(rng: Generator, means: Floats) -> Floats:
    return means * np.exp(rng.standard_normal(means.shape) - 0.5)


METRICS: Mapping[str, Metric] = {
    "normal": Metric(lambda rng, means: means + rng.standard_normal(means.shape), 1.0, 1.0),
    "bernoulli(0.1)": Metric(lambda rng, means: rng.binomial(1, means).astype(float), 0.1, 0.3),
    "bernoulli(0.01)": Metric(
        lambda rng, means: rng.binomial(1, means).astype(float), 0.01, math.sqrt(0.01 * 0.99)
    ),
    "log-normal": Metric(_lognormal, 1.0, math.sqrt(math.e - 1)),
}


def one_each(
    rng: Generator, metric: Metric, effect: float, share: float, shape: tuple[int, int]
) -> Observed:
    """Every observation is a subject of its own; x is 1, so that the metric is a mean."""
    in_arm = rng.random(shape) < share
    y = metric.draw(rng, metric.mean + effect * in_arm)
    ones = np.ones(shape)
    return Observed(in_arm, ones, y, ones, y * y, ones, y)


def returning(rng: Generator, share: float, shape: tuple[int, int]) -> Observed:
    """Log-normal values of subjects that return and differ: an A/A of the ratio per request.

    A subject's first request adds it to its arm; each later one changes its y and x.
    """
    num_experiments, num_times = shape
    num_subjects = num_times // REQUESTS_PER_SUBJECT
    each = (num_experiments, num_subjects, REQUESTS_PER_SUBJECT)
    own = rng.lognormal(0.0, 0.5, (num_experiments, num_subjects, 1))
    y = np.cumsum(own * rng.lognormal(0.0, 0.5, each), axis=2)
    x = np.broadcast_to(np.arange(1.0, REQUESTS_PER_SUBJECT + 1), each)
    in_arm = np.broadcast_to(rng.random((num_experiments, num_subjects, 1)) < share, each)
    order = np.argsort(np.sort(rng.random(each), axis=2).reshape(num_experiments, -1), axis=1)

    def arriving(sums: Floats) -> Floats:
        added = np.diff(sums, axis=2, prepend=0.0).reshape(num_experiments, -1)
        return np.take_along_axis(added, order, axis=1)

    arms = np.take_along_axis(in_arm.reshape(num_experiments, -1), order, axis=1)
    first = np.minimum(x, 1.0)
    return Observed(arms, *map(arriving, (first, y, x, y * y, x * x, x * y)))


def watch(observed: Observed, effect: float, alpha: float = ALPHA) -> Watch:
    """Compare the arms after every observation; effect is the truth."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _watched(observed, effect, alpha)


def mean_interval(y: Floats, alpha: float = ALPHA) -> tuple[Floats, Floats]:
    """Both ends of `Summary.interval` after every observation; infinite before it says anything."""
    num = np.arange(1.0, y.shape[1] + 1)
    mean = np.cumsum(y, axis=1) / num
    spread = np.maximum(np.cumsum(y * y, axis=1) / num - mean**2, 0.0)
    half = sequence.radius(num / ALONE, alpha) * np.sqrt(spread / np.maximum(num - 1, 1.0))
    half = np.where((num >= MIN_SUBJECTS) & (spread > 0), half, np.inf)
    return mean - half, mean + half


def chunks(num_experiments: int, horizon: int) -> Iterator[tuple[int, int]]:
    """Shapes that add up to so many experiments."""
    for start in range(0, num_experiments, CHUNK):
        yield min(CHUNK, num_experiments - start), horizon


def _watched(observed: Observed, effect: float, alpha: float) -> Watch:
    arm, arm_variance, num_arm = _running(observed, observed.in_arm)
    control, control_variance, num_control = _running(observed, ~observed.in_arm)
    squares = squared_errors(arm_variance, control_variance, num_arm, num_control)
    error = np.sqrt(squares[0] + squares[1])
    is_ready = (np.minimum(num_arm, num_control) >= MIN_SUBJECTS) & (error > 0)
    width = sequence.radius(clock_of(num_arm, num_control), alpha) * error
    difference = arm - control
    plain = np.sqrt(arm_variance / num_arm + control_variance / num_control)
    return Watch(
        np.logical_or.accumulate(is_ready & (np.abs(difference) > width), axis=1),
        np.logical_or.accumulate(is_ready & (np.abs(difference - effect) > width), axis=1),
        np.where(is_ready, difference / plain, 0.0),
    )


def _running(observed: Observed, in_arm: Bools) -> tuple[Floats, Floats, Floats]:
    """An arm's estimate, its variance per subject and the number of subjects, at every time."""
    names = ("subjects", "y", "x", "yy", "xx", "xy")
    num, y, x, yy, xx, xy = (
        np.cumsum(np.where(in_arm, getattr(observed, name), 0.0), axis=1) for name in names
    )
    ratio = y / x
    # Deviations of y - ratio * x, whose mean is zero, need no means.
    spread = np.maximum(yy - 2 * ratio * xy + ratio**2 * xx, 0.0)
    return ratio, spread / (num - 1) * (num / x) ** 2, num
