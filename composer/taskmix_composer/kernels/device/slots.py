"""Packed deltas of one linear at device addresses that never change, one task a slot."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskmix_composer.errors import InvalidSchemeError
from taskmix_composer.kernels.device import planes
from taskmix_composer.layout import num_groups, unpack_codes

if TYPE_CHECKING:
    from taskmix_composer.bank import EncodedDelta

SCALED_BITS = (2, 4)
MASKED_SCALE = 0.5
"""A kept weight is multiplied by 2: one bit makes that number in a register."""


@dataclass(frozen=True, slots=True, eq=False)
class DeltaSlots:
    """Deltas of shape [rows, columns], coded alike; a fused linear's parts follow each other.

    bits: 4 or 2: a weight is (code - zero) * scale * row scale, see `row_units`. 1: it is +- row
    scale or, over `shared`, whose one slot holds what all tasks share, mask * shared * row scale.
    group: inputs that have one scale and zero, 0 for all of them; without meaning for 1 bit.

    words: [slots, tiles, blocks, TILE, PLANE] of `planes.WORD_DTYPES[bits]`
    metas: int32 [slots, tiles, groups, TILE], see `planes.to_metas`; padded to whole blocks;
        no groups for 1 bit
    row_scales: float32 [slots, rows]; 0 where a task has no delta. Those of masks contain the
        shared vector's, which is loaded before them.
    is_loaded: int32 [slots]; a kernel does not read a slot that has 0 here
    segments: int32 [rows]; the column of the coefficients that an output reads
    """

    rows: int
    columns: int
    bits: int
    group: int
    words: Tensor
    metas: Tensor
    row_scales: Tensor
    is_loaded: Tensor
    segments: Tensor
    shared: "DeltaSlots | None" = None

    @classmethod
    def allocate(
        cls, num_slots: int, shape: tuple[int, int], bits: int, group: int, device: torch.device
    ) -> "DeltaSlots":
        """Empty slots for deltas of shape (rows, columns)."""
        check_coding(bits, group)
        rows, columns = shape
        tiles, blocks = planes.num_tiles(rows), planes.num_blocks(columns)
        padded = blocks * planes.BLOCK
        groups = num_groups(padded, group or padded) if bits in SCALED_BITS else 0
        words = (num_slots, tiles, blocks, planes.TILE, planes.PLANE)
        return cls(
            rows,
            columns,
            bits,
            group,
            torch.zeros(words, dtype=planes.WORD_DTYPES[bits], device=device),
            torch.zeros(num_slots, tiles, groups, planes.TILE, dtype=torch.int32, device=device),
            torch.zeros(num_slots, rows, device=device),
            torch.zeros(num_slots, dtype=torch.int32, device=device),
            torch.zeros(rows, dtype=torch.int32, device=device),
        )

    @classmethod
    def over(cls, num_slots: int, shared: "DeltaSlots") -> "DeltaSlots":
        """Empty slots for masks over a shared vector, which is slot 0 of `shared`."""
        if shared.bits not in SCALED_BITS:
            raise InvalidSchemeError(f"a shared vector of {shared.bits} bits has no kernel")
        shape, device = (shared.rows, shared.columns), shared.words.device
        return replace(cls.allocate(num_slots, shape, 1, 0, device), shared=shared)

    @property
    def num_slots(self) -> int:
        return len(self.is_loaded)

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots, and of the shared vector."""
        shared = 0 if self.shared is None else self.shared.num_bytes
        return self.slot_bytes * self.num_slots + shared

    @property
    def coding(self) -> str:
        """What a table of launch settings calls these slots."""
        if self.shared is not None:
            return f"masked-{self.shared.coding}"
        return "sign" if self.bits == 1 else f"int{self.bits}g{self.group}"

    @property
    def slot_bytes(self) -> int:
        """Bytes that a kernel reads for one slot, the shared vector apart."""
        per_slot = (self.words, self.metas, self.row_scales)
        return sum(tensor.nbytes for tensor in per_slot) // self.num_slots

    def clear(self, slot: int) -> None:
        """Take the task out of a slot."""
        self.is_loaded[slot] = 0
        self.row_scales[slot] = 0.0

    def load(self, slot: int, delta: "EncodedDelta", start: int = 0) -> None:
        """Put a delta at the outputs from `start` of a slot, in place."""
        check_delta(self, delta, start)
        where = start + torch.arange(delta.shape[0], device=self.words.device)
        tiles, lanes = where // planes.TILE, where % planes.TILE
        words, metas, row_scales = packed(delta, self.bits)
        self.words[slot][tiles, :, lanes] = words.to(self.words.device)
        if self.bits in SCALED_BITS:
            self.metas[slot][tiles, : metas.shape[1], lanes] = metas.to(self.metas.device)
        row_scales = row_scales.to(self.row_scales.device)
        if self.shared is not None:
            row_scales = row_scales * self.shared.row_scales[0, where]
        self.row_scales[slot, where] = row_scales
        self.is_loaded[slot] = 1

    def dense(self, slot: int) -> Tensor:
        """What a slot holds, float32 [rows, columns]."""
        return self._unscaled(slot).mul_(self.row_scales[slot].unsqueeze(1))

    def _unscaled(self, slot: int) -> Tensor:
        """What a slot holds but for its row scales."""
        words = self.words[slot].transpose(1, 2).flatten(0, 1)[: self.rows]
        codes = planes.from_words(words, self.bits, self.columns).float()
        if self.shared is not None:
            return codes.mul_(self.shared._unscaled(0)).div_(MASKED_SCALE)
        if self.bits == 1:
            return codes.mul_(2).sub_(1)
        scales, zeros = planes.from_metas(self.metas[slot].transpose(1, 2).flatten(0, 1))
        return codes.sub_(self._spread(zeros)).mul_(self._spread(scales))

    def _spread(self, values: Tensor) -> Tensor:
        """Values of groups, [outputs, groups], as one of each weight."""
        width = self.group or self.columns
        return values[: self.rows].repeat_interleave(width, dim=1)[:, : self.columns]


