"""Adding a mix to the base's weights."""

import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.mix import Mix
from taskmix_composer.quant import decode_rows


def merged_tensor(base: Tensor, bank: Bank, mix: Mix, name: str) -> Tensor:
    """A tensor of the base plus the mix's deltas, summed in float32 and not rounded.

    `base` is the tensor `name` as stored; a new tensor is returned.
    """
    merged = base.to(torch.float32, copy=True)
    for term in mix.terms:
        coefficient = term.coefficient_for(name)
        if coefficient == 0.0 or name not in bank.entry(term.task).tensors:
            continue
        rows, values = decode_rows(bank.read(term.task, name))
        if rows is None:
            merged.add_(values, alpha=coefficient)
        else:
            merged.index_add_(0, rows, values, alpha=coefficient)
    return merged


def is_changed(bank: Bank, mix: Mix, name: str) -> bool:
    """Whether the mix adds anything to this tensor."""
    return any(
        term.coefficient_for(name) != 0.0 and name in bank.entry(term.task).tensors
        for term in mix.terms
    )
