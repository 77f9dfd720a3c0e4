"""Breadcrumbs: drop each task's smallest weights and also its few largest, tensor by tensor.

Davari and Belilovsky 2023, "Model Breadcrumbs", arXiv:2312.06795; counts as in mergekit's
`breadcrumbs`, where density is what is kept and gamma what is dropped at the top.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.merge.magnitude import smallest
from taskmix_composer.merge.parameters import coefficients_of, per_task
from taskmix_composer.merge.selection import Selection
from taskmix_composer.merge.vectors import Vectors


def breadcrumbs(
    vectors: Vectors,
    *,
    density: tuple[float, ...],
    gamma: tuple[float, ...],
    weight: tuple[float, ...],
    normalize: bool,
    lambda_: float,
) -> Iterator[Selection]:
    """The weighted sum of what each task keeps."""
    num_tasks = len(vectors.tasks)
    densities = per_task("density", density, num_tasks)
    gammas = per_task("gamma", gamma, num_tasks)
    coefficients = coefficients_of(weight, num_tasks, lambda_, normalize=normalize)

    def select(tensor: str) -> Selection:
        deltas = vectors.read(tensor)
        masks = torch.stack(list(map(_middle, deltas, densities, gammas)))
        return Selection(tensor, deltas, masks, coefficients)

    return map(select, vectors.shapes)


def _middle(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Mask of the elements between the smallest and the largest; a density of 1 keeps all.

    Fewer of the largest are dropped where density leaves no room.
    """
    if density >= 1:
        return torch.ones_like(delta, dtype=torch.bool)
    num_elements = delta.numel()
    num_kept, num_largest = int(density * num_elements), int(gamma * num_elements)
    num_smallest = max(0, num_elements - num_kept - num_largest)
    magnitudes = delta.abs()
    return smallest(magnitudes, num_smallest + num_kept) & ~smallest(magnitudes, num_smallest)
