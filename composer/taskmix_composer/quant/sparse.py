"""A sample of the weights, the large ones more often than the small; every other one is zero.

A weight becomes a multiple of its row's scale, rounded up as often as keeps it right on average:
0.2 of a scale is one scale in a fifth of the cases and zero in the others. Errors so large average
out in a product, where a constant shrinkage, which the largest weights alone would leave, adds up
(the observation behind DARE, arXiv 2311.03099; here the odds follow the magnitude). Rounding draws
no random numbers: the fractions are summed along a row, and whenever the sum passes a whole number
a weight is kept (systematic sampling). Hence a row's magnitudes keep their sum, and no error
reaches the scale.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BankFormatError
from taskmix_composer.layout import (
    matrix_shape,
    pack_codes,
    packed_width,
    rows_per_block,
    unpack_codes,
)
from taskmix_composer.quant.halves import factor_for, restored, rounded_up

# Rows start at different fractions, as evenly spread as any number of them can be.
_GOLDEN_RATIO = 0.6180339887498949


def encode(delta: Tensor, scheme: Scheme) -> EncodedDelta:
    """Encode a float32 delta of two or more axes, seen as a matrix [shape[0], -1]."""
    matrix = delta.reshape(matrix_shape(tuple(delta.shape)))
    rows, columns = matrix.shape
    bits = int(scheme["bits"])
    num_kept = max(1, round(float(scheme["density"]) * columns))
    largest_multiple = 1 << (bits - 1)
    exact_scales = _scales(matrix, num_kept, largest_multiple)
    factor = factor_for(float(exact_scales.max()))
    scales = rounded_up(exact_scales, factor)
    mask = torch.empty((rows, packed_width(columns, 1)), dtype=torch.uint8)
    codes = torch.empty((rows, packed_width(num_kept, bits)), dtype=torch.uint8)
    tensors = (matrix, scales.double() * factor, _starts(rows), mask, codes)
    for weights, scale, start, mask_block, codes_block in _blocks(tensors, columns):
        multiples = _multiples(weights.abs().double(), scale, start).clamp_(max=largest_multiple)
        is_kept = multiples > 0
        symbols = (multiples - 1) * 2 + (weights > 0)
        lanes = torch.zeros((len(weights), num_kept), dtype=torch.uint8)
        lanes.masked_scatter_(_is_used(is_kept, num_kept), symbols[is_kept])
        mask_block.copy_(pack_codes(is_kept.to(torch.uint8), 1))
        codes_block.copy_(pack_codes(lanes, bits))
    params = {"bits": bits, "kept": num_kept, "factor": factor}
    parts = {"mask": mask, "codes": codes, "scales": scales}
    return EncodedDelta("sparse", tuple(delta.shape), params, parts)


def decode(encoded: EncodedDelta) -> Tensor:
    """The coded rows in float32."""
    parts = encoded.parts
    bits, num_kept = int(encoded.params["bits"]), int(encoded.params["kept"])
    scales = restored(parts["scales"], float(encoded.params["factor"]))
    matrix = torch.empty(matrix_shape(encoded.coded_shape), dtype=torch.float32)
    columns = matrix.shape[1]
    tensors = (matrix, scales, parts["mask"], parts["codes"])
    for weights, scale, mask_block, codes_block in _blocks(tensors, columns):
        is_kept = unpack_codes(mask_block, 1, columns).bool()
        lanes = unpack_codes(codes_block, bits, num_kept)
        symbols = lanes[_is_used(is_kept, num_kept)]
        multiples = (symbols >> 1).float().add_(1).mul_((symbols & 1).float().mul_(2).sub_(1))
        weights.zero_().masked_scatter_(is_kept, multiples).mul_(scale)
    return matrix.reshape(encoded.coded_shape)


def _blocks(tensors: tuple[Tensor, ...], columns: int) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of each tensor, few enough to bound the temporaries."""
    step = rows_per_block(columns)
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)


def _scales(matrix: Tensor, num_kept: int, largest_multiple: int) -> Tensor:
    """The scale of each row, float64 [rows, 1].

    Its magnitudes add up to `num_kept` scales at most, and none needs too large a multiple.
    """
    magnitudes = matrix.abs()
    by_sum = magnitudes.sum(dim=1, keepdim=True, dtype=torch.float64) / num_kept
    by_largest = magnitudes.amax(dim=1, keepdim=True).double() / largest_multiple
    return torch.maximum(by_sum, by_largest)


def _starts(rows: int) -> Tensor:
    """The fraction that each row's sum starts at, float64 [rows, 1]."""
    row_ids = torch.arange(rows, dtype=torch.float64).unsqueeze(1)
    return ((row_ids + 0.5) * _GOLDEN_RATIO).frac()


def _multiples(magnitudes: Tensor, scales: Tensor, starts: Tensor) -> Tensor:
    """How many scales each weight becomes, uint8 [rows, columns]; the others are float64."""
    divisors = torch.where(scales > 0, scales, 1.0)
    sums = (magnitudes / divisors).cumsum_(dim=1).add_(starts).floor_()
    return sums.diff(dim=1, prepend=torch.zeros_like(starts)).to(torch.uint8)


def _is_used(is_kept: Tensor, num_kept: int) -> Tensor:
    """Which lanes hold a code, bool [rows, num_kept]: in each row the first ones."""
    counts = is_kept.sum(dim=1, keepdim=True)
    if int(counts.max()) > num_kept:
        raise BankFormatError(f"a row keeps {int(counts.max())} weights but has {num_kept} codes")
    return torch.arange(num_kept) < counts
