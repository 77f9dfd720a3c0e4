import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import INTEGER_BITS, Scheme
from taskmix_composer.layout import rows_per_block
from taskmix_composer.quant import SCHEMES, decode, decode_rows, encode, lowrank

INTEGER = st.sampled_from(sorted(INTEGER_BITS))
# Codes are chosen in float32: half a step is missed by at most a few units in the last place.
HALF_STEP = 0.5 * (1 + 1e-4)
SMALLEST = 2.0**-149


def step_sizes(encoded: EncodedDelta, columns: int) -> Tensor:
    """The stored scale of every weight, float64."""
    group = encoded.params["group"] or columns
    scales = encoded.parts["scales"].double() * encoded.params["factor"]
    return scales.repeat_interleave(group, dim=1)[:, :columns]


def assert_within_half_a_step(delta: Tensor, scheme: Scheme) -> None:
    encoded = encode(delta, scheme)
    matrix = delta.reshape(delta.shape[0], -1).double()
    coded = matrix if encoded.rows is None else matrix[encoded.rows.long()]
    _, values = decode_rows(encoded)
    error = (values.reshape(coded.shape).double() - coded).abs()
    assert torch.isfinite(values).all()
    assert (error <= step_sizes(encoded, coded.shape[1]) * HALF_STEP + SMALLEST).all()
    assert (decode(encoded)[delta == 0] == 0).all()


@given(
    name=INTEGER,
    group=st.sampled_from([0, 1, 5, 64]),
    shape=st.sampled_from([(1, 1), (1, 7), (3, 64), (5, 65), (2, 3, 4), (4, 130)]),
    exponent=st.integers(-148, 126),
    offset=st.sampled_from([0.0, 1.0, -1.0, 0.1]),
    kept=st.sampled_from([1.0, 0.5, 0.1]),
    seed=st.integers(0, 10_000),
)
def test_errors_are_at_most_half_a_step_and_zero_is_exact(
    name: str,
    group: int,
    shape: tuple[int, ...],
    exponent: int,
    offset: float,
    kept: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5 + offset
    delta = (uniform * 2.0**exponent).float()
    delta[torch.rand(shape, generator=generator) > kept] = 0.0
    assert_within_half_a_step(delta, Scheme.of(name, group=group))


@given(
    name=INTEGER,
    group=st.sampled_from([0, 2, 3]),
    values=st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=4, max_size=12),
)
def test_any_values_are_within_half_a_step(name: str, group: int, values: list[float]) -> None:
    assert_within_half_a_step(
        torch.tensor([values], dtype=torch.float32), Scheme.of(name, group=group)
    )


@pytest.mark.parametrize("name", sorted(INTEGER_BITS))
@pytest.mark.parametrize("group", [0, 4])
def test_constant_and_zero_groups(name: str, group: int) -> None:
    delta = torch.zeros(2, 8)
    assert not decode(encode(delta, Scheme.of(name, group=group))).any()
    delta[:, :4] = 0.3
    decoded = decode(encode(delta, Scheme.of(name, group=group)))
    torch.testing.assert_close(decoded, delta, rtol=1e-3, atol=0)
    assert not decoded[:, 4:].any()


def test_scales_far_apart_in_one_tensor_survive() -> None:
    delta = torch.tensor([[1e4] * 4 + [1e-4, -1e-4, 5e-5, 0.0]])
    decoded = decode(encode(delta, Scheme.of("int8", group=4)))
    torch.testing.assert_close(decoded[:, 4:], delta[:, 4:], rtol=0, atol=5e-7)


@pytest.mark.parametrize("group", [0, 64])
def test_large_matrices_are_coded_in_blocks(group: int) -> None:
    delta = torch.randn(27, 1600, generator=torch.Generator().manual_seed(0))
    assert rows_per_block(1600) < 27
    encoded = encode(delta, Scheme.of("int4", group=group))
    error = (decode(encoded) - delta).abs().view(27, -1, 64)
    steps = encoded.parts["scales"].float() * encoded.params["factor"]
    assert (error <= HALF_STEP * steps.unsqueeze(2)).all()


def test_dense_keeps_and_dense16_rounds() -> None:
    delta = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(decode(encode(delta, Scheme("dense"))), delta)
    rounded = encode(delta, Scheme("dense16"))
    assert rounded.num_bytes == 60
    assert torch.equal(decode(rounded), delta.bfloat16().float())
    assert torch.equal(decode(encode(delta[0], Scheme("dense16"))), delta[0].bfloat16().float())


@pytest.mark.parametrize("name", sorted(INTEGER_BITS))
def test_norms_and_biases_stay_float32_under_integer_schemes(name: str) -> None:
    for delta in (torch.randn(9), torch.tensor(0.1)):
        encoded = encode(delta, Scheme(name))
        assert encoded.codec == "dense"
        assert torch.equal(decode(encoded), delta)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_only_changed_rows_are_coded_if_they_are_few(name: str) -> None:
    options = {"density": 1.0} if name == "sparse" else {}
    scheme = Scheme.of(name, **options)
    delta = torch.zeros(8, 4, 3)
    delta[[1, 6]] = 0.5
    encoded = encode(delta, scheme)
    rows, values = decode_rows(encoded)
    assert rows is not None
    assert rows.tolist() == [1, 6]
    assert values.shape == (2, 4, 3)
    torch.testing.assert_close(decode(encoded), delta, rtol=1e-2, atol=0)
    delta[[0, 2, 3]] = 0.5
    assert encode(delta, scheme).rows is None


def test_integer_codes_take_their_bits() -> None:
    delta = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for name, bits in INTEGER_BITS.items():
        assert encode(delta, Scheme(name)).num_bytes == 64 * (64 * bits // 8 + 3)


def test_low_rank_factors_multiply_in_float32() -> None:
    a, b = torch.randn(2, 5).bfloat16(), torch.randn(3, 2).bfloat16()
    encoded = lowrank.encode(a, b, 0.5)
    assert encoded.parts["a"].dtype == torch.bfloat16
    expected = 0.5 * (b.float() @ a.float())
    torch.testing.assert_close(decode(encoded), expected)
