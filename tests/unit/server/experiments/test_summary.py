"""Summaries: merging is exact, and the delta method agrees with the bootstrap."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.experiments.coverage import mean_coverage
from benchmarks.experiments.watched import mean_interval
from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.statistics.interval import UNKNOWN
from taskmix_server.experiments.statistics.summary import MIN_SUBJECTS, Summary

pairs = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.5, 1e2)), max_size=30)


def summarized(observations):
    return Summary.of([y for y, _ in observations], [x for _, x in observations])


def close(one: Summary, other: Summary) -> bool:
    fields = Summary.__slots__
    return all(
        math.isclose(getattr(one, name), getattr(other, name), rel_tol=1e-9, abs_tol=1e-6)
        for name in fields
    )


@given(pairs, pairs, pairs)
def test_merging_equals_one_pass(first, second, third):
    whole = summarized(first + second + third)
    parts = [summarized(part) for part in (first, second, third)]
    assert close(parts[0].merged(parts[1]).merged(parts[2]), whole)
    assert close(parts[2].merged(parts[0].merged(parts[1])), whole)


def test_merging_keeps_the_digits_that_sums_of_squares_lose():
    rng = np.random.default_rng(0)
    y = 1e9 + rng.standard_normal(1000)
    merged = Summary()
    for part in np.split(y, 100):
        merged = merged.merged(Summary.of(part))
    assert merged.variance == pytest.approx(float(np.var(y, ddof=1)), rel=1e-6)


def test_a_mean_has_the_sample_variance():
    y = [1.0, 2.0, 4.0, 9.0]
    found = Summary.of(y)
    assert found.estimate == 4.0
    assert found.variance == pytest.approx(float(np.var(y, ddof=1)))


def test_the_delta_method_agrees_with_the_bootstrap():
    """Subjects with many requests have slower ones, so y and x go together."""
    rng = np.random.default_rng(1)
    num = 2000
    x = 1.0 + rng.poisson(3, num)
    y = x * rng.lognormal(0.1 * x, 0.4)
    found = Summary.of(y, x)
    drawn = rng.multinomial(num, np.full(num, 1 / num), size=4000)
    bootstrap = float(np.std((drawn @ y) / (drawn @ x)))
    assert found.estimate == pytest.approx(y.sum() / x.sum())
    assert math.sqrt(found.variance / num) == pytest.approx(bootstrap, rel=0.05)
    # What is left when x is taken for a constant.
    assert np.std(y) / x.mean() / math.sqrt(num) > 1.3 * bootstrap


def test_too_little_says_nothing():
    assert math.isnan(Summary().estimate)
    assert math.isnan(Summary.of([1.0]).variance)
    assert math.isnan(Summary.of([1.0, 2.0], [0.0, 0.0]).estimate)
    assert Summary.of([1.0, 2.0] * (MIN_SUBJECTS // 2 - 1)).interval(0.05) == UNKNOWN
    assert Summary.of([1.0] * MIN_SUBJECTS).interval(0.05) == UNKNOWN
    assert Summary.of([1.0, 2.0] * (MIN_SUBJECTS // 2)).interval(0.05) != UNKNOWN


@pytest.mark.parametrize("values", [[1.0, math.nan], [math.inf], [[1.0], [2.0]]], ids=str)
def test_bad_observations_are_refused(values):
    with pytest.raises(InvalidRequestError):
        Summary.of(values)


def test_a_ratio_needs_pairs():
    with pytest.raises(InvalidRequestError, match="of each subject"):
        Summary.of([1.0, 2.0], [1.0])


@pytest.mark.parametrize("metric", ["normal", "bernoulli(0.1)", "log-normal"])
def test_a_watched_mean_is_covered(metric):
    """2,000 arms, looked at after each of 3,000 observations."""
    assert mean_coverage(metric, 2000, 3000).rejected <= 0.05


def test_what_is_simulated_is_what_is_computed():
    y = np.random.default_rng(0).lognormal(size=(1, 300))
    low, high = mean_interval(y)
    for n in (50, 99, 100, 237, 300):
        interval = Summary.of(y[0, :n]).interval(0.05)
        assert (interval.low, interval.high) == pytest.approx((low[0, n - 1], high[0, n - 1]))
