"""Guardrails: what an arm must not do, and whether it has."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, Self

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.statistics.interval import Interval


class Limit(StrEnum):
    """Which side of a rule's bound is allowed."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"


class Evidence(Protocol):
    """What is known of a metric in one arm: a `Summary`, `Rate` or `Quantile`."""

    @property
    def estimate(self) -> float: ...

    def interval(self, alpha: float) -> Interval: ...

    def ratio_interval(self, control: Self, alpha: float) -> Interval: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """A metric of an arm that must stay on one side of a bound.

    bound: in the metric's unit, or with `is_relative` a multiple of the control's value. quantile:
    the level that is meant, 0.95 for p95; None for a mean or rate. alpha: the chance that an arm
    which keeps the rule is ever found to break it, however often it is checked.
    """

    metric: str
    limit: Limit
    bound: float
    is_relative: bool = False
    quantile: float | None = None
    alpha: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", _limit(self.limit))
        if not math.isfinite(self.bound):
            raise InvalidRequestError(f"{self.metric}'s bound must be finite, got {self.bound}")
        if self.is_relative and self.bound <= 0:
            raise InvalidRequestError(
                f"{self.metric}'s bound is a multiple of the control's and must be above 0, got "
                f"{self.bound}"
            )
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise InvalidRequestError(
                f"{self.metric}'s quantile must lie between 0 and 1, got {self.quantile}"
            )
        if not 0 < self.alpha < 1:
            raise InvalidRequestError(
                f"{self.metric}'s alpha must lie between 0 and 1, got {self.alpha}"
            )

    def __str__(self) -> str:
        name = self.metric if self.quantile is None else f"{self.metric} p{100 * self.quantile:g}"
        of_control = " times the control's" if self.is_relative else ""
        return f"{name} {self.limit.replace('_', ' ')} {self.bound:g}{of_control}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a rule is broken beyond doubt, and the numbers that say so."""

    is_breached: bool
    why: str


def check(rule: Rule, arm: Evidence, control: Evidence | None = None) -> Verdict:
    """Hold an arm's evidence against a rule; a relative one needs the control's, of the same kind.

    The rule is broken where the confidence sequence of the arm's value, or of its ratio to the
    control's, lies beyond the bound as a whole.
    """
    if not rule.is_relative:
        value = arm.interval(rule.alpha)
        return _verdict(rule, value, f"this arm's value is {_text(value)}")
    if control is None:
        raise InvalidRequestError(
            f"'{rule}' needs the control's measurements; the control itself cannot break it"
        )
    ratio = arm.ratio_interval(control, rule.alpha)
    values = f"this arm's value is {arm.estimate:.4g}, the control's {control.estimate:.4g}"
    return _verdict(rule, ratio, f"{values}, their true ratio {_text(ratio)}")


def _verdict(rule: Rule, value: Interval, found: str) -> Verdict:
    is_at_most = rule.limit is Limit.AT_MOST
    is_breached = value.low > rule.bound if is_at_most else value.high < rule.bound
    return Verdict(is_breached, f"'{rule}' is {'broken' if is_breached else 'not broken'}: {found}")


def _text(interval: Interval) -> str:
    low, high = interval.low, interval.high
    if math.isinf(low) and math.isinf(high):
        return "not known yet"
    if math.isinf(low):
        return f"at most {high:.4g}"
    if math.isinf(high):
        return f"at least {low:.4g}"
    return f"between {low:.4g} and {high:.4g}"


def _limit(limit: str) -> Limit:
    try:
        return Limit(limit)
    except ValueError as error:
        raise InvalidRequestError(
            f"{limit!r:.40} is no limit; write {' or '.join(Limit)}"
        ) from error
