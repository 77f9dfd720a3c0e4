"""Merged deltas as most methods make them: masks over the task vectors and a number per task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.layout import MAX_BLOCK_ELEMENTS
from taskmix_composer.merge.vectors import Vectors

# Which elements take part: float32 [T, n] -> bool [T, n], whatever the n elements.
Rule = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Selection:
    """What each task gives to the merged delta of one tensor.

    deltas: float32 [T, *shape]; masks: bool [T, *shape]; coefficients: one per task. With `shares`,
    also one per task, each element is divided by the shares of the tasks selected there; only
    without them are the masks planes, whose sum under the coefficients is the merged delta.
    """

    tensor: str
    deltas: Tensor
    masks: Tensor
    coefficients: Sequence[float]
    shares: Sequence[float] | None = None

    def merged(self) -> Tensor:
        """The merged delta, float32 [*shape]."""
        total = torch.empty(self.deltas.shape[1:])
        for part, deltas, masks in blocks(total.view(1, -1), self.deltas, self.masks):
            part[0] = ordered_sum(deltas * masks, self.coefficients)
            if self.shares is not None:
                divisor = ordered_sum(masks.float(), self.shares)
                part.div_(divisor.masked_fill_(divisor == 0, 1))
        return total


@dataclass(frozen=True, slots=True)
class Computed:
    """A merged delta, float32 [*shape], that is no selection from the task vectors."""

    tensor: str
    delta: Tensor

    def merged(self) -> Tensor:
        """The merged delta itself."""
        return self.delta


def select_elements(
    vectors: Vectors,
    rule: Rule,
    coefficients: Sequence[float],
    shares: Sequence[float] | None = None,
) -> Iterator[Selection]:
    """Selections, tensor by tensor, by a rule that looks at one element of all tasks at a time."""

    def select(tensor: str) -> Selection:
        deltas = vectors.read(tensor)
        return Selection(tensor, deltas, masks_by(rule, deltas), coefficients, shares)

    return map(select, vectors.shapes)


def masks_by(rule: Rule, deltas: Tensor) -> Tensor:
    """What the rule selects: float32 [T, *shape] -> bool [T, *shape]."""
    masks = torch.empty(deltas.shape, dtype=torch.bool)
    for part, block in blocks(masks, deltas):
        part.copy_(rule(block))
    return masks


def blocks(*stacks: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views [T, n] of the same elements of tensors [T, *shape], of which one may have T 1.

    They are small: what is computed from them stays in a core's cache, and below the size at which
    torch splits an operation over threads.
    """
    flat = [stack.reshape(len(stack), -1) for stack in stacks]
    step = max(1, MAX_BLOCK_ELEMENTS // max(map(len, flat)))
    for start in range(0, flat[0].shape[1], step):
        yield tuple(stack[:, start : start + step] for stack in flat)


def ordered_sum(rows: Tensor, coefficients: Sequence[float] | None = None) -> Tensor:
    """Sum of rows, each times its coefficient, in their order: float32 [T, ...] -> [...].

    The order is fixed because a rounding can decide an election: `Tensor.sum` follows it for most
    elements but adds the last few of a tensor in another order.
    """
    total = torch.zeros_like(rows[0])
    for row, number in zip(rows, coefficients or [1.0] * len(rows), strict=True):
        total += row if number == 1.0 else row * number
    return total


def one_hot(winners: Tensor, num_tasks: int) -> Tensor:
    """Masks that give each element to one task: int16 [n] -> bool [T, n]; -1 is nobody."""
    return winners == torch.arange(num_tasks, dtype=torch.int16).unsqueeze(1)
