"""Encoding and decoding deltas: one table by scheme, one by codec."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.bank.codecs import ARCHIVAL_CODECS
from taskmix_composer.config import INTEGER_BITS, Scheme
from taskmix_composer.errors import InvalidSchemeError
from taskmix_composer.layout import matrix_shape
from taskmix_composer.quant import affine, archival, dense, lowrank, masked, sign, sparse

__all__ = [
    "DECODERS",
    "SCHEMES",
    "changed_rows",
    "decode",
    "decode_rows",
    "encode",
    "encode_rows",
    "sparse_rows",
]

Encoder = Callable[[Tensor, Scheme], EncodedDelta]
Decoder = Callable[[EncodedDelta], Tensor]

SCHEMES: Mapping[str, Encoder] = {
    "dense": dense.encode,
    "dense16": dense.encode,
    **dict.fromkeys(INTEGER_BITS, affine.encode),
    "sign": sign.encode,
    "sparse": sparse.encode,
    "lowrank": lowrank.truncated,
}
"""The schemes that code a delta by itself."""

DECODERS: Mapping[str, Decoder] = {
    "dense": dense.decode,
    "affine": affine.decode,
    "lowrank": lowrank.decode,
    "sign": sign.decode,
    "sparse": sparse.decode,
    "plane": masked.decode_plane,
}
_KEEPS_VECTORS = ("dense", "dense16")


def encode(delta: Tensor, scheme: Scheme) -> EncodedDelta:
    """Encode a float32 delta that has finite values, by itself.

    Tensors of one axis (norms, biases) stay float32 under every scheme but dense16. Of tensors
    with more axes only the changed rows are coded, where those are at most half of all.
    """
    if delta.dim() < 2:
        vectors = scheme if scheme.name in _KEEPS_VECTORS else Scheme("dense")
        return SCHEMES[vectors.name](delta, vectors)
    return encode_rows(delta, changed_rows(delta), scheme)


def encode_rows(delta: Tensor, rows: Tensor | None, scheme: Scheme) -> EncodedDelta:
    """Encode a delta of two or more axes of which all other rows than `rows` (int64) are zero."""
    if rows is None:
        return SCHEMES[scheme.name](delta, scheme)
    coded = SCHEMES[scheme.name](delta[rows], scheme)
    return EncodedDelta(
        coded.codec, tuple(delta.shape), coded.params, coded.parts, rows.to(torch.int32)
    )


def changed_rows(delta: Tensor) -> Tensor | None:
    """int64 ids of the rows that are not zero, or None if those are more than half, or none."""
    return sparse_rows((delta.reshape(matrix_shape(tuple(delta.shape))) != 0).any(dim=1))


def sparse_rows(changed: Tensor) -> Tensor | None:
    """bool [rows] -> int64 ids of its ones, or None if those are more than half, or none."""
    if not 0 < 2 * int(changed.sum()) <= len(changed):
        return None
    return changed.nonzero().squeeze(1)


def decode_rows(encoded: EncodedDelta, base: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
    """The changed rows (int32, None for all) and their float32 values [rows, ...].

    An archived delta is the difference from `base`, the base's tensor as stored.
    """
    return encoded.rows, _values(encoded, base)


def decode(encoded: EncodedDelta, base: Tensor | None = None) -> Tensor:
    """The whole delta, float32 of the base tensor's shape."""
    rows, values = decode_rows(encoded, base)
    if rows is None:
        return values
    delta = torch.zeros(encoded.shape, dtype=torch.float32)
    delta[rows.long()] = values
    return delta


def _values(encoded: EncodedDelta, base: Tensor | None) -> Tensor:
    if encoded.codec in ARCHIVAL_CODECS:
        return _difference(encoded, base)
    if encoded.shared is None:
        return DECODERS[encoded.codec](encoded)
    shared = _values(encoded.shared, base)
    if encoded.codec == "masked":
        return masked.decode(encoded, shared)
    return shared + DECODERS[encoded.codec](encoded)


def _difference(encoded: EncodedDelta, base: Tensor | None) -> Tensor:
    if base is None:
        raise InvalidSchemeError(
            "an exact entry is coded against the base's weights; give the base model too"
        )
    return archival.restore(base, encoded).to(torch.float32, copy=True).sub_(base.float())
