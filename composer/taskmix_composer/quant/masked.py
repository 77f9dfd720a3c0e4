"""One-bit masks: a task as the part of a shared vector that it keeps, or a plane of its own.

A mask says nothing where the shared vector's own code is zero; those bits are stored as zeros.
"""

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.layout import matrix_shape, pack_codes, unpack_codes


def encode(mask: Tensor, shared: EncodedDelta, values: Tensor, scale: float) -> EncodedDelta:
    """The delta scale * mask * shared.

    mask: bool, and values: float32, both of the shared delta's coded shape; `values` is what
    `shared` decodes to.
    """
    kept = mask & (values != 0)
    return EncodedDelta(
        "masked", shared.shape, {"scale": scale}, {"mask": packed_mask(kept)}, shared=shared
    )


def decode(encoded: EncodedDelta, shared_values: Tensor) -> Tensor:
    """The coded rows in float32, given what the shared delta decodes to."""
    mask = unpacked_mask(encoded)
    return shared_values.mul(mask).mul_(encoded.params["scale"])


def encode_plane(mask: Tensor) -> EncodedDelta:
    """A bool mask of a whole tensor."""
    return EncodedDelta("plane", tuple(mask.shape), {}, {"mask": packed_mask(mask)})


def decode_plane(encoded: EncodedDelta) -> Tensor:
    """The mask as float32 zeros and ones."""
    return unpacked_mask(encoded).to(torch.float32)


def packed_mask(mask: Tensor) -> Tensor:
    """bool of any shape -> uint8 [rows, packed_width(columns, 1)], a vector being one row."""
    return pack_codes(mask.reshape(matrix_shape(tuple(mask.shape))).to(torch.uint8), 1)


def unpacked_mask(encoded: EncodedDelta) -> Tensor:
    """The `mask` part as bool of the coded shape."""
    _, columns = matrix_shape(encoded.coded_shape)
    return unpack_codes(encoded.parts["mask"], 1, columns).bool().reshape(encoded.coded_shape)
