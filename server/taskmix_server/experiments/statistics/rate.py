"""The share of trials with an event, such as requests that failed."""

import math
from dataclasses import dataclass

from scipy.optimize import brentq

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.statistics.counts import log_evidence
from taskmix_server.experiments.statistics.interval import Interval

# Jeffreys' prior: rates near 0 and 1 are as likely as any.
PRIOR = (0.5, 0.5)

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Rate:
    """Events among trials that are independent of each other."""

    events: int = 0
    trials: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.events <= self.trials:
            raise InvalidRequestError(
                f"{self.events} events in {self.trials} trials; there can be no more than trials"
            )

    @property
    def estimate(self) -> float:
        return self.events / self.trials if self.trials else math.nan

    def interval(self, alpha: float) -> Interval:
        """A (1 - alpha) confidence sequence: the rates that the counts do not speak against.

        Exact at any number of trials: see `log_evidence`, which is convex in the rate.
        """
        if self.trials == 0:
            return Interval(0.0, 1.0)
        at = self.estimate
        return Interval(self._bound(0.0, at, alpha), self._bound(1.0, at, alpha))

    def ratio_interval(self, control: "Rate", alpha: float) -> Interval:
        """A (1 - alpha) confidence sequence of this rate over the control's.

        Where trials fall to the arms by chance, so do events, in proportion to trials times rate:
        a sequence for the arm's share of the events gives one for the ratio, and it needs to learn
        one rate in place of two. Lindon, Sanden & Shirikian (2022), "Rapid regression detection in
        software deployments through sequential testing"; here the trials counted so far stand for
        the planned split.
        """
        if not (self.trials and control.trials):
            return Interval(0.0, math.inf)
        split = Rate(self.events, self.events + control.events).interval(alpha)
        per_trial = control.trials / self.trials
        return Interval(_odds(split.low) * per_trial, _odds(split.high) * per_trial)

    def _bound(self, end: float, inside: float, alpha: float) -> float:
        """Where the evidence reaches 1 / alpha between the estimate and an end of [0, 1]."""
        if inside == end:
            return end
        # The evidence is infinite at the end itself, as there are trials of the other kind.
        near = end + math.copysign(_TINY, inside - end)
        limit = -math.log(alpha)
        if self._evidence(near) <= limit:
            return end
        return float(brentq(lambda rate: self._evidence(rate) - limit, near, inside))

    def _evidence(self, rate: float) -> float:
        counts = (self.events, self.trials - self.events)
        return float(log_evidence(counts, (rate, 1 - rate), PRIOR))


def _odds(share: float) -> float:
    return share / (1 - share) if share < 1 else math.inf
