"""MagMax: each weight takes the largest change that any task made to it.

Marczak et al. 2024, "MagMax: Leveraging Model Merging for Seamless Continual Learning",
arXiv:2407.06322.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.merge.selection import Selection, one_hot, select_elements
from taskmix_composer.merge.vectors import Vectors


def magmax(vectors: Vectors, *, lambda_: float) -> Iterator[Selection]:
    """The change of largest magnitude times lambda; of equal magnitudes the last task's."""
    return select_elements(vectors, _last_largest, (lambda_,) * len(vectors.tasks))


def _last_largest(deltas: Tensor) -> Tensor:
    """Masks of the last of the tasks of largest magnitude: float32 [T, n] -> bool [T, n]."""
    winners = torch.zeros(deltas.shape[1], dtype=torch.int16)
    best = deltas[0].abs()
    for task, magnitude in enumerate(deltas.abs()):
        winners.masked_fill_(magnitude >= best, task)
        best = torch.maximum(best, magnitude)
    return one_hot(winners, len(deltas))
