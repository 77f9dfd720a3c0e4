"""DARE: drop weights of each task vector at random and scale up what is left.

Yu et al. 2023, "Language Models are Super Mario", arXiv:2311.03099. The paper divides by the
density, so that each weight keeps its expected value; mergekit's `dare_linear` scales each tensor
back to the L1 norm it had. A draw depends on the seed, the task and the tensor alone: a task keeps
the same weights whichever others are merged with it.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.merge.parameters import coefficients_of, per_task
from taskmix_composer.merge.selection import Selection
from taskmix_composer.merge.vectors import Vectors

# Below this L1 norm mergekit leaves a tensor as the draw left it.
_SMALLEST_NORM = 1e-7


def dare(vectors: Vectors, *, density: float, lambda_: float, seed: int) -> Iterator[Selection]:
    """The paper's: the kept weights of every task, divided by the density, summed."""
    drop_rate = 1 - density
    coefficients = (lambda_ / (1 - drop_rate),) * len(vectors.tasks)

    def select(tensor: str) -> Selection:
        deltas = vectors.read(tensor)
        masks = torch.empty(deltas.shape, dtype=torch.bool)
        for task, mask in zip(vectors.tasks, masks, strict=True):
            draw = torch.rand(mask.shape, generator=generator(seed, task, tensor))
            # A draw can be 0, which a density of 1 must keep all the same.
            mask.copy_((draw > drop_rate) | (drop_rate == 0))
        return Selection(tensor, deltas, masks, coefficients)

    return map(select, vectors.shapes)


def dare_mergekit(
    vectors: Vectors,
    *,
    density: tuple[float, ...],
    weight: tuple[float, ...],
    normalize: bool,
    lambda_: float,
    seed: int,
) -> Iterator[Selection]:
    """mergekit's `dare_linear`: a weighted sum of tensors that keep their L1 norms.

    The factor that restores a norm differs by tensor, and so do the coefficients.
    """
    densities = per_task("density", density, len(vectors.tasks))
    numbers = coefficients_of(weight, len(vectors.tasks), lambda_, normalize=normalize)

    def select(tensor: str) -> Selection:
        deltas = vectors.read(tensor)
        masks = torch.empty(deltas.shape, dtype=torch.bool)
        for mask, delta, task, kept in zip(masks, deltas, vectors.tasks, densities, strict=True):
            chance = torch.full_like(delta, kept)
            mask.copy_(torch.bernoulli(chance, generator=generator(seed, task, tensor)))
        factors = map(_norm_factor, deltas, masks)
        coefficients = tuple(n * factor for n, factor in zip(numbers, factors, strict=True))
        return Selection(tensor, deltas, masks, coefficients)

    return map(select, vectors.shapes)


def generator(seed: int, task: str, tensor: str) -> torch.Generator:
    """The source of one task's draw for one tensor."""
    digest = hashlib.sha256(f"{seed}\n{task}\n{tensor}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def _norm_factor(delta: Tensor, mask: Tensor) -> float:
    """What gives the masked delta the L1 norm of the whole."""
    before, after = float(delta.abs().sum()), float((delta * mask).abs().sum())
    return before / after if min(before, after) >= _SMALLEST_NORM else 1.0
