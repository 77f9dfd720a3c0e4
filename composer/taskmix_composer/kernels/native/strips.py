"""Codes in the order that the native kernels read them.

`taskmix_kernels.h` says what a strip is. Here a coded matrix of R outputs and C inputs is seen as
[strips, vectors, 64], R padded to a multiple of 32 and C to one of 64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from taskmix_composer.kernels.native.memory import Memory
from taskmix_composer.layout import unpack_codes

BLOCK = 32
STEP = 4
SPAN = 64
LANES = 16
VECTOR = LANES * STEP
_BLOCK_CODES = 1 << 20


class Coding(IntEnum):
    """How a strip stores its codes; the values are `tm_coding`'s."""

    BITS1 = 1
    BITS2 = 2
    BITS4 = 4
    BITS8 = 8
    SPARSE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Strips:
    """Codes, scales and zeros of a matrix [outputs, inputs], one strip after the other.

    data: uint8 [strips, bytes of a strip]. The other fields are those of `tm_source`.
    """

    shape: tuple[int, int]
    coding: Coding
    data: Tensor
    scales_at: int
    extra_at: int
    group: int = 0
    zero: int = 0
    num_planes: int = 0
    plane_bytes: int = 0


def num_strips(rows: int) -> int:
    """Strips of a matrix of `rows` outputs."""
    return -(-rows // BLOCK)


def num_vectors(columns: int) -> int:
    """Vectors of 64 codes in a strip of `columns` inputs."""
    return -(-columns // SPAN) * SPAN * BLOCK // VECTOR


def strip_blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """Rows, and the strips that they are, few enough to bound the temporaries of packing."""
    step = max(1, _BLOCK_CODES // (columns * BLOCK))
    for first in range(0, num_strips(rows), step):
        last = min(first + step, num_strips(rows))
        yield slice(first * BLOCK, min(last * BLOCK, rows)), slice(first, last)


def in_strip_order(codes: Tensor) -> Tensor:
    """uint8 [rows, columns] -> uint8 [strips, vectors, 64], padded with zeros."""
    rows, columns = codes.shape
    strips, steps = num_strips(rows), -(-columns // SPAN) * SPAN // STEP
    ordered = codes.new_empty((strips, steps, 2, LANES, STEP))
    if (strips * BLOCK, steps * STEP) != (rows, columns):
        padded = codes.new_zeros((strips * BLOCK, steps * STEP))
        padded[:rows, :columns] = codes
        codes = padded
    # Four codes of an output move as one word.
    words = codes.contiguous().view(torch.int32).view(strips, 2, LANES, steps)
    ordered.view(torch.int32).squeeze(-1).copy_(words.permute(0, 3, 1, 2))
    return ordered.view(strips, steps * 2, VECTOR)


def per_strip(values: Tensor) -> Tensor:
    """[rows, groups] -> [strips, groups, 32], padded with zeros."""
    rows, groups = values.shape
    padded = values.new_zeros((num_strips(rows) * BLOCK, groups))
    padded[:rows] = values
    return padded.view(-1, BLOCK, groups).transpose(1, 2).contiguous()


def put_fields(out: Tensor, vectors: Tensor, bits: int) -> None:
    """Store [strips, vectors, 64] codes of 2, 4 or 8 bits into uint8 [strips, bytes]."""
    per_octet = 8 // bits
    fields = vectors.view(len(vectors), -1, per_octet, VECTOR)
    packed = fields[:, :, 0].clone()
    for index in range(1, per_octet):
        packed |= fields[:, :, index] << (bits * index)
    out.copy_(packed.flatten(1))


def packed_words(vectors: Tensor) -> Tensor:
    """Zeros and others, [strips, ...], to a bit each: uint8 [strips, bytes]."""
    bits = np.packbits(vectors.numpy(), axis=-1, bitorder="little")
    return torch.from_numpy(bits).flatten(1)


def mask_words(packed: Tensor, columns: int, memory: Memory) -> Tensor:
    """A mask uint8 [rows, packed_width(columns, 1)] as words, uint8 [strips, vectors * 8]."""
    rows = len(packed)
    width = num_vectors(columns) * 8
    words = memory(num_strips(rows) * width).view(-1, width)
    for block, strips in strip_blocks(rows, columns):
        words[strips] = packed_words(in_strip_order(unpacked_bits(packed[block], columns)))
    return words


def unpacked_bits(packed: Tensor, columns: int) -> Tensor:
    """uint8 [rows, packed_width(columns, 1)] -> uint8 zeros and ones [rows, columns]."""
    bits = np.unpackbits(packed.numpy(), axis=1, count=columns, bitorder="little")
    return torch.from_numpy(bits)


def unpacked_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """`layout.unpack_codes`, faster where codes do not straddle bytes."""
    if bits == 1:
        return unpacked_bits(packed, columns)
    if bits == 3:
        return unpack_codes(packed, bits, columns)
    per_octet, mask = 8 // bits, (1 << bits) - 1
    codes = packed.new_empty((*packed.shape, per_octet))
    for index in range(per_octet):
        torch.bitwise_and(packed >> (bits * index), mask, out=codes[..., index])
    return codes.flatten(1)[:, :columns]
