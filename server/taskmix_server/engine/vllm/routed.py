"""A step's rows, for the kernels that read the tables of a device."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor

from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.ops import Ops
from taskmix_composer.kernels.products import Pairs

MAX_PAIRS = 1024
"""More pairs of a row and a task than this are multiplied with composed weights.

The other way needs room for the products of each pair, and multiplies a row once for each of its
tasks. No device has been asked where the two cost the same.
"""
CAPACITY_STEP = 16
"""Capacities are multiples of this, so that kernels are not compiled anew for odd ones."""

Terms = Sequence[tuple[int, Tensor]]
"""Slots with float32 coefficients [tensors]."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutedRows:
    """What tasks in tables add to a step's rows.

    blends: of the same rows by their mixes; only where composing takes the products' place.
    """

    ops: Ops
    routes: Routes
    blends: Blends | None

    @classmethod
    def of(
        cls,
        ops: Ops,
        pairs: Pairs,
        slots: Sequence[int | None],
        mixes: Sequence[Terms],
        mix_of_row: np.ndarray,
        device: torch.device,
    ) -> Self | None:
        """Rows from the pairs of all tasks, of which `slots` says where those in tables are.

        mixes: their terms in tables. mix_of_row: int [rows], into `mixes`. None if there are no
        pairs of such tasks.
        """
        kept = [
            (slot, start, end)
            for slot, (start, end) in zip(slots, pairwise(pairs.starts.tolist()), strict=True)
            if slot is not None and start < end
        ]
        if not kept:
            return None
        routes = _routes(pairs, kept, len(mix_of_row), device)
        num_pairs = sum(end - start for _, start, end in kept)
        blends = _blends(mixes, mix_of_row, device) if num_pairs > MAX_PAIRS else None
        return cls(ops, routes, blends)

    def add_products(self, out: Tensor, x: Tensor, tables: Iterable[DeltaSlots]) -> None:
        """out [rows, at least the tables' outputs] += x @ delta.T of each row's tasks."""
        for table in tables:
            target = out[:, : table.rows]  # a head's outputs are padded
            if self.blends is None:
                self.ops.add_products(target, x, table, self.routes)
            else:
                self.ops.add_composed(target, x, table, self.blends)

    def add_lookups(self, out: Tensor, token_ids: Tensor, tables: Iterable[DeltaSlots]) -> None:
        """out [rows, hidden] += the rows of the tasks' deltas of these tokens."""
        for table in tables:
            self.ops.add_lookups(out, token_ids, table, self.routes)


def _routes(
    pairs: Pairs, kept: Sequence[tuple[int, int, int]], num_rows: int, device: torch.device
) -> Routes:
    slots = [slot for slot, _, _ in kept]
    starts = np.cumsum([0, *(end - start for _, start, end in kept)])
    rows = torch.cat([pairs.rows[start:end] for _, start, end in kept])
    coefficients = torch.cat([pairs.coefficients[:, start:end] for _, start, end in kept], dim=1)
    routes = Routes.allocate(
        _capacity(num_rows), len(kept), _capacity(len(rows)), len(coefficients), device
    )
    routes.fill(slots, torch.from_numpy(starts.astype(np.int32)), rows, coefficients)
    return routes


def _blends(mixes: Sequence[Terms], mix_of_row: np.ndarray, device: torch.device) -> Blends:
    present = [(index, terms) for index, terms in enumerate(mixes) if terms]
    rows = [np.flatnonzero(mix_of_row == index).tolist() for index, _ in present]
    slots = [[slot for slot, _ in terms] for _, terms in present]
    coefficients = torch.stack([c for _, terms in present for _, c in terms], dim=1)
    blends = Blends.allocate(
        _capacity(len(mix_of_row)),
        len(present),
        _capacity(coefficients.shape[1]),
        len(coefficients),
        device,
    )
    blends.fill(rows, slots, coefficients)
    return blends


def _capacity(length: int) -> int:
    return -(-length // CAPACITY_STEP) * CAPACITY_STEP
