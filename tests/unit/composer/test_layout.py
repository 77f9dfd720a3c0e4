import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskmix_composer.layout import (
    PACKABLE_BITS,
    grouped,
    matrix_shape,
    num_groups,
    pack_codes,
    packed_width,
    rows_per_block,
    ungrouped,
    unpack_codes,
)

# Codes 0 1 2 3 ... written lowest bits first, by hand.
GOLDEN = {
    2: ([0, 1, 2, 3, 3, 2, 1, 0, 1], [0b11100100, 0b00011011, 0b00000001, 0]),
    3: ([0, 1, 2, 3, 4, 5, 6, 7], [0b10001000, 0b11000110, 0b11111010]),
    4: ([0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0xF], [0x21, 0x43, 0x65, 0xF7]),
    8: ([0, 1, 2, 3, 4, 5, 254, 255], [0, 1, 2, 3, 4, 5, 254, 255]),
}


@pytest.mark.parametrize("bits", PACKABLE_BITS)
def test_packed_bytes_are_golden(bits: int) -> None:
    codes, expected = GOLDEN[bits]
    packed = pack_codes(torch.tensor([codes], dtype=torch.uint8), bits)
    assert packed.tolist() == [expected]


@given(
    bits=st.sampled_from(PACKABLE_BITS),
    rows=st.integers(0, 4),
    columns=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_unpack_inverts_pack(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, packed_width(columns, bits))
    assert torch.equal(unpack_codes(packed, bits, columns), codes)


@given(rows=st.integers(1, 4), columns=st.integers(1, 40), group=st.integers(1, 17))
def test_ungrouped_inverts_grouped(rows: int, columns: int, group: int) -> None:
    matrix = torch.arange(1.0, rows * columns + 1).view(rows, columns)
    groups = grouped(matrix, group)
    assert groups.shape == (rows, num_groups(columns, group), group)
    assert groups.count_nonzero() == matrix.numel()
    assert torch.equal(ungrouped(groups, columns), matrix)


def test_geometry_of_ragged_and_deep_tensors() -> None:
    assert num_groups(65, 64) == 2
    assert num_groups(0, 64) == 0
    assert matrix_shape((3, 4, 5)) == (3, 20)
    assert rows_per_block(1 << 21) == 1
    assert rows_per_block(1 << 10) == 1 << 4
    assert rows_per_block(0) == 1 << 14
