"""Low-rank deltas of one linear at device addresses that never change, one task a slot."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskmix_composer.errors import InvalidSchemeError

if TYPE_CHECKING:
    from taskmix_composer.bank import EncodedDelta

RANK_TILE = 64
SMALL_RANKS = (16, 32)


@dataclass(frozen=True, slots=True, eq=False)
class FactorSlots:
    """Deltas row scale * (b @ a) of shape [rows, columns].

    The parts of a fused linear have ranks of their own: each is loaded at its outputs and its
    ranks, and what lies elsewhere in `b` is zero.

    a: [slots, rank, columns], b: [slots, rows, rank], in the activations' dtype
    row_scales: float32 [slots, rows]; is_loaded: int32 [slots]; segments: int32 [rows], as in
    `DeltaSlots`
    """

    rows: int
    columns: int
    a: Tensor
    b: Tensor
    row_scales: Tensor
    is_loaded: Tensor
    segments: Tensor

    @classmethod
    def allocate(
        cls,
        num_slots: int,
        shape: tuple[int, int],
        rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "FactorSlots":
        """Empty slots for deltas of shape (rows, columns) and at most this rank."""
        rows, columns = shape
        padded = next(
            (size for size in SMALL_RANKS if rank <= size), -(-rank // RANK_TILE) * RANK_TILE
        )
        return cls(
            rows,
            columns,
            torch.zeros(num_slots, padded, columns, dtype=dtype, device=device),
            torch.zeros(num_slots, rows, padded, dtype=dtype, device=device),
            torch.zeros(num_slots, rows, device=device),
            torch.zeros(num_slots, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
        )

    @property
    def rank(self) -> int:
        """The rank that there is room for."""
        return self.a.shape[1]

    @property
    def coding(self) -> str:
        """What a table of launch settings calls these slots."""
        return f"rank{self.rank}"

    @property
    def slot_bytes(self) -> int:
        """Bytes that a kernel reads for one slot."""
        return (self.a.nbytes + self.b.nbytes + self.row_scales.nbytes) // len(self.is_loaded)

    def clear(self, slot: int) -> None:
        """Take the task out of a slot."""
        for tensor in (self.is_loaded, self.row_scales, self.a, self.b):
            tensor[slot] = 0

    def load(self, slot: int, delta: "EncodedDelta", start: int = 0, first_rank: int = 0) -> None:
        """Put a delta at the outputs from `start` and the ranks from `first_rank`, in place."""
        if delta.codec != "lowrank":
            raise InvalidSchemeError("these slots hold lowrank deltas; use slots of its codec")
        a, b = delta.parts["a"], delta.parts["b"]
        last, last_rank = start + len(b), first_rank + len(a)
        if a.shape[1] != self.columns or last > self.rows or last_rank > self.rank:
            raise InvalidSchemeError(
                f"{len(b)} outputs from {start} and rank {len(a)} from {first_rank} pass "
                f"{self.rows} outputs of rank {self.rank}"
            )
        self.a[slot, first_rank:last_rank] = a.to(self.a)
        self.b[slot, start:last, first_rank:last_rank] = b.to(self.b)
        self.row_scales[slot, start:last] = float(delta.params["scaling"])
        self.is_loaded[slot] = 1

    def dense(self, slot: int) -> Tensor:
        """What a slot holds, float32 [rows, columns]."""
        return self.b[slot].float() @ self.a[slot].float() * self.row_scales[slot].unsqueeze(1)
