"""Positive numbers as float16 times one float32 factor per tensor.

Bare float16 underflows on the small numbers that deltas are made of. Under the factor the largest
number is 2**15, which leaves 39 binary orders below it.
"""

import torch
from torch import Tensor

_LARGEST_STORED = 2.0**15
_SMALLEST_FACTOR = 2.0**-126


def factor_for(largest: float) -> float:
    """The float32 number under which `largest`, not negative, is stored as at most 2**15."""
    exact = max(largest / _LARGEST_STORED, _SMALLEST_FACTOR)
    factor = torch.tensor(exact, dtype=torch.float32)
    if float(factor) < exact:
        factor = torch.nextafter(factor, torch.tensor(torch.inf))
    return float(factor)


def rounded_up(values: Tensor, factor: float) -> Tensor:
    """The smallest float16 numbers that are, in units of `factor`, not below float64 `values`.

    No value may be negative, or larger than the one the factor was made for.
    """
    units = values / factor
    halves = units.to(torch.float16)
    is_below = halves.double() < units
    return (halves.view(torch.int16) + is_below.to(torch.int16)).view(torch.float16)


def restored(halves: Tensor, factor: float) -> Tensor:
    """Invert `rounded_up`: float16 -> float32."""
    return halves.float().mul_(factor)
