"""Which rows of a batch have one mix, and its terms, at addresses that never change."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.kernels.tables import OperandError


@dataclass(frozen=True, slots=True, eq=False)
class Blends:
    """Groups of rows, each with the terms of its mix.

    num_groups: int32 [1]
    group_starts, term_starts: int32 [groups + 1]; into the rows and into the terms
    group_rows: int32 [rows]
    term_slots: int32 [terms]
    coefficients: float32 [columns, terms]
    """

    num_groups: Tensor
    group_starts: Tensor
    group_rows: Tensor
    term_starts: Tensor
    term_slots: Tensor
    coefficients: Tensor

    @classmethod
    def allocate(
        cls, max_rows: int, max_groups: int, max_terms: int, num_columns: int, device: torch.device
    ) -> "Blends":
        """No group, with these capacities."""

        def integers(length: int) -> Tensor:
            return torch.zeros(length, dtype=torch.int32, device=device)

        return cls(
            integers(1),
            integers(max_groups + 1),
            integers(max_rows),
            integers(max_groups + 1),
            integers(max_terms),
            torch.zeros(num_columns, max_terms, device=device),
        )

    @property
    def max_terms(self) -> int:
        return len(self.term_slots)

    def fill(
        self, rows: Sequence[Sequence[int]], slots: Sequence[Sequence[int]], coefficients: Tensor
    ) -> None:
        """Take the rows and the slots of each group; a row has one group at most.

        coefficients: float32 [columns, terms], of all groups' slots in order
        """
        flat_rows = [row for group in rows for row in group]
        flat_slots = [slot for group in slots for slot in group]
        too_many = len(flat_rows) > len(self.group_rows) or len(flat_slots) > self.max_terms
        if too_many or len(rows) >= len(self.group_starts):
            raise OperandError(
                f"{len(rows)} groups of {len(flat_rows)} rows and {len(flat_slots)} terms pass "
                "the capacities; allocate larger blends"
            )
        if len(slots) != len(rows) or len(set(flat_rows)) != len(flat_rows):
            raise OperandError("give each group its slots, and each row one group")
        if coefficients.shape != (len(self.coefficients), len(flat_slots)):
            raise OperandError(f"coefficients must be {len(self.coefficients)} columns by terms")
        _put(self.num_groups, [len(rows)])
        _put(self.group_starts, _bounds(rows))
        _put(self.group_rows, flat_rows)
        _put(self.term_starts, _bounds(slots))
        _put(self.term_slots, flat_slots)
        self.coefficients[:, : len(flat_slots)].copy_(coefficients, non_blocking=True)


def _bounds(groups: Sequence[Sequence[int]]) -> list[int]:
    """Where each group starts and the last one ends."""
    return [0, *torch.tensor([len(group) for group in groups]).cumsum(0).tolist()]


def _put(target: Tensor, values: Sequence[int]) -> None:
    target[: len(values)].copy_(torch.tensor(values, dtype=torch.int32), non_blocking=True)
