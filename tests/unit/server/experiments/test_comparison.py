"""Comparing two arms: the closed forms, what they agree on, and the level over all looks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from benchmarks.experiments.__main__ import same_arms, with_effect
from benchmarks.experiments.watched import METRICS, one_each, returning, watch
from taskmix_server.experiments.statistics import sequence
from taskmix_server.experiments.statistics.comparison import Comparison, compare
from taskmix_server.experiments.statistics.interval import UNKNOWN
from taskmix_server.experiments.statistics.summary import MIN_SUBJECTS, Summary

NUM_EXPERIMENTS = 2000


def drawn(mean: float, std: float, count: int, seed: int) -> Summary:
    return Summary.of(np.random.default_rng(seed).normal(mean, std, count))


@pytest.mark.parametrize("clock", [10.0, 500.0, 1e6])
@pytest.mark.parametrize("z", [0.5, 3.0])
def test_the_p_value_is_one_over_the_mixture_of_likelihood_ratios(clock, z):
    """The mixture by integration: effects, in standard deviations, are normal around zero."""
    rho = math.sqrt(sequence._RHO_SQUARED)
    total, spread = z * math.sqrt(clock), 1 / math.sqrt(1 / rho**2 + clock)
    centre = total * spread**2

    def weighed(effect: float) -> float:
        prior = math.exp(-0.5 * (effect / rho) ** 2) / (rho * math.sqrt(2 * math.pi))
        return prior * math.exp(effect * total - 0.5 * clock * effect**2)

    mixture, _ = quad(weighed, centre - 12 * spread, centre + 12 * spread)
    assert float(sequence.p_value(z, clock)) == pytest.approx(min(1.0, 1 / mixture), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 1e-3])
@pytest.mark.parametrize("clock", [25.0, 2500.0, 1e6])
def test_the_radius_is_where_the_p_value_is_alpha(clock, alpha):
    where = brentq(lambda z: float(sequence.p_value(z, clock)) - alpha, 0.5, 50)
    assert float(sequence.radius(clock, alpha)) == pytest.approx(where, rel=1e-6)


def test_the_sequence_is_narrowest_where_it_is_tuned():
    """The radius depends on the clock over `TUNED_FOR` alone: these are other tunings' widths."""
    half, own, double = (
        float(sequence.radius(sequence.TUNED_FOR / factor, 0.05)) for factor in (0.5, 1, 2)
    )
    assert own < min(half, double)


def test_a_comparison_of_known_numbers():
    """By hand: variances are equal, so borrowing changes nothing."""
    arm, control = Summary.of([0.0, 2.0] * 500), Summary.of([0.0, 1.8] * 500)
    found = compare(arm, control, alpha=0.05)
    arm_variance, control_variance = 1000 / 999, 0.81 * 1000 / 999
    borrowed = (1000 * control_variance + 400 * (arm_variance + control_variance) / 2) / 1400
    error = math.sqrt((arm_variance + borrowed) / 1000)
    half = float(sequence.radius(500.0, 0.05)) * error
    assert found.difference == pytest.approx(0.1)
    assert found.interval.low == pytest.approx(0.1 - half)
    assert found.interval.high == pytest.approx(0.1 + half)
    assert found.lift == pytest.approx(0.1 / 0.9)
    assert not found.is_different


@given(
    st.floats(-3, 3),
    st.floats(0.5, 5),
    st.integers(MIN_SUBJECTS, 3000),
    st.sampled_from([0.2, 0.05, 0.01]),
)
def test_interval_p_value_and_lift_agree(shift, base, count, alpha):
    control = drawn(base, 1.0, 1000, seed=1)
    found = compare(drawn(base + shift, 2.0, count, seed=2), control, alpha)
    assert found.is_different == (found.p_value < alpha)
    assert found.lift_interval.contains(found.lift)
    if found.lift_interval != UNKNOWN:
        assert found.lift_interval.contains(0.0) != found.is_different


def test_the_lift_is_unknown_where_the_control_may_be_zero():
    found = compare(drawn(3.0, 1.0, 1000, seed=1), drawn(0.0, 1.0, 1000, seed=2))
    assert found.is_different
    assert found.lift_interval == UNKNOWN


def test_too_little_says_nothing():
    some, few = drawn(0.0, 1.0, 1000, seed=1), drawn(9.0, 1.0, MIN_SUBJECTS - 1, seed=2)
    for arm, control in ((few, some), (some, few), (Summary(), some), (Summary(), Summary())):
        found = compare(arm, control)
        assert not found.is_ready
        assert not found.is_different
        assert found.interval == UNKNOWN
        assert found.p_value == 1.0
    constant = Summary.of([1.0] * 500)
    assert compare(constant, constant) == Comparison(0.0, lift=0.0)


def test_an_arm_that_has_seen_no_event_yet_is_not_certain():
    """Without the pooled variance its own, zero, would leave the control's alone."""
    control = Summary.of([1.0] * 9 + [0.0] * 891)
    assert not compare(Summary.of([0.0] * 200), control).is_different


def test_what_is_simulated_is_what_is_computed():
    """The running sums of the simulation give the verdicts of `compare`, at every look."""
    observed = one_each(np.random.default_rng(3), METRICS["normal"], 0.6, 0.4, (8, 500))
    declared = watch(observed, 0.6).declared
    for arms, y, found in zip(observed.in_arm, observed.y, declared, strict=True):
        verdicts = [
            compare(Summary.of(y[:n][arms[:n]]), Summary.of(y[:n][~arms[:n]])).is_different
            for n in range(1, 501)
        ]
        assert (np.logical_or.accumulate(verdicts) == found).all()
    assert declared[:, -1].sum() > 0
    assert not declared[:, 2 * MIN_SUBJECTS].all()


@pytest.mark.parametrize("metric", ["normal", "bernoulli(0.1)", "log-normal"])
def test_watched_equal_arms_are_rarely_told_apart(metric):
    """2,000 A/A experiments, looked at after each of 5,000 observations."""
    found = same_arms(metric, 0.5, NUM_EXPERIMENTS, 5000)
    assert found.declared <= 0.05
    # The looks are many: an interval made for one is fooled.
    assert found.declared_fixed > 0.25


@pytest.mark.parametrize("metric", ["bernoulli(0.01)", "log-normal"])
def test_a_small_arm_of_a_skewed_metric_keeps_the_level(metric):
    assert same_arms(metric, 0.1, NUM_EXPERIMENTS, 4000).declared <= 0.05


def test_subjects_that_return_keep_the_level():
    """The ratio per request, where most requests are of subjects already seen."""
    assert same_arms("returning", 0.5, NUM_EXPERIMENTS // 2, 5000).declared <= 0.05


def test_returning_subjects_sum_up_to_their_requests():
    observed = returning(np.random.default_rng(0), 0.5, (3, 500))
    assert (observed.subjects.sum(axis=1) == 100).all()
    assert (observed.x == 1).all()
    assert observed.xx.sum(axis=1) == pytest.approx(np.full(3, 100 * 25))
    assert (observed.y > 0).all()


@pytest.mark.parametrize("metric", ["normal", "bernoulli(0.1)", "log-normal"])
def test_watched_effects_are_covered_and_found(metric):
    found = with_effect(metric, 0.5, NUM_EXPERIMENTS // 4)
    assert found.missed <= 0.05
    assert 0.7 < found.found_fixed < 0.9
    assert found.found["3"] > 0.85
