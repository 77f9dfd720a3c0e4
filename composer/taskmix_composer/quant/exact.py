"""The archival scheme: a bfloat16 fine-tune of a bfloat16 base, bit for bit.

A weight is coded as the number of representable values between the base's and its own, which for
most weights is 0 or +-1. How many to expect depends on the base's exponent, which sets how far
apart representable values lie, and on how far the row moved; their ratio is the context under
which the number is entropy-coded.

    part      symbols                                     contexts
    levels    how far each row moved, uint8 [rows]        none
    steps     1 + zigzag number of steps, or 0 where      half octaves of spacing over movement
              that is above 255, uint8 [weights]
    escapes   bytes of the weights with a 0,              0 for a low byte, 1 for a high one
              little-endian, uint8 [2 * their number]

Bits are compared and restored, never values: zeros keep their sign, NaNs their payload.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from taskmix_composer import entropy
from taskmix_composer.layout import matrix_shape, rows_per_block

PARTS = ("escapes", "levels", "steps")
_ESCAPE = 0
_MAX_SYMBOL = 255
_EXPONENT_BITS, _MANTISSA_BITS = 0xFF, 7
_SIGN_SHIFT, _MAGNITUDE_BITS = 15, 0x7FFF
# bfloat16 values of exponent bits e lie 2**(e - _SPACING_BIAS) apart.
_SPACING_BIAS = 127 + _MANTISSA_BITS
# Levels reach from a mean square of 2**-200, or none, to one of 2**55.
_LEVEL_BIAS = 200
# Beyond a spacing of 2**5 times the movement, or 2**-5 of it, contexts are merged.
_MAX_HALF_OCTAVES = 10


def encode(base: Tensor, tuned: Tensor) -> dict[str, Tensor]:
    """Code `tuned`, given `base`, both bfloat16 of one shape, as the uint8 streams of `PARTS`."""
    base, tuned = _matrix(base), _matrix(tuned)
    levels = _levels(base, tuned)
    contexts = _contexts(base, levels)
    symbols = torch.empty_like(contexts)
    for rows in _blocks(base):
        steps = _ordered(_bits(tuned[rows])) - _ordered(_bits(base[rows]))  # modulo 2**16
        zigzag = (steps << 1) ^ (steps >> _SIGN_SHIFT)
        is_far = (zigzag < 0) | (zigzag >= _MAX_SYMBOL)
        symbols[rows] = (zigzag + 1).masked_fill_(is_far, _ESCAPE)
    far = _bits(tuned)[symbols == _ESCAPE].view(torch.uint8)
    return {
        "escapes": entropy.encode(far, _byte_places(far.numel())),
        "levels": entropy.encode(levels),
        "steps": entropy.encode(symbols.flatten(), contexts.flatten()),
    }


def restore(base: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """Invert `encode`: the fine-tuned bfloat16 tensor, in the base's shape.

    Damaged parts, or those of another base, raise EntropyError or give other weights.
    """
    matrix = _matrix(base)
    contexts = _contexts(matrix, entropy.decode(parts["levels"], len(matrix)))
    symbols = entropy.decode(parts["steps"], matrix.numel(), contexts.flatten()).view(matrix.shape)
    restored = torch.empty(matrix.shape, dtype=torch.int16)
    for rows in _blocks(matrix):
        zigzag = symbols[rows].to(torch.int16) - 1
        steps = (zigzag >> 1) ^ -(zigzag & 1)
        restored[rows] = _ordered(_ordered(_bits(matrix[rows])) + steps)
    is_far = symbols == _ESCAPE
    num_bytes = 2 * int(is_far.count_nonzero())
    far = entropy.decode(parts["escapes"], num_bytes, _byte_places(num_bytes))
    restored.masked_scatter_(is_far, far.view(torch.int16))
    return restored.view(torch.bfloat16).view(base.shape)


def pays(parts: Mapping[str, Tensor], tuned: Tensor) -> bool:
    """Whether the coded parts are smaller than the tensor as it is."""
    return sum(part.nbytes for part in parts.values()) < tuned.nbytes


def _matrix(tensor: Tensor) -> Tensor:
    """View as [rows, columns]; vectors and scalars are one row."""
    return tensor.contiguous().view(matrix_shape(tuple(tensor.shape) or (1,)))


def _blocks(matrix: Tensor) -> Iterator[slice]:
    """Slices of rows that bound the temporaries."""
    step = rows_per_block(matrix.shape[1])
    for start in range(0, len(matrix), step):
        yield slice(start, start + step)


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int16)


def _ordered(bits: Tensor) -> Tensor:
    """Swap the patterns of bfloat16 values and integers of their order, both int16.

    Neighbouring integers are neighbouring values, -0 coming just before 0. The map is its own
    inverse.
    """
    return bits ^ ((bits >> _SIGN_SHIFT) & _MAGNITUDE_BITS)


def _levels(base: Tensor, tuned: Tensor) -> Tensor:
    """How far each row moved, uint8 [rows]: twice the binary logarithm of the root mean square.

    In float64, so that the order in which a machine adds does not show after rounding.
    """
    squares = base.new_empty(len(base), dtype=torch.float64)
    for rows in _blocks(base):
        moved = (tuned[rows].float() - base[rows].float()).double()
        squares[rows] = moved.square().nan_to_num_(nan=0.0, posinf=0.0).mean(dim=1)
    levels = squares.log2().round_().add_(_LEVEL_BIAS)
    return levels.nan_to_num_(nan=0.0).clamp_(0, _EXPONENT_BITS).to(torch.uint8)


def _contexts(base: Tensor, levels: Tensor) -> Tensor:
    """uint8 [rows, columns]: half octaves from a row's movement to the spacing at each weight."""
    contexts = torch.empty(base.shape, dtype=torch.uint8)
    offsets = levels.to(torch.int16).unsqueeze(1) + (2 * _SPACING_BIAS - _LEVEL_BIAS)
    for rows in _blocks(base):
        exponents = (_bits(base[rows]) >> _MANTISSA_BITS) & _EXPONENT_BITS
        ratios = exponents.clamp_(min=1).mul_(2).sub_(offsets[rows])
        ratios.clamp_(-_MAX_HALF_OCTAVES, _MAX_HALF_OCTAVES)
        contexts[rows] = ratios.add_(_MAX_HALF_OCTAVES)
    return contexts


def _byte_places(num_bytes: int) -> Tensor:
    """Which byte of its weight each one is: uint8 [num_bytes], 0 and 1 in turn."""
    return torch.arange(num_bytes).remainder_(2).to(torch.uint8)
