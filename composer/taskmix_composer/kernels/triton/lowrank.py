"""Products with low-rank deltas: y += sum of coefficient * scaling * (x[row] @ a.T) @ b.T."""

import triton
import triton.language as tl
from torch import Tensor

from taskmix_composer.kernels.device.factors import RANK_TILE, FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.triton import tuning
from taskmix_composer.kernels.triton.decode import TILE, computable, rounded
from taskmix_composer.kernels.triton.pieces import (
    empty_partials,
    gather,
    share_of,
    store_piece,
)

INPUTS = 128
"""Inputs of one step."""


@triton.jit
def shrink_kernel(
    partials, x, a, is_loaded, num_tasks, task_slots, task_starts, pair_rows,
    K, rank, max_pairs, stride_x,
    INPUTS: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, MAX_PIECES: tl.constexpr,
    WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x @ a.T of each pair, in pieces; a unit is a task's tile of ranks."""
    tiles, blocks = rank // RANKS, tl.cdiv(K, INPUTS)
    tasks = tl.load(num_tasks)
    num_units = tasks * tiles
    share = share_of(num_units, blocks, tl.num_programs(0), MAX_PIECES)
    step = tl.program_id(0) * share
    stop = tl.minimum(step + share, num_units * blocks)
    while step < stop:
        unit = step // blocks
        first = step - unit * blocks
        last = tl.minimum(blocks, first + stop - step)
        task = unit % tasks
        ranks = (unit // tasks) * RANKS + tl.arange(0, RANKS)
        slot = tl.load(task_slots + task).to(tl.int64)
        end = tl.load(task_starts + task + 1)
        if tl.load(is_loaded + slot) == 0:
            end = 0
        for pair in range(tl.load(task_starts + task), end, ROWS):
            pairs = pair + tl.arange(0, ROWS)
            is_pair = pairs < end
            rows = tl.load(pair_rows + pairs, mask=is_pair, other=0).to(tl.int64)
            sums = tl.zeros((RANKS, ROWS), tl.float32)
            for block in tl.range(first, last, num_stages=STAGES):
                columns = block * INPUTS + tl.arange(0, INPUTS)
                is_column = columns < K
                factors = tl.load(
                    a + (slot * rank + ranks[:, None]) * K + columns[None, :],
                    mask=is_column[None, :],
                    other=0.0,
                )
                inputs = tl.load(
                    x + rows[None, :] * stride_x + columns[:, None],
                    mask=is_pair[None, :] & is_column[:, None],
                    other=0.0,
                )
                sums = tl.dot(computable(factors, WIDE), computable(inputs, WIDE), sums)
            piece = tl.program_id(0) - unit * blocks // share
            store_piece(partials, sums, piece, pairs, is_pair, ranks, max_pairs, rank)
        step += last - first


@triton.jit
def _gathered(partials, pairs, is_pair, ranks, num_pieces, max_pairs, rank):
    """The sum of the pieces, float32 [ranks, pairs]."""
    sums = tl.zeros((ranks.shape[0], pairs.shape[0]), tl.float32)
    for piece in range(num_pieces):
        rows = (piece * max_pairs + pairs).to(tl.int64) * rank
        where = partials + rows[None, :] + ranks[:, None]
        sums += tl.load(where, mask=is_pair[None, :], other=0.0)
    return sums


@triton.jit
def expand_kernel(
    expanded, shrunk, b, is_loaded, num_tasks, task_slots, task_starts,
    N, rank, blocks, max_pairs, programs,
    RANKS: tl.constexpr, ROWS: tl.constexpr, MAX_PIECES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(x @ a.T) @ b.T of each pair; a unit is a task's tile of outputs."""
    DTYPE: tl.constexpr = b.dtype.element_ty
    rank_tiles = rank // RANKS
    tasks, tiles = tl.load(num_tasks), tl.cdiv(N, TILE)
    share = share_of(tasks * rank_tiles, blocks, programs, MAX_PIECES)
    for unit in range(tl.program_id(0), tasks * tiles, tl.num_programs(0)):
        task = unit % tasks
        outputs = (unit // tasks) * TILE + tl.arange(0, TILE)
        slot = tl.load(task_slots + task).to(tl.int64)
        end = tl.load(task_starts + task + 1)
        if tl.load(is_loaded + slot) == 0:
            end = 0
        for pair in range(tl.load(task_starts + task), end, ROWS):
            pairs = pair + tl.arange(0, ROWS)
            is_pair = pairs < end
            sums = tl.zeros((TILE, ROWS), tl.float32)
            for rank_tile in range(rank_tiles):
                ranks = rank_tile * RANKS + tl.arange(0, RANKS)
                start = (rank_tile * tasks + task) * blocks
                num_pieces = (start + blocks - 1) // share - start // share + 1
                inner = _gathered(shrunk, pairs, is_pair, ranks, num_pieces, max_pairs, rank)
                # Two 16-bit numbers for each float32 one, so that nothing is rounded between.
                high = rounded(inner, DTYPE, WIDE)
                low = rounded(inner - high.to(tl.float32), DTYPE, WIDE)
                factors = tl.load(
                    b + (slot * N + outputs[:, None]) * rank + ranks[None, :],
                    mask=outputs[:, None] < N,
                    other=0.0,
                )
                factors = computable(factors, WIDE)
                sums = tl.dot(factors, computable(high, WIDE), sums)
                sums = tl.dot(factors, computable(low, WIDE), sums)
            store_piece(expanded, sums, 0, pairs, is_pair, outputs, max_pairs, N)


def add_lowrank(y: Tensor, x: Tensor, slots: FactorSlots, routes: Routes) -> None:
    """Three launches: to the ranks, to the outputs, then what they add to each row."""
    choice = tuning.choose("lowrank", slots, x)
    programs = tuning.num_programs(x.device, choice)
    blocks = triton.cdiv(slots.columns, INPUTS)
    shrunk = empty_partials(y, routes, slots.rank, choice.max_pieces)
    expanded = empty_partials(y, routes, slots.rows, 2)
    settings = {
        "RANKS": min(slots.rank, RANK_TILE),
        "ROWS": choice.rows,
        "MAX_PIECES": len(shrunk),
        "WIDE": tuning.is_interpreted(),
        **tuning.options(choice),
    }
    shrink_kernel[(programs,)](
        shrunk, x, slots.a, slots.is_loaded, routes.num_tasks, routes.task_slots,
        routes.task_starts, routes.pair_rows, slots.columns, slots.rank, routes.max_pairs,
        x.stride(0), INPUTS=INPUTS, STAGES=choice.stages, **settings,
    )  # fmt: skip
    expand_kernel[(programs,)](
        expanded, shrunk, slots.b, slots.is_loaded, routes.num_tasks, routes.task_slots,
        routes.task_starts, slots.rows, slots.rank, blocks, routes.max_pairs, programs, **settings,
    )  # fmt: skip
    # Outputs are not cut: with as many programs as units, each unit is one piece.
    whole = routes.max_tasks * triton.cdiv(slots.rows, TILE.value)
    gather(y, expanded, slots, routes, (whole, 1, 1))
