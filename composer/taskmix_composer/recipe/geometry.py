"""What scalar methods compute from: the inner products of a bank's task vectors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.errors import UnknownTaskError
from taskmix_composer.mix import layer_of

Matrix = Sequence[Sequence[float]]
"""Inner products [num_tasks, num_tasks]; the diagonal holds squared L2 norms."""


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Lengths and angles of task vectors, tensor by tensor.

    table: float64 [num_tensors, num_tasks, num_tasks] in the order of `tensors` (those of the
        base) and `tasks`, or None where they were not measured.
    """

    tensors: tuple[str, ...]
    tasks: tuple[str, ...]
    table: Tensor | None

    @classmethod
    def of(cls, bank: Bank) -> "Geometry":
        """The geometry of all tasks of a bank, read from its directory."""
        return cls(tuple(sorted(bank.base.tensors)), tuple(sorted(bank.entries)), bank.read_gram())

    def chosen(self, tasks: tuple[str, ...]) -> "Geometry":
        """The geometry of these tasks, in this order."""
        for task in tasks:
            if task not in self.tasks:
                held = ", ".join(self.tasks) or "none"
                raise UnknownTaskError(f"the bank has no task {task!r}; it has {held}")
        if self.table is None:
            return Geometry(self.tensors, tasks, None)
        kept = [self.tasks.index(task) for task in tasks]
        return Geometry(self.tensors, tasks, self.table[:, kept][:, :, kept])

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of the base's layers, sorted."""
        numbers = (layer_of(tensor) for tensor in self.tensors)
        return tuple(sorted({number for number in numbers if number is not None}))

    def whole(self) -> Matrix:
        """Inner products over the whole model, each rounded once.

        Equal tables give equal bits on every machine: digests of mixes depend on it.
        """
        cells = self._measured().permute(1, 2, 0).tolist()
        return [[math.fsum(cell) for cell in row] for row in cells]

    def by_tensor(self) -> Iterator[tuple[str, Matrix]]:
        """Inner products within each tensor."""
        return zip(self.tensors, self._measured().tolist(), strict=True)

    def _measured(self) -> Tensor:
        assert self.table is not None, "a method that is not `is_measured` asked for lengths"
        return self.table
