import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.quant import decode, lowrank

# Both factors are rounded to float16.
TOLERANCE = 2.0**-10


def truncated(delta: Tensor, rank: int) -> EncodedDelta:
    return lowrank.truncated(delta, Scheme.of("lowrank", rank=rank))


def random_matrix(shape: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    shape=st.sampled_from([(40, 30), (30, 40), (64, 9), (9, 64), (1, 50)]),
    rank=st.integers(1, 3),
    exponent=st.sampled_from([-100, -12, 0, 100]),
    seed=st.integers(0, 10_000),
)
def test_no_matrix_of_the_rank_is_nearer(
    shape: tuple[int, int], rank: int, exponent: int, seed: int
) -> None:
    delta = random_matrix(shape, seed) * 2.0**exponent
    coded = truncated(delta, rank)
    if coded.codec == "dense":
        assert rank * sum(shape) >= delta.numel()
        return
    unit = delta.double().norm()
    error = float((decode(coded).double() - delta.double()).norm() / unit)
    lost = float(torch.linalg.svdvals(delta.double())[rank:].norm() / unit)
    assert error <= lost + TOLERANCE
    assert coded.parts["a"].shape == (min(rank, *shape), shape[1])


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_a_matrix_of_the_rank_is_restored(shape: tuple[int, int]) -> None:
    delta = random_matrix((shape[0], 3), 0) @ random_matrix((3, shape[1]), 1) * 1e-4
    coded = truncated(delta, 5)
    assert {part.dtype for part in coded.parts.values()} == {torch.float16}
    error = (decode(coded) - delta).norm() / delta.norm()
    assert error <= TOLERANCE


def test_singular_values_are_shared_by_the_factors() -> None:
    values = torch.tensor([64.0, 16.0, 4.0])
    coded = truncated(torch.diag(values, diagonal=5), 3)
    for part, axis in (("a", 1), ("b", 0)):
        norms = coded.parts[part].float().norm(dim=axis)
        torch.testing.assert_close(norms / norms[0], (values / 64).sqrt())


def test_singular_vectors_have_a_sign() -> None:
    a = truncated(random_matrix((40, 30), 0), 12).parts["a"].float()
    peaks = a.gather(1, a.abs().argmax(dim=1, keepdim=True))
    assert (peaks > 0).all()


@pytest.mark.parametrize("shape", [(4, 4), (6, 5, 3), (1, 1)])
def test_dense16_is_used_where_factors_do_not_pay(shape: tuple[int, ...]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    coded = truncated(delta, 64)
    assert coded.codec == "dense"
    assert torch.equal(decode(coded), delta.bfloat16().float())


def test_zeros_stay_zeros() -> None:
    coded = truncated(torch.zeros(30, 20), 2)
    assert coded.codec == "lowrank"
    assert not decode(coded).any()


def test_golden_bytes() -> None:
    # Powers of four: no rounding depends on how the machine decomposes matrices.
    coded = truncated(torch.diag(4.0 ** -torch.arange(9), diagonal=3), 4)
    content = b"".join(part.numpy().tobytes() for part in coded.parts.values())
    assert hashlib.sha256(content).hexdigest()[:16] == "1914509b1a5217ff"
    assert coded.params["scaling"] == 1.0
