"""Rows of packed embedding deltas: y[row] += sum of coefficient * delta[id[row]]."""

import triton
import triton.language as tl
from torch import Tensor

from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.triton import tuning
from taskmix_composer.kernels.triton.decode import BLOCK, NUM_PLANES, PLANE, TILE, rounded, scale_of
from taskmix_composer.kernels.triton.products import blocks_per_group, group_planes


@triton.jit
def _row_values(
    words, metas, slot, tile, lane, block, tiles, blocks, groups, blocks_per_group,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, IS_MASK: tl.constexpr,
):  # fmt: skip
    """A block of one row but for its row scale, float32 [NUM_PLANES, PLANE]."""
    start = (((slot * tiles + tile) * blocks + block) * TILE + lane) * PLANE
    packed = tl.load(words + start + tl.arange(0, PLANE)).to(tl.int32)
    planes = tl.arange(0, NUM_PLANES)[:, None]
    codes = (packed[None, :] >> (planes * BITS)) & ((1 << BITS) - 1)
    if BITS == 1:
        return (codes * 2).to(tl.float32) if IS_MASK else (codes * 2 - 1).to(tl.float32)
    which = (block // blocks_per_group) * (NUM_PLANES // GROUP_PLANES) + planes // GROUP_PLANES
    meta = tl.load(metas + ((slot * tiles + tile) * groups + which) * TILE + lane)
    return (codes - (meta >> 16)).to(tl.float32) * scale_of(meta)


@triton.jit
def lookups_kernel(
    y, ids, words, metas, shared_words, shared_metas, row_scales, is_loaded, segments, task_slots,
    pair_tasks, row_starts, row_pairs, coefficients,
    N, K, groups, blocks_per_group, max_pairs, stride_y,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, SHARED_BITS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One block of one row of y."""
    row, block = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(row_starts + row), tl.load(row_starts + row + 1)
    if first == last:
        return
    tiles, blocks = tl.cdiv(N, TILE), tl.cdiv(K, BLOCK)
    token = tl.load(ids + row)
    tile, lane = token // TILE, token % TILE
    column = tl.load(segments + token)
    total = tl.zeros((NUM_PLANES, PLANE), tl.float32)
    for index in range(first, last):
        pair = tl.load(row_pairs + index)
        slot = tl.load(task_slots + tl.load(pair_tasks + pair)).to(tl.int64)
        if tl.load(is_loaded + slot) != 0:
            scale = tl.load(row_scales + slot * N + token)
            scale *= tl.load(coefficients + column * max_pairs + pair)
            total += scale * _row_values(
                words, metas, slot, tile, lane, block, tiles, blocks, groups, blocks_per_group,
                BITS, GROUP_PLANES, SHARED_BITS != 0,
            )  # fmt: skip
    if SHARED_BITS != 0:
        total *= _row_values(
            shared_words, shared_metas, 0, tile, lane, block, tiles, blocks, groups,
            blocks_per_group, SHARED_BITS, GROUP_PLANES, False,
        )  # fmt: skip
    inputs = tl.arange(0, NUM_PLANES)[:, None] * PLANE + tl.arange(0, PLANE)[None, :]
    inputs += block * BLOCK
    target = y + row.to(tl.int64) * stride_y + inputs
    total += tl.load(target, mask=inputs < K, other=0.0).to(tl.float32)
    tl.store(target, rounded(total, y.dtype.element_ty, WIDE), mask=inputs < K)


def add_lookups(y: Tensor, ids: Tensor, slots: DeltaSlots, routes: Routes) -> None:
    """ids: int64 [rows of y], each below slots.rows."""
    coded = slots.shared or slots
    lookups_kernel[(y.shape[0], slots.words.shape[2])](
        y, ids, slots.words, slots.metas, coded.words, coded.metas, slots.row_scales,
        slots.is_loaded, slots.segments, routes.task_slots, routes.pair_tasks, routes.row_starts,
        routes.row_pairs, routes.coefficients, slots.rows, slots.columns, coded.metas.shape[2],
        blocks_per_group(coded), routes.max_pairs, y.stride(0), BITS=slots.bits,
        GROUP_PLANES=group_planes(coded.group),
        SHARED_BITS=slots.shared.bits if slots.shared else 0, WIDE=tuning.is_interpreted(),
        **tuning.options(tuning.Choice(warps=1)),
    )  # fmt: skip
