"""Codes out of packed words, in registers.

Two planes are taken out at once, since a 32-bit register holds two 16-bit numbers: codes become
the low bits of a float's mantissa, and one subtraction takes away what the float would be without
them along with the zero code. Small whole numbers are exact in either 16-bit type, so products
with them lose nothing; scales multiply float32 sums.
"""

import triton
import triton.language as tl

PLANE = tl.constexpr(32)
NUM_PLANES = tl.constexpr(8)
BLOCK = tl.constexpr(256)
TILE = tl.constexpr(64)


@triton.jit
def halves(words, BITS: tl.constexpr):
    """Words as uint32 with planes 0-3 from bit 0 and planes 4-7 from bit 16."""
    if BITS == 4:
        return words.to(tl.uint32, bitcast=True)
    wide = words.to(tl.uint32) & ((1 << (8 * BITS)) - 1)
    return wide | (wide << (16 - 4 * BITS))


@triton.jit
def _half(pairs, plane: tl.constexpr, DTYPE: tl.constexpr):
    """The half that holds a plane, as 16-bit floats."""
    half = (pairs >> 16) if plane >= 4 else pairs
    return half.to(tl.uint16).to(DTYPE, bitcast=True)


@triton.jit
def computable(values, WIDE: tl.constexpr):
    """16-bit floats as they are, or as float32: Triton's interpreter has no bfloat16 arithmetic."""
    if WIDE:
        return values.to(tl.float32)
    return values


@triton.jit
def rounded(values, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """float32 as the nearest 16-bit floats; the interpreter would cut bfloat16 off."""
    if WIDE and DTYPE == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return values.to(DTYPE)


@triton.jit
def magic(DTYPE: tl.constexpr):
    """The bits of the 16-bit float whose last mantissa bit is worth 1."""
    MAGIC: tl.constexpr = 0x4300 if DTYPE == tl.bfloat16 else 0x6400
    return MAGIC


@triton.jit
def whole(numbers, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """Small whole numbers, int32, as floats above the magic one."""
    bits = (numbers | magic(DTYPE)).to(tl.uint16)
    return computable(bits.to(DTYPE, bitcast=True), WIDE)


@triton.jit
def steps(
    words, zeros, plane: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr
):
    """code - zero of one plane; `words` from `halves`, `zeros` from `whole`."""
    FIELDS: tl.constexpr = 0x00010001 * ((1 << BITS) - 1)
    pairs = ((words >> (BITS * (plane % 4))) & FIELDS) | (0x00010001 * magic(DTYPE))
    return computable(_half(pairs, plane, DTYPE), WIDE) - zeros


@triton.jit
def signs(words, plane: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """1 where a plane's bit is set, else -1: the inverted bit is the float's sign."""
    MINUS_ONES: tl.constexpr = 0xBF80BF80 if DTYPE == tl.bfloat16 else 0xBC00BC00
    pairs = ((words << (15 - plane % 4)) & 0x80008000) ^ MINUS_ONES
    return computable(_half(pairs, plane, DTYPE), WIDE)


@triton.jit
def twos(words, plane: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """2 where a plane's bit is set, else 0: 2 has one bit in either 16-bit type."""
    pairs = (words << (14 - plane % 4)) & 0x40004000
    return computable(_half(pairs, plane, DTYPE), WIDE)


@triton.jit
def scale_of(metas):
    """A group's scale, float32."""
    return (metas & 0xFFFF).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def tile_values(words, metas, BITS: tl.constexpr, IS_MASK: tl.constexpr):
    """A whole tile in float32 but for its row scales: [NUM_PLANES, outputs, PLANE].

    metas: int32, one for each of these weights; not read for one bit.
    """
    shifts = tl.arange(0, NUM_PLANES)[:, None, None] * BITS
    codes = (words.to(tl.int32)[None, :, :] >> shifts) & ((1 << BITS) - 1)
    if BITS > 1:
        return (codes - (metas >> 16)).to(tl.float32) * scale_of(metas)
    if IS_MASK:
        return (codes * 2).to(tl.float32)
    return (codes * 2 - 1).to(tl.float32)
