"""Task vectors held in memory, for merging."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class HeldVectors:
    """Vectors of tasks task0, task1 and so on, from float32 [T, *shape] by tensor.

    `num_unchanged` weights of the base stand in tensors that no task changes.
    """

    deltas: Mapping[str, Tensor]
    num_unchanged: int = 0

    @property
    def tasks(self) -> tuple[str, ...]:
        num_tasks = len(next(iter(self.deltas.values())))
        return tuple(f"task{number}" for number in range(num_tasks))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self.deltas[name].shape[1:]) for name in sorted(self.deltas)}

    @property
    def num_weights(self) -> int:
        return sum(map(math.prod, self.shapes.values())) + self.num_unchanged

    def read(self, tensor: str) -> Tensor:
        # A copy, so that a method which wrote into it would not go unnoticed elsewhere.
        return self.deltas[tensor].clone()
