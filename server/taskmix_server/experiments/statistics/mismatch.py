"""Sample-ratio mismatch: whether subjects reach the arms in the shares that were planned.

Where they do not, something loses or repeats subjects in one arm, and no comparison means anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chisquare

from taskmix_server.experiments.statistics.counts import log_evidence

# Asked at every look, of every experiment: a false alarm in a thousand experiments.
ALPHA = 0.001

# The prior is worth this many subjects: other shares than planned lie a point or two away.
PRIOR_SUBJECTS = 1000


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether the counts of subjects fit the shares.

    p_value: of the sequential test, which decides and may be watched. chi_square_p_value: of
    Pearson's test, for comparison; valid for a single look at a time chosen beforehand.
    """

    p_value: float
    chi_square_p_value: float

    @property
    def is_mismatch(self) -> bool:
        return self.p_value < ALPHA


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> SampleRatio:
    """Test the subjects counted in each arm against the arms' shares, which sum to 1.

    Sequential: `counts.log_evidence` with a Dirichlet prior around the shares, as Lindon & Malek
    (2022) test for mismatches. Fixed: Pearson (1900).
    """
    counted, planned = np.asarray(counts), np.asarray(shares, dtype=np.float64)
    used = planned > 0
    if counted[~used].any():
        return SampleRatio(0.0, 0.0)
    counted, planned = counted[used], planned[used] / planned.sum()
    if counted.sum() == 0 or len(counted) == 1:
        return SampleRatio(1.0, 1.0)
    evidence = float(log_evidence(counted, planned, PRIOR_SUBJECTS * planned))
    fixed = chisquare(counted, counted.sum() * planned)
    return SampleRatio(min(1.0, float(np.exp(-evidence))), float(fixed.pvalue))