def is_readable(bits: int, group: int) -> bool:
    """Whether kernels read codes of this width in groups of this size."""
    fits = group % planes.BLOCK == 0 or group in (planes.PLANE, 2 * planes.PLANE, 4 * planes.PLANE)
    return bits in planes.WORD_DTYPES and fits


def check_coding(bits: int, group: int) -> None:
    """Refuse what the kernels cannot read."""
    if bits not in planes.WORD_DTYPES:
        known = ", ".join(map(str, planes.WORD_DTYPES))
        raise InvalidSchemeError(f"codes of {bits} bits have no kernel; it reads {known} bits")
    if not is_readable(bits, group):
        raise InvalidSchemeError(
            f"group {group} has no kernel; use 0, 32, 64, 128 or a multiple of {planes.BLOCK}"
        )


def check_delta(slots: DeltaSlots, delta: "EncodedDelta", start: int) -> None:
    """Refuse a delta that these slots cannot hold."""
    masked = slots.shared is not None
    codec = "masked" if masked else "sign" if slots.bits == 1 else "affine"
    if delta.codec != codec or (delta.shared is not None) != masked or "salient" in delta.parts:
        raise InvalidSchemeError(f"these slots hold plain {codec} deltas; use slots of its codec")
    if delta.rows is not None:
        raise InvalidSchemeError("a delta of some rows has no slot; encode all its rows")
    if len(delta.shape) != 2 or delta.shape[1] != slots.columns:
        raise InvalidSchemeError(f"a delta of shape {delta.shape} has not {slots.columns} inputs")
    if start < 0 or start + delta.shape[0] > slots.rows:
        raise InvalidSchemeError(f"{delta.shape[0]} outputs from {start} pass {slots.rows}")
    if codec == "affine":
        check_codes(slots, delta)


def check_codes(slots: DeltaSlots, delta: "EncodedDelta") -> None:
    """Refuse codes that are wider than the slots', or have other groups."""
    if delta.params["bits"] > slots.bits or delta.params["group"] != slots.group:
        raise InvalidSchemeError(
            f"these slots hold codes of {slots.bits} bits in groups of {slots.group}, "
            f"not {delta.params['bits']} and {delta.params['group']}"
        )


def packed(delta: "EncodedDelta", bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """A delta's words, metas [rows, groups] and row scales, as slots hold them."""
    rows, columns = delta.shape
    none = torch.zeros(rows, 0, dtype=torch.int32)
    if delta.codec == "masked":
        codes = unpack_codes(delta.parts["mask"], 1, columns)
        scales = torch.full((rows,), MASKED_SCALE * delta.params["scale"])
        return planes.to_words(codes, bits), none, scales
    if delta.codec == "sign":
        codes = unpack_codes(delta.parts["signs"], 1, columns)
        scales = delta.parts["scales"].float().squeeze(1) * delta.params["factor"]
        return planes.to_words(codes, bits), none, scales
    codes = unpack_codes(delta.parts["codes"], int(delta.params["bits"]), columns)
    scales, row_scales = row_units(delta.parts["scales"].expand(rows, -1))
    metas = planes.to_metas(scales, delta.parts["zeros"].expand(rows, -1))
    return planes.to_words(codes, bits), metas, row_scales * float(delta.params["factor"])


def row_units(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scales in units of each row's own, which leave the row's largest between 2**14 and 2**15.

    scales: float16 [rows, groups], at most 2**15. The units, float32 [rows], are powers of two, so
    nothing is rounded; float16 then holds a composed weight in units of its row's largest.
    """
    shifts = (15 - torch.frexp(scales.float().amax(dim=1)).exponent).clamp_(0, 39)
    shifted = torch.ldexp(scales.float(), shifts.unsqueeze(1))
    return shifted.to(torch.float16), torch.ldexp(torch.ones(len(scales)), -shifts)
