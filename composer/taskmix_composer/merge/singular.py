"""Merging by singular values: matrices through their SVD, every other tensor as the mean.

TSV-M: Gargiulo et al. 2025, "Task Singular Vectors: Reducing Task Interference in Model Merging",
arXiv:2412.00081. Iso-C: Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with
Common and Task-Specific Subspaces", arXiv:2502.04959.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.merge.selection import Computed, ordered_sum
from taskmix_composer.merge.vectors import Vectors


def tsv_m(vectors: Vectors, *, alpha: float) -> Iterator[Computed]:
    """Each task's leading singular triplets, made orthogonal to the other tasks', times alpha."""

    def compute(tensor: str) -> Computed:
        deltas = vectors.read(tensor)
        merged = _orthogonalised(deltas) if deltas.dim() == 3 else _mean(deltas)
        return Computed(tensor, merged.mul_(alpha))

    return map(compute, vectors.shapes)


def iso_c(vectors: Vectors, *, scaling_factor: float) -> Iterator[Computed]:
    """The sum of the task vectors with all its singular values made equal to their mean."""

    def compute(tensor: str) -> Computed:
        deltas = vectors.read(tensor)
        merged = _isotropic(deltas) if deltas.dim() == 3 else _mean(deltas)
        return Computed(tensor, merged.mul_(scaling_factor))

    return map(compute, vectors.shapes)


def _mean(deltas: Tensor) -> Tensor:
    return ordered_sum(deltas).div_(len(deltas))


def _orthogonalised(deltas: Tensor) -> Tensor:
    """Merge matrices, float32 [T, rows, columns] -> [rows, columns].

    A task gets an equal part of the rank. A task that left the matrix alone still gets its part,
    as in the authors' code, and turns the others' vectors a little.
    """
    num_tasks, rows, columns = deltas.shape
    rank = min(rows, columns)
    # The authors' arithmetic: it rounds down once more than rank // num_tasks for some numbers.
    part = int(rank * (1 / num_tasks))
    left, values, right = torch.zeros(rows, rank), torch.zeros(rank), torch.zeros(rank, columns)
    for task, delta in enumerate(deltas):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        place = slice(task * part, (task + 1) * part)
        left[:, place], values[place], right[place] = u[:, :part], s[:part], vh[:part]
    return (_nearest_orthogonal(left) * values) @ _nearest_orthogonal(right)


def _nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The closest matrix whose singular values are all 1."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    nearest: Tensor = u @ vh
    return nearest


def _isotropic(deltas: Tensor) -> Tensor:
    """Sum matrices and level the spectrum, float32 [T, rows, columns] -> [rows, columns]."""
    u, s, vh = torch.linalg.svd(ordered_sum(deltas), full_matrices=False)
    levelled: Tensor = (u @ vh).mul_(s.mean())
    return levelled
