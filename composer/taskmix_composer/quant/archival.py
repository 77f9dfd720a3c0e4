"""A fine-tuned tensor bit for bit: as steps from the base's where that is smaller, else raw."""

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.entropy import EntropyError
from taskmix_composer.errors import BankFormatError
from taskmix_composer.quant import exact


def encode(base: Tensor, tuned: Tensor) -> EncodedDelta:
    """Code `tuned`, which has the shape of `base`; both as stored."""
    if base.dtype == tuned.dtype == torch.bfloat16 and base.dim() > 0:
        parts = exact.encode(base, tuned)
        if exact.pays(parts, tuned):
            return EncodedDelta("exact", tuple(base.shape), {}, parts)
    return EncodedDelta("raw", tuple(base.shape), {}, {"tuned": tuned})


def restore(base: Tensor, encoded: EncodedDelta) -> Tensor:
    """The tensor that `encode` was given."""
    if encoded.codec == "raw":
        return encoded.parts["tuned"]
    try:
        return exact.restore(base, encoded.parts)
    except EntropyError as error:
        raise BankFormatError(f"an exact tensor cannot be restored: {error}") from None
