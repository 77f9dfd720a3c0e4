"""Each device operation in float32, by loops over rows and tasks: the definition of correct."""

from collections.abc import Iterator

import torch
from torch import Tensor

from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots

Slots = DeltaSlots | FactorSlots


def add_products(y: Tensor, x: Tensor, slots: Slots, routes: Routes) -> None:
    """y[row] += sum over the row's tasks of coefficients * (delta @ x[row])."""
    for row in range(len(y)):
        total = y[row].float()
        for slot, coefficients in _terms(row, slots, routes):
            total = total + coefficients * (slots.dense(slot) @ x[row].float())
        y[row] = total.to(y.dtype)


add_lowrank = add_products
"""The same sum: only the slots differ."""


def add_composed(y: Tensor, x: Tensor, slots: DeltaSlots, blends: Blends) -> None:
    """y[rows] += x[rows] @ mix.T, for the rows of each group."""
    starts = blends.group_starts.tolist()
    for group in range(int(blends.num_groups)):
        mix = _mix(group, slots, blends)
        for row in blends.group_rows[starts[group] : starts[group + 1]].tolist():
            y[row] = (y[row].float() + mix @ x[row].float()).to(y.dtype)


def add_weights(out: Tensor, base: Tensor, slots: DeltaSlots, blends: Blends) -> None:
    """out = base + the first group's mix."""
    out.copy_(base.float() + _mix(0, slots, blends))


def add_lookups(y: Tensor, ids: Tensor, slots: DeltaSlots, routes: Routes) -> None:
    """y[row] += sum over the row's tasks of coefficient * delta[ids[row]]."""
    for row, token in enumerate(ids.tolist()):
        total = y[row].float()
        for slot, coefficients in _terms(row, slots, routes):
            total = total + coefficients[token] * slots.dense(slot)[token]
        y[row] = total.to(y.dtype)


def _terms(row: int, slots: Slots, routes: Routes) -> Iterator[tuple[int, Tensor]]:
    """The slots that a row uses, each with float32 coefficients [outputs]."""
    starts = routes.row_starts.tolist()
    for pair in routes.row_pairs[starts[row] : starts[row + 1]].tolist():
        slot = int(routes.task_slots[int(routes.pair_tasks[pair])])
        if slots.is_loaded[slot]:
            yield slot, routes.coefficients[slots.segments.long(), pair]


def _mix(group: int, slots: DeltaSlots, blends: Blends) -> Tensor:
    """The sum of coefficient * delta, float32 [outputs, inputs]."""
    starts = blends.term_starts.tolist()
    mix = torch.zeros(slots.rows, slots.columns, device=slots.words.device)
    for term in range(starts[group], starts[group + 1]):
        slot = int(blends.term_slots[term])
        if slots.is_loaded[slot]:
            coefficients = blends.coefficients[slots.segments.long(), term]
            mix += coefficients.unsqueeze(1) * slots.dense(slot)
    return mix
