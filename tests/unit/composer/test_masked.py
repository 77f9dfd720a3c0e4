import torch
from hypothesis import given
from hypothesis import strategies as st

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.quant import decode, encode, masked

SHAPES = st.sampled_from([(1, 1), (1, 7), (3, 8), (5, 65), (2, 3, 4), (6,)])


def shared_delta(shape: tuple[int, ...], seed: int, name: str = "int2") -> EncodedDelta:
    """A coded delta with many zeros."""
    generator = torch.Generator().manual_seed(seed)
    return encode(torch.randn(shape, generator=generator) * 1e-3, Scheme(name))


def random_mask(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@given(shape=SHAPES, scale=st.floats(-4.0, 4.0), seed=st.integers(0, 10_000))
def test_a_masked_delta_is_the_part_kept_of_the_shared_one(
    shape: tuple[int, ...], scale: float, seed: int
) -> None:
    shared = shared_delta(shape, seed)
    values, mask = decode(shared), random_mask(shape, seed + 1)
    coded = masked.encode(mask, shared, values, scale)
    torch.testing.assert_close(decode(coded), values * mask * scale)
    assert coded.num_bytes == coded.parts["mask"].nbytes


@given(shape=SHAPES, seed=st.integers(0, 10_000))
def test_mask_bits_over_zeros_are_zeros(shape: tuple[int, ...], seed: int) -> None:
    shared = shared_delta(shape, seed)
    values = decode(shared)
    everywhere = torch.ones(shape, dtype=torch.bool)
    coded = masked.encode(everywhere, shared, values, 1.0)
    assert torch.equal(masked.unpacked_mask(coded), values != 0)


def test_only_changed_rows_are_masked() -> None:
    delta = torch.zeros(8, 12)
    delta[[2, 5]] = torch.linspace(-1, 1, 24).view(2, 12)
    shared = encode(delta, Scheme("dense"))
    mask = random_mask((2, 12), 0)
    coded = masked.encode(mask, shared, delta[[2, 5]], 0.5)
    decoded = decode(coded)
    assert torch.equal(decoded[[2, 5]], delta[[2, 5]] * mask * 0.5)
    decoded[[2, 5]] = 0.0
    assert not decoded.any()


@given(shape=SHAPES, seed=st.integers(0, 10_000))
def test_planes_are_zeros_and_ones(shape: tuple[int, ...], seed: int) -> None:
    mask = random_mask(shape, seed)
    plane = masked.encode_plane(mask)
    assert torch.equal(decode(plane), mask.float())
    assert torch.equal(masked.unpacked_mask(plane), mask)
