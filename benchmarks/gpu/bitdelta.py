"""The design of BitDelta's published kernel, from its description, to compare with.

One task for each row of the batch; a product with a batch axis reads the row's 1-bit delta and
multiplies it, so that a task that several rows want is read once for each of them. The scale per
tensor multiplies the product (BitDelta, arXiv 2402.10193, section 3.2).
"""

import triton
import triton.language as tl
from torch import Tensor

OUTPUTS = 32
INPUTS = 256
ROWS = 16
"""The smallest tile of a matrix unit; one of its rows is the batch's."""


@triton.jit
def _binary_kernel(
    y, x, words, tasks, scales, N, K, stride_x, stride_y,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y[row] += scale * (x[row] @ signs.T): one tile of outputs of one row.

    words: int32 [tasks, K / 32, N]; bit b of a word is input 32 * word + b.
    """
    row = tl.program_id(1)
    task = tl.load(tasks + row).to(tl.int64)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row = tl.arange(0, ROWS)[:, None] == 0
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, K, INPUTS):
        inputs = start + tl.arange(0, INPUTS)
        where = words + (task * (K // 32) + inputs[:, None] // 32) * N + outputs[None, :]
        packed = tl.load(where, mask=(outputs[None, :] < N) & (inputs[:, None] < K), other=0)
        bits = (packed >> (inputs[:, None] % 32)) & 1
        signs = (2 * bits - 1).to(tl.float32)
        values = tl.load(
            x + row * stride_x + inputs[None, :] + tl.zeros((ROWS, 1), tl.int32),
            mask=is_row & (inputs[None, :] < K),
            other=0.0,
        )
        if WIDE:
            sums = tl.dot(values.to(tl.float32), signs, sums)
        else:
            sums = tl.dot(values, signs.to(x.dtype.element_ty), sums)
    scaled = tl.sum(sums, axis=0) * tl.load(scales + task)
    target = y + row * stride_y + outputs
    total = scaled + tl.load(target, mask=outputs < N, other=0.0).to(tl.float32)
    tl.store(target, total.to(y.dtype.element_ty), mask=outputs < N)


def add_binary(y: Tensor, x: Tensor, words: Tensor, tasks: Tensor, scales: Tensor) -> None:
    """tasks: int32 [rows of x]; scales: float32 [tasks]."""
    grid = (triton.cdiv(y.shape[1], OUTPUTS), len(x))
    _binary_kernel[grid](
        y, x, words, tasks, scales, y.shape[1], x.shape[1], x.stride(0), y.stride(0),
        OUTPUTS=OUTPUTS, INPUTS=INPUTS, ROWS=ROWS,
        WIDE=bool(triton.knobs.runtime.interpret), num_warps=4, num_stages=3,
    )  # fmt: skip
