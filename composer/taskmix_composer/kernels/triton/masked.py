"""Products with masks over one shared vector: what `products` does, for 1-bit masks.

A program decodes a tile of the shared vector once and multiplies it under the masks of several
tasks, each with that task's rows.
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
    halves,
    scale_of,
    steps,
    twos,
    whole,
)
from taskmix_composer.kernels.triton.pieces import (
    empty_partials,
    gather,
    share_of,
    store_piece,
)
from taskmix_composer.kernels.triton.products import blocks_per_group, group_planes, load_inputs

TASKS = 2
"""Tasks that one program serves: their sums fill the registers that the shared tile leaves."""


@triton.constexpr_function
def _plane(part, scaled_planes):
    """The first of the planes of a half block that have one scale: of 0 and 4, or 0, 1, 4 and 5."""
    return part * 4 if scaled_planes == 2 else part // 2 * 4 + part % 2


@triton.jit
def _add_tasks(
    partials, words, metas, masks, x, is_loaded, num_tasks, task_slots, task_starts, pair_rows,
    first_task, offset, piece, tile, first, last,
    N, K, blocks_per_group, max_pairs, stride_x, slot_stride,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, TASKS: tl.constexpr, ROWS: tl.constexpr,
    IS_RAGGED: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The piece of each task's pairs from `offset`, at most ROWS of each."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    SCALED_PLANES: tl.constexpr = 1 if GROUP_PLANES == 1 else 2
    outputs = tl.arange(0, TILE)
    words_of_tile = outputs[:, None] * PLANE + tl.arange(0, PLANE)[None, :]
    all_pairs, are_pairs, inputs, kept, sums = (), (), (), (), ()
    for index in tl.static_range(TASKS):
        task = first_task + index
        is_task = task < num_tasks
        # Past the last task, a mask is read that has just been read.
        slot = tl.load(task_slots + tl.minimum(task, num_tasks - 1)).to(tl.int64)
        is_task = is_task & (tl.load(is_loaded + slot) != 0)
        pair = tl.load(task_starts + task, mask=is_task, other=0) + offset
        end = tl.load(task_starts + task + 1, mask=is_task, other=0)
        pairs = pair + tl.arange(0, ROWS)
        is_pair = pairs < end
        rows = tl.load(pair_rows + pairs, mask=is_pair, other=0).to(tl.int64)
        all_pairs = all_pairs + (pairs,)
        are_pairs = are_pairs + (is_pair,)
        inputs = inputs + (x + rows * stride_x,)
        kept = kept + (masks + slot * slot_stride,)
        sums = sums + (tl.zeros((TILE, ROWS), tl.float32),)
    # Half a block at a time, since a whole one of several tasks does not fit into registers: planes
    # 0, 1, 4 and 5, then the words are shifted by two planes.
    for step in tl.range(2 * first, 2 * last, num_stages=STAGES):
        block, half = step // 2, step % 2
        packed = halves(tl.load(words + block * (TILE * PLANE) + words_of_tile), BITS)
        packed = packed >> (2 * BITS * half)
        bits = ()
        for index in tl.static_range(TASKS):
            where = kept[index] + block * (TILE * PLANE) + words_of_tile
            bits = bits + (halves(tl.load(where), 1) >> (2 * half),)
        for part in tl.static_range(4 // SCALED_PLANES):
            which = (block // blocks_per_group) * (NUM_PLANES // GROUP_PLANES)
            meta = tl.load(
                metas
                + (which + (_plane(part, SCALED_PLANES) + 2 * half) // GROUP_PLANES) * TILE
                + outputs
            )
            zeros = whole(meta >> 16, DTYPE, WIDE)[:, None]
            parts = ()
            for _ in tl.static_range(TASKS):
                parts = parts + (tl.zeros((TILE, ROWS), tl.float32),)
            for next_plane in tl.static_range(SCALED_PLANES):
                codes = steps(
                    packed, zeros, _plane(part, SCALED_PLANES) + next_plane, BITS, DTYPE, WIDE
                )
                first_input = (
                    block * BLOCK + (_plane(part, SCALED_PLANES) + next_plane + 2 * half) * PLANE
                )
                added = ()
                for index in tl.static_range(TASKS):
                    masked = codes * twos(
                        bits[index], _plane(part, SCALED_PLANES) + next_plane, DTYPE, WIDE
                    )
                    loaded = load_inputs(
                        inputs[index], are_pairs[index], first_input, K, IS_RAGGED, WIDE
                    )
                    added = added + (tl.dot(masked, loaded, parts[index]),)
                parts = added
            scaled = ()
            for index in tl.static_range(TASKS):
                scaled = scaled + (sums[index] + parts[index] * scale_of(meta)[:, None],)
            sums = scaled
    outputs += tile * TILE
    for index in tl.static_range(TASKS):
        pairs, is_pair = all_pairs[index], are_pairs[index]
        store_piece(partials, sums[index], piece, pairs, is_pair, outputs, max_pairs, N)


@triton.jit
def _longest(is_loaded, num_tasks, task_slots, task_starts, first_task, TASKS: tl.constexpr):
    """The most pairs that one of these tasks has."""
    tasks = first_task + tl.arange(0, TASKS)
    is_task = tasks < num_tasks
    slots = tl.load(task_slots + tasks, mask=is_task, other=0)
    is_task = is_task & (tl.load(is_loaded + slots) != 0)
    counts = tl.load(task_starts + tasks + 1, mask=is_task, other=0)
    counts -= tl.load(task_starts + tasks, mask=is_task, other=0)
    return tl.max(counts, axis=0)


@triton.jit
def masked_kernel(
    partials, x, words, metas, masks, is_loaded, num_tasks, task_slots, task_starts, pair_rows,
    N, K, groups, blocks_per_group, max_pairs, stride_x,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, TASKS: tl.constexpr, ROWS: tl.constexpr,
    MAX_PIECES: tl.constexpr, IS_RAGGED: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Each program's share of the shared vector's tiles; a unit is a tile for TASKS tasks."""
    tiles, blocks = tl.cdiv(N, TILE), tl.cdiv(K, BLOCK)
    tasks = tl.load(num_tasks)
    task_groups = tl.cdiv(tasks, TASKS)
    num_units = task_groups * tiles
    share = share_of(num_units, blocks, tl.num_programs(0), MAX_PIECES)
    step = tl.program_id(0) * share
    stop = tl.minimum(step + share, num_units * blocks)
    while step < stop:
        unit = step // blocks
        first = step - unit * blocks
        last = tl.minimum(blocks, first + stop - step)
        tile, first_task = unit // task_groups, (unit % task_groups) * TASKS
        piece = tl.program_id(0) - unit * blocks // share
        longest = _longest(is_loaded, tasks, task_slots, task_starts, first_task, TASKS)
        for offset in range(0, longest, ROWS):
            _add_tasks(
                partials, words + tile * blocks * (TILE * PLANE), metas + tile * groups * TILE,
                masks + tile * blocks * (TILE * PLANE), x, is_loaded, tasks, task_slots,
                task_starts, pair_rows, first_task, offset, piece, tile, first, last, N, K,
                blocks_per_group, max_pairs, stride_x, tiles * blocks * (TILE * PLANE),
                BITS, GROUP_PLANES, TASKS, ROWS, IS_RAGGED, WIDE, STAGES,
            )  # fmt: skip
        step += last - first


def add_masked_products(y: Tensor, x: Tensor, slots: DeltaSlots, routes: Routes) -> None:
    """Two launches: sums of the pairs, then what they add to each row."""
    shared = slots.shared
    choice = tuning.choose("masked", slots, x)
    programs = tuning.num_programs(x.device, choice)
    partials = empty_partials(y, routes, slots.rows, choice.max_pieces)
    masked_kernel[(programs,)](
        partials, x, shared.words, shared.metas, slots.words, slots.is_loaded, routes.num_tasks,
        routes.task_slots, routes.task_starts, routes.pair_rows, slots.rows, slots.columns,
        shared.metas.shape[2], blocks_per_group(shared), routes.max_pairs, x.stride(0),
        BITS=shared.bits, GROUP_PLANES=group_planes(shared.group), TASKS=TASKS, ROWS=choice.rows,
        MAX_PIECES=len(partials), IS_RAGGED=slots.columns % BLOCK.value != 0,
        WIDE=tuning.is_interpreted(), STAGES=choice.stages, **tuning.options(choice),
    )  # fmt: skip
    gather(y, partials, slots, routes, (programs, TASKS, shared.words.shape[2]))
