"""Equal shares of the work for a fixed number of programs, and where their sums lie.

All active tasks' tiles are one line of units of `blocks` steps each; a tile's tasks follow each
other, since they read the same inputs and may share a vector. A program takes `share`
consecutive steps of it, so that all end together whatever the number of tasks. A unit that is cut
leaves a piece of its sum with each program that has a part of it; `gather` adds the pieces in
order, so equal batches give equal bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.triton import tuning
from taskmix_composer.kernels.triton.decode import TILE, rounded

GATHER_OUTPUTS = 512
MAX_PARTIAL_BYTES = 1 << 28


@triton.jit
def share_of(num_units, blocks, programs, MAX_PIECES: tl.constexpr):
    """Steps of each program; a unit then has at most MAX_PIECES pieces."""
    return tl.maximum(tl.cdiv(num_units * blocks, programs), tl.cdiv(blocks, MAX_PIECES - 1))


@triton.jit
def store_piece(partials, sums, piece, pairs, is_pair, outputs, max_pairs, N):
    """Keep float32 sums [outputs, pairs] of a piece."""
    rows = (piece * max_pairs + pairs).to(tl.int64) * N
    is_inside = is_pair[None, :] & (outputs[:, None] < N)
    tl.store(partials + rows[None, :] + outputs[:, None], sums, mask=is_inside)


@triton.jit
def gather_kernel(
    y, partials, num_tasks, task_slots, pair_tasks, row_starts, row_pairs, coefficients,
    row_scales, is_loaded, segments, N, blocks, max_pairs, programs, stride_y,
    TASKS: tl.constexpr, MAX_PIECES: tl.constexpr, OUTPUTS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """y[row] += sum over the row's pairs of coefficient * row scale * the pair's pieces."""
    row = tl.program_id(0)
    first, last = tl.load(row_starts + row), tl.load(row_starts + row + 1)
    if first == last:
        return
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < N
    tiles = tl.cdiv(N, TILE)
    task_groups = tl.cdiv(tl.load(num_tasks), TASKS)
    share = share_of(task_groups * tiles, blocks, programs, MAX_PIECES)
    columns = tl.load(segments + outputs, mask=is_output, other=0)
    total = tl.zeros((OUTPUTS,), tl.float32)
    for index in range(first, last):
        pair = tl.load(row_pairs + index)
        task = tl.load(pair_tasks + pair)
        slot = tl.load(task_slots + task).to(tl.int64)
        if tl.load(is_loaded + slot) != 0:
            starts = ((outputs // TILE) * task_groups + task // TASKS) * blocks
            num_pieces = (starts + blocks - 1) // share - starts // share + 1
            sums = tl.zeros((OUTPUTS,), tl.float32)
            for piece in tl.static_range(MAX_PIECES):
                where = partials + (piece * max_pairs + pair).to(tl.int64) * N + outputs
                sums += tl.load(where, mask=is_output & (piece < num_pieces), other=0.0)
            scales = tl.load(row_scales + slot * N + outputs, mask=is_output, other=0.0)
            scales *= tl.load(coefficients + columns * max_pairs + pair, mask=is_output, other=0.0)
            total += sums * scales
    target = y + row.to(tl.int64) * stride_y + outputs
    total += tl.load(target, mask=is_output, other=0.0).to(tl.float32)
    tl.store(target, rounded(total, y.dtype.element_ty, WIDE), mask=is_output)


def gather(
    y: Tensor,
    partials: Tensor,
    slots: DeltaSlots,
    routes: Routes,
    launch: tuple[int, int, int],
) -> None:
    """Add partials [pieces, pairs, outputs] to y; launch: programs, tasks of a unit, blocks."""
    programs, tasks, blocks = launch
    gather_kernel[(y.shape[0], triton.cdiv(slots.rows, GATHER_OUTPUTS))](
        y, partials, routes.num_tasks, routes.task_slots, routes.pair_tasks, routes.row_starts,
        routes.row_pairs, routes.coefficients, slots.row_scales, slots.is_loaded, slots.segments,
        slots.rows, blocks, routes.max_pairs, programs, y.stride(0),
        TASKS=tasks, MAX_PIECES=len(partials), OUTPUTS=GATHER_OUTPUTS, WIDE=tuning.is_interpreted(),
        **tuning.options(tuning.Choice()),
    )  # fmt: skip


def empty_partials(y: Tensor, routes: Routes, num_outputs: int, max_pieces: int) -> Tensor:
    """Room for the pieces, fewer if the pairs are many and fill the device by themselves.

    float32 [pieces, pairs, outputs], not initialised: what is read has been written.
    """
    pieces = max_pieces
    while pieces > 2 and 4 * pieces * routes.max_pairs * num_outputs > MAX_PARTIAL_BYTES:
        pieces //= 2
    shape = (pieces, routes.max_pairs, num_outputs)
    return torch.empty(shape, dtype=torch.float32, device=y.device)
