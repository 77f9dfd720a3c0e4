"""Adding a mix to the base's weights."""

import torch
from torch import Tensor

from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.bank.records import Content
from taskmix_composer.mix import Mix, Term
from taskmix_composer.quant import decode, decode_rows


def merged_tensor(
    base: Tensor, bank: Bank, mix: Mix, name: str, *, is_exact: bool = False
) -> Tensor:
    """A tensor of the base plus the mix's deltas, summed in float32 and not rounded.

    `base` is the tensor `name` as stored; a new tensor is returned. `is_exact` takes the deltas
    from exact entries, where the bank has them, in place of what it serves.
    """
    merged = base.to(torch.float32, copy=True)
    for term in mix.terms:
        coefficient = term.coefficient_for(name)
        delta = _delta(bank, term.task, name, is_exact=is_exact) if coefficient else None
        if delta is None:
            continue
        rows, values = decode_rows(delta, base)
        mask = term_mask(bank, term, name)
        if mask is not None:
            values = values * (mask if rows is None else mask[rows.long()])
        if rows is None:
            merged.add_(values, alpha=coefficient)
        else:
            merged.index_add_(0, rows, values, alpha=coefficient)
    return merged


def term_mask(bank: Bank, term: Term, name: str) -> Tensor | None:
    """The weights of one tensor that all of a term's masks keep, bool; None if it has none."""
    kept = None
    for mask in term.masks:
        plane = bank.read_plane(mask.removeprefix("!"), name)
        shape = bank.base.tensors[name].shape
        own = torch.zeros(shape, dtype=torch.bool) if plane is None else decode(plane).bool()
        own = ~own if mask.startswith("!") else own
        kept = own if kept is None else kept & own
    return kept


def is_changed(bank: Bank, mix: Mix, name: str, *, is_exact: bool = False) -> bool:
    """Whether the mix adds anything to this tensor."""
    return any(
        term.coefficient_for(name) != 0.0
        and name in _content(bank, term.task, is_exact=is_exact).tensors
        for term in mix.terms
    )


def _content(bank: Bank, task: str, *, is_exact: bool) -> Content:
    entry = bank.entry(task)
    return entry.exact if is_exact and entry.exact is not None else entry.content


def _delta(bank: Bank, task: str, name: str, *, is_exact: bool) -> EncodedDelta | None:
    if name not in _content(bank, task, is_exact=is_exact).tensors:
        return None
    is_archived = is_exact and bank.entry(task).exact is not None
    return bank.read_exact(task, name) if is_archived else bank.read(task, name)
