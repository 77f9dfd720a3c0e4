"""Adding deltas, as they are packed, to what a model computes or to its weights.

Every operation is in place, sums in float32 and rounds once.
"""

import torch
from torch import Tensor

from taskmix_composer.kernels.native import abi, library
from taskmix_composer.kernels.native.library import Kernels
from taskmix_composer.kernels.tables import OperandError, Pairs, Part, PartTable

__all__ = [
    "OperandError",
    "Pairs",
    "Part",
    "PartTable",
    "add_lookups",
    "add_products",
    "add_weights",
]


def add_products(
    y: Tensor,
    x: Tensor,
    table: PartTable,
    pairs: Pairs,
    *,
    is_exact: bool = False,
    kernels: Kernels | None = None,
) -> None:
    """y[row] += coefficient * (x[row] @ weight.T), over all parts and the pairs of their tasks.

    y: [rows, outputs or more], x: [rows, inputs]; each bfloat16, float16 or float32, with any
    stride from row to row. Rows in no pair keep every bit. Where x is in 16 bits, its rows are
    rounded to 8 bits, with a scale for each 64 inputs, if the machine multiplies those faster and
    `is_exact` does not forbid it.
    """
    fits = (
        x.shape[0] == y.shape[0] >= pairs.num_rows
        and x.shape[1] == table.num_inputs
        and y.shape[1] >= table.num_outputs
        and table.num_tasks <= pairs.num_tasks
        and table.num_columns <= pairs.num_columns
    )
    if not fits:
        raise OperandError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} do not fit a table of {table.num_inputs} "
            f"inputs, {table.num_outputs} outputs, {table.num_tasks} tasks and "
            f"{table.num_columns} columns, or pairs of {pairs.num_rows} rows, {pairs.num_tasks} "
            f"tasks and {pairs.num_columns} columns"
        )
    call = _kernels(kernels).add_products
    _done(call(table.address, pairs.address, *_matrix(y), *_matrix(x), is_exact))


def add_lookups(
    y: Tensor, ids: Tensor, table: PartTable, pairs: Pairs, *, kernels: Kernels | None = None
) -> None:
    """y[row] += coefficient * weight[ids[row]], over all parts and the pairs of their tasks.

    y: [rows, inputs] in bfloat16, float16 or float32; ids: int64 [rows], each an output.
    """
    fits = (
        ids.shape == y.shape[:1]
        and y.shape[0] >= pairs.num_rows
        and y.shape[1] == table.num_inputs
        and table.num_tasks <= pairs.num_tasks
        and table.num_columns <= pairs.num_columns
    )
    if not fits or ids.dtype is not torch.int64:
        raise OperandError(
            f"ids {ids.dtype} {tuple(ids.shape)} and y {tuple(y.shape)} do not fit rows of "
            f"{table.num_inputs}, or pairs of {pairs.num_rows} rows, {pairs.num_tasks} tasks and "
            f"{pairs.num_columns} columns"
        )
    ids = ids.contiguous()
    call = _kernels(kernels).add_lookups
    _done(call(table.address, pairs.address, *_matrix(y), ids.data_ptr()))


def add_weights(
    out: Tensor, table: PartTable, coefficients: Tensor, *, kernels: Kernels | None = None
) -> None:
    """out += coefficients[column] * weight, over all parts.

    out: [outputs or more, inputs] in bfloat16, float16 or float32; coefficients: float32 [columns].
    """
    fits = (
        out.shape[0] >= table.num_outputs
        and out.shape[1] == table.num_inputs
        and coefficients.dim() == 1
        and coefficients.numel() >= table.num_columns
    )
    if not fits or coefficients.dtype is not torch.float32:
        raise OperandError(
            f"out {tuple(out.shape)} and coefficients {coefficients.dtype} "
            f"{tuple(coefficients.shape)} do not fit a table of {table.num_outputs} outputs, "
            f"{table.num_inputs} inputs and {table.num_columns} columns"
        )
    values = coefficients.contiguous()
    _done(_kernels(kernels).add_weights(table.address, values.data_ptr(), *_matrix(out)))


def _kernels(given: Kernels | None) -> Kernels:
    found = given or library.load()
    if found is None:
        raise OperandError(
            "the compiled kernels are not available: install taskmix where there is a C compiler, "
            "on a machine with AVX2"
        )
    return found


def _matrix(tensor: Tensor) -> tuple[int, int, int]:
    """What a kernel takes a matrix as: its address, stride and dtype."""
    stride, adjacent = tensor.stride()
    dtype = abi.DTYPES.get(tensor.dtype)
    if dtype is None or adjacent != 1 or not tensor.is_cpu:
        raise OperandError(
            f"a matrix of {tensor.dtype} with strides {tensor.stride()} on {tensor.device} is not "
            "float32, bfloat16 or float16 with adjacent columns in main memory"
        )
    return tensor.data_ptr(), stride, dtype


def _done(status: int) -> None:
    if status != 0:
        raise MemoryError("a kernel ran out of memory")
