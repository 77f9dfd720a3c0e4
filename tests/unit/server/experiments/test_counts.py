"""Counts: rates, quantiles and sample ratios, exact at every look."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from benchmarks.experiments.coverage import mismatches, rate_coverage, ratio_coverage
from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.statistics import mismatch
from taskmix_server.experiments.statistics.counts import log_evidence
from taskmix_server.experiments.statistics.interval import UNKNOWN, Interval, quotient
from taskmix_server.experiments.statistics.mismatch import sample_ratio
from taskmix_server.experiments.statistics.quantile import Quantile
from taskmix_server.experiments.statistics.rate import PRIOR, Rate

counts = st.integers(0, 300)


@pytest.mark.parametrize(("events", "trials"), [(0, 5), (3, 10), (40, 50)])
def test_evidence_is_the_mixture_of_likelihood_ratios(events, trials):
    """By integration over Jeffreys' prior, with the angle that makes it uniform."""

    def ratio(angle: float) -> float:
        rate = math.sin(angle) ** 2
        likelihood = rate**events * (1 - rate) ** (trials - events)
        return likelihood / (0.3**events * 0.7 ** (trials - events))

    mixture = quad(ratio, 0, math.pi / 2)[0] * 2 / math.pi
    found = float(log_evidence((events, trials - events), (0.3, 0.7), PRIOR))
    assert found == pytest.approx(math.log(mixture), rel=1e-6)


@given(counts, counts, st.sampled_from([0.1, 0.01]))
def test_a_rates_interval_is_what_the_evidence_lets_pass(events, others, alpha):
    rate = Rate(events, events + others)
    interval = rate.interval(alpha)
    assert 0 <= interval.low <= interval.high <= 1
    if events + others == 0:
        assert interval == Interval(0.0, 1.0)
        return
    assert interval.contains(rate.estimate)
    for end in {interval.low, interval.high} - {0.0, 1.0}:
        evidence = float(log_evidence((events, others), (end, 1 - end), PRIOR))
        assert evidence == pytest.approx(-math.log(alpha), abs=1e-3)


def test_a_rate_mirrors():
    one, other = Rate(3, 100).interval(0.05), Rate(97, 100).interval(0.05)
    assert one.low == pytest.approx(1 - other.high, abs=1e-9)
    assert one.high == pytest.approx(1 - other.low, abs=1e-9)


@pytest.mark.parametrize("counted", [(5, 4), (-1, 4)])
def test_impossible_counts_are_refused(counted):
    with pytest.raises(InvalidRequestError, match="trials"):
        Rate(*counted)


def test_a_watched_rate_is_covered():
    assert rate_coverage(0.05, 2000, 3000).rejected <= 0.05
    assert rate_coverage(0.95, 2000, 1000).rejected <= 0.05


def test_the_ratio_of_two_rates():
    """Three times the events of twice the trials; the bounds are those of a share of 3 / 4."""
    arm, control = Rate(90, 2000), Rate(30, 1000)
    ratio, share = arm.ratio_interval(control, 0.05), Rate(90, 120).interval(0.05)
    assert ratio.low == pytest.approx(share.low / (1 - share.low) / 2)
    assert ratio.high == pytest.approx(share.high / (1 - share.high) / 2)
    inverse = control.ratio_interval(arm, 0.05)
    assert (inverse.low, inverse.high) == pytest.approx((1 / ratio.high, 1 / ratio.low))


def test_a_ratio_without_events_or_trials_is_open():
    assert Rate(0, 100).ratio_interval(Rate(0, 100), 0.05) == Interval(0.0, math.inf)
    assert Rate(0, 0).ratio_interval(Rate(5, 100), 0.05) == Interval(0.0, math.inf)
    assert Rate(5, 100).ratio_interval(Rate(0, 0), 0.05) == Interval(0.0, math.inf)
    assert Rate(30, 100).ratio_interval(Rate(0, 100), 0.05).high == math.inf
    assert Rate(30, 100).ratio_interval(Rate(0, 100), 0.05).low > 1


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_a_watched_ratio_of_rates_is_covered(rate):
    assert ratio_coverage(rate, 0.3, 2000, 2000).rejected <= 0.05


