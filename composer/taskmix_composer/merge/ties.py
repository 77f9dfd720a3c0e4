"""TIES: trim each task vector, elect a sign per weight, merge the tasks that agree with it.

Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models", arXiv:2306.01708.
The paper's own code trims over the whole vector and elects without weights; mergekit's `ties` trims
each tensor and weighs before it elects. On the same models they give different weights.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.merge.magnitude import kth_magnitudes, largest
from taskmix_composer.merge.parameters import per_task
from taskmix_composer.merge.selection import (
    Rule,
    Selection,
    blocks,
    ordered_sum,
    select_elements,
)
from taskmix_composer.merge.vectors import Vectors


def ties(
    vectors: Vectors, *, density: float, merge_func: str, lambda_: float
) -> Iterator[Selection]:
    """The original: one threshold per task over all its weights, then the sum or the mean."""
    num_tasks = len(vectors.tasks)
    shares = (1.0,) * num_tasks if merge_func == "mean" else None
    return select_elements(vectors, election(vectors, density), (lambda_,) * num_tasks, shares)


def election(vectors: Vectors, density: float) -> Rule:
    """What the original trims and elects, as a rule for these vectors; reads them three times.

    A task keeps every weight as large as its threshold, so int(density * weights) + 1 of them, and
    more where magnitudes are equal. Where the kept values cancel out, the sign that most weights
    elected decides, and minus if there is none.
    """
    thresholds = _thresholds(vectors, density).unsqueeze(1)

    def balance(deltas: Tensor) -> int:
        """How many more elements of a tensor elect plus than minus."""
        signs = (_kept_sum(block, thresholds).sign() for (block,) in blocks(deltas))
        return sum(int(sign.sum()) for sign in signs)

    prefers_positive = sum(balance(vectors.read(tensor)) for tensor in vectors.shapes) > 0

    def elected(deltas: Tensor) -> Tensor:
        total = _kept_sum(deltas, thresholds)
        is_positive = total >= 0 if prefers_positive else total > 0
        return (deltas.abs() >= thresholds) & torch.where(is_positive, deltas > 0, deltas < 0)

    return elected


def ties_mergekit(
    vectors: Vectors,
    *,
    density: tuple[float, ...],
    weight: tuple[float, ...],
    normalize: bool,
    lambda_: float,
) -> Iterator[Selection]:
    """mergekit's: each tensor keeps its largest weights, and coefficients take part in the vote.

    With `normalize` each element is divided by the coefficients of the tasks selected there.
    """
    num_tasks = len(vectors.tasks)
    densities = per_task("density", density, num_tasks)
    weights = per_task("weight", weight, num_tasks)
    coefficients = tuple(lambda_ * number for number in weights)
    shares = weights if normalize else None

    def select(tensor: str) -> Selection:
        deltas = vectors.read(tensor)
        masks = torch.empty(deltas.shape, dtype=torch.bool)
        for task, delta in enumerate(deltas):
            # At least one element is kept.
            masks[task] = largest(delta.abs(), max(1, int(densities[task] * delta.numel())))
        for kept, block in blocks(masks, deltas):
            votes = block * kept * torch.tensor(weights).unsqueeze(1)
            # Where the votes cancel out, plus is elected.
            kept.copy_(torch.where(ordered_sum(votes) >= 0, votes > 0, votes < 0))
        return Selection(tensor, deltas, masks, coefficients, shares)

    return map(select, vectors.shapes)


def _thresholds(vectors: Vectors, density: float) -> Tensor:
    """The smallest magnitude that each task keeps: float32 [T]."""
    rank = vectors.num_weights - int(vectors.num_weights * density)
    if rank == 0:
        return torch.zeros(len(vectors.tasks))
    return kth_magnitudes(vectors, rank)


def _kept_sum(deltas: Tensor, thresholds: Tensor) -> Tensor:
    """Sum over tasks of what reaches their thresholds: float32 [T, n], [T, 1] -> [n]."""
    return ordered_sum(deltas * (deltas.abs() >= thresholds))
