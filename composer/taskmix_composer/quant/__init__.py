"""Encoding and decoding deltas: one table by scheme, one by codec."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import INTEGER_BITS, Scheme
from taskmix_composer.errors import InvalidSchemeError
from taskmix_composer.layout import matrix_shape
from taskmix_composer.quant import affine, dense, lowrank

__all__ = ["DECODERS", "SCHEMES", "decode", "decode_rows", "encode"]

Encoder = Callable[[Tensor, Scheme], EncodedDelta]
Decoder = Callable[[EncodedDelta], Tensor]

SCHEMES: Mapping[str, Encoder] = {
    "dense": dense.encode,
    "dense16": dense.encode,
    **dict.fromkeys(INTEGER_BITS, affine.encode),
}
DECODERS: Mapping[str, Decoder] = {
    "dense": dense.decode,
    "affine": affine.decode,
    "lowrank": lowrank.decode,
}


def encode(delta: Tensor, scheme: Scheme) -> EncodedDelta:
    """Encode a float32 delta that has finite values.

    Tensors of one axis (norms, biases) stay float32 under integer schemes. Of tensors with more
    axes only the changed rows are coded, where those are at most half of all.
    """
    if scheme.name not in SCHEMES:
        raise InvalidSchemeError(
            f"scheme {scheme} keeps adapters as they are; a full checkpoint needs one of "
            f"{', '.join(SCHEMES)}"
        )
    if delta.dim() < 2:
        return SCHEMES["dense" if scheme.is_integer else scheme.name](delta, scheme)
    changed = (delta.reshape(matrix_shape(tuple(delta.shape))) != 0).any(dim=1)
    if not 0 < 2 * int(changed.sum()) <= delta.shape[0]:
        return SCHEMES[scheme.name](delta, scheme)
    rows = changed.nonzero().squeeze(1)
    coded = SCHEMES[scheme.name](delta[rows], scheme)
    return EncodedDelta(
        coded.codec, tuple(delta.shape), coded.params, coded.parts, rows.to(torch.int32)
    )


def decode_rows(encoded: EncodedDelta) -> tuple[Tensor | None, Tensor]:
    """The changed rows (int32, None for all) and their float32 values [rows, ...]."""
    return encoded.rows, DECODERS[encoded.codec](encoded)


def decode(encoded: EncodedDelta) -> Tensor:
    """The whole delta, float32 of the base tensor's shape."""
    rows, values = decode_rows(encoded)
    if rows is None:
        return values
    delta = torch.zeros(encoded.shape, dtype=torch.float32)
    delta[rows.long()] = values
    return delta
