"""One forward step: which rows use which masked task, with which coefficients.

Built once per scheduled batch, outside the layers, so that a layer only reads it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskmix_server.engine.vllm.deltas import MaskedTask


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


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What the tasks contribute to one set of rows (the batch's tokens, or its samples).

    rows: int64 ids of the rows that use any task, or None for every row.
    """

    num_rows: int
    rows: Tensor | None
    uses: tuple[TaskUse, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """The plans of one forward pass; `samples` are the rows that reach the head."""

    tokens: RowPlan
    samples: RowPlan


IDLE = Step(RowPlan(0, None, ()), RowPlan(0, None, ()))
"""A step in which no request uses a task."""


def plan_step(
    token_ids: Sequence[int],
    sample_ids: Sequence[int],
    variants: Mapping[int, ResidentVariant],
    device: torch.device,
) -> Step:
    """Plan a step from the variant id of each token and each sample (0 or less: base only)."""
    if not any(variant.tasks for variant in variants.values()):
        return IDLE
    return Step(
        tokens=plan_rows(np.asarray(token_ids), variants, device),
        samples=plan_rows(np.asarray(sample_ids), variants, device),
    )


def plan_rows(
    row_ids: np.ndarray, variants: Mapping[int, ResidentVariant], device: torch.device
) -> RowPlan:
    """Group rows by masked task: int [num_rows] variant ids -> one `TaskUse` for each."""
    present = [int(identity) for identity in np.unique(row_ids) if identity > 0]
    by_task: dict[MaskedTask, dict[int, Tensor]] = {}
    for identity in present:
        for task, coefficients in variants[identity].tasks:
            by_task.setdefault(task, {})[identity] = coefficients
    uses = tuple(_use(task, users, row_ids, device) for task, users in by_task.items())
    return RowPlan(len(row_ids), _rows_of(row_ids, present, device), uses)


def _use(
    task: MaskedTask, users: Mapping[int, Tensor], row_ids: np.ndarray, device: torch.device
) -> TaskUse:
    identities = sorted(users)
    table = torch.stack([users[identity] for identity in identities], dim=1)
    mine = row_ids[np.isin(row_ids, identities)]
    user_of_row = torch.from_numpy(np.searchsorted(identities, mine))
    coefficients = table[:, user_of_row].to(device)  # [num_tensors, num_rows]
    return TaskUse(task, _rows_of(row_ids, identities, device), coefficients)


def _rows_of(row_ids: np.ndarray, identities: Sequence[int], device: torch.device) -> Tensor | None:
    rows = np.flatnonzero(np.isin(row_ids, identities))
    return None if len(rows) == len(row_ids) else torch.from_numpy(rows).to(device)
