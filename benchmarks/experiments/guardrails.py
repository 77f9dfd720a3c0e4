"""How many requests it takes until a guardrail finds that an arm breaks it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.experiments.watched import Floats, Generator
from taskmix_server.experiments.guardrail import Evidence, Limit, Rule, check
from taskmix_server.experiments.statistics.quantile import Quantile
from taskmix_server.experiments.statistics.rate import Rate
from taskmix_server.runtime.experiments.guardrails import NUM_WINDOWS, stricter

MAX_REQUESTS = 2000
LOOK_EVERY = 5
LOOKS: Mapping[str, int] = {"the whole record": 1, "a window": NUM_WINDOWS}
"""What the server holds a rule against, and among how many of them it shares out half of alpha."""


@dataclass(frozen=True, slots=True)
class Found:
    """Requests to each of arm and control until a guardrail was found broken: median and p90.

    look: of `LOOKS`. alpha: what the rule has of its own there.
    """

    rule: str
    change: str
    look: str
    alpha: float
    num_experiments: int
    p50: float
    p90: float


@dataclass(frozen=True, slots=True)
class Case:
    """A rule and what breaks it: draw gives `MAX_REQUESTS` values, `change` times the usual."""

    rule: Rule
    draw: Callable[[Generator, float], Floats]
    of: Callable[[Floats], Evidence]
    change: float


def _errors(rng: Generator, change: float) -> Floats:
    return rng.binomial(1, 0.01 * change, MAX_REQUESTS).astype(float)


def _latencies(rng: Generator, change: float) -> Floats:
    """Seconds; the usual 95th percentile is 2.28."""
    return change * rng.lognormal(0.0, 0.5, MAX_REQUESTS)


def _rate(values: Floats) -> Rate:
    return Rate(int(values.sum()), values.size)


def _p95(values: Floats) -> Quantile:
    return Quantile(values, 0.95)


_P95_BOUND = Rule("latency_s", Limit.AT_MOST, 4.0, quantile=0.95)
GUARDRAILS: Mapping[str, Case] = {
    "10 % errors in place of 1 %, bound": Case(
        Rule("error_rate", Limit.AT_MOST, 0.02), _errors, _rate, 10.0
    ),
    "10 % errors in place of 1 %, control": Case(
        Rule("error_rate", Limit.AT_MOST, 2.0, is_relative=True), _errors, _rate, 10.0
    ),
    "3 times slower, bound": Case(_P95_BOUND, _latencies, _p95, 3.0),
    "3 times slower, control": Case(
        replace(_P95_BOUND, bound=1.5, is_relative=True), _latencies, _p95, 3.0
    ),
}


def requests_until_found(name: str, look: str, num_experiments: int, seed: int) -> Found:
    """Check a guardrail of `GUARDRAILS` on growing numbers of requests until it is broken."""
    rng = np.random.default_rng(seed)
    case = GUARDRAILS[name]
    rule = stricter(case.rule, LOOKS[look])
    looks = range(LOOK_EVERY, MAX_REQUESTS + 1, LOOK_EVERY)
    needed = []
    for _ in range(num_experiments):
        arm, control = case.draw(rng, case.change), case.draw(rng, 1.0)
        broken = (
            n for n in looks if check(rule, case.of(arm[:n]), case.of(control[:n])).is_breached
        )
        needed.append(next(broken, math.inf))
    p50, p90 = np.quantile(needed, [0.5, 0.9], method="higher")
    return Found(str(rule), name, look, rule.alpha, num_experiments, float(p50), float(p90))
