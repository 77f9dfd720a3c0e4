"""Low-rank deltas, kept as the factors an adapter came with."""

from torch import Tensor

from taskmix_composer.bank import EncodedDelta


def encode(a: Tensor, b: Tensor, scaling: float) -> EncodedDelta:
    """The delta scaling * b [out, r] @ a [r, in], in the factors' own dtype."""
    shape = (b.shape[0], a.shape[1])
    return EncodedDelta("lowrank", shape, {"scaling": scaling}, {"a": a, "b": b})


def decode(encoded: EncodedDelta) -> Tensor:
    """The matrix in float32, multiplied and scaled in float32."""
    product = encoded.parts["b"].float() @ encoded.parts["a"].float()
    return product.mul_(encoded.params["scaling"])
