"""One forward step: which rows use which masked task, with which coefficients.

Built once per scheduled batch, outside the layers, so that a layer only reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from taskmix_composer.kernels.ops import Ops
from taskmix_composer.kernels.products import Pairs
from taskmix_server.engine.vllm.deltas import MaskedTask
from taskmix_server.engine.vllm.routed import RoutedRows
from taskmix_server.engine.vllm.slots import NO_SLOTS, Slots


@dataclass(frozen=True, slots=True, eq=False)
class ResidentVariant:
    """A mix ready to run: each masked content once, with one coefficient per tensor of the base."""

    tasks: tuple[tuple[MaskedTask, Tensor], ...]  # (task, float32 [num_tensors])


NO_TASKS = ResidentVariant(())
"""A variant that adds nothing."""


@dataclass(frozen=True, slots=True)
class TaskUse:
    """The rows of a batch that one task contributes to.

    rows: int64 [num_rows], or None for every row of the batch.
    coefficients: float32 [num_tensors, num_rows]; column r belongs to rows[r].
    """

    task: MaskedTask
    rows: Tensor | None
    coefficients: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RowPlan:
    """What tasks contribute to one set of rows (the batch's tokens, or its samples).

    rows: int64 ids of the rows that use any task, or None for every row.
    pairs: the same as `uses`, for kernels: each row with each task that it uses, tasks numbered by
        their slots.
    variant_of_row: int64 [num_rows], of the variants that the rows use.
    coefficients: float32 [num_tensors, variants, uses].
    sole: the variant of every row, where there is only one.
    routed: the same for the slots of a device; None where nothing is there.
    norms: what each norm's weight is for each variant, float32 [variants, width] by site name, or
        None; filled as layers ask.
    """

    num_rows: int
    rows: Tensor | None
    slots: Slots
    uses: tuple[TaskUse, ...]
    pairs: Pairs
    variant_of_row: Tensor
    coefficients: Tensor
    sole: ResidentVariant | None
    routed: RoutedRows | None = None
    norms: dict[str, Tensor | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """The plans of one forward pass, None where no row uses a task.

    samples are the rows that reach the head.
    """

    tokens: RowPlan | None = None
    samples: RowPlan | None = None


IDLE = Step()
"""A step in which no request uses a task."""


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans steps over the tasks that have a slot now, for a model on `device`.

    ops: what multiplies deltas in tables of the device, where there are any.
    """

    num_tensors: int
    device: torch.device
    slots: Slots = NO_SLOTS
    ops: Ops | None = None

    def step(
        self,
        token_ids: Sequence[int],
        sample_ids: Sequence[int],
        variants: Mapping[int, ResidentVariant],
    ) -> Step:
        """Plan a step from the variant id of each token and each sample (0 or less: base only)."""
        if not any(variant.tasks for variant in variants.values()):
            return IDLE
        return Step(
            tokens=self.rows(np.asarray(token_ids), variants),
            samples=self.rows(np.asarray(sample_ids), variants),
        )

    def rows(self, row_ids: np.ndarray, variants: Mapping[int, ResidentVariant]) -> RowPlan | None:
        """Plan rows from their variant ids, int [num_rows]."""
        identities, variant_of_row = np.unique(row_ids, return_inverse=True)
        present = tuple(variants.get(int(identity), NO_TASKS) for identity in identities)
        terms = _Terms.of(present, self.slots)
        if not terms.variants.size:
            return None
        starts, rows, term_of_pair = _pairs(terms, variant_of_row, len(self.slots.tasks))
        coefficients = terms.table(self.num_tensors)[:, torch.from_numpy(term_of_pair)]
        pairs = Pairs(torch.from_numpy(starts), torch.from_numpy(rows), coefficients)
        uses = self._uses(pairs, len(row_ids))
        return RowPlan(
            num_rows=len(row_ids),
            rows=self._mixed_rows(present, variant_of_row),
            slots=self.slots,
            uses=uses,
            pairs=pairs,
            variant_of_row=torch.from_numpy(variant_of_row).to(self.device),
            coefficients=self._by_variant(present, uses),
            sole=present[0] if len(present) == 1 else None,
            routed=self._routed(pairs, present, variant_of_row),
        )

    def _routed(
        self, pairs: Pairs, present: Sequence[ResidentVariant], variant_of_row: np.ndarray
    ) -> RoutedRows | None:
        """The pairs whose tasks are in tables of the device."""
        if self.ops is None:
            return None
        slots = [task.slot for task in self.slots.tasks]
        mixes = [
            [
                (task.slot, coefficients)
                for task, coefficients in variant.tasks
                if task.slot is not None
            ]
            for variant in present
        ]
        return RoutedRows.of(self.ops, pairs, slots, mixes, variant_of_row, self.device)

    def _mixed_rows(
        self, present: Sequence[ResidentVariant], variant_of_row: np.ndarray
    ) -> Tensor | None:
        is_mixed = np.array([bool(variant.tasks) for variant in present])
        if is_mixed.all():
            return None
        return torch.from_numpy(np.flatnonzero(is_mixed[variant_of_row])).to(self.device)

    def _uses(self, pairs: Pairs, num_rows: int) -> tuple[TaskUse, ...]:
        found = []
        bounds = pairwise(pairs.starts.tolist())
        for task, (start, end) in zip(self.slots.tasks, bounds, strict=True):
            if start == end:
                continue
            rows = None
            if end - start < num_rows:
                rows = pairs.rows[start:end].to(self.device, torch.int64)
            coefficients = pairs.coefficients[:, start:end].to(self.device)
            found.append(TaskUse(task, rows, coefficients))
        return tuple(found)

    def _by_variant(self, present: Sequence[ResidentVariant], uses: Sequence[TaskUse]) -> Tensor:
        numbers = {use.task: number for number, use in enumerate(uses)}
        table = torch.zeros(self.num_tensors, len(present), len(uses))
        for index, variant in enumerate(present):
            for task, coefficients in variant.tasks:
                table[:, index, numbers[task]] = coefficients
        return table.to(self.device)


@dataclass(frozen=True, slots=True, eq=False)
class _Terms:
    """The terms of the variants of a batch: int64 [terms], into variants and slots."""

    variants: np.ndarray
    slots: np.ndarray
    coefficients: tuple[Tensor, ...]

    @classmethod
    def of(cls, present: Sequence[ResidentVariant], slots: Slots) -> "_Terms":
        found = [
            (index, slots.of(task), coefficients)
            for index, variant in enumerate(present)
            for task, coefficients in variant.tasks
        ]
        indices = np.array([[index, slot] for index, slot, _ in found], dtype=np.int64)
        indices = indices.reshape(-1, 2)
        return cls(indices[:, 0], indices[:, 1], tuple(values for _, _, values in found))

    def table(self, num_tensors: int) -> Tensor:
        """float32 [num_tensors, terms]."""
        stacked = torch.stack(self.coefficients, dim=1)
        assert stacked.shape[0] == num_tensors
        return stacked


def _pairs(
    terms: _Terms, variant_of_row: np.ndarray, num_slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every (row, term) by slot, then by row.

    Returns int32 starts [num_slots + 1], int32 rows [pairs] and int64 terms [pairs].
    """
    by_variant = np.argsort(variant_of_row, kind="stable")
    bounds = np.searchsorted(variant_of_row[by_variant], np.arange(variant_of_row.max() + 2))
    rows_of_term = [by_variant[bounds[index] : bounds[index + 1]] for index in terms.variants]
    rows = np.concatenate(rows_of_term)
    term_of_pair = np.repeat(np.arange(len(rows_of_term)), [len(rows) for rows in rows_of_term])
    slot_of_pair = terms.slots[term_of_pair]
    order = np.lexsort((rows, slot_of_pair))
    starts = np.searchsorted(slot_of_pair[order], np.arange(num_slots + 1))
    return starts.astype(np.int32), rows[order].astype(np.int32), term_of_pair[order]
