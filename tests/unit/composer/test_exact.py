import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmix_composer.entropy import EntropyError
from taskmix_composer.quant import exact

ALL_PATTERNS = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
# Zeros, the ends of the subnormals, one, the largest finite values, infinities, and NaNs of
# several payloads, each with both signs.
SPECIAL = [
    sign | bits
    for sign in (0x0000, 0x8000)
    for bits in (0x0000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, 0x7FFF)
]
PATTERN = st.one_of(st.sampled_from(SPECIAL), st.integers(0, 0xFFFF))
SHAPES = st.sampled_from([(), (1,), (7,), (1, 1), (3, 5), (5, 1), (2, 3, 4), (0,), (0, 3), (3, 0)])

# In each row one weight stays and one moves by a step; the third moves too far to count steps, or
# by two steps.
GOLDEN_BASE = (0x3F80, 0x3C00, 0x0001, 0x3F80, 0x3C00, 0x3A80)
GOLDEN_TUNED = (0x3F80, 0x3C01, 0xC000, 0x3F80, 0x3C01, 0x3A82)
GOLDEN = {
    "escapes": "010200000000000000020000000001c0c00101",
    "levels": "010200000000000000010000abc801" + "00" * 28 + "010e008000",
    "steps": "01060000000000000004000000030505050b03031401010101000101010156555502",
}


def from_bits(bits: list[int] | tuple[int, ...] | Tensor, shape: tuple[int, ...] = (-1,)) -> Tensor:
    return torch.as_tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).view(shape)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16))


def assert_restored(base: Tensor, tuned: Tensor) -> None:
    parts = exact.encode(base, tuned)
    assert parts.keys() == set(exact.PARTS)
    assert_same_bits(exact.restore(base, parts), tuned)


def fine_tuned(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A bfloat16 base and a fine-tune of it, in which most weights stay or move by one step."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(rows, columns, generator=generator) * 0.05).bfloat16()
    moved = torch.randn(rows, columns, generator=generator) * 1e-4
    return base, (base.float() + moved).bfloat16()


def num_bytes(base: Tensor, tuned: Tensor) -> int:
    return sum(part.numel() for part in exact.encode(base, tuned).values())


def entropy_bytes(base: Tensor, tuned: Tensor) -> float:
    """Bytes of the differences between bit patterns, given the base's sign and exponent."""
    bits = base.view(torch.int16).flatten().long()
    steps = tuned.view(torch.int16).flatten().long() - bits
    contexts = bits >> 7
    return (surprise_bits((contexts << 17) + steps) - surprise_bits(contexts)) / 8


def surprise_bits(values: Tensor) -> float:
    """Bits of all values under their own frequencies."""
    _, counts = values.unique(return_counts=True)
    return -float((counts * (counts / len(values)).log2()).sum())


@given(shape=SHAPES, data=st.data())
def test_any_bit_patterns_are_restored(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = math.prod(shape)
    patterns = st.lists(PATTERN, min_size=size, max_size=size)
    assert_restored(from_bits(data.draw(patterns), shape), from_bits(data.draw(patterns), shape))


@given(
    bits=st.lists(PATTERN, min_size=12, max_size=12),
    steps=st.lists(st.integers(-130, 130), min_size=12, max_size=12),
)
def test_small_steps_from_any_pattern_are_restored(bits: list[int], steps: list[int]) -> None:
    moved = [(pattern + step) % (1 << 16) for pattern, step in zip(bits, steps, strict=True)]
    assert_restored(from_bits(bits, (3, 4)), from_bits(moved, (3, 4)))


def test_every_pattern_is_restored_from_every_context() -> None:
    base = from_bits(ALL_PATTERNS, (256, 256))
    assert_restored(base, base)
    assert_restored(base, base.flip(0, 1))
    assert_restored(base, base.t())
    assert_restored(base, torch.zeros_like(base))
    assert_restored(torch.zeros_like(base), base)


def test_a_fine_tune_is_restored() -> None:
    base, tuned = fine_tuned(300, 129)
    assert_restored(base, tuned)
    assert_restored(base[:, 3], tuned[:, 3])
    assert_restored(base.view(10, 30, 129), tuned.view(10, 30, 129))


def test_parts_are_golden() -> None:
    base, tuned = from_bits(GOLDEN_BASE, (2, 3)), from_bits(GOLDEN_TUNED, (2, 3))
    parts = exact.encode(base, tuned)
    assert {part: bytes(stream.tolist()).hex() for part, stream in parts.items()} == GOLDEN
    stored = {
        part: torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
        for part, text in GOLDEN.items()
    }
    assert_same_bits(exact.restore(base, stored), tuned)


def test_a_fine_tune_costs_about_the_entropy_of_its_steps() -> None:
    base, tuned = fine_tuned(512, 512)
    # The tables, which the entropy leaves out, take the rest.
    assert num_bytes(base, tuned) <= 1.05 * entropy_bytes(base, tuned)


def test_small_steps_across_zero_are_small() -> None:
    base = from_bits([0x0001, 0x8001, 0x0000, 0x8000] * 100)
    assert num_bytes(base, from_bits([0x8001, 0x0001, 0x8000, 0x0000] * 100)) < 200


def test_rows_that_stay_cost_nothing() -> None:
    base, tuned = fine_tuned(512, 512)
    moved = tuned[:8]
    tuned = torch.cat([moved, base[8:]])
    assert num_bytes(base, tuned) < 1.1 * num_bytes(base[:8], moved)


def test_equal_input_gives_equal_bytes() -> None:
    base, tuned = fine_tuned(64, 64)
    first, second = exact.encode(base, tuned), exact.encode(base.clone(), tuned.clone())
    assert all(torch.equal(first[part], second[part]) for part in exact.PARTS)


def test_it_pays_for_fine_tunes_only() -> None:
    base, tuned = fine_tuned(64, 64)
    assert exact.pays(exact.encode(base, tuned), tuned)
    scrambled = from_bits(torch.randint(0, 1 << 16, (64 * 64,)), (64, 64))
    assert not exact.pays(exact.encode(base, scrambled), scrambled)


@pytest.mark.parametrize("part", exact.PARTS)
def test_damaged_parts_are_contained(part: str) -> None:
    base, tuned = fine_tuned(8, 9)
    tuned[3, 4] = math.nan
    parts = exact.encode(base, tuned)
    for place in range(parts[part].numel()):
        flipped = parts[part].clone()
        flipped[place] ^= 1 << place % 8
        for stream in (flipped, parts[part][:place]):
            try:
                restored = exact.restore(base, {**parts, part: stream})
            except EntropyError:
                continue
            assert restored.shape == base.shape


def test_missing_bytes_of_far_weights_are_named() -> None:
    base, tuned = from_bits(GOLDEN_BASE, (2, 3)), from_bits(GOLDEN_TUNED, (2, 3))
    near = exact.encode(base, base)
    with pytest.raises(EntropyError, match="codes 0 symbols, not 2"):
        exact.restore(base, {**exact.encode(base, tuned), "escapes": near["escapes"]})


def test_another_base_is_contained() -> None:
    base, tuned = fine_tuned(8, 9)
    other = from_bits(torch.arange(72) * 900, (8, 9))
    with pytest.raises(EntropyError):
        exact.restore(other, exact.encode(base, tuned))
    with pytest.raises(EntropyError, match="symbols, not"):
        exact.restore(base[:4], exact.encode(base, tuned))
