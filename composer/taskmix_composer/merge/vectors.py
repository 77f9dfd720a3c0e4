"""What merge methods read: task vectors of one base, a tensor at a time."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Vectors(Protocol):
    """Task vectors of one base, read as often as a method needs and never held all at once."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, at least one, in the order that values given per task follow."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor that any task changes, sorted by name."""
        ...

    @property
    def num_weights(self) -> int:
        """Weights of the base that a fine-tune may change, whether or not one of these did."""
        ...

    def read(self, tensor: str) -> Tensor:
        """Deltas of one tensor: finite float32 [T, *shape], zeros where a task left it alone."""
        ...
