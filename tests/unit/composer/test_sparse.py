import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BankFormatError
from taskmix_composer.layout import rows_per_block
from taskmix_composer.quant import sparse

SMALLEST = 2.0**-149
# Scales are rounded up to float16, and decoded weights to float32.
SLACK = 1e-6


def encoded(delta: Tensor, density: float, bits: int = 1) -> EncodedDelta:
    return sparse.encode(delta, Scheme.of("sparse", density=density, bits=bits))


def scales(delta: EncodedDelta) -> Tensor:
    """The scale of every row, float64 [rows, 1]."""
    return delta.parts["scales"].double() * delta.params["factor"]


def random_delta(shape: tuple[int, ...], exponent: int, nonzero: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0**exponent
    delta[torch.rand(shape, generator=generator) > nonzero] = 0.0
    return delta.float()


def digest(delta: EncodedDelta) -> str:
    content = b"".join(part.numpy().tobytes() for part in delta.parts.values())
    return hashlib.sha256(content).hexdigest()[:16]


@given(
    shape=st.sampled_from([(1, 1), (1, 7), (3, 64), (5, 65), (2, 3, 4), (4, 130), (40, 600)]),
    density=st.sampled_from([1e-6, 0.05, 0.1, 0.5, 1.0]),
    bits=st.sampled_from([1, 2, 3, 4]),
    exponent=st.sampled_from([-140, -100, -10, 0, 100]),
    nonzero=st.sampled_from([1.0, 0.3, 0.01]),
    seed=st.integers(0, 10_000),
)
def test_no_error_reaches_the_scale_and_a_row_keeps_the_sum_of_its_magnitudes(
    shape: tuple[int, ...], density: float, bits: int, exponent: int, nonzero: float, seed: int
) -> None:
    delta = random_delta(shape, exponent, nonzero, seed)
    coded = encoded(delta, density, bits)
    values = sparse.decode(coded)
    assert values.dtype == torch.float32
    assert values.shape == delta.shape
    matrix, decoded = delta.flatten(1).double(), values.flatten(1).double()
    bound = scales(coded) * (1 + SLACK) + SMALLEST
    assert ((decoded - matrix).abs() <= bound).all()
    missed = decoded.abs().sum(dim=1, keepdim=True) - matrix.abs().sum(dim=1, keepdim=True)
    assert (missed.abs() <= bound + matrix.shape[1] * SMALLEST).all()
    assert (decoded * matrix >= 0).all()
    num_kept = max(1, round(density * matrix.shape[1]))
    assert ((decoded != 0).sum(dim=1) <= num_kept).all()


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_any_row_is_within_a_scale(values: list[float]) -> None:
    delta = torch.tensor([values], dtype=torch.float32)
    coded = encoded(delta, 0.3, bits=2)
    error = (sparse.decode(coded) - delta).double().abs()
    assert (error <= scales(coded) * (1 + SLACK) + SMALLEST).all()


@pytest.mark.parametrize("density", [0.05, 0.2])
@pytest.mark.parametrize("bits", [1, 2])
def test_weights_are_right_on_average(density: float, bits: int) -> None:
    row = random_delta((1, 96), exponent=-12, nonzero=0.7, seed=0)
    coded = encoded(row.expand(1000, -1), density, bits)
    mean = sparse.decode(coded).double().mean(dim=0)
    assert ((mean - row).abs() <= 0.01 * scales(coded)[0]).all()


@pytest.mark.parametrize("exponent", [-100, -12, 95])
def test_the_density_is_met(exponent: int) -> None:
    delta = random_delta((64, 200), exponent, nonzero=1.0, seed=1)
    kept = (sparse.decode(encoded(delta, 0.1)) != 0).sum(dim=1)
    # A scale that was rounded up may keep one weight less.
    assert set(kept.tolist()) <= {19, 20}
    assert (sparse.decode(encoded(delta, 1e-6)) != 0).sum(dim=1).eq(1).all()


def test_a_level_bit_keeps_the_density_where_one_weight_is_large() -> None:
    delta = random_delta((64, 200), exponent=-12, nonzero=1.0, seed=1)
    delta[:, 17] = 20 * delta.abs().mean()
    one, two = (sparse.decode(encoded(delta, 0.1, bits)) != 0 for bits in (1, 2))
    assert two.sum() > 1.5 * one.sum()


def test_a_lone_weight_and_zero_rows_are_exact() -> None:
    delta = torch.zeros(3, 40)
    delta[1, 7] = -0.25
    decoded = sparse.decode(encoded(delta, 0.5))
    torch.testing.assert_close(decoded, delta, rtol=1e-3, atol=0)
    assert torch.equal(decoded != 0, delta != 0)
    assert not sparse.decode(encoded(torch.zeros(2, 5), 0.5)).any()


def test_blocks_of_rows_are_coded_alike() -> None:
    delta = random_delta((37, 1600), exponent=-12, nonzero=1.0, seed=2)
    delta[0] *= 2  # The largest row makes the factor, with the others or without them.
    step = rows_per_block(1600)
    assert step < 37
    whole, part = (sparse.decode(encoded(delta[:rows], 0.1)) for rows in (37, step))
    assert torch.equal(whole[:step], part)
    kept = (whole != 0).sum(dim=1)
    assert (kept[1:] >= 159).all()


def test_parts_take_a_bit_a_weight_and_the_bits_of_those_kept() -> None:
    coded = encoded(random_delta((16, 640), exponent=-12, nonzero=1.0, seed=3), 0.1, bits=2)
    assert coded.num_bytes == 16 * (640 // 8 + 64 * 2 // 8 + 2)


def test_more_kept_weights_than_codes_are_refused() -> None:
    coded = encoded(random_delta((4, 64), exponent=0, nonzero=1.0, seed=0), 0.25)
    full = torch.full_like(coded.parts["mask"], 255)
    damaged = replace(coded, parts={**coded.parts, "mask": full})
    with pytest.raises(BankFormatError, match="64 weights but has 16 codes"):
        sparse.decode(damaged)


@pytest.mark.parametrize("change", [{"kept": 0}, {"kept": 8.0}, {"bits": 5}, {"bits": 1.0}])
def test_parameters_that_do_not_fit_are_refused(change: dict[str, float]) -> None:
    coded = encoded(random_delta((4, 64), exponent=0, nonzero=1.0, seed=0), 0.125)
    with pytest.raises(BankFormatError):
        replace(coded, params={**coded.params, **change})


def test_golden_bytes() -> None:
    delta = (torch.arange(7 * 45) * 37 % 64 - 32).view(7, 45) / 2.0**15
    assert digest(encoded(delta, 0.2, bits=2)) == "cbce902f0cbbb580"
