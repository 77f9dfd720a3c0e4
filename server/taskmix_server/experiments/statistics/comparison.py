"""An arm against the control: the difference, the relative lift, and how sure they are."""

import math
from dataclasses import dataclass

from taskmix_server.experiments.statistics import sequence
from taskmix_server.experiments.statistics.interval import UNKNOWN, Interval
from taskmix_server.experiments.statistics.precision import clock_of, squared_errors
from taskmix_server.experiments.statistics.summary import MIN_SUBJECTS, Summary


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known of arm - control, valid however often it is looked at.

    lift: (arm - control) / control; its interval is unbounded where the control may be zero or
    less. is_ready: whether there is enough to say more than the estimates.
    """

    difference: float
    interval: Interval = UNKNOWN
    p_value: float = 1.0
    lift: float = math.nan
    lift_interval: Interval = UNKNOWN
    is_ready: bool = False

    @property
    def is_different(self) -> bool:
        return not self.interval.contains(0.0)


def compare(arm: Summary, control: Summary, alpha: float = 0.05) -> Comparison:
    """The (1 - alpha) sequences of one arm's difference and lift over the control's.

    With several arms or metrics, share alpha out among them.
    """
    difference = arm.estimate - control.estimate
    lift = difference / control.estimate if control.estimate else math.nan
    if min(arm.count, control.count) < MIN_SUBJECTS:
        return Comparison(difference, lift=lift)
    squares = squared_errors(arm.variance, control.variance, arm.count, control.count)
    arm_square, control_square = map(float, squares)
    if not arm_square + control_square > 0:
        return Comparison(difference, lift=lift)
    error = math.sqrt(arm_square + control_square)
    clock = clock_of(arm.count, control.count)
    width = float(sequence.radius(clock, alpha))
    return Comparison(
        difference,
        Interval(difference - width * error, difference + width * error),
        float(sequence.p_value(difference / error, clock)),
        lift,
        _lift_interval(
            (arm.estimate, width**2 * arm_square), (control.estimate, width**2 * control_square)
        ),
        is_ready=True,
    )


def _lift_interval(arm: tuple[float, float], control: tuple[float, float]) -> Interval:
    """The lifts r for which arm - (1 + r) control may be zero; each is a mean and its squared
    half-width.

    Fieller (1954), "Some problems in interval estimation", at the sequence's width in place of
    Student's: for each r the difference has a sequence of its own, so that their union holds at
    all times, and it excludes 0 exactly when the difference does.
    """
    (mean, square), (base, base_square) = arm, control
    leading = base**2 - base_square
    if leading <= 0 or base <= 0:
        return UNKNOWN
    root = math.sqrt(mean**2 * base_square + base**2 * square - square * base_square)
    middle = mean * base
    return Interval((middle - root) / leading - 1, (middle + root) / leading - 1)
