"""Quantiles, such as the 95th percentile of latency."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.statistics.counts import log_evidence
from taskmix_server.experiments.statistics.interval import Interval, quotient

# The prior is worth this many values around the level, which bounds a tail earlier than Jeffreys'.
_PRIOR_VALUES = 5


@dataclass(frozen=True, slots=True)
class Quantile:
    """Values, independent of each other, of which the quantile at `level` in (0, 1) is asked."""

    values: Sequence[float] | npt.NDArray[np.float64]
    level: float

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InvalidRequestError(f"a quantile's level is between 0 and 1, got {self.level}")
        if not np.isfinite(self.values).all():
            raise InvalidRequestError("values must be finite; drop or mend NaN and infinity")

    @property
    def estimate(self) -> float:
        return float(np.quantile(self.values, self.level)) if len(self.values) else math.nan

    def interval(self, alpha: float) -> Interval:
        """A (1 - alpha) confidence sequence, exact for any distribution, ties included.

        Howard & Ramdas (2022), "Sequential estimation of quantiles with applications to A/B
        testing and best-arm identification": how many values lie below the true quantile is
        binomial, so its bounds are the values of the ranks that a test for binomials (here
        `log_evidence`) lets pass.
        """
        below = np.arange(len(self.values) + 1)
        counts = np.stack([below, len(self.values) - below], axis=-1)
        level = np.array([self.level, 1 - self.level])
        evidence = log_evidence(counts, level, _PRIOR_VALUES * level)
        ranks = np.flatnonzero(evidence <= -math.log(alpha))
        padded = np.concatenate([[-math.inf], np.sort(self.values), [math.inf]])
        return Interval(float(padded[ranks[0]]), float(padded[ranks[-1] + 1]))

    def ratio_interval(self, control: "Quantile", alpha: float) -> Interval:
        """A (1 - alpha) confidence sequence of this over the control's, by Bonferroni."""
        return quotient(self.interval(alpha / 2), control.interval(alpha / 2))
