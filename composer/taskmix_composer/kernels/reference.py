"""What `products` must give, written from the formulas: float32, a loop over parts and pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.layout import matrix_shape
from taskmix_composer.quant import decode


@dataclass(frozen=True, slots=True, eq=False)
class ReferencePart:
    """A delta of task number `task`, from output `start` on, scaled by row `column`."""

    delta: EncodedDelta
    task: int
    start: int
    column: int

    @property
    def weight(self) -> Tensor:
        """float32 [outputs, inputs]."""
        return decode(self.delta).reshape(matrix_shape(self.delta.shape))


def add_products(
    y: Tensor,
    x: Tensor,
    parts: Sequence[ReferencePart],
    starts: Tensor,
    rows: Tensor,
    coefficients: Tensor,
) -> Tensor:
    """y plus coefficient * (x[row] @ weight.T) of each part and pair: a new float32 tensor."""
    total = y.float().clone()
    for part in parts:
        weight = part.weight
        outputs = slice(part.start, part.start + len(weight))
        for pair in range(int(starts[part.task]), int(starts[part.task + 1])):
            row = int(rows[pair])
            total[row, outputs] += coefficients[part.column, pair] * (weight @ x[row].float())
    return total


def add_lookups(
    y: Tensor,
    ids: Tensor,
    parts: Sequence[ReferencePart],
    starts: Tensor,
    rows: Tensor,
    coefficients: Tensor,
) -> Tensor:
    """y plus coefficient * weight[ids[row]] of each part and pair: a new float32 tensor."""
    total = y.float().clone()
    for part in parts:
        weight = part.weight
        for pair in range(int(starts[part.task]), int(starts[part.task + 1])):
            row = int(rows[pair])
            wanted = int(ids[row]) - part.start
            if 0 <= wanted < len(weight):
                total[row] += coefficients[part.column, pair] * weight[wanted]
    return total


def add_weights(out: Tensor, parts: Sequence[ReferencePart], coefficients: Tensor) -> Tensor:
    """out plus coefficients[column] * weight of each part: a new float32 tensor."""
    total = out.float().clone()
    for part in parts:
        weight = part.weight
        total[part.start : part.start + len(weight)] += coefficients[part.column] * weight
    return total
