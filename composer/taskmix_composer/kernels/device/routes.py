"""Which rows of a batch want which tasks, in tensors at addresses that never change."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from taskmix_composer.kernels.tables import OperandError


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """The batch's pairs of a row and a task, once by task and once by row.

    A captured graph reads these tensors and nothing from the host: it serves every batch within
    the capacities. What lies beyond the counts is never read.

    num_tasks: int32 [1]
    task_slots: int32 [tasks]
    task_starts: int32 [tasks + 1]; a task's pairs are consecutive
    pair_rows, pair_tasks: int32 [pairs]
    row_starts: int32 [rows + 1]; into row_pairs
    row_pairs: int32 [pairs]; a row's pairs, by task
    coefficients: float32 [columns, pairs]; layers that a mix scales differently read other columns
    """

    num_tasks: Tensor
    task_slots: Tensor
    task_starts: Tensor
    pair_rows: Tensor
    pair_tasks: Tensor
    row_starts: Tensor
    row_pairs: Tensor
    coefficients: Tensor

    @classmethod
    def allocate(
        cls, max_rows: int, max_tasks: int, max_pairs: int, num_columns: int, device: torch.device
    ) -> "Routes":
        """Routes of no pair, with these capacities."""

        def integers(length: int) -> Tensor:
            return torch.zeros(length, dtype=torch.int32, device=device)

        return cls(
            integers(1),
            integers(max_tasks),
            integers(max_tasks + 1),
            integers(max_pairs),
            integers(max_pairs),
            integers(max_rows + 1),
            integers(max_pairs),
            torch.zeros(num_columns, max_pairs, device=device),
        )

    @property
    def max_rows(self) -> int:
        return len(self.row_starts) - 1

    @property
    def max_tasks(self) -> int:
        return len(self.task_slots)

    @property
    def max_pairs(self) -> int:
        return len(self.pair_rows)

    def fill(
        self, slots: Sequence[int], starts: Tensor, rows: Tensor, coefficients: Tensor
    ) -> None:
        """Take a step's pairs, from host tensors.

        slots: of each active task. starts: int32 [tasks + 1], rows: int32 [pairs], both grouped
        by task. coefficients: float32 [columns, pairs]
        """
        self._check_fit(slots, starts, rows, coefficients)
        counts = starts.diff()
        by_row = torch.sort(rows, stable=True).indices
        per_row = torch.bincount(rows, minlength=self.max_rows)
        step = Routes(
            torch.tensor([len(slots)]),
            torch.tensor(slots, dtype=torch.int32),
            starts,
            rows,
            torch.repeat_interleave(torch.arange(len(slots)), counts),
            torch.cat([per_row.new_zeros(1), per_row.cumsum(0)]),
            by_row,
            coefficients,
        )
        for field in fields(Routes):
            source, target = getattr(step, field.name), getattr(self, field.name)
            target[..., : source.shape[-1]].copy_(source, non_blocking=True)

    def _check_fit(
        self, slots: Sequence[int], starts: Tensor, rows: Tensor, coefficients: Tensor
    ) -> None:
        if len(slots) > self.max_tasks or len(rows) > self.max_pairs:
            raise OperandError(
                f"{len(slots)} tasks and {len(rows)} pairs pass the capacities of "
                f"{self.max_tasks} and {self.max_pairs}; allocate larger routes"
            )
        if starts.shape != (len(slots) + 1,) or int(starts[-1]) != len(rows):
            raise OperandError("starts must bound the pairs of each task")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.max_rows:
            raise OperandError(f"rows must lie in [0, {self.max_rows}); allocate larger routes")
        if coefficients.shape != (len(self.coefficients), len(rows)):
            raise OperandError(f"coefficients must be {len(self.coefficients)} columns by pairs")
