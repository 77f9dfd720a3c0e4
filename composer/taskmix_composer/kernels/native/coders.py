"""From a codec's parts to strips: which codes, zeros and scales give the same weights."""

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.kernels.native.memory import ALIGNMENT, Memory
from taskmix_composer.kernels.native.strips import (
    BLOCK,
    SPAN,
    VECTOR,
    Coding,
    Strips,
    in_strip_order,
    num_strips,
    num_vectors,
    packed_words,
    per_strip,
    put_fields,
    strip_blocks,
    unpacked_bits,
    unpacked_codes,
)
from taskmix_composer.layout import matrix_shape

MIN_GROUP = 32
# Reading a sparse strip's bits takes in so many bytes from any one of them.
_PLANE_SLACK = 16

Packed = list[tuple[Strips, Tensor | None]]
"""Strips, and the ids of the coded rows (int32) that they are of, or None for all."""

_CODINGS = {2: Coding.BITS2, 3: Coding.BITS4, 4: Coding.BITS4, 8: Coding.BITS8}


def affine(delta: EncodedDelta, memory: Memory) -> Packed | None:
    """Integer codes; groups have to be multiples of 32."""
    group, bits = int(delta.params["group"]), int(delta.params["bits"])
    if group % MIN_GROUP:
        return None
    shape = matrix_shape(delta.coded_shape)
    coding = _CODINGS[bits]
    num_groups = -(-padded(shape[1]) // group) if group else 0
    scales_at = num_vectors(shape[1]) * VECTOR * coding // 8
    extra_at = scales_at + (num_groups * BLOCK * 2 if group else BLOCK * 4)
    data = _empty(shape, extra_at + num_groups * BLOCK, memory)
    _put_codes(data[:, :scales_at], delta, coding)
    scales, zeros = delta.parts["scales"], delta.parts["zeros"]
    if group == 0:
        _put_row_scales(data, scales_at, scales.float().expand(shape[0], 1))
        return [(Strips(shape, coding, data, scales_at, extra_at, 0, int(zeros)), None)]
    ends = (scales_at + scales.shape[1] * BLOCK * 2, extra_at + zeros.shape[1] * BLOCK)
    data[:, scales_at:].zero_()
    data[:, scales_at : ends[0]] = per_strip(scales).flatten(1).view(torch.uint8)
    data[:, extra_at : ends[1]] = per_strip(zeros).flatten(1)
    return [(Strips(shape, coding, data, scales_at, extra_at, group), None)]


def sign(delta: EncodedDelta, memory: Memory) -> Packed:
    """One bit a weight: the code 0 or 2, zero being 1.

    The salient rows' two magnitudes are the mean of both under the sign, and half their distance
    under the sign times the size, which are strips of their own over those rows.
    """
    parts, shape = delta.parts, matrix_shape(delta.coded_shape)
    signs, scales = parts["signs"], parts["scales"].float()
    if "salient" not in parts or parts["salient"].numel() == 0:
        return [(_signs(signs, scales, shape[1], memory), None)]
    salient = parts["salient"].long()
    lows, highs = scales[salient], parts["highs"].float()
    scales[salient] = (highs + lows) / 2
    # The product of two signs is positive where both bits are the same.
    products = ~(signs[salient] ^ parts["sizes"])
    halves = _signs(products, (highs - lows) / 2, shape[1], memory)
    return [(_signs(signs, scales, shape[1], memory), None), (halves, parts["salient"])]


def sparse(delta: EncodedDelta, memory: Memory) -> Packed | None:
    """A bit for each weight that is kept, and planes of signs and of each bit of the levels."""
    shape, bits = matrix_shape(delta.coded_shape), int(delta.params["bits"])
    if bits > Coding.BITS4:
        return None
    rows, columns = shape
    num_kept = min(int(delta.params["kept"]), columns) * BLOCK
    plane_bytes = -(-num_kept // 8) + _PLANE_SLACK
    scales_at = num_vectors(columns) * 8
    extra_at = scales_at + BLOCK * 4
    data = _empty(shape, extra_at + plane_bytes * bits, memory)
    for block, strips in strip_blocks(rows, columns):
        kept = unpacked_bits(delta.parts["mask"][block], columns)
        lanes = unpacked_codes(delta.parts["codes"][block], bits, int(delta.params["kept"]))
        symbols = torch.zeros_like(kept)
        is_used = torch.arange(lanes.shape[1]) < kept.sum(dim=1, keepdim=True)
        symbols.masked_scatter_(kept.bool(), lanes[is_used])
        ordered = in_strip_order(kept)
        data[strips, :scales_at] = packed_words(ordered)
        planes = _planes(in_strip_order(symbols), ordered, bits, plane_bytes)
        data[strips, extra_at : extra_at + plane_bytes * bits] = planes
    _put_row_scales(data, scales_at, delta.parts["scales"].float())
    return [
        (
            Strips(
                shape=shape,
                coding=Coding.SPARSE,
                data=data,
                scales_at=scales_at,
                extra_at=extra_at,
                zero=1 << (bits - 1),
                num_planes=bits,
                plane_bytes=plane_bytes,
            ),
            None,
        )
    ]


def padded(columns: int) -> int:
    """Inputs that a strip has room for."""
    return -(-columns // SPAN) * SPAN


def _empty(shape: tuple[int, int], strip_bytes: int, memory: Memory) -> Tensor:
    """uint8 [strips, at least strip_bytes], every strip aligned."""
    stride = -(-strip_bytes // ALIGNMENT) * ALIGNMENT
    data = memory(num_strips(shape[0]) * stride).view(-1, stride)
    data[:, strip_bytes:] = 0
    return data


def _put_codes(out: Tensor, delta: EncodedDelta, coding: Coding) -> None:
    rows, columns = matrix_shape(delta.coded_shape)
    bits = int(delta.params["bits"])
    for block, strips in strip_blocks(rows, columns):
        codes = unpacked_codes(delta.parts["codes"][block], bits, columns)
        put_fields(out[strips], in_strip_order(codes), coding)


def _put_row_scales(data: Tensor, at: int, scales: Tensor) -> None:
    """Store one float32 scale for each output, [rows, 1]."""
    data[:, at : at + BLOCK * 4] = per_strip(scales).flatten(1).view(torch.uint8)


def _signs(bits: Tensor, scales: Tensor, columns: int, memory: Memory) -> Strips:
    shape, scales_at = (len(bits), columns), num_vectors(columns) * 8
    extra_at = scales_at + BLOCK * 4
    data = _empty(shape, extra_at, memory)
    for block, strips in strip_blocks(*shape):
        words = packed_words(in_strip_order(unpacked_bits(bits[block], columns)))
        data[strips, :scales_at] = words
    _put_row_scales(data, scales_at, scales)
    return Strips(shape, Coding.BITS1, data, scales_at, extra_at, zero=1)


def _planes(symbols: Tensor, kept: Tensor, bits: int, plane_bytes: int) -> Tensor:
    """The kept symbols' bits, plane after plane: uint8 [strips, plane_bytes * bits].

    symbols, kept: uint8 [strips, vectors, 64].
    """
    counts = kept.flatten(1).sum(dim=1, keepdim=True)
    lanes = torch.zeros((len(kept), plane_bytes * 8), dtype=torch.uint8)
    lanes[torch.arange(lanes.shape[1]) < counts] = symbols[kept.bool()]
    planes = [packed_words((lanes >> index) & 1) for index in range(bits)]
    return torch.cat(planes, dim=1)
