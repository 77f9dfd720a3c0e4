"""Integer codes of 2, 3, 4 or 8 bits with a scale and an integer zero-point per group.

A group's range is extended to contain 0, which its zero-point then codes exactly. A stored scale
is float16 times one factor per tensor and never below the scale it stands for, so no value is
clipped and every error is at most half the stored scale.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.layout import (
    grouped,
    matrix_shape,
    pack_codes,
    packed_width,
    rows_per_block,
    ungrouped,
    unpack_codes,
)
from taskmix_composer.quant.halves import factor_for, rounded_up


def encode(delta: Tensor, scheme: Scheme) -> EncodedDelta:
    """Encode a float32 delta of two or more axes, seen as a matrix [shape[0], -1]."""
    matrix = delta.reshape(matrix_shape(tuple(delta.shape)))
    largest_code = (1 << scheme.bits) - 1
    low, high = _ranges(matrix, scheme.group)
    exact_scales = (high.double() - low.double()) / largest_code
    factor = factor_for(float(exact_scales.max()))
    scales = rounded_up(exact_scales, factor)
    divisors = torch.where(scales == 0, 1.0, scales.float())
    zeros = (-low / factor / divisors).round_().to(torch.uint8)
    num_rows, columns = matrix.shape
    codes = torch.empty((num_rows, packed_width(columns, scheme.bits)), dtype=torch.uint8)
    for rows in _row_blocks(matrix):
        steps = _grouped(matrix[rows], scheme.group) / factor
        steps.div_(_per_group(divisors, rows)).add_(_per_group(zeros, rows))
        steps.add_(0.5).clamp_(0, largest_code)
        codes[rows] = pack_codes(ungrouped(steps, columns).to(torch.uint8), scheme.bits)
    params = {"bits": scheme.bits, "group": scheme.group, "factor": factor}
    parts = {"codes": codes, "scales": scales, "zeros": zeros}
    return EncodedDelta("affine", tuple(delta.shape), params, parts)


def decode(encoded: EncodedDelta) -> Tensor:
    """The coded rows in float32."""
    bits, group = int(encoded.params["bits"]), int(encoded.params["group"])
    scales, zeros = encoded.parts["scales"], encoded.parts["zeros"]
    matrix = torch.empty(matrix_shape(encoded.coded_shape), dtype=torch.float32)
    for rows in _row_blocks(matrix):
        codes = unpack_codes(encoded.parts["codes"][rows], bits, matrix.shape[1])
        steps = _grouped(codes.float(), group).sub_(_per_group(zeros, rows))
        steps.mul_(_per_group(scales, rows)).mul_(encoded.params["factor"])
        matrix[rows] = ungrouped(steps, matrix.shape[1])
    return matrix.reshape(encoded.coded_shape)


def _ranges(matrix: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value per group, 0 included: two float32 [rows, groups] or [1, 1]."""
    if group == 0:
        low, high = matrix.aminmax()
        return low.clamp(max=0).view(1, 1), high.clamp(min=0).view(1, 1)
    lows, highs = [], []
    for rows in _row_blocks(matrix):
        block = _grouped(matrix[rows], group)
        lows.append(block.amin(dim=2))
        highs.append(block.amax(dim=2))
    low, high = torch.cat(lows), torch.cat(highs)
    return low.clamp_(max=0), high.clamp_(min=0)


def _row_blocks(matrix: Tensor) -> Iterator[slice]:
    """Slices of rows that bound the temporaries of encoding and decoding."""
    step = rows_per_block(matrix.shape[1])
    for start in range(0, len(matrix), step):
        yield slice(start, start + step)


def _grouped(block: Tensor, group: int) -> Tensor:
    """View rows as [rows, groups, columns of a group]; without groups a row is one."""
    return grouped(block, group or block.shape[1])


def _per_group(values: Tensor, rows: slice) -> Tensor:
    """Values of these rows' groups, [rows, groups, 1]; one value serves all rows."""
    return (values if len(values) == 1 else values[rows]).unsqueeze(2)
