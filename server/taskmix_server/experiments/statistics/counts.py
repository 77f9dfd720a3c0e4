"""Evidence from counts against given probabilities; exact at every sample size and every look."""

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, xlogy

Floats = npt.NDArray[np.float64]


def log_evidence(
    counts: npt.ArrayLike, probabilities: npt.ArrayLike, prior: npt.ArrayLike
) -> Floats:
    """The logarithm of the Bayes factor against multinomial probabilities, float [...].

    counts, probabilities and prior, the parameters of a Dirichlet distribution over other
    probabilities, are [..., categories]. Under the given probabilities the factor is a martingale
    that starts at 1, so the chance that it *ever* exceeds 1 / alpha is at most alpha: Lindon &
    Malek (2022), "Anytime-valid inference for multinomial count data". With two categories
    it is the beta-binomial mixture of Robbins (1970).
    """
    counted = np.asarray(counts, dtype=np.float64)
    weights = np.asarray(prior, dtype=np.float64)
    mixed = _log_beta(counted + weights) - _log_beta(weights)
    given: Floats = np.sum(xlogy(counted, np.asarray(probabilities)), axis=-1)
    return mixed - given


def _log_beta(weights: Floats) -> Floats:
    beta: Floats = np.sum(gammaln(weights), axis=-1) - gammaln(np.sum(weights, axis=-1))
    return beta
