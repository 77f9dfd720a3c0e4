"""EMR: one vector that unifies all tasks, from which a mask per task takes back its own.

Huang et al. 2024, "EMR-Merging: Tuning-Free High-Performance Model Merging", arXiv:2405.17461.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.merge.selection import (
    Selection,
    blocks,
    one_hot,
    ordered_sum,
    select_elements,
)
from taskmix_composer.merge.vectors import Vectors


def emr(vectors: Vectors) -> Iterator[Selection]:
    """The unified vector, without the masks and rescales that are made for each task."""
    return select_elements(vectors, _largest_agreeing, (1.0,) * len(vectors.tasks))


def unified(deltas: Tensor) -> Tensor:
    """Per element the largest delta of the sign of the sum: float32 [T, *shape] -> [*shape].

    Where the sum is 0 the sign is minus, as in the authors' code.
    """
    total = torch.empty(deltas.shape[1:])
    for part, block in blocks(total.view(1, -1), deltas):
        part[0] = ordered_sum(block * _largest_agreeing(block))
    return total


def agreement(deltas: Tensor, unified_delta: Tensor) -> Tensor:
    """Where each task moves a weight the unified way: bool [T, *shape]; not where either is 0."""
    masks = torch.empty(deltas.shape, dtype=torch.bool)
    for part, block, common in blocks(masks, deltas, unified_delta.unsqueeze(0)):
        torch.gt(block.sign() * common.sign(), 0, out=part)
    return masks


def _largest_agreeing(deltas: Tensor) -> Tensor:
    """Masks of the first task of largest magnitude among those of the elected sign.

    float32 [T, n] -> bool [T, n]
    """
    sign = torch.where(ordered_sum(deltas) > 0, 1.0, -1.0)
    winners = torch.full(sign.shape, -1, dtype=torch.int16)
    best = torch.zeros_like(sign)
    for task, agreeing in enumerate(deltas * sign):
        winners.masked_fill_(agreeing > best, task)
        best = torch.maximum(best, agreeing)
    return one_hot(winners, len(deltas))
