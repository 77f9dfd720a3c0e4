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
from taskmix_composer.quant import sign

SMALLEST = 2.0**-149
# A scale is rounded up to float16.
HALF_PRECISION = 2.0**-10


def encoded(delta: Tensor, salient: float = 0.0) -> EncodedDelta:
    return sign.encode(delta, Scheme.of("sign", salient=salient))


def laplace(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Deltas of which a third is exactly zero, float32 [rows, columns]."""
    uniform = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) - 0.5
    delta = -uniform.sign() * (1 - 2 * uniform.abs()).log() * 1e-4
    delta[uniform.abs() < 1 / 6] = 0.0
    return delta


def relative_error(decoded: Tensor, delta: Tensor) -> float:
    return float((decoded - delta).norm() / delta.norm())


def digest(delta: EncodedDelta) -> str:
    content = b"".join(part.numpy().tobytes() for part in delta.parts.values())
    return hashlib.sha256(content).hexdigest()[:16]


@given(
    shape=st.sampled_from([(1, 1), (1, 7), (3, 64), (5, 65), (2, 3, 4), (40, 600)]),
    salient=st.sampled_from([0.0, 0.3, 1.0]),
    exponent=st.sampled_from([-100, -10, 0, 100]),
    seed=st.integers(0, 10_000),
)
def test_signs_are_kept_and_no_row_is_shrunk(
    shape: tuple[int, ...], salient: float, exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    delta = (torch.randn(shape, generator=generator).double() * 2.0**exponent).float()
    delta[0] = 0.0
    values = sign.decode(encoded(delta, salient))
    assert values.shape == delta.shape
    assert not values[0].any()
    matrix, decoded = delta.flatten(1).double(), values.flatten(1).double()
    assert (decoded * matrix >= 0).all()
    energy = matrix.square().sum(dim=1)
    kept = (decoded * matrix).sum(dim=1)
    assert (kept >= energy * (1 - 1e-6)).all()
    assert (kept <= energy * (1 + HALF_PRECISION)).all()


@given(values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_a_row_has_one_magnitude(values: list[float]) -> None:
    delta = torch.tensor([values], dtype=torch.float32)
    decoded = sign.decode(encoded(delta))
    assert torch.isfinite(decoded).all()
    assert decoded.abs().unique().numel() == 1
    largest = float(delta.abs().max())
    assert float(decoded.abs().max()) <= largest * (1 + HALF_PRECISION) + SMALLEST


def test_zeros_do_not_shift_the_sum_of_a_row() -> None:
    delta = torch.zeros(6, 101)
    delta[:, 0] = 1.0
    signs = sign.decode(encoded(delta))[:, 1:].sign()
    assert not signs.sum(dim=1).any()
    assert not signs.sum(dim=0).any()


def test_salient_rows_are_those_that_lose_most() -> None:
    delta = laplace(20, 300)
    delta[[3, 11]] *= 10
    coded = encoded(delta, salient=0.1)
    assert coded.parts["salient"].tolist() == [3, 11]
    assert coded.num_bytes == encoded(delta).num_bytes + 2 * (4 + 2 + 38)
    plain, decoded = sign.decode(encoded(delta)), sign.decode(coded)
    others = [row for row in range(20) if row not in (3, 11)]
    torch.testing.assert_close(decoded[others], plain[others], rtol=2e-3, atol=0)
    before, after = (relative_error(values[[3, 11]], delta[[3, 11]]) for values in (plain, decoded))
    assert after < 0.6 * before


def test_two_magnitudes_are_exact_where_there_are_two() -> None:
    delta = torch.tensor([[0.5, -0.125, 0.125, -0.5, 0.5, -0.125]])
    decoded = sign.decode(encoded(delta, salient=1.0))
    torch.testing.assert_close(decoded, delta, rtol=HALF_PRECISION, atol=0)


def test_blocks_of_rows_are_coded_alike() -> None:
    delta = laplace(37, 1600)
    assert rows_per_block(1600) < 37
    whole, part = (sign.decode(encoded(rows, salient=1.0)) for rows in (delta, delta[:5]))
    torch.testing.assert_close(whole[:5], part, rtol=2e-3, atol=0)


@pytest.mark.parametrize("salient", [[1, 1], [1, 0], [0, 4], [-1, 2]])
def test_salient_rows_that_do_not_fit_are_refused(salient: list[int]) -> None:
    coded = encoded(laplace(4, 16), salient=0.5)
    rows = torch.tensor(salient, dtype=torch.int32)
    with pytest.raises(BankFormatError):
        replace(coded, parts={**coded.parts, "salient": rows})


@pytest.mark.parametrize("part", ["salient", "highs", "sizes", "signs"])
def test_missing_parts_are_refused(part: str) -> None:
    coded = encoded(laplace(4, 16), salient=0.5)
    parts = {name: values for name, values in coded.parts.items() if name != part}
    with pytest.raises(BankFormatError):
        replace(coded, parts=parts)


def test_golden_bytes() -> None:
    delta = (torch.arange(7 * 45) * 37 % 64 - 32).view(7, 45) / 2.0**15
    assert digest(encoded(delta)) == "13d1274edf5cacf6"
    assert digest(encoded(delta, salient=0.4)) == "c279bd690c0ca0f3"