@pytest.mark.parametrize(
    ("arm", "control", "expected"),
    [
        (Interval(2.0, 6.0), Interval(1.0, 2.0), Interval(1.0, 6.0)),
        (Interval(-6.0, -2.0), Interval(1.0, 2.0), Interval(-6.0, -1.0)),
        (Interval(-2.0, 6.0), Interval(1.0, 2.0), Interval(-2.0, 6.0)),
        (Interval(2.0, math.inf), Interval(1.0, math.inf), Interval(0.0, math.inf)),
        (UNKNOWN, Interval(1.0, 2.0), UNKNOWN),
        (Interval(2.0, 6.0), Interval(0.0, 2.0), UNKNOWN),
        (Interval(2.0, 6.0), Interval(-1.0, 2.0), UNKNOWN),
    ],
)
def test_quotients_of_intervals(arm, control, expected):
    assert quotient(arm, control) == expected


def test_a_quantiles_interval_is_made_of_ranks():
    values = np.random.default_rng(0).permutation(np.arange(1, 1001))
    interval = Quantile(values, 0.9).interval(0.05)
    below = [float(log_evidence((k, 1000 - k), (0.9, 0.1), (4.5, 0.5))) for k in range(1001)]
    passing = [k for k in range(1001) if below[k] <= math.log(20)]
    assert (interval.low, interval.high) == (passing[0], passing[-1] + 1)
    assert 850 < interval.low < 900 < interval.high < 950


def test_few_values_leave_a_quantile_open():
    assert Quantile([], 0.95).interval(0.05) == UNKNOWN
    assert math.isnan(Quantile([], 0.95).estimate)
    few = Quantile(range(1, 31), 0.95).interval(0.05)
    assert few.low > 0
    assert few.high == math.inf


@pytest.mark.parametrize("ties", [0, 1], ids=["continuous", "ties"])
def test_a_watched_quantile_is_covered(ties):
    """The 90th percentile of 1,000 streams, looked at after every tenth of 500 values."""
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(300):
        values = np.round(rng.exponential(size=500), ties) if ties else rng.exponential(size=500)
        truth = round(math.log(10), ties) if ties else math.log(10)
        looks = (Quantile(values[:n], 0.9).interval(0.05) for n in range(20, 501, 20))
        missed += not all(interval.contains(truth) for interval in looks)
    assert missed <= 0.05 * 300


@pytest.mark.parametrize(
    ("values", "level"), [([1.0], 0.0), ([1.0], 1.0), ([math.nan], 0.5), ([math.inf], 0.5)]
)
def test_bad_quantiles_are_refused(values, level):
    with pytest.raises(InvalidRequestError):
        Quantile(values, level)


def test_48_to_52_at_20000_subjects_is_a_mismatch():
    found = sample_ratio([9600, 10_400], [0.5, 0.5])
    assert found.is_mismatch
    assert found.p_value < 1e-4
    assert found.chi_square_p_value == pytest.approx(1.54e-8, rel=0.01)
    assert not sample_ratio([9950, 10_050], [0.5, 0.5]).is_mismatch


def test_sample_ratios_of_unequal_shares():
    assert not sample_ratio([5010, 2990, 2000, 0], [0.5, 0.3, 0.2, 0.0]).is_mismatch
    assert sample_ratio([5300, 2900, 1800], [0.5, 0.3, 0.2]).is_mismatch
    assert sample_ratio([5000, 3000, 2000, 1], [0.5, 0.3, 0.2, 0.0]).is_mismatch
    assert sample_ratio([0, 0], [0.5, 0.5]).p_value == 1.0
    assert sample_ratio([7], [1.0]).p_value == 1.0


def test_evidence_of_a_mismatch_grows_with_the_subjects():
    found = [sample_ratio([48 * n, 52 * n], [0.5, 0.5]).p_value for n in (10, 50, 200, 800)]
    assert all(later < earlier for earlier, later in pairwise(found))


def test_sample_ratios_may_be_watched():
    """At every look of 20,000: the sequential test keeps its level, a chi-square test does not."""
    sequential, chi_square = mismatches(0.5, 0.05, 500)
    assert sequential.rejected <= 0.05
    assert chi_square.rejected > 0.25
    found, _ = mismatches(0.48, mismatch.ALPHA, 200)
    assert found.rejected > 0.9
