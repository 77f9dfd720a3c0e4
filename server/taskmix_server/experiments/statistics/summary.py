"""What is kept of an arm's observations of a metric: enough for its mean or ratio and variance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.statistics import sequence
from taskmix_server.experiments.statistics.interval import UNKNOWN, Interval, quotient

# Nothing is said of fewer subjects in an arm: the sequence is valid in the limit, and
# `benchmarks.experiments` measures how well its level holds from this start.
MIN_SUBJECTS = 100

# An arm's mean by itself is told from a number as if its subjects were so many times fewer: skewed
# values do not cancel as they do between two arms, and a slow start waits for them to even out.
ALONE = 5


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and moments of observations (y, x), one a subject.

    The metric is the ratio of sums, sum(y) / sum(x): latency per request of subjects who make
    several has y their total latency and x their requests. A plain mean has x = 1 throughout.
    mean_y, mean_x: averages over subjects; m_yy, m_xx, m_xy: sums of products of deviations.
    """

    count: int = 0
    mean_y: float = 0.0
    mean_x: float = 0.0
    m_yy: float = 0.0
    m_xx: float = 0.0
    m_xy: float = 0.0

    @staticmethod
    def of(
        y: Sequence[float] | npt.NDArray[np.float64],
        x: Sequence[float] | npt.NDArray[np.float64] | None = None,
    ) -> "Summary":
        """Summarize one observation a subject: y and x float [subjects]; no x for a mean."""
        ys = np.asarray(y, dtype=np.float64)
        xs = np.ones_like(ys) if x is None else np.asarray(x, dtype=np.float64)
        if ys.shape != xs.shape or ys.ndim != 1:
            raise InvalidRequestError(
                f"a ratio needs a y and an x of each subject, got {ys.shape} and {xs.shape}"
            )
        if not (np.isfinite(ys).all() and np.isfinite(xs).all()):
            raise InvalidRequestError("observations must be finite; drop or mend NaN and infinity")
        if ys.size == 0:
            return Summary()
        mean_y, mean_x = float(ys.mean()), float(xs.mean())
        off_y, off_x = ys - mean_y, xs - mean_x
        return Summary(
            ys.size,
            mean_y,
            mean_x,
            *(float(a @ b) for a, b in ((off_y, off_y), (off_x, off_x), (off_y, off_x))),
        )

    def merged(self, other: "Summary") -> "Summary":
        """The summary of both sets of subjects, which must not overlap.

        The pairwise update of Chan, Golub & LeVeque (1983), "Algorithms for computing the sample
        variance", for each of the three products.
        """
        count = self.count + other.count
        if count == 0:
            return self
        share = other.count / count
        off_y, off_x = other.mean_y - self.mean_y, other.mean_x - self.mean_x
        weight = self.count * share
        return Summary(
            count,
            self.mean_y + share * off_y,
            self.mean_x + share * off_x,
            self.m_yy + other.m_yy + weight * off_y * off_y,
            self.m_xx + other.m_xx + weight * off_x * off_x,
            self.m_xy + other.m_xy + weight * off_y * off_x,
        )

    @property
    def estimate(self) -> float:
        """The mean or ratio; NaN without observations or with x all zero."""
        return self.mean_y / self.mean_x if self.mean_x else math.nan

    @property
    def variance(self) -> float:
        """The variance of one subject's part in the estimate; the estimate's own is this / count.

        Of a ratio by the delta method: Deng, Knoblich & Lu (2018), "Applying the delta method in
        metric analytics". For x = 1 it is the unbiased sample variance.
        """
        if self.count < 2 or not self.mean_x:
            return math.nan
        ratio = self.estimate
        spread = self.m_yy - 2 * ratio * self.m_xy + ratio**2 * self.m_xx
        return max(spread, 0.0) / (self.count - 1) / self.mean_x**2

    def interval(self, alpha: float) -> Interval:
        """A (1 - alpha) confidence sequence of the estimate: see `sequence`.

        For shares of rare events use `Rate`, which is exact.
        """
        if self.count < MIN_SUBJECTS or not self.variance > 0:
            return UNKNOWN
        width = float(sequence.radius(self.count / ALONE, alpha))
        half = width * math.sqrt(self.variance / self.count)
        return Interval(self.estimate - half, self.estimate + half)

    def ratio_interval(self, control: "Summary", alpha: float) -> Interval:
        """A (1 - alpha) confidence sequence of this over the control's, by Bonferroni."""
        return quotient(self.interval(alpha / 2), control.interval(alpha / 2))
