"""Which elements are largest: within a tensor, and across a whole task vector."""

import math

import torch
from torch import Tensor

from taskmix_composer.merge.selection import blocks
from taskmix_composer.merge.vectors import Vectors

# A magnitude has 31 bits that may be set.
_LOWER_BITS = 16


def largest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest values; of equal ones the first. bool, the shape of `values`."""
    return smallest(-values, count)


def smallest(values: Tensor, count: int) -> Tensor:
    """Mask of the `count` smallest values; of equal ones the first. bool, the shape of `values`."""
    if not 0 < count < values.numel():
        return torch.full_like(values, count > 0, dtype=torch.bool)
    flat = values.flatten()
    bound = flat.kthvalue(count).values
    mask = flat < bound
    equals = (flat == bound).nonzero().squeeze(1)
    mask[equals[: count - int(mask.sum())]] = True
    return mask.view(values.shape)


def kth_magnitudes(vectors: Vectors, rank: int) -> Tensor:
    """The `rank`-th smallest magnitude of each task vector, from 1 to num_weights: float32 [T].

    Exact in two readings. Magnitudes order like their bit patterns: the first reading counts the
    upper halves of the patterns, the second the lower halves below the upper half of interest.
    """
    num_unchanged = vectors.num_weights - sum(map(math.prod, vectors.shapes.values()))
    num_tasks = len(vectors.tasks)
    uppers = torch.zeros((num_tasks, 1 << (31 - _LOWER_BITS)), dtype=torch.int64)
    uppers[:, 0] = num_unchanged
    for tensor in vectors.shapes:
        _count_upper_halves(vectors.read(tensor), uppers)
    upper, num_before = _bins_of_rank(uppers, torch.full((num_tasks, 1), rank))
    lowers = torch.zeros((num_tasks, 1 << _LOWER_BITS), dtype=torch.int64)
    lowers[:, :1] = num_unchanged * (upper == 0)
    for tensor in vectors.shapes:
        _count_lower_halves(vectors.read(tensor), upper, lowers)
    lower, _ = _bins_of_rank(lowers, rank - num_before)
    return (upper << _LOWER_BITS | lower).squeeze(1).to(torch.int32).view(torch.float32)


def _count_upper_halves(deltas: Tensor, counts: Tensor) -> None:
    """Add to counts, int64 [T, 2**15], how many magnitudes of each task have each upper half."""
    for (block,) in blocks(deltas):
        uppers = block.abs().view(torch.int32) >> _LOWER_BITS
        counts.scatter_add_(1, uppers.long(), torch.ones_like(uppers, dtype=torch.int64))


def _count_lower_halves(deltas: Tensor, upper: Tensor, counts: Tensor) -> None:
    """Add to counts, int64 [T, 2**16], the lower halves under the task's upper, int64 [T, 1]."""
    for (block,) in blocks(deltas):
        patterns = block.abs().view(torch.int32)
        lowers = patterns & ((1 << _LOWER_BITS) - 1)
        counts.scatter_add_(1, lowers.long(), (patterns >> _LOWER_BITS == upper).long())


def _bins_of_rank(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of counts, the bin that holds its rank, and how many come before that bin.

    int64 [T, bins], [T, 1] -> two int64 [T, 1]
    """
    ends = counts.cumsum(dim=1)
    bins = torch.searchsorted(ends, rank)
    return bins, ends.gather(1, bins) - counts.gather(1, bins)
