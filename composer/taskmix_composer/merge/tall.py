"""TALL masks, which localise tasks in a multi-task vector, and merging by their consensus.

Wang et al. 2024, "Localizing Task Information for Improved Model Merging and Compression",
arXiv:2405.07813. A weight that is in no task's mask is catastrophic, in one selfish; consensus
merging keeps the weights that are in at least k.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from taskmix_composer.merge.parameters import per_task
from taskmix_composer.merge.selection import Selection, blocks, ordered_sum, select_elements
from taskmix_composer.merge.ties import election
from taskmix_composer.merge.vectors import Vectors


def tall_masks(deltas: Tensor, total: Tensor, lambdas: Sequence[float]) -> Tensor:
    """Where a task is told from the base better than from the others' part of `total`.

    deltas: float32 [T, *shape]; total, the multi-task vector: float32 [*shape]; lambdas: one per
    task, larger for sparser masks. Returns bool [T, *shape]: |delta| > lambda * |total - delta|.
    """
    masks = torch.empty(deltas.shape, dtype=torch.bool)
    for part, block, common in blocks(masks, deltas, total.unsqueeze(0)):
        part.copy_(_tall(block, common, lambdas))
    return masks


def consensus_ta(
    vectors: Vectors, *, prun_thre_k: int, tall_mask_lambda: tuple[float, ...], lambda_: float
) -> Iterator[Selection]:
    """The sum of the task vectors where at least k of their TALL masks agree."""
    num_tasks = len(vectors.tasks)
    lambdas = per_task("tall_mask_lambda", tall_mask_lambda, num_tasks)

    def agreed(deltas: Tensor) -> Tensor:
        counts = _tall(deltas, ordered_sum(deltas), lambdas).sum(dim=0)
        return (counts >= prun_thre_k).expand_as(deltas)

    return select_elements(vectors, agreed, (lambda_,) * num_tasks)


def consensus_ties(
    vectors: Vectors,
    *,
    density: float,
    prun_thre_k: int,
    tall_mask_lambda: tuple[float, ...],
    lambda_: float,
) -> Iterator[Selection]:
    """The same over the sum that original TIES gives."""
    num_tasks = len(vectors.tasks)
    lambdas = per_task("tall_mask_lambda", tall_mask_lambda, num_tasks)
    elected = election(vectors, density)

    def agreed(deltas: Tensor) -> Tensor:
        masks = elected(deltas)
        counts = _tall(deltas, ordered_sum(deltas * masks), lambdas).sum(dim=0)
        return masks & (counts >= prun_thre_k)

    return select_elements(vectors, agreed, (lambda_,) * num_tasks)


def _tall(deltas: Tensor, total: Tensor, lambdas: Sequence[float]) -> Tensor:
    """TALL masks of a block: float32 [T, n], float32 [n] or [1, n] -> bool [T, n]."""
    scales = torch.tensor(lambdas).unsqueeze(1)
    return deltas.abs() > (total - deltas).abs_().mul_(scales)
