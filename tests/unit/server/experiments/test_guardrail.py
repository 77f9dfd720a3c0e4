"""Guardrails: what breaks a rule, what does not, and what they say."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.guardrail import Limit, Rule, check
from taskmix_server.experiments.statistics.quantile import Quantile
from taskmix_server.experiments.statistics.rate import Rate
from taskmix_server.experiments.statistics.summary import Summary

ERRORS = Rule("error_rate", Limit.AT_MOST, 0.02)
P95 = Rule("latency_s", Limit.AT_MOST, 1.5, is_relative=True, quantile=0.95)


def latencies(scale: float, count: int, seed: int) -> Quantile:
    return Quantile(scale * np.random.default_rng(seed).lognormal(0, 0.3, count), 0.95)


def test_an_arm_that_fails_a_tenth_of_its_requests_is_found():
    found = check(ERRORS, Rate(10, 100))
    assert found.is_breached
    assert found.why == (
        "'error_rate at most 0.02' is broken: this arm's value is between 0.0235 and 0.2487"
    )
    assert not check(ERRORS, Rate(3, 100)).is_breached
    assert not check(ERRORS, Rate(0, 0)).is_breached


def test_an_arm_three_times_slower_than_the_control_is_found():
    slow, control = latencies(3.0, 200, seed=1), latencies(1.0, 200, seed=2)
    found = check(P95, slow, control)
    assert found.is_breached
    assert found.why.startswith("'latency_s p95 at most 1.5 times the control's' is broken")
    assert not check(P95, latencies(1.3, 200, seed=1), control).is_breached
    # Far from the bound, but on the right side of it.
    assert not check(P95, control, slow).is_breached


def test_an_arm_that_fails_far_more_than_the_control_is_found():
    rule = Rule("error_rate", Limit.AT_MOST, 2.0, is_relative=True)
    found = check(rule, Rate(40, 400), Rate(4, 400))
    assert found.is_breached
    assert found.why.startswith(
        "'error_rate at most 2 times the control's' is broken: this arm's value is 0.1, the "
        "control's 0.01, their true ratio between "
    )
    assert check(rule, Rate(20, 200), Rate(0, 200)).is_breached
    assert not check(rule, Rate(8, 400), Rate(4, 400)).is_breached
    assert not check(rule, Rate(4, 400), Rate(40, 400)).is_breached
    assert not check(rule, Rate(0, 0), Rate(4, 400)).is_breached
    assert not check(rule, Rate(4, 400), Rate(0, 0)).is_breached


def test_an_absolute_bound_on_a_quantile_needs_few_requests():
    rule = Rule("latency_s", Limit.AT_MOST, 1.0, quantile=0.95)
    assert check(rule, latencies(3.0, 10, seed=1)).is_breached
    assert not check(rule, latencies(0.3, 10, seed=1)).is_breached


@pytest.mark.parametrize(("bound", "is_breached"), [(0.5, True), (0.355, False), (0.3, False)])
def test_an_outcomes_lower_bound(bound, is_breached):
    rng = np.random.default_rng(3)
    outcome = Summary.of(rng.normal(0.35, 0.1, 1000))
    assert check(Rule("score", Limit.AT_LEAST, bound), outcome).is_breached is is_breached
    control = Summary.of(rng.normal(1.0, 0.1, 1000))
    relative = Rule("score", Limit.AT_LEAST, bound, is_relative=True)
    assert check(relative, outcome, control).is_breached is is_breached


def test_too_little_breaks_no_rule():
    few = Summary.of([9.0] * 50)
    found = check(Rule("tokens", Limit.AT_MOST, 1.0), few)
    assert not found.is_breached
    assert "not known yet" in found.why
    relative = Rule("tokens", Limit.AT_MOST, 1.0, is_relative=True)
    assert not check(relative, Summary.of([8.0, 9.0] * 500), Summary()).is_breached


def test_a_rule_that_is_kept_is_rarely_found_broken():
    """200 arms just at the bound, looked at after every fiftieth request."""
    rng = np.random.default_rng(4)
    rule = Rule("error_rate", Limit.AT_MOST, 0.05, alpha=0.05)
    broken = 0
    for _ in range(200):
        events = np.cumsum(rng.random(1000) < 0.05)
        looks = (Rate(int(events[n - 1]), n) for n in range(50, 1001, 50))
        broken += any(check(rule, rate).is_breached for rate in looks)
    assert broken <= 0.05 * 200


def test_a_relative_rule_needs_the_control():
    with pytest.raises(InvalidRequestError, match="control"):
        check(P95, latencies(1.0, 10, seed=1))


def test_a_rule_survives_being_stored():
    assert Rule(**asdict(P95)) == P95
    assert Rule("latency_s", "at_most", 1.5, True, 0.95) == P95


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"limit": "above"}, "at_most or at_least"),
        ({"bound": math.nan}, "finite"),
        ({"bound": 0.0, "is_relative": True}, "above 0"),
        ({"quantile": 95}, "quantile"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_a_bad_rule_is_refused(fields, message):
    with pytest.raises(InvalidRequestError, match=message):
        Rule(**{"metric": "latency_s", "limit": Limit.AT_MOST, "bound": 1.0, **fields})
