"""A mix's weights written out: base + the sum of coefficient * delta, rounded once."""

import triton
import triton.language as tl
from torch import Tensor

from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.triton import tuning
from taskmix_composer.kernels.triton.blend import blend_tile
from taskmix_composer.kernels.triton.decode import BLOCK, NUM_PLANES, PLANE, TILE, rounded
from taskmix_composer.kernels.triton.products import blocks_per_group, group_planes


@triton.jit
def weights_kernel(
    out, base, words, metas, shared_words, shared_metas, row_scales, is_loaded, segments,
    term_starts, term_slots, coefficients,
    N, K, groups, blocks_per_group, max_terms, stride_out, stride_base,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, SHARED_BITS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of out = base + the first group's mix."""
    tiles, blocks = tl.cdiv(N, TILE), tl.cdiv(K, BLOCK)
    tile, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    values = blend_tile(
        words, metas, shared_words, shared_metas, row_scales, is_loaded, segments, term_slots,
        coefficients, tl.load(term_starts), tl.load(term_starts + 1), tile, block,
        tl.full((TILE,), 1.0, tl.float32), N, tiles, blocks, groups, blocks_per_group, max_terms,
        BITS, GROUP_PLANES, SHARED_BITS,
    )  # fmt: skip
    outputs = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)[None, :, None]
    planes = tl.arange(0, NUM_PLANES)[:, None, None] * PLANE
    inputs = block * BLOCK + planes + tl.arange(0, PLANE)[None, None, :]
    is_inside = (outputs < N) & (inputs < K)
    values += tl.load(base + outputs * stride_base + inputs, mask=is_inside, other=0.0)
    tl.store(
        out + outputs * stride_out + inputs,
        rounded(values, out.dtype.element_ty, WIDE),
        mask=is_inside,
    )


def add_weights(out: Tensor, base: Tensor, slots: DeltaSlots, blends: Blends) -> None:
    """out may be base itself."""
    coded = slots.shared or slots
    num_tiles, num_blocks = slots.words.shape[1:3]
    weights_kernel[(num_tiles * num_blocks,)](
        out, base, slots.words, slots.metas, coded.words, coded.metas, slots.row_scales,
        slots.is_loaded, slots.segments, blends.term_starts, blends.term_slots,
        blends.coefficients, slots.rows, slots.columns, coded.metas.shape[2],
        blocks_per_group(coded), blends.max_terms, out.stride(0), base.stride(0),
        BITS=slots.bits, GROUP_PLANES=group_planes(coded.group),
        SHARED_BITS=slots.shared.bits if slots.shared else 0, WIDE=tuning.is_interpreted(),
        **tuning.options(tuning.Choice(warps=8)),
    )  # fmt: skip
