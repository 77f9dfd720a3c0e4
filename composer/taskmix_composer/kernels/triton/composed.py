"""Products with a mix's weights composed in registers: for groups of many rows with one mix.

Whatever the number of tasks, a tile of the mix is decoded and added up once and multiplied once.
"""

import triton
import triton.language as tl
from torch import Tensor

from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.triton import tuning
from taskmix_composer.kernels.triton.blend import blend_tile, term_scales
from taskmix_composer.kernels.triton.decode import BLOCK, TILE, computable, rounded
from taskmix_composer.kernels.triton.products import blocks_per_group, group_planes

LARGEST_STEP = 2.0**19
"""Above (code - zero) * scale for 4 bits: scales are at most 2**15, see `row_units`."""


@triton.jit
def _add_group(
    y, x, words, metas, shared_words, shared_metas, row_scales, is_loaded, segments, group_rows,
    term_slots, coefficients, first_row, last_row, first_term, last_term, tile,
    N, K, tiles, blocks, groups, blocks_per_group, max_terms, stride_x, stride_y,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, SHARED_BITS: tl.constexpr,
    LARGEST: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of outputs for at most ROWS rows."""
    lanes = first_row + tl.arange(0, ROWS)
    is_row = lanes < last_row
    rows = tl.load(group_rows + lanes, mask=is_row, other=0).to(tl.int64)
    outputs = tile * TILE + tl.arange(0, TILE)
    # Composed weights are rounded to 16 bits; in units of their bound float16 holds them.
    bounds = tl.zeros((TILE,), tl.float32)
    for term in range(first_term, last_term):
        slot = tl.load(term_slots + term).to(tl.int64)
        bounds += tl.abs(
            term_scales(
                row_scales, is_loaded, segments, coefficients, slot, term, outputs, N, max_terms
            )
        )
    bounds = tl.where(bounds == 0.0, 1.0, bounds * LARGEST)
    sums = tl.zeros((ROWS, TILE), tl.float32)
    for block in range(blocks):
        values = blend_tile(
            words, metas, shared_words, shared_metas, row_scales, is_loaded, segments,
            term_slots, coefficients, first_term, last_term, tile, block, bounds, N, tiles,
            blocks, groups, blocks_per_group, max_terms, BITS, GROUP_PLANES, SHARED_BITS,
        )  # fmt: skip
        weights = tl.reshape(tl.permute(values, (1, 0, 2)), (TILE, BLOCK))
        weights = computable(rounded(weights, x.dtype.element_ty, WIDE), WIDE)
        columns = block * BLOCK + tl.arange(0, BLOCK)
        inputs = tl.load(
            x + rows[:, None] * stride_x + columns[None, :],
            mask=is_row[:, None] & (columns[None, :] < K),
            other=0.0,
        )
        sums = tl.dot(computable(inputs, WIDE), tl.trans(weights), sums)
    target = y + rows[:, None] * stride_y + outputs[None, :]
    is_inside = is_row[:, None] & (outputs[None, :] < N)
    total = tl.load(target, mask=is_inside, other=0.0).to(tl.float32) + sums * bounds[None, :]
    tl.store(target, rounded(total, y.dtype.element_ty, WIDE), mask=is_inside)


@triton.jit
def composed_kernel(
    y, x, words, metas, shared_words, shared_metas, row_scales, is_loaded, segments, num_groups,
    group_starts, group_rows, term_starts, term_slots, coefficients,
    N, K, groups, blocks_per_group, max_terms, stride_x, stride_y,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, SHARED_BITS: tl.constexpr,
    LARGEST: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Every program's part of all groups' tiles; the rows of a tile of outputs are neighbours."""
    tiles, blocks = tl.cdiv(N, TILE), tl.cdiv(K, BLOCK)
    unit = tl.program_id(0)
    passed = 0
    for group in range(tl.load(num_groups)):
        first_row, last_row = tl.load(group_starts + group), tl.load(group_starts + group + 1)
        first_term, last_term = tl.load(term_starts + group), tl.load(term_starts + group + 1)
        row_tiles = tl.cdiv(last_row - first_row, ROWS)
        num_units = row_tiles * tiles
        if first_term == last_term:
            num_units = 0
        while unit < passed + num_units:
            tile, row_tile = (unit - passed) // row_tiles, (unit - passed) % row_tiles
            _add_group(
                y, x, words, metas, shared_words, shared_metas, row_scales, is_loaded, segments,
                group_rows, term_slots, coefficients, first_row + row_tile * ROWS, last_row,
                first_term, last_term, tile, N, K, tiles, blocks, groups, blocks_per_group,
                max_terms, stride_x, stride_y, BITS, GROUP_PLANES, SHARED_BITS, LARGEST, ROWS,
                WIDE,
            )  # fmt: skip
            unit += tl.num_programs(0)
        passed += num_units


def add_composed(y: Tensor, x: Tensor, slots: DeltaSlots, blends: Blends) -> None:
    """y[rows] += x[rows] @ (the group's mix).T, for every group."""
    choice = tuning.choose("composed-1bit" if slots.bits == 1 else "composed", slots, x)
    coded = slots.shared or slots
    composed_kernel[(tuning.num_programs(x.device, choice),)](
        y, x, slots.words, slots.metas, coded.words, coded.metas, slots.row_scales,
        slots.is_loaded, slots.segments, blends.num_groups, blends.group_starts,
        blends.group_rows, blends.term_starts, blends.term_slots, blends.coefficients, slots.rows,
        slots.columns, coded.metas.shape[2], blocks_per_group(coded), blends.max_terms,
        x.stride(0), y.stride(0), BITS=slots.bits, GROUP_PLANES=group_planes(coded.group),
        SHARED_BITS=slots.shared.bits if slots.shared else 0,
        LARGEST=1.0 if coded.bits == 1 else LARGEST_STEP, ROWS=choice.rows,
        WIDE=tuning.is_interpreted(), **tuning.options(choice),
    )  # fmt: skip
