"""What a set of tasks shares, one tensor at a time.

A set's deltas come as a function that yields them anew at each call, None standing for zeros: only
one is held at a time.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Deltas = Callable[[], Iterable[Tensor | None]]


def mean(deltas: Deltas) -> Tensor:
    """The mean of a set's deltas of one tensor; None stands for zeros."""
    values, num_deltas = torch.zeros(()), 0
    for delta in deltas():
        num_deltas += 1
        if delta is not None:
            values = values + delta
    return values / num_deltas


def total(deltas: Deltas) -> Tensor:
    """Their sum."""
    return sum((delta for delta in deltas() if delta is not None), torch.zeros(()))


def unified(deltas: Deltas) -> Tensor:
    """The sign of their sum, 0 counting as negative, with the largest magnitude under it."""
    sign = torch.where(total(deltas) > 0, 1.0, -1.0)
    largest = torch.zeros_like(sign)
    for delta in deltas():
        if delta is not None:
            torch.maximum(largest, delta * sign, out=largest)
    return largest.mul_(sign)
