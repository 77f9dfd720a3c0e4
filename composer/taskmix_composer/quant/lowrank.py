"""Low-rank deltas: the factors an adapter came with, or a delta's leading singular vectors."""

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.quant import dense

_ROWS_PER_PRODUCT = 4096


def encode(a: Tensor, b: Tensor, scaling: float) -> EncodedDelta:
    """The delta scaling * b [out, r] @ a [r, in], in the factors' own dtype."""
    shape = (b.shape[0], a.shape[1])
    return EncodedDelta("lowrank", shape, {"scaling": scaling}, {"a": a, "b": b})


def decode(encoded: EncodedDelta) -> Tensor:
    """The matrix in float32, multiplied and scaled in float32."""
    product = encoded.parts["b"].float() @ encoded.parts["a"].float()
    return product.mul_(encoded.params["scaling"])


def truncated(delta: Tensor, scheme: Scheme) -> EncodedDelta:
    """The matrix of the scheme's rank that is nearest to a float32 delta, as float16 factors.

    A delta of more than two axes, or one that two factors would not make smaller, is rounded to
    bfloat16 instead.
    """
    rank = min(int(scheme["rank"]), *delta.shape)
    if delta.dim() != 2 or rank * sum(delta.shape) >= delta.numel():
        return dense.encode(delta, Scheme("dense16"))
    if delta.shape[0] >= delta.shape[1]:
        b, a = _factors(delta, rank)
    else:
        a, b = _factors(delta.T, rank)
    largest_a, largest_b = _largest(a), _largest(b)
    return encode(
        (a / largest_a).T.contiguous().to(torch.float16),
        (b / largest_b).to(torch.float16),
        scaling=largest_a * largest_b,
    )


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Left and right factors, float64 [long, rank] and [short, rank], of a matrix [long, short].

    The right singular vectors are the eigenvectors of the Gram matrix, which costs a small part
    of a full decomposition; in float64 it loses only singular values below 1e-8 of the first.
    The root of each singular value goes to either side.
    """
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64)
    for block in matrix.split(_ROWS_PER_PRODUCT):
        gram += block.T.double() @ block.double()
    _, vectors = torch.linalg.eigh(gram)
    right = vectors[:, -rank:].flip(1)
    # A singular vector has no sign of its own.
    peaks = right.gather(0, right.abs().argmax(dim=0, keepdim=True))
    right = right * peaks.sign()
    left = torch.cat([block.double() @ right for block in matrix.split(_ROWS_PER_PRODUCT)])
    roots = left.norm(dim=0).sqrt()
    return left / torch.where(roots > 0, roots, 1.0), right * roots


def _largest(factor: Tensor) -> float:
    """The largest magnitude of a factor, or 1 if it is zero."""
    return float(factor.abs().max()) or 1.0
