"""A tile of a mix's weights: the sum of coefficient * delta over its terms, in registers."""

import triton
import triton.language as tl

from taskmix_composer.kernels.triton.decode import (
    NUM_PLANES,
    PLANE,
    TILE,
    tile_values,
)


@triton.jit
def load_tile(words, metas, tile, block, tiles, blocks, groups, blocks_per_group, slot,
              BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, IS_MASK: tl.constexpr):  # fmt: skip
    """One tile of a slot in float32 but for its row scales: [NUM_PLANES, TILE, PLANE]."""
    outputs = tl.arange(0, TILE)
    lanes = outputs[:, None] * PLANE + tl.arange(0, PLANE)[None, :]
    start = ((slot * tiles + tile) * blocks + block) * (TILE * PLANE)
    packed = tl.load(words + start + lanes)
    if BITS == 1:
        return tile_values(packed, packed, BITS, IS_MASK)
    planes = tl.arange(0, NUM_PLANES) // GROUP_PLANES
    which = (block // blocks_per_group) * (NUM_PLANES // GROUP_PLANES) + planes
    lanes_of_meta = which[:, None, None] * TILE + outputs[None, :, None]
    meta = tl.load(metas + (slot * tiles + tile) * groups * TILE + lanes_of_meta)
    return tile_values(packed, meta, BITS, IS_MASK)


@triton.jit
def term_scales(row_scales, is_loaded, segments, coefficients, slot, term, outputs, N, max_terms):
    """coefficient * row scale of each output, float32; 0 where the slot is empty."""
    is_there = outputs < N * tl.load(is_loaded + slot)
    columns = tl.load(segments + outputs, mask=is_there, other=0)
    scales = tl.load(row_scales + slot * N + outputs, mask=is_there, other=0.0)
    return scales * tl.load(coefficients + columns * max_terms + term, mask=is_there, other=0.0)


@triton.jit
def blend_tile(
    words, metas, shared_words, shared_metas, row_scales, is_loaded, segments, term_slots,
    coefficients, first_term, last_term, tile, block, unit_scales,
    N, tiles, blocks, groups, blocks_per_group, max_terms,
    BITS: tl.constexpr, GROUP_PLANES: tl.constexpr, SHARED_BITS: tl.constexpr,
):  # fmt: skip
    """The terms' sum in units of `unit_scales` [TILE], float32 [NUM_PLANES, TILE, PLANE].

    SHARED_BITS: of the vector under the masks, 0 if the deltas stand by themselves.
    """
    outputs = tile * TILE + tl.arange(0, TILE)
    values = tl.zeros((NUM_PLANES, TILE, PLANE), tl.float32)
    for term in range(first_term, last_term):
        slot = tl.load(term_slots + term).to(tl.int64)
        scales = term_scales(
            row_scales, is_loaded, segments, coefficients, slot, term, outputs, N, max_terms
        )
        added = load_tile(
            words, metas, tile, block, tiles, blocks, groups, blocks_per_group, slot,
            BITS, GROUP_PLANES, SHARED_BITS != 0,
        )  # fmt: skip
        values += added * (scales / unit_scales)[None, :, None]
    if SHARED_BITS != 0:
        values *= load_tile(
            shared_words, shared_metas, tile, block, tiles, blocks, groups, blocks_per_group, 0,
            SHARED_BITS, GROUP_PLANES, False,
        )  # fmt: skip
    return values
