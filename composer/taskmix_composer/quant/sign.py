"""One bit per weight: its sign, times a scale per row (BitDelta, arXiv 2402.10193).

A row's scale is the sum of its squares over the sum of its magnitudes. The mean magnitude would
lose less in the squared sum, but shrinks the delta: here the part of a decoded row that lies along
the row is the row itself, and what is lost is noise, which averages out in a product. The rows that
lose most may be salient: one more bit per weight then says which of two magnitudes it has.
"""

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.layout import (
    matrix_shape,
    pack_codes,
    packed_width,
    rows_per_block,
    unpack_codes,
)
from taskmix_composer.quant.halves import factor_for, restored, rounded_up

_NUM_FITS = 6


def encode(delta: Tensor, scheme: Scheme) -> EncodedDelta:
    """Encode a float32 delta of two or more axes, seen as a matrix [shape[0], -1]."""
    matrix = delta.reshape(matrix_shape(tuple(delta.shape)))
    sums = matrix.abs().sum(dim=1, keepdim=True, dtype=torch.float64)
    squares = torch.linalg.vector_norm(matrix, dim=1, keepdim=True, dtype=torch.float64).square()
    lost = squares - sums.square() / matrix.shape[1]
    salient = _largest(lost.squeeze(1), round(float(scheme["salient"]) * len(matrix)))
    blocks = matrix[salient].abs().split(rows_per_block(matrix.shape[1]))
    fits = [_two_magnitudes(block.double()) for block in blocks]
    is_high, lows, highs = (torch.cat(values) for values in zip(*fits, strict=True))
    scales = _ratio(squares, sums)
    scales[salient] = lows
    factor = factor_for(float(torch.cat([scales, highs]).max()))
    parts = {"signs": _packed_signs(matrix), "scales": rounded_up(scales, factor)}
    if salient.numel():
        parts["salient"] = salient.to(torch.int32)
        parts["highs"] = rounded_up(highs, factor)
        parts["sizes"] = pack_codes(is_high.to(torch.uint8), 1)
    return EncodedDelta("sign", tuple(delta.shape), {"factor": factor}, parts)


def decode(encoded: EncodedDelta) -> Tensor:
    """The coded rows in float32."""
    parts, factor = encoded.parts, float(encoded.params["factor"])
    matrix = torch.empty(matrix_shape(encoded.coded_shape), dtype=torch.float32)
    columns = matrix.shape[1]
    step = rows_per_block(columns)
    for block, signs in zip(matrix.split(step), parts["signs"].split(step), strict=True):
        block.copy_(unpack_codes(signs, 1, columns)).mul_(2).sub_(1)
    scales = restored(parts["scales"], factor)
    if "salient" in parts:
        salient = parts["salient"].long()
        is_high = unpack_codes(parts["sizes"], 1, columns).bool()
        matrix[salient] *= torch.where(is_high, restored(parts["highs"], factor), scales[salient])
        scales[salient] = 1.0
    return matrix.mul_(scales).reshape(encoded.coded_shape)


def _largest(values: Tensor, count: int) -> Tensor:
    """Ascending int64 ids of the `count` largest values; of equal ones the first."""
    return values.argsort(descending=True, stable=True)[:count].sort().values


def _packed_signs(matrix: Tensor) -> Tensor:
    """1 where a weight is positive; a zero takes the sign of a chessboard's field.

    Many weights of a fine-tune in bfloat16 did not move. One sign for all of them would shift the
    sum of every row.
    """
    rows, columns = matrix.shape
    signs = torch.empty((rows, packed_width(columns, 1)), dtype=torch.uint8)
    is_odd = torch.arange(max(rows, columns)) % 2 == 1
    step = rows_per_block(columns)
    blocks = (matrix.split(step), is_odd[:rows].unsqueeze(1).split(step), signs.split(step))
    for block, is_odd_row, packed in zip(*blocks, strict=True):
        is_dark = is_odd_row ^ is_odd[:columns]
        is_positive = (block > 0) | ((block == 0) & is_dark)
        packed.copy_(pack_codes(is_positive.to(torch.uint8), 1))
    return signs


def _two_magnitudes(magnitudes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which magnitudes of each row are high, bool [rows, columns]; its low and its high one.

    The two come from Lloyd's iteration, then grow until nothing of the row is shrunk; like
    `magnitudes` they are float64, [rows, 1].
    """
    lows = highs = magnitudes.mean(dim=1, keepdim=True)
    for _ in range(_NUM_FITS):
        is_high = magnitudes > (lows + highs) / 2
        lows, highs = _mean(magnitudes, ~is_high), _mean(magnitudes, is_high)
    fitted = torch.where(is_high, highs, lows)
    gains = _ratio(magnitudes.square().sum(1, True), (magnitudes * fitted).sum(1, True))
    return is_high, lows * gains, highs * gains


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of each row's values under a mask, [rows, 1]; 0 if there are none."""
    return (values * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _ratio(numerators: Tensor, denominators: Tensor) -> Tensor:
    """The quotients, or 0 where a denominator is 0."""
    return torch.where(denominators > 0, numerators / denominators, 0.0)
