"""Deltas as the native kernels read them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.kernels.native import coders
from taskmix_composer.kernels.native.coders import Packed
from taskmix_composer.kernels.native.memory import Arena, Memory, aligned
from taskmix_composer.kernels.native.strips import Strips, mask_words
from taskmix_composer.layout import matrix_shape, pack_codes


@dataclass(frozen=True, slots=True, eq=False)
class PackedDelta:
    """factor * mask * (the matrix that `strips` code), at some rows of a tensor or all.

    rows: int32 [coded rows], ascending, or None for all. mask: uint8 [strips, vectors * 8], a bit
    for each code in the order of the strips, or None. Deltas may share strips; one of them, or
    none, is their owner.
    """

    strips: Strips
    factor: float
    rows: Tensor | None = None
    mask: Tensor | None = None
    owns_strips: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """Coded rows and columns."""
        return self.strips.shape

    @property
    def num_bytes(self) -> int:
        """Its bytes in memory; strips count for their owner."""
        own = (self.strips.data if self.owns_strips else None, self.rows, self.mask)
        return sum(tensor.nbytes for tensor in own if tensor is not None)


def pack(
    delta: EncodedDelta, shared: Sequence[PackedDelta] = (), arena: Arena | None = None
) -> tuple[PackedDelta, ...] | None:
    """Packed deltas that add up to `delta`, or None if the kernels have no form for it.

    shared: what `delta.shared` was packed as, where it was; it is packed with the delta otherwise.
    arena: where codes and masks are put; in memory of their own if there is none.
    """
    memory = aligned if arena is None else arena.empty
    if 0 in delta.coded_shape:
        return ()
    if delta.shared is None:
        return _packed(delta, memory)
    over = [replace(part, owns_strips=False) for part in shared] or pack(delta.shared, (), arena)
    if over is None:
        return None
    if delta.codec == "masked":
        return tuple(_masked(delta, part, memory) for part in over)
    own = _packed(delta, memory)
    return None if own is None else (*over, *own)


def cut(packed: PackedDelta, mask: Tensor) -> PackedDelta:
    """The part of a delta under a mask, bool [coded rows, columns]; the strips are shared."""
    if tuple(mask.shape) != packed.shape:
        mask = mask.reshape(matrix_shape(tuple(mask.shape)))
    words = mask_words(pack_codes(mask.to(torch.uint8), 1), packed.shape[1], aligned)
    if packed.mask is not None:
        words &= packed.mask
    return replace(packed, mask=words, owns_strips=False)


_CODERS: Mapping[str, Callable[[EncodedDelta, Memory], Packed | None]] = {
    "affine": coders.affine,
    "sign": coders.sign,
    "sparse": coders.sparse,
}


def _packed(delta: EncodedDelta, memory: Memory) -> tuple[PackedDelta, ...] | None:
    """Pack what a delta codes by itself."""
    if delta.codec not in _CODERS:
        return None
    found = _CODERS[delta.codec](delta, memory)
    if found is None:
        return None
    factor = float(delta.params["factor"])
    return tuple(
        PackedDelta(strips, factor, _rows_within(delta.rows, coded)) for strips, coded in found
    )


def _rows_within(rows: Tensor | None, coded: Tensor | None) -> Tensor | None:
    """int32 ids of some coded rows in the whole tensor."""
    if coded is None:
        return None if rows is None else rows.to(torch.int32, copy=True)
    return coded.to(torch.int32, copy=True) if rows is None else rows[coded.long()]


def _masked(delta: EncodedDelta, part: PackedDelta, memory: Memory) -> PackedDelta:
    """A part of the shared vector under a delta's mask and scale."""
    mask = delta.parts["mask"]
    if part.rows is not None and len(part.rows) != len(mask):
        rows = part.rows if delta.rows is None else torch.searchsorted(delta.rows, part.rows)
        mask = mask[rows.long()]
    words = mask_words(mask, part.shape[1], memory)
    return replace(part, factor=part.factor * float(delta.params["scale"]), mask=words)
