"""Deltas as plain numbers: float32, or rounded to bfloat16."""

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme

_STORED: dict[str, torch.dtype] = {"dense16": torch.bfloat16}


def encode(delta: Tensor, scheme: Scheme) -> EncodedDelta:
    """Keep a float32 delta; the scheme dense16 rounds it to bfloat16."""
    values = delta.to(_STORED.get(scheme.name, torch.float32))
    return EncodedDelta("dense", tuple(delta.shape), {}, {"values": values})


def decode(encoded: EncodedDelta) -> Tensor:
    """The coded rows in float32; float32 values are returned as stored, not copied."""
    return encoded.parts["values"].to(torch.float32)
