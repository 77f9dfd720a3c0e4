"""Products with packed deltas of 4, 2 or 1 bits: y += sum of coefficient * (x[row] @ delta.T).

A task's codes are read once for all of its rows in the batch, up to 64. The product is formed
transposed, so that the decoded tile is the operand that the matrix units take from registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.triton import tuning
from taskmix_composer.kernels.triton.decode import (
    BLOCK,
    NUM_PLANES,
    PLANE,
    TILE,
    computable,
    halves,
    scale_of,
    signs,
    steps,
    whole,
)
from taskmix_composer.kernels.triton.pieces import (
    empty_partials,
    gather,
    share_of,
    store_piece,
)


@triton.jit
def load_inputs(x, is_row, plane_start, K, IS_RAGGED: tl.constexpr, WIDE: tl.constexpr):
    """x at a plane of the inputs, [PLANE, rows]; x points at the first input of each row."""
    inputs = plane_start + tl.arange(0, PLANE)[:, None]
    is_inside = is_row[None, :]
    if IS_RAGGED:
        is_inside = is_inside & (inputs < K)
    return computable(tl.load(x[None, :] + inputs, mask=is_inside, other=0.0), WIDE)


@triton.jit
def _tile_sums(
    words, metas, x, is_row, first, last, K, blocks_per_group,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, ROWS: tl.constexpr,
    IS_RAGGED: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums over the blocks from `first` to `last`, float32 [TILE, ROWS]."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    outputs = tl.arange(0, TILE)
    tile = outputs[:, None] * PLANE + tl.arange(0, PLANE)[None, :]
    sums = tl.zeros((TILE, ROWS), tl.float32)
    for block in tl.range(first, last, num_stages=STAGES):
        packed = halves(tl.load(words + block * (TILE * PLANE) + tile), BITS)
        start = block * BLOCK
        if BITS == 1:
            for plane in tl.static_range(NUM_PLANES):
                inputs = load_inputs(x, is_row, start + plane * PLANE, K, IS_RAGGED, WIDE)
                sums = tl.dot(signs(packed, plane, DTYPE, WIDE), inputs, sums)
        else:
            for group in tl.static_range(NUM_PLANES // GROUP_PLANES):
                which = (block // blocks_per_group) * (NUM_PLANES // GROUP_PLANES) + group
                meta = tl.load(metas + which * TILE + outputs)
                zeros = whole(meta >> 16, DTYPE, WIDE)[:, None]
                part = tl.zeros((TILE, ROWS), tl.float32)
                for index in tl.static_range(GROUP_PLANES):
                    codes = steps(packed, zeros, group * GROUP_PLANES + index, BITS, DTYPE, WIDE)
                    first_input = start + (group * GROUP_PLANES + index) * PLANE
                    inputs = load_inputs(x, is_row, first_input, K, IS_RAGGED, WIDE)
                    part = tl.dot(codes, inputs, part)
                sums += part * scale_of(meta)[:, None]
    return sums


@triton.jit
def _add_rows(
    partials, words, metas, x, pair_rows, pair, end, piece, tile, first, last,
    N, K, blocks_per_group, max_pairs, stride_x,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, ROWS: tl.constexpr,
    IS_RAGGED: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The piece of the pairs from `pair`, at most ROWS of them."""
    pairs = pair + tl.arange(0, ROWS)
    is_pair = pairs < end
    rows = tl.load(pair_rows + pairs, mask=is_pair, other=0).to(tl.int64)
    sums = _tile_sums(
        words, metas, x + rows * stride_x, is_pair, first, last, K, blocks_per_group,
        BITS, GROUP_PLANES, ROWS, IS_RAGGED, WIDE, STAGES,
    )  # fmt: skip
    outputs = tile * TILE + tl.arange(0, TILE)
    store_piece(partials, sums, piece, pairs, is_pair, outputs, max_pairs, N)


@triton.jit
def products_kernel(
    partials, x, words, metas, is_loaded, num_tasks, task_slots, task_starts, pair_rows,
    N, K, groups, blocks_per_group, max_pairs, stride_x,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, MAX_ROWS: tl.constexpr,
    MAX_PIECES: tl.constexpr, IS_RAGGED: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Each program's share of all active tasks' tiles; a unit is a task's tile."""
    tiles, blocks = tl.cdiv(N, TILE), tl.cdiv(K, BLOCK)
    tasks = tl.load(num_tasks)
    num_units = tasks * tiles
    share = share_of(num_units, blocks, tl.num_programs(0), MAX_PIECES)
    step = tl.program_id(0) * share
    stop = tl.minimum(step + share, num_units * blocks)
    while step < stop:
        unit = step // blocks
        first = step - unit * blocks
        last = tl.minimum(blocks, first + stop - step)
        tile, task = unit // tasks, unit % tasks
        slot = tl.load(task_slots + task).to(tl.int64)
        pair, end = tl.load(task_starts + task), tl.load(task_starts + task + 1)
        if tl.load(is_loaded + slot) == 0:
            end = pair
        piece = tl.program_id(0) - unit * blocks // share
        tile_words = words + (slot * tiles + tile) * blocks * (TILE * PLANE)
        tile_metas = metas + (slot * tiles + tile) * groups * TILE
        while pair < end:
            if MAX_ROWS == 16 or end - pair <= 16:
                _add_rows(
                    partials, tile_words, tile_metas, x, pair_rows, pair, end, piece, tile, first,
                    last, N, K, blocks_per_group, max_pairs, stride_x,
                    BITS, GROUP_PLANES, 16, IS_RAGGED, WIDE, STAGES,
                )  # fmt: skip
                pair += 16
            else:
                _add_rows(
                    partials, tile_words, tile_metas, x, pair_rows, pair, end, piece, tile, first,
                    last, N, K, blocks_per_group, max_pairs, stride_x,
                    BITS, GROUP_PLANES, MAX_ROWS, IS_RAGGED, WIDE, STAGES,
                )  # fmt: skip
                pair += MAX_ROWS
        step += last - first


def add_products(y: Tensor, x: Tensor, slots: DeltaSlots, routes: Routes) -> None:
    """Two launches: sums of the pairs, then what they add to each row."""
    choice = tuning.choose("products", slots, x)
    programs = tuning.num_programs(x.device, choice)
    partials = empty_partials(y, routes, slots.rows, choice.max_pieces)
    blocks = slots.words.shape[2]
    products_kernel[(programs,)](
        partials, x, slots.words, slots.metas, slots.is_loaded, routes.num_tasks,
        routes.task_slots, routes.task_starts, routes.pair_rows, slots.rows, slots.columns,
        slots.metas.shape[2], blocks_per_group(slots), routes.max_pairs, x.stride(0),
        BITS=slots.bits, GROUP_PLANES=group_planes(slots.group), MAX_ROWS=choice.rows,
        MAX_PIECES=len(partials), IS_RAGGED=slots.columns % BLOCK.value != 0,
        WIDE=tuning.is_interpreted(), STAGES=choice.stages,
        **tuning.options(choice),
    )  # fmt: skip
    gather(y, partials, slots, routes, (programs, 1, blocks))


def group_planes(group: int) -> int:
    """Planes of a block that have one scale."""
    whole_block = group == 0 or group >= BLOCK.value
    return NUM_PLANES.value if whole_block else group // PLANE.value


def blocks_per_group(slots: DeltaSlots) -> int:
    """Blocks that have one scale; 1 also where a block has several."""
    if slots.group == 0:
        return slots.words.shape[2]
    return max(1, slots.group // BLOCK.value)
