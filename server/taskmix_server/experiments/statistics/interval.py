"""A range of values that a quantity may have."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, both included; infinite where nothing is known."""

    low: float = -math.inf
    high: float = math.inf

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


UNKNOWN = Interval()


def quotient(arm: Interval, control: Interval) -> Interval:
    """What arm / control may be if each lies in its interval; unknown unless control is above 0."""
    if not control.low > 0:
        return UNKNOWN
    low = arm.low / (control.high if arm.low > 0 else control.low)
    high = arm.high / (control.low if arm.high > 0 else control.high)
    return Interval(low, high)
